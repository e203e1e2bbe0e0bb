"""The memory of answers is completed from the logs, however it came to lack something."""

from datetime import timedelta
from pathlib import Path

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import answers, log
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.rebuild_answers import OLD, complete, is_due
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline.model.digest import Digest
from feature_pipeline_tests.fixtures.asked import DATASET, Asking
from feature_pipeline_tests.fixtures.care import aged
from feature_pipeline_tests.fixtures.stores import At, FailingStore

HOOK = "lengths"


@pytest.fixture
def asking(memory_store: MemoryStore, tmp_path: Path) -> Asking:
    """Three batches, one of them with a retryable error, one that failed, one carried over."""
    asking = Asking(memory_store, tmp_path)
    asking.hook()
    for key, texts in (("b1", {"r1": "a", "r2": "bb"}), ("b2", {"r2": "bb", "r3": "busy:"})):
        asking.submit(key, texts)
        asking.run(key)
    return asking


def memory(asking: Asking) -> str:
    """The prefix of the memory of the hook's only program."""
    release = asking.definitions[HOOK].hook_release(asking.folder)
    return layout.answers(DATASET, HOOK, release.program)


def remembered(asking: Asking) -> dict[str, set[Digest]]:
    """Per record the artifacts that the memory names for it."""
    actions = {**asking.plan("b1").actions, **asking.plan("b2").actions}
    candidates = answers.find(asking.store, memory(asking), actions.values()).artifacts
    return {
        record: {manifest for manifest, answered in candidates.items() if action in answered}
        for record, action in actions.items()
    }


def keys(asking: Asking) -> list[str]:
    return [info.key for info in asking.store.list_objects(memory(asking))]


def test_nothing_is_added_to_a_memory_that_acceptance_kept(asking: Asking):
    before = remembered(asking)
    report = complete(asking.store, DATASET, HOOK)
    assert (report.artifacts, report.added, report.forgotten, report.problems) == (2, 0, 0, [])
    assert remembered(asking) == before
    assert {record for record, answer in before.items() if answer} == {"r1", "r2"}


@pytest.mark.parametrize("anew", [False, True])
def test_an_archive_without_a_memory_gets_the_one_that_acceptance_would_have_kept(
    asking: Asking, anew: bool
):
    before = remembered(asking)
    asking.forget()
    report = complete(asking.store, DATASET, HOOK, anew=anew)
    assert (report.artifacts, report.added) == (2, 2)
    assert remembered(asking) == before
    assert len(keys(asking)) == 2  # a segment, and the mark


def test_it_is_due_at_first_and_a_day_later(asking: Asking):
    assert is_due(asking.store, DATASET, HOOK)
    assert not answers.find(asking.store, memory(asking), [Digest.of(b"")]).is_complete
    complete(asking.store, DATASET, HOOK)
    assert not is_due(asking.store, DATASET, HOOK)
    assert answers.find(asking.store, memory(asking), [Digest.of(b"")]).is_complete
    aged(asking.store, OLD + timedelta(minutes=1))
    assert is_due(asking.store, DATASET, HOOK)
    complete(asking.store, DATASET, HOOK)
    assert not is_due(asking.store, DATASET, HOOK)
    assert len([key for key in keys(asking) if answers.COMPLETE in key]) == 1


def test_a_lost_part_is_noticed_and_a_damaged_one_replaced(asking: Asking):
    before = remembered(asking)
    lost, damaged = keys(asking)
    asking.store.delete(lost)
    asking.store.delete(damaged)
    asking.store.create(damaged, b"?")
    report = complete(asking.store, DATASET, HOOK)
    assert (report.added, report.discarded) == (2, 1)
    assert remembered(asking) == before
    assert damaged not in keys(asking)


def test_what_is_erased_is_forgotten_and_its_successor_remembered(asking: Asking):
    before = log.head(asking.store, DATASET, HOOK, "b1")
    action = asking.plan("b1").actions["r1"]
    erase(asking.store, DATASET, ["r1"], "asked for")
    report = complete(asking.store, DATASET, HOOK)
    assert (report.added, report.forgotten) == (1, 1)
    after = log.head(asking.store, DATASET, HOOK, "b1")
    assert remembered(asking)["r2"] == {after.manifest}
    assert answers.find(asking.store, memory(asking), [action]).artifacts == {}
    stored = b"".join(asking.store.get(key).data for key in keys(asking))
    assert bytes.fromhex(before.manifest.hex) not in stored


def test_what_no_log_names_is_forgotten_once_it_cannot_be_under_way(asking: Asking):
    orphan = Digest.of(b"accepted by nobody")
    answers.remember(asking.store, memory(asking), orphan, {Digest.of(b"a")})
    assert complete(asking.store, DATASET, HOOK).forgotten == 0
    aged(asking.store, OLD)
    assert complete(asking.store, DATASET, HOOK).forgotten == 1
    assert answers.find(asking.store, memory(asking), [Digest.of(b"a")]).artifacts == {}


def test_an_unfinished_segment_is_removed_once_its_writer_must_be_dead(asking: Asking):
    asking.store.create(f"{memory(asking)}{'ab' * 16}.0.2", b"?")
    complete(asking.store, DATASET, HOOK)
    assert f"{memory(asking)}{'ab' * 16}.0.2" in keys(asking)
    aged(asking.store, OLD)
    assert complete(asking.store, DATASET, HOOK).discarded == 1
    assert f"{memory(asking)}{'ab' * 16}.0.2" not in keys(asking)


def test_a_damaged_artifact_and_a_damaged_log_cost_themselves_alone(asking: Asking):
    asking.submit("b3", {"r4": "dddd"})
    asking.run("b3")
    before = remembered(asking)
    asking.forget()
    head = log.head(asking.store, DATASET, HOOK, "b2")
    manifest = read.read_manifest(asking.store, head.manifest)
    asking.store.delete(layout.blob(manifest.blobs["outcomes"].digest))
    key = layout.entry(layout.feature_log(DATASET, HOOK, "b3"), 1)
    asking.store.delete(key)
    asking.store.create(key, b"?")
    report = complete(asking.store, DATASET, HOOK)
    assert (report.artifacts, report.added, len(report.problems)) == (2, 1, 2)
    assert remembered(asking)["r1"] == before["r1"]
    # what the damaged log may name is not forgotten
    aged(asking.store, OLD)
    answers.remember(asking.store, memory(asking), Digest.of(b"in b3"), set())
    aged(asking.store, OLD)
    assert complete(asking.store, DATASET, HOOK).forgotten == 0


def test_a_store_that_does_not_answer_leaves_no_mark(asking: Asking):
    asking.forget()
    call = 0
    while True:
        call += 1
        failing = FailingStore(asking.store, call, error=lambda: StoreUnavailableError("no"))
        try:
            complete(failing, DATASET, HOOK)
        except StoreUnavailableError:
            assert not [key for key in keys(asking) if answers.COMPLETE in key]
        else:
            break
    assert set(remembered(asking)) == {"r1", "r2", "r3"}


@pytest.mark.parametrize("anew", [False, True])
def test_what_is_accepted_meanwhile_is_not_lost(asking: Asking, anew: bool):
    asking.submit("b3", {"r4": "dddd"})
    before = dict(asking.store._objects)
    call = 0
    while True:
        call += 1
        asking.store._objects = dict(before)
        beside = At(asking.store, call, lambda: asking.run("b3"))
        complete(beside, DATASET, HOOK, anew=anew)
        if beside.calls < call:
            break
        action = asking.plan("b3").actions["r4"]
        assert answers.find(asking.store, memory(asking), [action]).artifacts
        assert {record for record, answer in remembered(asking).items() if answer} == {"r1", "r2"}
    assert call > 5


def test_each_program_has_a_memory_and_a_name_alone_makes_no_program(asking: Asking):
    asking.hook(config={"factor": 2})
    asking.run("b1")
    asking.hook(release={"version": "1"}, description="of the first program")
    asking.forget()
    report = complete(asking.store, DATASET, HOOK)
    assert (report.artifacts, report.added) == (3, 3)
    assert len(answers.list_programs(asking.store, DATASET, HOOK)) == 2
    first = log.read_log(asking.store, DATASET, HOOK, "b1")[0]
    assert remembered(asking)["r1"] == {first.manifest}
    # what is left of a program that no release has goes, and is no problem meanwhile
    other = layout.answers(DATASET, HOOK, Digest.of(b"no program"))
    answers.remember(asking.store, other, Digest.of(b"no artifact"), {Digest.of(b"a")})
    aged(asking.store, OLD)
    assert complete(asking.store, DATASET, HOOK).forgotten == 1
    assert len(answers.list_programs(asking.store, DATASET, HOOK)) == 2
