"""What is repeated after an outage, when, and how often."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.definitions.sensor_definition import SensorType
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_origin import RemoteInstigatorOrigin
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
)
from dagster_shared.error import SerializableErrorInfo

from feature_pipeline.errors import (
    InvalidInputError,
    ProjectionError,
    RuntimeFailure,
    StoreUnavailableError,
)
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.orchestration.assets.wrong_definitions import (
    NAMELESS,
    wrong_definition_assets,
)
from feature_pipeline.orchestration.defs_folder import WrongDefinition
from feature_pipeline.orchestration.keys import (
    REPEAT_TAG,
    REQUEST_TAG,
    batches_partitions,
    features_key,
)
from feature_pipeline.orchestration.sensors.repeat_causes import is_repeatable, last_failure
from feature_pipeline.orchestration.sensors.repeats import (
    MAX_REPEATS,
    REPEATED_TAG,
    SENSOR,
    Repeats,
    backoff_seconds,
    fail_undefined_runs,
    repeat_failed_runs,
    waiting_repeats,
)
from feature_pipeline_tests.fixtures.queued_runs import CODE_ORIGIN, ORIGIN

KEY = features_key("d", "hook")
DAY = 80_000.0
"""Nearly: the first look finds failures of the last day."""


def hook_failure(kind: FailureKind) -> dg.Failure:
    return dg.Failure("failed", metadata={"failure_kind": kind.value}, allow_retries=False)


def wrapped(error: Exception) -> Exception:
    """As the projection wraps what the driver raises."""
    try:
        raise ProjectionError("loading: refused") from error
    except ProjectionError as outer:
        return outer


class Project:
    """One asset that fails as it is told to, and an instance."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.error: Exception | None = None
        self.cursor: str | None = None
        instance.add_dynamic_partitions("d", ["b1", "b2"])

        class Config(dg.Config):
            force: bool = False

        @dg.asset(key=KEY, partitions_def=batches_partitions("d"))
        def features(config: Config) -> None:
            if self.error is not None:
                raise self.error

        self.asset = features

    def graph(self) -> AssetGraph:
        return dg.Definitions(assets=[self.asset]).resolve_asset_graph()

    def run(
        self, error: Exception | None, partition: str = "b1", **options: object
    ) -> dg.DagsterRun:
        self.error = error
        job = dg.Definitions(assets=[self.asset]).resolve_implicit_global_asset_job_def()
        result = job.execute_in_process(
            instance=self.instance,
            partition_key=partition,
            asset_selection=[KEY],
            raise_on_error=False,
            **options,  # type: ignore[arg-type]
        )
        run = self.instance.get_run_by_id(result.run_id)
        assert run is not None
        return run

    def dead(self, partition: str = "b1", reason: JobFailureData | None = None) -> dg.DagsterRun:
        """A run whose worker died before it could say anything."""
        job = dg.Definitions(assets=[self.asset]).resolve_implicit_global_asset_job_def()
        run = self.instance.create_run_for_job(
            job,
            asset_selection=frozenset([KEY]),
            tags={"dagster/partition": partition},
            status=dg.DagsterRunStatus.STARTED,
        )
        self.instance.report_run_failed(run, "its worker process ended", reason)
        return run

    def look(self, seconds_later: float) -> Repeats:
        runs = self.instance.get_run_records(dg.RunsFilter())
        ended = max(record.update_timestamp.timestamp() for record in runs)
        repeats, self.cursor = repeat_failed_runs(
            self.instance, self.graph(), self.cursor, ended + seconds_later
        )
        return repeats

    def tags(self, run: dg.DagsterRun) -> dict[str, str]:
        now = self.instance.get_run_by_id(run.run_id)
        assert now is not None
        return dict(now.tags)


@pytest.fixture
def project() -> Iterator[Project]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Project(instance)


@pytest.mark.parametrize(
    "error",
    [
        StoreUnavailableError("no answer"),
        psycopg.OperationalError("connection refused"),
        wrapped(psycopg.errors.AdminShutdown("terminating")),
        wrapped(psycopg.errors.DiskFull("no space")),
        hook_failure(FailureKind.CLUSTER_REFUSED),
        hook_failure(FailureKind.EVICTED),
    ],
    ids=repr,
)
def test_an_outage_is_distinguished_from_a_failure_of_the_hook(
    project: Project, error: Exception
) -> None:
    assert is_repeatable(project.instance, project.graph(), project.run(error))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a bug"),
        InvalidInputError("wrong"),
        RuntimeFailure("exit status 3"),
        wrapped(psycopg.errors.ProgramLimitExceeded("row too big")),
        wrapped(psycopg.errors.QueryCanceled("statement timeout")),
        *map(hook_failure, (FailureKind.NON_ZERO_EXIT, FailureKind.DEADLINE)),
        *map(hook_failure, (FailureKind.OUT_OF_MEMORY, FailureKind.CANNOT_START)),
    ],
    ids=repr,
)
def test_a_failure_of_ones_own_is_not_repeated(project: Project, error: Exception) -> None:
    run = project.run(error)
    assert not is_repeatable(project.instance, project.graph(), run)
    assert not project.look(DAY).requested
    assert project.instance.get_backfills() == []


def test_a_run_that_was_refused_is_not_repeated(project: Project) -> None:
    error = SerializableErrorInfo("no such field", [], "DagsterInvalidConfigError")
    project.dead(reason=JobFailureData(error, RunFailureReason.RUN_EXCEPTION))
    assert not project.look(DAY).requested


def test_of_several_hooks_in_a_run_those_are_repeated_that_did_not_fail_by_themselves() -> None:
    """Automation puts hooks of one dataset and batch into one run."""

    def fails(name: str, error: Exception | None, deps: list[str]) -> dg.AssetsDefinition:
        @dg.asset(
            key=features_key("d", name),
            deps=[features_key("d", each) for each in deps],
            partitions_def=batches_partitions("d"),
        )
        def features() -> None:
            if error is not None:
                raise error

        return features

    assets = [
        fails("well", None, []),
        fails("buggy", ValueError("a bug"), []),
        fails("below", None, ["buggy"]),
        fails("unlucky", StoreUnavailableError("gone"), []),
        fails("waiting", None, ["unlucky"]),
    ]
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("d", ["b1"])
        defs = dg.Definitions(assets=assets, executor=dg.in_process_executor)
        defs.resolve_implicit_global_asset_job_def().execute_in_process(
            instance=instance,
            partition_key="b1",
            asset_selection=[key for asset in assets for key in asset.keys],
            raise_on_error=False,
        )
        repeat_failed_runs(instance, defs.resolve_asset_graph(), None, time.time() + DAY)
        (backfill,) = instance.get_backfills()
        assert {key.path[-1] for key in backfill.asset_selection or ()} == {
            *("well", "unlucky", "waiting")
        }


def hook_asset(name: str) -> dg.AssetsDefinition:
    class Config(dg.Config):
        force: bool = False

    @dg.asset(key=features_key("d", name), partitions_def=batches_partitions("d"))
    def features(config: Config) -> None: ...

    return features


def wrong_asset(name: str | None) -> list[dg.AssetsDefinition]:
    dataset = None if name is None else "d"
    path = Path("/defs/hook/defs.yaml")
    return wrong_definition_assets([WrongDefinition(path, 3, "what is wrong", dataset, name)])


class Graphs:
    """A run of two hooks, and definitions that change."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None
        instance.add_dynamic_partitions("d", ["b1"])

    def queued(self, *assets: dg.AssetsDefinition, config: object = None) -> dg.DagsterRun:
        job = dg.Definitions(assets=assets).resolve_implicit_global_asset_job_def()
        return self.instance.create_run_for_job(
            job,
            asset_selection=frozenset(key for asset in assets for key in asset.keys),
            tags={"dagster/partition": "b1"},
            run_config=config,  # type: ignore[arg-type]
            status=dg.DagsterRunStatus.QUEUED,
            remote_job_origin=ORIGIN,
            job_code_origin=CODE_ORIGIN,
        )

    def run(self, *assets: dg.AssetsDefinition) -> None:
        dg.Definitions(
            assets=assets, executor=dg.in_process_executor
        ).resolve_implicit_global_asset_job_def().execute_in_process(
            instance=self.instance,
            partition_key="b1",
            asset_selection=[key for asset in assets for key in asset.keys],
            raise_on_error=False,
        )

    def look(self, *assets: dg.AssetsDefinition) -> tuple[set[str], int]:
        """The hooks that are requested, and how many runs wait."""
        graph = dg.Definitions(assets=assets).resolve_asset_graph()
        fail_undefined_runs(self.instance, graph)
        later = time.time() + DAY
        repeats, self.cursor = repeat_failed_runs(self.instance, graph, self.cursor, later)
        requested = [self.instance.get_backfill(each) for each in repeats.requested]
        names = {key.path[-1] for each in requested if each for key in each.asset_selection or ()}
        return names, repeats.waiting


@pytest.fixture
def graphs() -> Iterator[Graphs]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Graphs(instance)


def test_a_hook_that_is_renamed_costs_the_others_of_its_queued_run_nothing(graphs: Graphs) -> None:
    kept, renamed = hook_asset("kept"), hook_asset("renamed")
    config = {
        "ops": {f"d__features__{n}": {"config": {"force": True}} for n in ("kept", "renamed")}
    }
    graphs.queued(kept, renamed, config=config)
    assert graphs.look(kept, hook_asset("anew")) == ({"kept"}, 0)
    (backfill,) = graphs.instance.get_backfills()
    assert backfill.run_config == {"ops": {"d__features__kept": {"config": {"force": True}}}}
    assert graphs.look(kept, hook_asset("anew")) == (set(), 0)


def test_what_ran_while_its_definition_was_wrong_is_run_once_it_is_right(graphs: Graphs) -> None:
    """The sentence stays in the failed run; the batch does not wait for an operator."""
    other, wrong = hook_asset("other"), wrong_asset("hook")
    graphs.run(wrong[0])
    assert graphs.look(other, *wrong) == (set(), 1)
    assert graphs.look(other, *wrong) == (set(), 1)
    assert graphs.look(other, hook_asset("hook")) == ({"hook"}, 0)
    assert graphs.look(other, hook_asset("hook")) == (set(), 0)


def test_a_wrong_definition_blocks_its_own_hook_and_no_other(graphs: Graphs) -> None:
    other, right = hook_asset("other"), hook_asset("hook")
    run = graphs.queued(other, right)
    graphs.instance.report_run_failed(run, "its worker died")
    assert graphs.look(other, *wrong_asset("hook")) == ({"other"}, 1)
    assert graphs.look(other, right) == ({"hook"}, 0)


@pytest.mark.parametrize(("later", "requested"), [("hook", {"hook"}), ("renamed", set())])
def test_a_definition_without_a_name_may_be_of_any_hook(
    graphs: Graphs, later: str, requested: set[str]
) -> None:
    run = graphs.queued(hook_asset("hook"))
    graphs.instance.report_run_failed(run, "its worker died")
    assert graphs.look(*wrong_asset(None)) == (set(), 1)
    assert graphs.look(hook_asset(later)) == (requested, 0)
    (record,) = graphs.instance.get_run_records(dg.RunsFilter(run_ids=[run.run_id]))
    tag = record.dagster_run.tags[REPEATED_TAG]
    assert tag.startswith("none: d/features/hook: no definition") == (not requested)


class GivenUp:
    """A backfill of two hooks over two batches that Dagster gave up."""

    def __init__(self, graphs: Graphs, cls_name: str = "DagsterAssetBackfillDataLoadError") -> None:
        self.graphs = graphs
        self.instance = graphs.instance
        self.instance.add_dynamic_partitions("d", ["b2"])
        graph = dg.Definitions(
            assets=[hook_asset("kept"), hook_asset("hook")]
        ).resolve_asset_graph()
        backfill = PartitionBackfill.from_asset_partitions(
            backfill_id="given-up",
            asset_graph=graph,
            partition_names=["b1", "b2"],
            asset_selection=[features_key("d", "kept"), features_key("d", "hook")],
            backfill_timestamp=time.time(),
            tags={"whose": "a person's"},
            dynamic_partitions_store=self.instance,
            all_partitions=False,
            title=None,
            description=None,
            run_config={"ops": {"d__features__hook": {"config": {"force": True}}}},
        )
        self.instance.add_backfill(
            backfill.with_status(BulkActionStatus.FAILED).with_error(
                SerializableErrorInfo("no longer does", [], cls_name)
            )
        )

    def requested(self, *assets: dg.AssetsDefinition) -> dict[str, set[str]]:
        """What is requested anew, by hook."""
        known = {each.backfill_id for each in self.instance.get_backfills()}
        self.graphs.look(*assets)
        partitions: dict[str, set[str]] = {}
        for backfill in self.instance.get_backfills():
            if backfill.backfill_id in known:
                continue
            assert backfill.tags == {"whose": "a person's", REPEAT_TAG: "1"}
            assert backfill.asset_backfill_data is not None
            subset = backfill.asset_backfill_data.target_subset
            for key in subset.asset_keys:
                partitions[key.path[-1]] = set(
                    subset.get_partitions_subset(key).get_partition_keys()
                )
        return partitions


def test_a_backfill_ended_by_a_rename_continues_for_the_other_hooks(graphs: Graphs) -> None:
    """Dagster fails it as a whole, and cancels the runs that wait, as a person would."""
    given_up = GivenUp(graphs)
    kept = features_key("d", "kept")
    graphs.instance.report_runless_asset_event(dg.AssetMaterialization(kept, partition="b2"))
    assert given_up.requested(hook_asset("kept"), hook_asset("anew")) == {"kept": {"b1"}}
    assert given_up.requested(hook_asset("kept"), hook_asset("anew")) == {}


def test_a_backfill_waits_for_a_wrong_definition_and_not_with_the_other_hooks(
    graphs: Graphs,
) -> None:
    given_up = GivenUp(graphs)
    kept, wrong = hook_asset("kept"), wrong_asset("hook")
    assert given_up.requested(kept, *wrong) == {"kept": {"b1", "b2"}}
    assert given_up.requested(kept, *wrong) == {}
    assert given_up.requested(kept, hook_asset("hook")) == {"hook": {"b1", "b2"}}
    assert given_up.requested(kept, hook_asset("hook")) == {}


def test_a_backfill_that_failed_for_its_own_reason_stays_failed(graphs: Graphs) -> None:
    given_up = GivenUp(graphs, "ValueError")
    assert given_up.requested(hook_asset("kept"), hook_asset("hook")) == {}


@pytest.mark.parametrize("fail", [Project.dead, lambda p: p.run(StoreUnavailableError("gone"))])
def test_the_work_is_requested_once_when_its_pause_is_over(
    project: Project, fail: Callable[[Project], dg.DagsterRun]
) -> None:
    run = fail(project)
    early = project.look(0)
    assert (early.requested, early.waiting) == ({}, 1)
    repeats = project.look(backoff_seconds(0) + 1)
    assert list(repeats.requested.values()) == [1]
    (backfill,) = project.instance.get_backfills()
    assert backfill.tags == {REPEAT_TAG: "1"}
    assert backfill.asset_backfill_data is not None
    target = backfill.asset_backfill_data.target_subset.get_partitions_subset(KEY)
    assert set(target.get_partition_keys()) == {"b1"}
    assert project.tags(run)[REPEATED_TAG] == backfill.backfill_id
    assert not project.look(DAY).requested
    project.cursor = None
    assert not project.look(DAY).requested


def test_what_was_done_meanwhile_is_not_repeated(project: Project) -> None:
    failed = project.dead()
    project.run(None)
    assert not project.look(DAY).requested
    assert project.tags(failed)[REPEATED_TAG] == "none: nothing is left"


def test_runs_of_one_kind_are_one_backfill(project: Project) -> None:
    project.dead("b2")
    project.dead("b1")
    assert list(project.look(DAY).requested.values()) == [2]


def test_pauses_grow_and_end(project: Project) -> None:
    pauses = [backoff_seconds(repeats) for repeats in range(MAX_REPEATS)]
    assert pauses[:3] == [30, 60, 120]
    assert DAY / 2 < sum(pauses) < 2 * DAY
    run = project.run(StoreUnavailableError("gone"), tags={REPEAT_TAG: "3"})
    assert not project.look(backoff_seconds(2)).requested
    assert project.look(backoff_seconds(3) + 1).requested
    assert project.instance.get_backfills()[0].tags[REPEAT_TAG] == "4"
    last = project.run(StoreUnavailableError("gone"), "b2", tags={REPEAT_TAG: str(MAX_REPEATS)})
    assert project.look(DAY).given_up == [last.run_id]
    assert project.tags(last)[REPEATED_TAG] == "none: 50 repeats failed"
    assert run.run_id != last.run_id


def test_a_forced_run_is_the_same_request_when_it_is_repeated(project: Project) -> None:
    config = {"ops": {"d__features__hook": {"config": {"force": True}}}}
    run = project.run(StoreUnavailableError("gone"), run_config=config)
    assert project.look(DAY).requested
    (backfill,) = project.instance.get_backfills()
    assert backfill.run_config == config
    assert backfill.tags[REQUEST_TAG] == run.run_id
    again = project.run(
        StoreUnavailableError("gone"), "b2", run_config=config, tags=dict(backfill.tags)
    )
    assert project.look(DAY).requested
    newest = max(project.instance.get_backfills(), key=lambda each: each.tags[REPEAT_TAG])
    assert newest.tags == {REPEAT_TAG: "2", REQUEST_TAG: run.run_id}
    assert again.run_id != run.run_id


def test_what_was_called_off_is_not_repeated(project: Project) -> None:
    project.dead()
    project.look(DAY)
    (backfill,) = project.instance.get_backfills()
    project.instance.update_backfill(backfill.with_status(BulkActionStatus.CANCELED))
    run = project.run(
        StoreUnavailableError("gone"), tags={"dagster/backfill": backfill.backfill_id}
    )
    assert not project.look(DAY).requested
    assert REPEATED_TAG not in project.tags(run)


def test_a_hook_that_is_gone_is_not_repeated(project: Project) -> None:
    project.dead()

    @dg.asset(key=features_key("d", "other"), partitions_def=batches_partitions("d"))
    def other() -> None: ...

    project.asset = other
    assert not project.look(DAY).requested
    (record,) = project.instance.get_run_records(dg.RunsFilter())
    tag = record.dagster_run.tags[REPEATED_TAG]
    assert tag.startswith("none: d/features/hook: no definition has it any more")


def test_a_queued_run_of_a_hook_that_is_gone_ends_with_a_sentence(project: Project) -> None:
    job = dg.Definitions(assets=[project.asset]).resolve_implicit_global_asset_job_def()
    waiting = project.instance.create_run_for_job(
        job,
        asset_selection=frozenset([KEY]),
        status=dg.DagsterRunStatus.QUEUED,
        remote_job_origin=ORIGIN,
        job_code_origin=CODE_ORIGIN,
    )
    graph = project.graph()
    assert fail_undefined_runs(project.instance, graph) == []

    @dg.asset(key=features_key("d", "other"), partitions_def=batches_partitions("d"))
    def other() -> None: ...

    broken = dg.AssetSpec([NAMELESS, "hook", "defs"])
    unsure = dg.Definitions(assets=[other, broken]).resolve_asset_graph()
    assert fail_undefined_runs(project.instance, unsure) == []
    project.asset = other
    assert fail_undefined_runs(project.instance, project.graph()) == [waiting.run_id]
    (failure,) = project.instance.get_records_for_run(
        waiting.run_id, of_type=dg.DagsterEventType.RUN_FAILURE
    ).records
    event = failure.event_log_entry.dagster_event
    assert event is not None
    assert "d/features/hook: no definition has it any more" in (event.message or "")


def test_status_names_what_waits_to_be_repeated() -> None:
    """As it stands in the cursor that Dagster keeps for the sensor."""
    with dg.instance_for_test() as instance:
        project = Project(instance)
        assert waiting_repeats(instance) == []
        project.run(StoreUnavailableError("no answer"), "b2")
        assert not project.look(0).requested
        origin = RemoteInstigatorOrigin(ORIGIN.repository_origin, SENSOR)
        data = SensorInstigatorData(cursor=project.cursor, sensor_type=SensorType.STANDARD)
        state = InstigatorState(
            origin, InstigatorType.SENSOR, InstigatorStatus.DECLARED_IN_CODE, data
        )
        instance.add_instigator_state(state)
        (waiting,) = waiting_repeats(instance)
        (record,) = instance.get_run_records()
    assert waiting.assets == (KEY,)
    assert waiting.batches == ("b2",)
    assert record.end_time is not None
    assert waiting.at is not None
    assert waiting.at.timestamp() - record.end_time == pytest.approx(backoff_seconds(0))


def test_the_reason_of_a_failed_run_is_its_innermost_error(project: Project) -> None:
    project.run(wrapped(ValueError("row 3 is wrong")))
    assert last_failure(project.instance, KEY, "b1") == "ValueError: row 3 is wrong"
    project.run(hook_failure(FailureKind.NON_ZERO_EXIT), "b2")
    assert last_failure(project.instance, KEY, "b2") == "failed"
    assert last_failure(project.instance, KEY, "b3") is None
    project.dead("b1")
    assert last_failure(project.instance, KEY, "b1") == "its worker died, or could not be started"
