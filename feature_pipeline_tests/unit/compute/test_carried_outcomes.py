"""Nothing is asked twice: what was answered in any batch, under any release, is carried over."""

from pathlib import Path

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import answers, log
from feature_pipeline.archive.logs.tombstones import lift
from feature_pipeline.archive.maintenance import rebuild_answers
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.gc import GcScope, make_mark
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.compute.plan import PlanBasis
from feature_pipeline.compute.redecode import decode_batch_again
from feature_pipeline.model.digest import Digest
from feature_pipeline_tests.fixtures import asked
from feature_pipeline_tests.fixtures.asked import COLUMNS, DATASET, Asking
from feature_pipeline_tests.fixtures.care import holds
from feature_pipeline_tests.fixtures.stores import FailingStore


@pytest.fixture
def asking(memory_store: MemoryStore, tmp_path: Path) -> Asking:
    asking = Asking(memory_store, tmp_path)
    asking.hook()
    return asking


def raw_key(asking: Asking, manifest: Digest, name: str = "features.jsonl") -> str:
    blob = read.read_manifest(asking.store, manifest).blobs[f"raw/{name}"]
    return layout.blob(blob.digest)


def test_the_same_record_in_another_batch_is_not_computed_again(asking: Asking):
    asking.submit("b1", {"r1": "a", "r2": "bb"})
    first = asking.run("b1")
    asking.submit("b2", {"r2": "bb", "r3": "ccc", "r1": "a"})
    asking.run("b2")
    assert asking.runner.starts == [["r1", "r2"], ["r3"]]
    assert asking.values("b2") == {"r2": 2, "r3": 3, "r1": 1}
    sources = {i: o.carried_from for i, o in asking.outcomes("b2").items()}
    assert sources == {"r1": first.manifest, "r2": first.manifest, "r3": None}
    # ... and no process is started where all of it is known
    asking.submit("b3", {"r3": "ccc", "r2": "bb"})
    entry = asking.run("b3")
    assert len(asking.runner.starts) == 2
    manifest = read.read_manifest(asking.store, entry.manifest)
    assert (manifest.run.runner, manifest.run.attempts, manifest.counts.carried) == ("none", 0, 2)
    assert asking.run("b3") is None


def test_planning_makes_few_requests_however_many_batches_there_are(asking: Asking):
    """Records that no batch has, and records that one of all has."""
    requests: dict[int, list[int]] = {}
    known = {f"k{i}": f"{i}" for i in range(100)}
    asking.submit("known", known)
    asking.run("known")
    asking.submit("again", known)
    asking.submit("new", {f"n{i}": f"new {i}" for i in range(100)})
    for batches in (10, 40):
        while asking.runs < batches:
            asking.submit(f"b{asking.runs}", {f"r{asking.runs}": f"text {asking.runs}"})
            asking.run(f"b{asking.runs}")
            asking.round()
        made = requests[batches] = []
        for key, computed in (("again", 0), ("new", 100)):
            log.forget_read_entries()
            counting = FailingStore(asking.store, 10**9)
            assert len(asking.plan(key, store=counting).compute) == computed
            made.append(len(counting.calls))
    assert max(requests[40]) <= 50
    assert all(many < few + 10 for few, many in zip(*requests.values(), strict=True))


def test_another_text_is_another_question(asking: Asking):
    asking.submit("b1", {"r1": "a"})
    asking.run("b1")
    asking.submit("b2", {"r1": "aa"})
    asking.run("b2")
    assert len(asking.runner.starts) == 2


def test_rejections_and_lasting_errors_are_answers_and_retryable_errors_are_not(asking: Asking):
    texts = {"r1": "no:", "r2": "bad:", "r3": "busy:", "r4": "none:"}
    asking.submit("b1", texts)
    asking.run("b1")
    asking.submit("b2", texts)
    plan = asking.plan("b2")
    assert [record.id for record in plan.compute] == ["r3"]
    asking.run("b2")
    assert asking.values("b2") == asking.values("b1")
    # its own batch asks again too, and says that it does
    assert asking.plan("b1").retried == 1


def test_an_older_answer_does_not_outlive_a_retryable_error(asking: Asking, monkeypatch):
    """It was asked again because the answer was in doubt: the old one must not come back."""
    asking.submit("b1", {"r1": "a"})
    asking.run("b1")
    with monkeypatch.context() as patch:
        busy = {"error": "later", "retryable": True}
        patch.setitem(asked.HOOKS, "lengths", lambda *_: busy)
        asking.run("b1", force=True)
    assert [record.id for record in asking.plan("b1").compute] == ["r1"]
    # what another batch learnt since is a later answer
    asking.submit("b2", {"r1": "a"})
    asking.run("b2", force=True)
    assert asking.plan("b1").compute == ()


def test_the_answer_accepted_last_is_the_one_carried(asking: Asking):
    asking.submit("b1", {"r1": "a"})
    first = asking.run("b1")
    second = asking.run("b1", force=True)
    assert first.manifest != second.manifest
    asking.submit("b2", {"r1": "a"})
    asking.run("b2")
    assert asking.outcomes("b2")["r1"].carried_from == second.manifest


def test_an_upstream_release_to_and_fro_costs_no_start_downstream(asking: Asking):
    asking.hook("totals", inputs=["lengths"])
    asking.submit("b1", {"r1": "a", "r2": "bb"})
    for config in ({}, {"factor": 2}, {}, {"factor": 2}, {}):
        asking.hook("lengths", config)
        asking.run("b1")
        asking.run("b1", "totals")
    assert len(asking.runner.starts) == 4
    assert asking.values("b1", "totals") == {"r1": 1, "r2": 2}
    entries = log.read_log(asking.store, DATASET, "totals", "b1")
    assert entries[0].content_digest == entries[2].content_digest == entries[4].content_digest
    assert verify(asking.store).is_clean


def test_a_downstream_release_to_and_fro_over_several_batches(asking: Asking):
    asking.hook("totals", inputs=["lengths"])
    for key, texts in (("b1", {"r1": "a"}), ("b2", {"r1": "a", "r2": "bb"})):
        asking.submit(key, texts)
        asking.run(key)
        for config in ({}, {"offset": 5}, {}):
            asking.hook("totals", config, inputs=["lengths"])
            asking.run(key, "totals")
    assert max(asking.runner.asked.values()) == 1
    assert asking.values("b2", "totals") == {"r1": 1, "r2": 2}


def test_one_answer_for_a_whole_batch(asking: Asking):
    asking.hook(scope="batch")
    asking.submit("b1", {"r1": "a", "r2": "bb"})
    asking.run("b1")
    asking.submit("b2", {"r1": "a", "r2": "bb"})
    asking.run("b2")
    assert len(asking.runner.starts) == 1
    assert asking.values("b2") == {"r1": 1, "r2": 2}
    asking.submit("b3", {"r2": "bb", "r1": "a"})  # the order is part of the question
    asking.run("b3")
    asking.submit("b4", {"r1": "a"})
    asking.run("b4")
    assert asking.runner.starts == [["r1", "r2"], ["r2", "r1"], ["r1"]]
    asking.run("b2", force_records=["r1"])
    assert asking.runner.starts[3:] == [["r1", "r2"]]


def test_a_batch_with_a_retryable_error_is_no_answer_to_another(asking: Asking):
    asking.hook(scope="batch")
    for key in ("b1", "b2"):
        asking.submit(key, {"r1": "a", "r2": "busy:"})
        asking.run(key)
    assert len(asking.runner.starts) == 2


def test_changed_columns_are_decoded_again_from_another_batch(asking: Asking):
    asking.submit("b1", {"r1": "a"})
    first = asking.run("b1")
    asking.submit("b2", {"r1": "a"})
    columns = [*COLUMNS, {"name": "note", "type": "string", "default": "none"}]
    asking.hook(feature={"columns": columns})
    plan = asking.plan("b2")
    assert (plan.compute, plan.decoded_again) == ((), 1)
    asking.run("b2")
    assert asking.outcomes("b2")["r1"].rows == ((1, "none"),)
    assert asking.outcomes("b2")["r1"].carried_from == first.manifest
    assert len(asking.runner.starts) == 1


def test_raw_output_stays_the_authority_over_batches(asking: Asking):
    """A decoder that was wrong is put right in the batch that carried over, too."""
    asking.submit("b1", {"r1": "a"})
    asking.run("b1")
    asking.submit("b2", {"r1": "a"})
    entry = asking.run("b2")
    manifest = read.read_manifest(asking.store, entry.manifest)
    key = layout.blob(manifest.blobs["rows"].digest)
    asking.store.delete(key)
    assert decode_batch_again(asking.store, entry).damage is not None
    assert asking.values("b2") == {"r1": 1}
    assert verify(asking.store).is_clean


@pytest.mark.parametrize("is_deleted", [True, False])
def test_an_answer_whose_raw_output_is_gone_is_not_trusted(asking: Asking, is_deleted: bool):
    asking.submit("b1", {"r1": "a"})
    first = asking.run("b1")
    key = raw_key(asking, first.manifest)
    asking.store.delete(key)
    if not is_deleted:
        asking.store.create(key, b"x" * 39)
    asking.submit("b2", {"r1": "a"})
    plan = asking.plan("b2")
    assert [record.id for record in plan.compute] == ["r1"]
    assert any(first.manifest.short in note for note in plan.notes)


def test_an_answer_that_no_log_names_is_not_trusted(asking: Asking):
    """Nothing keeps its blobs: a collection may delete them while a run carries them over."""
    asking.submit("b1", {"r1": "a"})
    first = asking.run("b1")
    asking.submit("b2", {"r1": "a"})
    assert asking.plan("b2").compute == ()
    asking.store.delete(layout.entry(layout.feature_log(DATASET, "lengths", "b1"), first.seq))
    assert [record.id for record in asking.plan("b2").compute] == ["r1"]


def test_a_false_memory_costs_work_and_no_truth(asking: Asking):
    """It names artifacts for what they never answered, artifacts of other hooks, and none."""
    asking.hook("totals", inputs=["lengths"])
    asking.submit("b1", {"r1": "a"})
    first = asking.run("b1")
    other = asking.run("b1", "totals")
    asking.submit("b2", {"r2": "bb"})
    plan = asking.plan("b2")
    action = plan.actions["r2"]
    memory = layout.answers(DATASET, "lengths", plan.release.release.program)
    asking.forget()
    for manifest in (first.manifest, other.manifest, Digest.of(b"no manifest")):
        answers.remember(asking.store, memory, manifest, {action})
    asking.run("b2")
    assert asking.values("b2") == {"r2": 2}


def test_a_lost_memory_costs_work_over_batches_and_none_within_one(asking: Asking):
    """What a batch's own log says is looked at while the memory is not known to be complete."""
    asking.submit("b1", {"r1": "a"})
    asking.run("b1")
    asking.hook(config={"factor": 2})
    asking.run("b1")
    asking.forget()
    asking.hook()
    asking.run("b1")
    assert len(asking.runner.starts) == 2
    asking.submit("b2", {"r1": "a"})
    asking.hook(config={"factor": 2})
    asking.run("b2")
    assert len(asking.runner.starts) == 3
    # ... until it is derived from the logs again
    asking.forget()
    rebuild_answers.complete(asking.store, DATASET, "lengths")
    asking.submit("b3", {"r1": "a"})
    asking.run("b3")
    assert len(asking.runner.starts) == 3


def test_an_unchanged_batch_does_not_ask_the_memory(asking: Asking):
    asking.submit("b1", {"r1": "a"})
    asking.run("b1")
    counting = FailingStore(asking.store)
    assert asking.plan("b1", store=counting).is_unchanged
    assert not [call for call in counting.calls if "answers/" in call]


def test_a_plan_is_repeated_whatever_was_learnt_since(asking: Asking):
    """The result of a run whose worker died is taken by planning again."""
    asking.submit("b1", {"r1": "a"})
    asking.run("b1")
    asking.submit("b2", {"r1": "a", "r2": "bb"})
    then = asking.plan("b2")
    asking.run("b1", force=True)
    asking.submit("b3", {"r2": "bb"})
    asking.run("b3")
    basis = PlanBasis(then.base, {}, then.sources)
    again = asking.plan("b2", force_records=["r2"], basis=basis)
    assert dict(again.carried) == dict(then.carried)
    assert again.compute == then.compute
    assert again.hook_run_id("") == then.hook_run_id("")
    asking.forget()
    lost = asking.plan("b2", force_records=["r2"], basis=basis)
    assert dict(lost.carried) == dict(then.carried)


# Erased records


def traces(asking: Asking) -> list[str]:
    """Where the erased record is named, but for the logs that say that it is withdrawn."""
    keys = holds(asking.store, b"personal")
    return [key for key in keys if not key.startswith((layout.TOMBSTONE_LOGS, layout.ERASURE_LOGS))]


def test_what_is_erased_is_no_answer_and_the_others_still_are(asking: Asking):
    asking.submit("b1", {"personal": "a", "r2": "bb"})
    first = asking.run("b1")
    asking.submit("b2", {"r2": "bb"})
    asking.run("b2")
    write_census(asking.store)
    erase(asking.store, DATASET, ["personal"], "asked for")
    assert traces(asking) == []
    successor = log.head(asking.store, DATASET, "lengths", "b1")
    assert successor.manifest != first.manifest
    # the batch that carried from the erased artifact stands, and is carried from
    assert asking.plan("b2").is_unchanged
    asking.submit("b3", {"r2": "bb"})
    asking.run("b3")
    assert len(asking.runner.starts) == 1
    assert asking.outcomes("b3")["r2"].carried_from == successor.manifest
    lift(asking.store, DATASET, ["personal"], "allowed")
    asking.submit("b4", {"personal": "a", "r2": "bb"})
    asking.run("b4")
    assert asking.runner.starts[1:] == [["personal"]]
    assert verify(asking.store).is_clean


def test_carried_outcomes_are_decoded_from_the_successor_of_an_erased_artifact(asking: Asking):
    asking.submit("b1", {"personal": "a", "r2": "bb"})
    asking.run("b1")
    asking.submit("b2", {"r2": "bb"})
    entry = asking.run("b2")
    write_census(asking.store)
    erase(asking.store, DATASET, ["personal"], "asked for")
    assert not decode_batch_again(asking.store, entry).is_new
    manifest = read.read_manifest(asking.store, entry.manifest)
    asking.store.delete(layout.blob(manifest.blobs["rows"].digest))
    assert decode_batch_again(asking.store, entry).damage is not None
    assert asking.values("b2") == {"r2": 2}
    assert verify(asking.store).is_clean
    columns = [*COLUMNS, {"name": "note", "type": "string", "default": "none"}]
    asking.hook(feature={"columns": columns})
    asking.run("b2")
    assert asking.outcomes("b2")["r2"].rows == ((2, "none"),)
    assert len(asking.runner.starts) == 1


@pytest.mark.parametrize("whose", ["b1", "b2"])
def test_erasing_a_record_of_two_batches_leaves_nothing_of_it(asking: Asking, whose: str):
    """Whichever of the two artifacts computed it, and whichever is redacted first."""
    other = {"b1": "b2", "b2": "b1"}[whose]
    asking.submit("b1", {"personal": "a", "r2": "bb"})
    asking.submit("b2", {"personal": "a", "r2": "bb"})
    asking.run(whose)
    asking.run(other)
    assert len(asking.runner.starts) == 1
    write_census(asking.store)
    erase(asking.store, DATASET, ["personal"], "asked for")
    assert traces(asking) == []
    assert asking.values("b1") == asking.values("b2") == {"r2": 2}
    assert asking.plan("b1").is_unchanged
    assert asking.plan("b2").is_unchanged
    head = log.head(asking.store, DATASET, "lengths", other)
    assert not decode_batch_again(asking.store, head).is_new
    assert verify(asking.store).is_clean
    rebuild_answers.complete(asking.store, DATASET, "lengths")
    asking.submit("b3", {"r2": "bb"})
    asking.run("b3")
    assert len(asking.runner.starts) == 1


def test_a_collection_keeps_what_other_batches_carry_from(asking: Asking):
    asking.submit("b1", {"r1": "a"})
    asking.run("b1")
    asking.submit("b2", {"r1": "a"})
    asking.run("b2")
    asking.run("b1", force=True)  # what b2 carries from is history in its own batch
    mark, stored, _ = make_mark(asking.store, GcScope.everything())
    assert stored
    assert mark.orphans == {}
    assert asking.plan("b2").is_unchanged
    assert verify(asking.store).is_clean
