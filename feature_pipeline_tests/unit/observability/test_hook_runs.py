"""Hook runs as the log has them: each is counted once, whatever reader begins when."""

from collections import Counter
from pathlib import Path

import pytest

from feature_pipeline.archive.accept import accept
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import FailureInfo
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline.model.instruments import HOOK_RECORDS, HOOK_RUN_DURATION, HOOK_RUNS
from feature_pipeline.observability.hook_runs import HookRuns
from feature_pipeline.observability.samples import Sample
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, Scene, make_batch


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(MemoryStore(), tmp_path)


def runs(samples: list[Sample]) -> Counter[tuple[str, str]]:
    """How many there are by status and kind of failure."""
    return Counter(
        (one.labels["status"], one.labels.get("error.type", ""))
        for one in samples
        if one.instrument is HOOK_RUNS
    )


def records(samples: list[Sample]) -> dict[str, float]:
    return {s.labels["outcome"]: s.value for s in samples if s.instrument is HOOK_RECORDS}


def fail(scene: Scene, kind: str, batch: str = "b1", base: int = 0) -> None:
    failure = FailureInfo(kind=kind, reason="a secret reason")
    release = scene.release()
    accept(
        scene.store,
        scene.completion(scene.artifact(make_batch(batch), release, failure=failure), base=base),
    )


def test_each_run_is_counted_once_and_a_new_reader_counts_the_same(scene: Scene) -> None:
    for key in ("b1", "b2"):
        scene.submit(make_batch(key))
    fail(scene, "out_of_memory")
    reader = HookRuns()
    first, state = reader.read(scene.store)
    assert runs(first) == {("failed", "out_of_memory"): 1}
    assert records(state) == {"passed": 0, "rejected": 0, "errored": 0}

    artifact = scene.artifact(make_batch("b1"), scene.release())
    accept(scene.store, scene.completion(artifact, base=1))
    second, state = reader.read(scene.store)
    assert runs(second) == {("current", ""): 1}
    assert sum(records(state).values()) == len(artifact.outcomes)
    assert reader.read(scene.store)[0] == []

    again, state_again = HookRuns().read(scene.store)
    assert runs(again) == runs(first) + runs(second)
    assert state_again == state
    assert sum(s.instrument is HOOK_RUN_DURATION for s in again) == 2


def test_labels_are_of_bounded_sets(scene: Scene) -> None:
    """Any publisher can write a manifest: what it calls a failure is no label."""
    scene.submit(make_batch("b1"))
    fail(scene, "password=hunter2")
    samples, _ = HookRuns().read(scene.store)
    assert runs(samples) == {("failed", "other"): 1}
    digest = scene.release().release.digest.hex
    assert {s.labels["release"] for s in samples} == {digest[:12]}
    values = {value for s in samples for value in s.labels.values()}
    assert values == {DATASET, HOOK, "failed", "other", digest[:12]}


def test_what_cannot_be_read_is_counted_once_it_can(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.submit(make_batch("b1"))
    fail(scene, "out_of_memory")
    fail(scene, "deadline", base=1)
    reader = HookRuns()
    get = MemoryStore.get
    second = layout.entry(layout.feature_log(DATASET, HOOK, "b1"), 2)

    def refuse(store: MemoryStore, key: str, *rest: object) -> object:
        if key == second:
            raise StoreUnavailableError("away")
        return get(store, key, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(MemoryStore, "get", refuse)
        assert runs(reader.read(scene.store)[0]) == {("failed", "out_of_memory"): 1}
    assert runs(reader.read(scene.store)[0]) == {("failed", "deadline"): 1}


def test_what_was_read_before_the_store_went_away_is_not_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.submit(make_batch("b1"))
    fail(scene, "out_of_memory")
    reader = HookRuns()
    with monkeypatch.context() as patch:
        patch.setattr(
            HookRuns, "_current", lambda *_: (_ for _ in ()).throw(StoreUnavailableError("away"))
        )
        with pytest.raises(StoreUnavailableError):
            reader.read(scene.store)
    assert runs(reader.read(scene.store)[0]) == {("failed", "out_of_memory"): 1}
