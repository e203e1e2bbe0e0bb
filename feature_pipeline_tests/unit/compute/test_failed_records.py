"""A record that a hook fails over is errored for its release and limits; all others stand."""

from pathlib import Path

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.compute.redecode import decode_batch_again
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.runner import RunRequest
from feature_pipeline.model.definition import Scope
from feature_pipeline.model.outcomes import OutcomeKind, Status
from feature_pipeline_tests.fixtures.scripted import (
    DATASET,
    HOOK,
    Computing,
    HookAnswer,
    ScriptedRunner,
    fails_over,
    passes,
)

IDS = [f"r{n}" for n in range(12)]
GIB = 2**30


@pytest.fixture
def computing(memory_store: MemoryStore, tmp_path: Path) -> Computing:
    computing = Computing.of(memory_store, tmp_path)
    computing.submit(IDS)
    return computing


def test_one_of_twelve_is_errored_and_eleven_are_current(computing: Computing):
    runner = ScriptedRunner(fails_over("r7"))
    entry = computing.run(runner)
    assert entry.verdict is Verdict.CURRENT
    outcomes = computing.outcomes()
    assert [i for i, o in outcomes.items() if o.status is Status.PASSED] == [
        i for i in IDS if i != "r7"
    ]
    failed = outcomes["r7"]
    assert (failed.status, failed.kind) == (Status.ERRORED, OutcomeKind.OUT_OF_MEMORY)
    assert failed.reason == "it is out_of_memory"
    assert not failed.is_retryable
    assert failed.limits is not None
    assert (failed.limits.memory_bytes, failed.limits.timeout_seconds) == (8 * GIB, 60)
    # four attempts at all of them, and two for each halving: the limit is met once
    assert len(runner.asked) == 12
    assert [memory for _, memory in runner.asked[:5]] == [GIB, 2 * GIB, 4 * GIB, 8 * GIB, 8 * GIB]
    assert verify(computing.store).is_clean


def test_it_is_not_computed_again_by_a_plain_run(computing: Computing):
    computing.run(ScriptedRunner(fails_over("r7")))
    plan = computing.plan()
    assert plan.is_unchanged
    assert (len(plan.compute), len(plan.carried)) == (0, 12)


def test_a_raised_limit_computes_that_record_alone_again(computing: Computing):
    computing.run(ScriptedRunner(fails_over("r7")))
    # more memory at first, and no more of it in the end: nothing can be otherwise
    assert computing.with_limits(memory="2Gi", memory_ceiling="8Gi").plan().is_unchanged
    assert computing.with_limits(timeout="2m").plan().is_unchanged
    computing.with_limits(memory_ceiling="16Gi")
    assert [record.id for record in computing.plan().compute] == ["r7"]

    def script(ids: list[str], request: RunRequest) -> HookAnswer:
        is_enough = request.limits.memory_bytes >= 16 * GIB
        return passes(ids) if is_enough else FailureKind.OUT_OF_MEMORY

    runner = ScriptedRunner(script)
    computing.run(runner)
    # what was not enough is known
    assert runner.asked == [(["r7"], 16 * GIB)]
    assert {o.status for o in computing.outcomes().values()} == {Status.PASSED}


def test_a_limit_that_was_raised_without_success_is_not_tried_again(computing: Computing):
    """Nothing else is asked, so that nothing else shows that the hook works at all."""
    computing.run(ScriptedRunner(fails_over("r7")))
    computing.with_limits(memory="4Gi")
    runner = ScriptedRunner(fails_over("r7"))
    assert computing.run(runner).verdict is Verdict.CURRENT
    assert runner.asked == [(["r7"], 16 * GIB), (["r7"], 32 * GIB)]
    failed = computing.outcomes()["r7"]
    assert failed.limits is not None
    assert failed.limits.memory_bytes == 32 * GIB
    assert computing.plan().is_unchanged


@pytest.mark.parametrize(
    ("kind", "expected", "raised"),
    [
        (FailureKind.DEADLINE, OutcomeKind.DEADLINE, {"timeout": "2m"}),
        (FailureKind.OUT_OF_SPACE, OutcomeKind.OUT_OF_SPACE, {"scratch": "6Gi"}),
        (FailureKind.NON_ZERO_EXIT, OutcomeKind.CRASH, {"timeout": "2m"}),
        (FailureKind.NON_ZERO_EXIT, OutcomeKind.CRASH, {"memory": "2Gi"}),
        (FailureKind.OUTPUT_TOO_LARGE, OutcomeKind.OUTPUT_TOO_LARGE, None),
    ],
)
def test_every_kind_and_what_tries_it_again(computing: Computing, kind, expected, raised):
    computing.run(ScriptedRunner(fails_over("r3", kind=kind)))
    assert computing.outcomes()["r3"].kind is expected
    assert computing.plan().is_unchanged
    everything = {"memory": "64Gi", "timeout": "9m", "scratch": "60Gi"}
    computing.with_limits(**(raised or everything))
    assert len(computing.plan().compute) == (0 if raised is None else 1)


def test_a_new_release_computes_again(computing: Computing):
    computing.run(ScriptedRunner(fails_over("r7")))
    release = computing.definition.release.model_copy(update={"version": "2"})
    computing.definition = computing.definition.model_copy(update={"release": release})
    assert len(computing.plan().compute) == 12


def test_it_can_be_asked_by_force(computing: Computing):
    computing.run(ScriptedRunner(fails_over("r7")))
    computing.run(ScriptedRunner(fails_over()), force_records=["r7"])
    assert computing.outcomes()["r7"].status is Status.PASSED


def test_a_hook_that_fails_over_everything_is_a_failed_run(computing: Computing):
    runner = ScriptedRunner(lambda ids, request: FailureKind.NON_ZERO_EXIT)
    assert computing.run(runner).verdict is Verdict.FAILED
    assert log.head(computing.store, DATASET, HOOK, "b1") is None
    assert len(runner.asked) == 6


def test_records_that_are_not_isolated_are_computed_again(computing: Computing):
    """Half of them: what was computed until then stands, and another run goes on."""
    ids = [f"r{n:04}" for n in range(200)]
    computing.submit(ids, "b2")
    runner = ScriptedRunner(fails_over(*ids[100:]))
    computing.run(runner, key="b2")
    outcomes = computing.outcomes("b2")
    lost = [i for i, o in outcomes.items() if o.kind is OutcomeKind.LOST]
    assert len(lost) > 50
    assert all(outcomes[i].is_retryable for i in lost)
    assert "together with" in (outcomes[lost[0]].reason or "")
    assert {outcomes[i].status for i in ids[:100]} == {Status.PASSED}
    assert [record.id for record in computing.plan("b2").compute] == lost


def test_every_start_is_in_the_manifest(computing: Computing):
    runner = ScriptedRunner(fails_over("r7"))
    computing.run(runner)
    manifest = computing.manifest()
    assert manifest.spec_version == 2
    assert manifest.run.attempts == len(manifest.starts) == len(runner.asked)
    assert manifest.run.started_at == manifest.starts[0].started_at
    assert [(s.part, s.records, s.attempt, s.ended) for s in manifest.starts[:6]] == [
        ("", 12, 1, "out_of_memory"),
        ("", 12, 2, "out_of_memory"),
        ("", 12, 3, "out_of_memory"),
        ("", 12, 4, "out_of_memory"),
        ("1", 6, 1, "well"),
        ("2", 6, 1, "out_of_memory"),
    ]
    assert [s.memory_limit_bytes // GIB for s in manifest.starts[:4]] == [1, 2, 4, 8]
    text = read.read_log_text(computing.store, manifest)
    assert text.count("looked at r0 r1") == 5
    assert "part 2, records 'r6' to 'r11' (6): attempt 1 with 8Gi of memory ended" in text
    assert "record 'r7': out_of_memory: it is out_of_memory" in text


def test_a_carried_outcome_records_its_limits(computing: Computing):
    computing.run(ScriptedRunner(fails_over("r7")))
    first = computing.outcomes()["r7"]
    computing.run(ScriptedRunner(fails_over()), force_records=["r0"])
    again = computing.outcomes()["r7"]
    assert (again.kind, again.limits) == (first.kind, first.limits)
    assert again.carried_from is not None
    assert computing.plan().is_unchanged
    computing.with_limits(memory="2Gi")
    assert [record.id for record in computing.plan().compute] == ["r7"]


def test_changed_columns_leave_it_as_it_is(computing: Computing):
    """There is no output to read it from."""
    computing.run(ScriptedRunner(fails_over("r7")))
    columns = [{"name": "n", "type": "number"}]
    feature = computing.definition.feature.model_validate({"columns": columns})
    computing.definition = computing.definition.model_copy(update={"feature": feature})
    plan = computing.plan()
    assert (plan.compute, plan.decoded_again) == ((), 12)
    assert plan.carried["r7"].kind is OutcomeKind.OUT_OF_MEMORY
    assert plan.carried["r0"].rows == ((2.0,),)


def test_reading_raw_output_again_leaves_it_as_it_is(computing: Computing):
    computing.run(ScriptedRunner(fails_over("r7")))
    head = log.head(computing.store, DATASET, HOOK, "b1")
    assert head is not None
    assert not decode_batch_again(computing.store, head).is_new
    # also when the table that holds it is lost
    blob = computing.manifest().blobs["outcomes"]
    computing.store.delete(f"blobs/sha256/{blob.digest.hex[:2]}/{blob.digest.hex}")
    assert decode_batch_again(computing.store, head).damage is not None
    assert computing.outcomes()["r7"].kind is OutcomeKind.OUT_OF_MEMORY


def test_erasing_a_record_erases_its_failure(computing: Computing):
    computing.run(ScriptedRunner(fails_over("r7")))
    verify(computing.store)  # writes the first census: without one nothing is deleted
    erase(computing.store, DATASET, ["r7"], "asked for")
    manifest = computing.manifest()
    assert manifest.without_output == {}
    assert b"r7" not in manifest.encode()
    assert verify(computing.store).is_clean


def test_a_manifest_that_disagrees_with_its_outcomes_is_damaged(computing: Computing):
    computing.run(ScriptedRunner(fails_over("r7")))
    manifest = computing.manifest()
    wrong = {"r7": manifest.without_output["r7"].model_copy(update={"reason": "another"})}
    with pytest.raises(CorruptDataError, match="another"):
        read.read_artifact_outcomes(
            computing.store, manifest.model_copy(update={"without_output": wrong})
        )
    none = {"r99": manifest.without_output["r7"]}
    with pytest.raises(CorruptDataError, match="r99"):
        read.read_artifact_outcomes(
            computing.store, manifest.model_copy(update={"without_output": none})
        )


def test_a_manifest_of_version_1_has_neither(computing: Computing):
    computing.run(ScriptedRunner(fails_over()))
    old = computing.manifest().model_copy(update={"spec_version": 1})
    assert b"starts" not in old.encode()
    assert b"without_output" not in old.encode()
    assert Manifest.decode(old.encode(), "old").starts == ()


def test_a_batch_hook_fails_as_a_whole(computing: Computing):
    computing.definition = computing.definition.model_copy(update={"scope": Scope.BATCH})
    runner = ScriptedRunner(fails_over("r7", kind=FailureKind.DEADLINE))
    assert computing.run(runner).verdict is Verdict.FAILED
    assert len(runner.asked) == 1
