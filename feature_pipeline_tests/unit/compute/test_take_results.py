"""What pods left of a run whose worker died is taken by repeating its course, starting nothing."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from feature_pipeline.archive import accept, inbox, layout, log, read
from feature_pipeline.archive.blob_store import create_or_read
from feature_pipeline.archive.log import Verdict
from feature_pipeline.archive.stores.memory import MemoryStore
from feature_pipeline.compute.expected import ExpectedRun, expected_keys, read_expected
from feature_pipeline.compute.take_results import (
    AlreadyLogged,
    Announced,
    NotPublished,
    take_results,
)
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult
from feature_pipeline.orchestration.outlived_runs import take_outlived
from feature_pipeline.outcomes import OutcomeKind
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


@pytest.fixture
def computing(memory_store: MemoryStore, tmp_path: Path) -> Computing:
    computing = Computing.of(memory_store, tmp_path)
    computing.submit(IDS)
    return computing


def begun(computing: Computing) -> ExpectedRun:
    """The only run that some worker waits for."""
    (run,) = read_expected(computing.store, expected_keys(computing.store)).values()
    assert isinstance(run, ExpectedRun)
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
    taken = take_results(computing.store, begun(computing))
    assert isinstance(taken, Announced)
    accept_all(computing)
    assert computing.outcomes()["r7"].kind is OutcomeKind.OUT_OF_MEMORY
    assert len(computing.manifest().starts) == starts
    assert isinstance(take_results(computing.store, begun(computing)), AlreadyLogged)


@pytest.mark.parametrize("attempts", [1, 4, 7])
def test_a_worker_that_goes_on_starts_nothing_again(computing: Computing, attempts: int):
    runner = DiesAfter(computing.store, ScriptedRunner(fails_over("r7")))
    runner.attempts = attempts
    with pytest.raises(Died):
        computing.execute(runner)
    assert isinstance(take_results(computing.store, begun(computing)), NotPublished)
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
    assert isinstance(take_results(computing.store, run), Announced)
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


def test_what_pods_left_goes_once_the_run_is_in_the_log(computing: Computing, instance):
    runner = PodRunner(computing.store, ScriptedRunner(fails_over("r7")))
    computing.execute(runner)
    run = begun(computing)
    assert uploads(computing) == {run.id}
    assert len(take_outlived(computing.store, instance).announced) == 1
    # until then another worker may ask the same
    assert uploads(computing) == {run.id}
    again = computing.execute(runner)
    assert again.hook_run is not None
    assert len(set(runner.names)) == len(runner.names)
    waiting = take_outlived(computing.store, instance).waiting
    assert waiting == [f"{run.id}: its completion is not accepted yet"]
    accept_all(computing)
    take_outlived(computing.store, instance)
    assert uploads(computing) == set()
    assert expected_keys(computing.store) == []


def test_what_pods_left_of_a_run_that_goes_on_stays(computing: Computing, instance):
    runner = DiesAfter(computing.store, ScriptedRunner(fails_over("r7")))
    runner.attempts = 5
    with pytest.raises(Died):
        computing.execute(runner)
    # ended attempts of another run are no business of this one
    create_or_read(computing.store, layout.upload("other-run", "hook-x-1", "log"), b"")
    found = take_outlived(computing.store, instance)
    assert (found.announced, len(found.waiting)) == ([], 1)
    assert uploads(computing) == {begun(computing).id, "other-run"}
    runner.attempts = 10**6
    computing.run(runner)
    take_outlived(computing.store, instance)
    assert uploads(computing) == {"other-run"}


def test_what_an_older_worker_noted_can_be_taken(computing: Computing):
    runner = PodRunner(computing.store, ScriptedRunner(fails_over()))
    computing.execute(runner)
    old = begun(computing).model_copy(update={"spec_version": 1})
    assert b"begin_with" not in old.encode()
    assert isinstance(
        take_results(computing.store, ExpectedRun.decode(old.encode(), "old")), Announced
    )
