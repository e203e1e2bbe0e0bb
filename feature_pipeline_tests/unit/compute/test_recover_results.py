"""What pods left of a run whose worker died is taken by repeating its course, starting nothing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from feature_pipeline.archive import accept, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.store.base import create_or_read
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.compute.in_flight import InFlightRun, list_in_flight, read_in_flight
from feature_pipeline.compute.pod_transfer import S3Results
from feature_pipeline.compute.recover_results import (
    AlreadyLogged,
    Enqueued,
    NotPublished,
    recover_results,
)
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.hooks.failure import FailureKind, RuntimeFacts
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult
from feature_pipeline.hooks.runners.kubernetes.transfer_protocol import AttemptKey
from feature_pipeline.model.outcomes import OutcomeKind
from feature_pipeline.orchestration.sensors import orphaned_runs
from feature_pipeline.orchestration.sensors.orphaned_runs import recover_orphaned_runs
from feature_pipeline_tests.fixtures.scripted import (
    DATASET,
    HOOK,
    Computing,
    PodRunner,
    ScriptedRunner,
    fails_over,
)

IDS = [f"r{n}" for n in range(12)]


class Died(Exception):
    """The worker is gone."""


class DiesAfter(PodRunner):
    """Its worker dies once so many attempts have ended."""

    attempts = 10**6

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        if self.attempts == 0:
            raise Died
        self.attempts -= 1
        return super().run(request, monitor)


def change_result(
    computing: Computing, change: Callable[[dict[str, Any]], dict[str, Any] | str]
) -> AttemptKey:
    """Replace the one result that a pod has written; text is written as it is."""
    infos = computing.store.list_objects(layout.UPLOADS)
    [key] = [info.key for info in infos if info.key.endswith("result.json")]
    changed = change(json.loads(computing.store.get(key).data))
    text = changed if isinstance(changed, str) else json.dumps(changed)
    computing.store.delete(key)
    computing.store.create(key, text.encode())
    return AttemptKey(*key.split("/")[1:3])


@pytest.fixture
def computing(memory_store: MemoryStore, tmp_path: Path) -> Computing:
    computing = Computing.of(memory_store, tmp_path)
    computing.submit(IDS)
    return computing


def begun(computing: Computing) -> InFlightRun:
    """The only run that some worker waits for."""
    (run,) = read_in_flight(computing.store, list_in_flight(computing.store)).values()
    assert isinstance(run, InFlightRun)
    return run


def accept_all(computing: Computing) -> None:
    for entry in inbox.waiting(computing.store):
        assert entry.content is not None
        accept.accept(computing.store, entry.content)


def test_a_run_that_was_divided_is_taken_as_its_worker_would_have_left_it(computing: Computing):
    runner = PodRunner(computing.store, ScriptedRunner(fails_over("r7")))
    computing.execute(runner)
    starts = len(runner.names)
    assert starts > 10
    taken = recover_results(computing.store, begun(computing))
    assert isinstance(taken, Enqueued)
    accept_all(computing)
    assert computing.outcomes()["r7"].kind is OutcomeKind.OUT_OF_MEMORY
    assert len(computing.manifest().starts) == starts
    assert isinstance(recover_results(computing.store, begun(computing)), AlreadyLogged)


@pytest.mark.parametrize("attempts", [1, 4, 7])
def test_a_worker_that_continues_starts_nothing_again(computing: Computing, attempts: int):
    runner = DiesAfter(computing.store, ScriptedRunner(fails_over("r7")))
    runner.attempts = attempts
    with pytest.raises(Died):
        computing.execute(runner)
    assert isinstance(recover_results(computing.store, begun(computing)), NotPublished)
    runner.attempts = 10**6
    computing.run(runner)
    # each of them once
    assert len(runner.names) == len(set(runner.names)) == len(runner.scripted.asked)
    assert len(computing.manifest().starts) == len(runner.names)


def test_a_run_under_raised_limits_is_taken_too(computing: Computing):
    """Its course depends on what had failed before, which a plan of now would not say."""
    computing.run(ScriptedRunner(fails_over("r7")))
    computing.with_limits(memory="4Gi")
    runner = PodRunner(computing.store, ScriptedRunner(fails_over("r7")))
    computing.execute(runner)
    run = begun(computing)
    assert run.begin_with == {"r7": 16 * 2**30}
    assert isinstance(recover_results(computing.store, run), Enqueued)
    accept_all(computing)
    entries = log.read_log(computing.store, DATASET, HOOK, "b1")
    assert [entry.verdict for entry in entries] == [Verdict.CURRENT, Verdict.CURRENT]
    assert len(read.read_manifest(computing.store, entries[-1].manifest).starts) == 2


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def uploads(computing: Computing) -> set[str]:
    return {info.key.split("/")[1] for info in computing.store.list_objects(layout.UPLOADS)}


def test_uploads_of_pods_are_removed_once_the_run_is_logged(computing: Computing, instance):
    runner = PodRunner(computing.store, ScriptedRunner(fails_over("r7")))
    computing.execute(runner)
    run = begun(computing)
    assert uploads(computing) == {run.id}
    assert len(recover_orphaned_runs(computing.store, instance).enqueued) == 1
    # until then another worker may ask the same
    assert uploads(computing) == {run.id}
    again = computing.execute(runner)
    assert again.hook_run is not None
    assert len(set(runner.names)) == len(runner.names)
    waiting = recover_orphaned_runs(computing.store, instance).waiting
    assert waiting == [f"{run.id}: its completion is not accepted yet"]
    accept_all(computing)
    recover_orphaned_runs(computing.store, instance)
    assert uploads(computing) == set()
    assert list_in_flight(computing.store) == []


def test_uploads_of_pods_stay_while_the_run_continues(computing: Computing, instance):
    runner = DiesAfter(computing.store, ScriptedRunner(fails_over("r7")))
    runner.attempts = 5
    with pytest.raises(Died):
        computing.execute(runner)
    # ended attempts of another run are no business of this one
    create_or_read(computing.store, layout.upload("other-run", "hook-x-1", "log"), b"")
    orphaned = recover_orphaned_runs(computing.store, instance)
    assert (orphaned.enqueued, len(orphaned.waiting)) == ([], 1)
    assert uploads(computing) == {begun(computing).id, "other-run"}
    runner.attempts = 10**6
    computing.run(runner)
    recover_orphaned_runs(computing.store, instance)
    assert uploads(computing) == {"other-run"}


def test_what_an_older_worker_noted_can_be_taken(computing: Computing):
    runner = PodRunner(computing.store, ScriptedRunner(fails_over()))
    computing.execute(runner)
    old = begun(computing).model_copy(update={"spec_version": 1})
    assert b"begin_with" not in old.encode()
    assert isinstance(
        recover_results(computing.store, InFlightRun.decode(old.encode(), "old")), Enqueued
    )


HUGE = 10**400
ODD_RESULTS = [
    {"started_at": 1e12},
    {"started_at": -1e12, "finished_at": float("nan")},
    {"finished_at": 4e9},
    {"too_large": {"features.jsonl": HUGE}},
    {"too_large": {"x": 5}},
    {"irregular": ["\x1b[31m", "y" * 1_000]},
    {"exit_code": HUGE},
    {"peak_memory_bytes": 10**30},
    {"oom_kills": -1},
    {"files": {"features.jsonl": ["sha256:" + "0" * 64, 10**30]}},
    {"files": {"../../x": ["sha256:" + "0" * 64, 5]}},
    {"log": ["sha256:" + "0" * 64, 10**30]},
    {"unknown": "z" * 500_000},
    {"node": 5},
]


@pytest.mark.parametrize(
    "change", [*ODD_RESULTS, "[" * 100_000, "", "x" * (2 << 20)], ids=lambda c: str(c)[:30]
)
def test_a_wrong_end_document_affects_its_own_run_alone(computing: Computing, instance, change):
    """Pods write their results: nothing in one stops a tick, or reaches a reason whole."""
    runner = PodRunner(computing.store, ScriptedRunner(fails_over("none")))
    computing.execute(runner)
    attempt = change_result(
        computing, lambda result: change if isinstance(change, str) else result | change
    )
    orphaned = recover_orphaned_runs(computing.store, instance)
    # another attempt may be due, which another run makes
    assert len(orphaned.enqueued) + len(orphaned.waiting) + len(orphaned.unusable) == 1
    with pytest.raises(CorruptDataError) as raised:
        S3Results(computing.store).result(attempt)
    assert len(str(raised.value)) < 2_000


def test_the_node_name_of_a_pod_is_shortened(computing: Computing):
    runner = PodRunner(computing.store, ScriptedRunner(fails_over("none")))
    computing.execute(runner)
    change = {"node": "a\0b" * 10_000, "start_error": "z" * 10_000}
    attempt = change_result(computing, lambda result: result | change)
    taken = S3Results(computing.store).result(attempt)
    assert taken is not None
    assert taken.node.startswith("a\\x00ba")
    assert taken.node.endswith("... (30,000 characters)")
    assert taken.start_error is not None
    assert taken.start_error.endswith("... (10,000 characters)")


def test_an_unexpected_error_while_recovering_a_run_affects_it_alone(
    computing: Computing, instance, monkeypatch
):
    computing.execute(PodRunner(computing.store, ScriptedRunner(fails_over("none"))))
    run = begun(computing)

    def fails(*_, **__):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(orphaned_runs, "recover_results", fails)
    orphaned = recover_orphaned_runs(computing.store, instance)
    assert orphaned.unusable == [f"{run.id}: ZeroDivisionError: a mistake"]
    # it is tried again: nothing of it is removed
    assert begun(computing) == run


def test_in_flight_runs_that_are_none_keep_no_other_waiting(computing: Computing, instance):
    computing.execute(PodRunner(computing.store, ScriptedRunner(fails_over("none"))))
    for n, text in enumerate(("[" * 100_000, '{"spec_version": 2}', "")):
        computing.store.create(layout.in_flight(f"odd{n}", "none"), text.encode())
    orphaned = recover_orphaned_runs(computing.store, instance)
    assert (len(orphaned.enqueued), len(orphaned.unusable)) == (1, 3)


def test_more_than_a_pod_may_leave_is_not_downloaded(computing: Computing):
    """Its length is in its result: the limit is compared before anything is read."""
    computing.with_limits(scratch="1Mi")
    runner = PodRunner(computing.store, ScriptedRunner(fails_over("none")))
    computing.execute(runner)

    def lengthen(result: dict[str, Any]) -> dict[str, Any]:
        result["files"]["features.jsonl"][1] = (1 << 20) + 1
        return result

    change_result(computing, lengthen)
    execution = computing.execute(runner)
    assert execution.hook_run is not None
    failure = execution.hook_run.starts[0].result.failure
    assert failure is not None
    assert failure.kind is FailureKind.OUT_OF_SPACE
    assert failure.reason == "its output has 1Mi, and limits.scratch is 1Mi"
    # it is divided, as after any other failure
    assert execution.artifact.failure is None


def test_what_is_quoted_in_a_reason_is_cut():
    facts = RuntimeFacts(FailureKind.INVALID_OUTPUT, "i" * 8_000_000 + "\x00")
    assert facts.reason == "i" * 2_000 + "... (8,000,001 characters)"
