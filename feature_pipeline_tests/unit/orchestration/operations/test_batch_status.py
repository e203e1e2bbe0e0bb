"""How batches stand by the archive alone: no table, no Dagster."""

from dataclasses import replace
from pathlib import Path

import pytest

from feature_pipeline.archive.accept import accept
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import FailureInfo
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.inbox import CompletionStatus
from feature_pipeline.archive.query.history import RELEASES
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import NotFoundError
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Status
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline.orchestration.operations.batch_status import (
    HookStatus,
    Reason,
    Sources,
    hook_status,
)
from feature_pipeline_tests.fixtures.stores import (
    DATASET,
    HOOK,
    Scene,
    make_batch,
    make_outcomes,
)

FAILURE = FailureInfo(kind="non_zero_exit", reason="status 3")
IMAGE = f"example.org/p@sha256:{'0' * 64}"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(MemoryStore(), tmp_path)


def definition(version: str = "1", **changes: object) -> HookDefinition:
    release = {"version": version, "command": ["run"], "image": IMAGE}
    return HookDefinition.model_validate(
        {"name": HOOK, "dataset": DATASET, "release": release, "feature": {}, **changes}
    )


def stand(scene: Scene, hook: HookDefinition, **options: object) -> HookStatus:
    return hook_status(Sources(scene.store), hook, scene.folder, **options)  # type: ignore[arg-type]


def reasons(standing: HookStatus) -> dict[str, set[str]]:
    return {batch: {r.value for r in kinds} for batch, kinds in standing.features.reasons.items()}


def release(scene: Scene, hook: HookDefinition) -> log.ReleaseEntry:
    return log.register_release(scene.store, hook.hook_release(scene.folder), {})


def test_missing_failed_and_other_releases_are_read_from_the_log(scene: Scene) -> None:
    first = release(scene, definition())
    for number in range(1, 6):
        scene.submit(make_batch(f"b{number}"))
    good, then_failed, then_cancelled = (make_batch(f"b{n}") for n in (1, 2, 3))
    for batch in (good, then_failed, then_cancelled):
        accept(scene.store, scene.completion(scene.artifact(batch, first)))
    for batch, base in ((then_failed, 1), (then_cancelled, 1), (make_batch("b4"), 0)):
        failed = scene.artifact(batch, first, failure=FAILURE)
        accept(scene.store, scene.completion(failed, base=base))
    cancelled = scene.artifact(then_cancelled, first, label="b")
    accept(scene.store, scene.completion(cancelled, base=2, status=CompletionStatus.CANCELLED))
    assert reasons(stand(scene, definition())) == {
        "b1": set(),
        "b2": {"failed"},
        "b3": {"failed"},  # a cancelled run does not change that
        "b4": {"failed", "missing"},
        "b5": {"missing"},
    }
    # every artifact has one record whose error is worth another try
    deep = stand(scene, definition(), is_deep=True, batches=["b5", "b1"])
    assert reasons(deep) == {"b1": {"failed"}, "b5": {"missing"}}
    assert deep.is_registered

    declared = stand(scene, definition("2"))
    assert not declared.is_registered
    assert declared.features.batches(Reason.OLD_RELEASE) == ["b1", "b2", "b3"]
    assert declared.features.batches(Reason.STALE) == ["b1", "b2", "b3"]
    release(scene, definition("2"))
    assert stand(scene, definition("2")).is_registered
    with pytest.raises(NotFoundError, match="no batch 'b6'"):
        stand(scene, definition(), batches=["b6"])


def test_what_cannot_be_computed_is_named_with_its_reason(scene: Scene) -> None:
    first = release(scene, definition())
    good, failing = scene.submit(make_batch("b1")), scene.submit(make_batch("b2"))
    accept(scene.store, scene.completion(scene.artifact(good, first)))
    accept(scene.store, scene.completion(scene.artifact(failing, first, failure=FAILURE)))
    status = stand(scene, definition(), is_deep=True)
    facts = status.features.facts
    assert facts["b2"].failure == "non_zero_exit: status 3"
    assert facts["b1"].failure is None
    outcomes = {outcome.record_id: outcome for outcome in make_outcomes(good)}
    errored = {name: o.reason for name, o in outcomes.items() if o.status == Status.ERRORED}
    assert errored
    assert status.errored == errored
    # an artifact is read only when it is asked for
    assert stand(scene, definition()).errored == {}


def test_a_cancelled_run_is_no_failed_one(scene: Scene) -> None:
    """Its log entry is `failed`, as there is no output: what was before it counts."""
    first = release(scene, definition())
    cancelled = FailureInfo(kind="cancelled", reason="the Dagster run was cancelled")
    for key, failures in (("b1", [None]), ("b2", []), ("b3", [FAILURE])):
        batch = scene.submit(make_batch(key))
        for base, failure in enumerate([*failures, cancelled]):
            artifact = scene.artifact(batch, first, failure=failure)
            status = CompletionStatus.CANCELLED if failure is cancelled else None
            accept(scene.store, scene.completion(artifact, base=base, status=status))
        assert log.read_log(scene.store, DATASET, HOOK, key)[-1].verdict is log.Verdict.FAILED
    assert reasons(stand(scene, definition())) == {
        "b1": set(),
        "b2": {"missing"},
        "b3": {"missing", "failed"},
    }


def test_changed_inputs_and_batches_make_an_artifact_stale(scene: Scene) -> None:
    batches = [scene.submit(make_batch(f"b{n}")) for n in range(1, 4)]
    source = log.register_release(
        scene.store,
        HookRelease.of(
            ReleaseDocument(dataset=DATASET, hook="sites", version="1", command=("run",))
        ),
        {},
    )
    heads = [accept(scene.store, scene.completion(scene.artifact(b, source))) for b in batches[:2]]
    hook = definition(inputs=("sites",))
    ours = release(scene, hook)
    for batch, head in zip(batches, heads, strict=False):
        assert head.content_digest is not None
        artifact = replace(scene.artifact(batch, ours), inputs={"sites": head.content_digest})
        accept(scene.store, scene.completion(artifact))
    standing = stand(scene, hook)
    assert reasons(standing) == {"b1": set(), "b2": set(), "b3": {"missing"}}
    assert standing.without_input == {"sites": {"b3"}}

    changed = scene.artifact(batches[0], source, label="b")
    accept(scene.store, scene.completion(changed, base=1))
    assert reasons(stand(scene, hook))["b1"] == {"stale"}

    # A batch whose log goes on was redacted: its artifacts are looked at, and are of the old one.
    entry = log.batch_entry(scene.store, DATASET, "b2")
    log.append(
        scene.store,
        layout.batch_log(DATASET, "b2"),
        log.BatchEntry,
        lambda _: entry.model_copy(update={"seq": 2, "digest": Digest.of(b"redacted")}),
    )
    assert reasons(stand(scene, hook))["b2"] == {"stale"}


def flip(scene: Scene, key: str) -> None:
    stored = scene.store.get(key)
    assert scene.store.replace(key, bytes([stored.data[0] ^ 1]) + stored.data[1:], stored.info.etag)


def test_what_is_damaged_costs_its_own_batch_and_is_not_called_missing(scene: Scene) -> None:
    hook = definition()
    first = release(scene, hook)
    heads = {}
    for number in range(1, 6):
        batch = scene.submit(make_batch(f"b{number}"))
        heads[batch.key] = accept(scene.store, scene.completion(scene.artifact(batch, first)))
    flip(scene, layout.entry(layout.feature_log(DATASET, HOOK, "b1"), 1))
    flip(scene, layout.entry(layout.batch_log(DATASET, "b2"), 1))
    flip(scene, layout.blob(heads["b3"].manifest))
    standing = stand(scene, hook, is_deep=True)
    assert sorted(standing.damaged) == ["b1", "b2", "b3"]
    assert standing.features.batches(Reason.MISSING) == []
    assert standing.features.batches(Reason.FAILED) == ["b4", "b5"]  # errors worth another try
    assert list(standing.counts) == ["b4", "b5"]
    flip(scene, layout.entry(layout.release_log(DATASET, HOOK), 1))
    standing = stand(scene, hook, batches=["b1", "b4"])
    assert sorted(standing.damaged) == [RELEASES, "b1"]
    assert not standing.is_registered


def test_a_damaged_input_is_no_reason_to_raise(scene: Scene) -> None:
    batch = scene.submit(make_batch("b1"))
    accept(scene.store, scene.completion(scene.artifact(batch, release(scene, definition()))))
    flip(scene, layout.entry(layout.feature_log(DATASET, HOOK, "b1"), 1))
    after = definition().model_copy(update={"name": "after", "inputs": (HOOK,)})
    assert stand(scene, after).without_input == {HOOK: {"b1"}}
