"""One damaged object costs its own batch: readers show the rest, and name what they leave out."""

from pathlib import Path

import pytest

from feature_pipeline.archive import accept
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.query.history import (
    RELEASES,
    readable_heads_as_of,
    readable_history,
)
from feature_pipeline.archive.query.summary import summarize
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import FeaturePipelineError, NotFoundError
from feature_pipeline_tests.fixtures.care import CareScene
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK


@pytest.fixture
def scene(tmp_path: Path) -> CareScene:
    """Three batches; r2 is in the first and the second, and belongs to the second."""
    scene = CareScene(MemoryStore(), tmp_path)
    release = scene.release()
    for key, ids in (("b1", ("r1", "r2")), ("b2", ("r2", "r3")), ("b3", ("r4",))):
        scene.compute(scene.submit(scene.batch_of(key, ids)), release, key)
    return scene


def feature_entry(batch: str) -> str:
    return layout.entry(layout.feature_log(DATASET, HOOK, batch), 1)


def batch_entry(batch: str) -> str:
    return layout.entry(layout.batch_log(DATASET, batch), 1)


def manifest(scene: CareScene, batch: str) -> str:
    head = log.head(scene.store, DATASET, HOOK, batch)
    assert head is not None
    return layout.blob(head.manifest)


def rows(scene: CareScene, batch: str) -> str:
    features = Archive(scene.store).features(HOOK)
    return layout.blob(features.manifest(batch).blobs["rows"].digest)


def flip(scene: CareScene, key: str) -> None:
    stored = scene.store.get(key)
    data = bytes([stored.data[0] ^ 1]) + stored.data[1:]
    assert scene.store.replace(key, data, stored.info.etag)


def read(scene: CareScene) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The ids of the rows shown per batch, and what was left out."""
    features = Archive(scene.store).features(HOOK, skip_damaged=True)
    shown = {b: table["record_id"].to_pylist() for b, table in features.batch_tables()}
    return shown, dict(features.damage)


WHERE = {
    "feature entry": lambda _, batch: feature_entry(batch),
    "batch entry": lambda _, batch: batch_entry(batch),
    "manifest": manifest,
    "rows": rows,
}


@pytest.mark.parametrize("how", ["flip", "delete"])
@pytest.mark.parametrize("target", WHERE)
def test_a_damaged_batch_is_left_out_and_named(scene, target, how) -> None:
    key = WHERE[target](scene, "b3")
    if how == "flip":
        flip(scene, key)
    else:
        scene.store.delete(key)
    shown, damage = read(scene)
    assert shown == {"b2": ["r2", "r3"], "b1": ["r1"]}
    if (target, how) != ("feature entry", "delete"):  # what it was is not to be seen in the log
        assert list(damage) == ["b3"]
        with pytest.raises(FeaturePipelineError) as raised:
            Archive(scene.store).features(HOOK).to_arrow()
        assert not str(raised.value).startswith("'b3'")
    # a reader of other batches alone gets no report of it
    assert len(Archive(scene.store).features(HOOK, batches=["b1"]).to_arrow()) == 2


@pytest.mark.parametrize("target", WHERE)
def test_records_of_a_damaged_batch_are_not_shown_as_in_earlier_batches(scene, target) -> None:
    """What an earlier batch says of them is not what is current."""
    flip(scene, WHERE[target](scene, "b2"))
    shown, damage = read(scene)
    assert shown == {"b3": ["r4"], "b1": ["r1"]}
    assert list(damage) == ["b2"]
    outcomes = Archive(scene.store).outcomes(HOOK, skip_damaged=True)
    expected = [["r4"], ["r2", "r3"], ["r1"]] if target == "rows" else [["r4"], ["r1"]]
    assert [t["record_id"].to_pylist() for t in outcomes.tables()] == expected
    every = Archive(scene.store).features(HOOK, skip_damaged=True, every_batch=True)
    assert sorted(row for t in every.tables() for row in t["record_id"].to_pylist()) == [
        "r1",
        "r2",
        "r4",
    ]


def test_a_damaged_batch_with_unknown_records_is_reported(scene) -> None:
    entry = log.batch_entry(scene.store, DATASET, "b2")
    flip(scene, manifest(scene, "b2"))
    scene.store.delete(layout.blob(entry.digest))
    log.forget_read_entries()
    shown, damage = read(scene)
    assert shown == {"b3": ["r4"], "b1": ["r1", "r2"]}
    assert "nor is known which records it has" in damage["b2"]


def test_the_columns_are_those_of_the_newest_artifact_that_can_be_read(scene) -> None:
    flip(scene, manifest(scene, "b3"))
    features = Archive(scene.store).features(HOOK, skip_damaged=True)
    assert [column.name for column in features.columns] == ["score", "rank", "label"]
    summary = summarize(features)
    assert (summary.batches, list(summary.outcomes)) == (2, ["b2", "b1"])
    assert list(features.damage) == ["b3"]


def test_the_past_is_read_without_damaged_batches(scene) -> None:
    flip(scene, feature_entry("b2"))
    heads = readable_heads_as_of(scene.store, DATASET, HOOK, 1)
    assert (list(heads.intact), list(heads.damage)) == (["b1", "b3"], ["b2"])


def test_history_shows_the_other_batches(scene) -> None:
    flip(scene, feature_entry("b2"))
    history_of = readable_history(scene.store, DATASET, HOOK)
    assert [line.entry.batch for line in history_of.lines] == ["b1", "b3"]
    assert list(history_of.damage) == ["b2"]
    flip(scene, layout.entry(layout.release_log(DATASET, HOOK), 1))
    history_of = readable_history(scene.store, DATASET, HOOK)
    assert [line.entry.batch for line in history_of.lines] == ["b1", "b3"]
    assert sorted(history_of.damage) == [RELEASES, "b2"]
    with pytest.raises(NotFoundError):
        readable_history(scene.store, DATASET, HOOK, "b9")


def test_one_damaged_entry_of_the_quarantine_hides_no_other(scene) -> None:
    batch = scene.batch_of("b4", ("r9",))
    waiting = [
        scene.run(scene.submit(batch), log.releases(scene.store, DATASET, HOOK)[0], label)
        for label in ("x", "y")
    ]
    for completion in waiting:
        inbox.enqueue(scene.store, completion)
    for entry in inbox.waiting(scene.store):
        inbox.quarantine(scene.store, entry, "for the test")
    first, second = (completion.inbox_id for completion in waiting)
    flip(scene, layout.quarantine(first))
    readable = inbox.readable_quarantined(scene.store)
    assert (list(readable.intact), list(readable.damage)) == ([second], [first])
    with pytest.raises(FeaturePipelineError):
        accept.quarantined(scene.store)
