"""What was current then."""

from datetime import datetime, timedelta

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.query import history
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline_tests.fixtures.care import CareScene
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK

INSTANT = timedelta(microseconds=1)


def heads_as_of(care, as_of):
    return history.readable_heads_as_of(care.store, DATASET, HOOK, as_of).whole()


def head_as_of(care, batch, as_of):
    return history.readable_heads_as_of(care.store, DATASET, HOOK, as_of, [batch]).intact.get(batch)


@pytest.fixture
def care(memory_store, tmp_path):
    """Two batches; the first computed by release 1, then 2, then by 1 again, too late."""
    scene = CareScene(memory_store, tmp_path)
    batch = scene.submit(scene.batch_of("b1", ("a", "b")))
    first, second = scene.release("1"), scene.release("2")
    scene.compute(batch, first, "x")
    scene.compute(batch, second, "y", base=1)
    scene.compute(batch, first, "late", base=1)
    scene.compute(scene.submit(scene.batch_of("b2", ("c",))), second, "x")
    return scene


def test_as_of_an_entry(care):
    entries = log.read_log(care.store, DATASET, HOOK, "b1")
    heads = [head_as_of(care, "b1", seq) for seq in (1, 2, 3, 99)]
    assert heads == [entries[0], entries[1], entries[1], entries[1]]
    assert head_as_of(care, "b9", 1) is None


def test_as_of_a_time(care):
    entries = log.read_log(care.store, DATASET, HOOK, "b1")
    other = log.head(care.store, DATASET, HOOK, "b2")
    for time, expected in [
        (entries[0].accepted_at - INSTANT, {}),
        (entries[0].accepted_at, {"b1": entries[0]}),
        (entries[1].accepted_at - INSTANT, {"b1": entries[0]}),
        (entries[2].accepted_at, {"b1": entries[1]}),
        (other.accepted_at, {"b1": entries[1], "b2": other}),
    ]:
        assert heads_as_of(care, time) == expected
        for batch in ("b1", "b2"):
            head = head_as_of(care, batch, time)
            assert head == expected.get(batch)


def test_the_past_of_what_was_erased(care):
    """Every time stays readable, without the record."""
    before = [e.accepted_at for e in log.read_log(care.store, DATASET, HOOK, "b1")]
    erase(care.store, DATASET, ["a"], "asked for")
    labels = []
    for time in before:
        head = heads_as_of(care, time)["b1"]
        manifest = read.read_manifest(care.store, head.manifest)
        [outcome] = read.read_artifact_outcomes(care.store, manifest)
        labels.append(outcome.rows[0][2])
    assert labels == ["x of b", "y of b", "y of b"]


def test_history_lists_everything(care):
    lines = history.readable_history(care.store, DATASET, HOOK).lines
    assert [(line.entry.batch, line.entry.seq) for line in lines] == [
        ("b1", 1),
        ("b1", 2),
        ("b1", 3),
        ("b2", 1),
    ]
    assert [line.is_head for line in lines] == [False, True, False, True]
    assert [line.release.release.document.version for line in lines] == ["1", "2", "1", "2"]
    assert lines[2].to_json()["verdict"] == "superseded"
    assert lines[0].to_json()["counts"]["rows"] == 2


def test_damage_is_named_in_its_line(care):
    entry = log.read_log(care.store, DATASET, HOOK, "b1")[0]
    care.store.delete(layout.blob(entry.manifest))
    lines = history.readable_history(care.store, DATASET, HOOK, "b1").lines
    assert lines[0].problem
    assert lines[0].manifest is None
    assert [line.problem for line in lines[1:]] == [None, None]


def test_what_is_not_there_is_named(care):
    with pytest.raises(NotFoundError, match="it has pockets"):
        history.readable_history(care.store, DATASET, "nothing")
    with pytest.raises(NotFoundError, match="'b9'"):
        history.readable_history(care.store, DATASET, HOOK, "b9")


@pytest.mark.parametrize("as_of", [0, -1, datetime(2026, 1, 1)])  # noqa: DTZ001
def test_times_without_an_offset_and_entry_0_are_refused(care, as_of):
    with pytest.raises(InvalidInputError):
        head_as_of(care, "b1", as_of)
