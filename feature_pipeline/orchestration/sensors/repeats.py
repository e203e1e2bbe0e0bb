"""Runs that infrastructure made fail: repeated with growing pauses until they are done.

A worker that was killed, a code server, S3 or PostgreSQL that was gone, and a cluster that refused
are no verdict on the hook, so its batch does not wait for an operator. A hook's own failure is not
repeated. Dagster's run retries come first; they do not wait.
"""

import json
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final

import dagster as dg
import psycopg
from dagster_shared.error import SerializableErrorInfo

from feature_pipeline.errors import OutcomeUnknownError, StoreUnavailableError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.orchestration.assets.wrong_definitions import NAMELESS
from feature_pipeline.orchestration.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    PARTITION_NAME_TAG,
    AssetGraph,
    BulkActionStatus,
    PartitionBackfill,
)
from feature_pipeline.orchestration.events.requested import partitions_of_run, partitions_under_way
from feature_pipeline.orchestration.events.staleness import partition_runs
from feature_pipeline.orchestration.keys import REPEAT_TAG, REQUEST_TAG, batches_partitions
from feature_pipeline.projections.catalog.database import ConnectionFailedError

SENSOR: Final = "repeat_after_outages"
TICK_SECONDS: Final = 15
FIRST_PAUSE_SECONDS: Final = 30.0
LONGEST_PAUSE_SECONDS: Final = 1800.0
MAX_REPEATS: Final = 50
"""A day, with these pauses."""
LOOK_BACK_SECONDS: Final = 86_400.0
"""How old a failure may be that the first look finds."""
RUNS_PER_TICK: Final = 200
MAX_WAITING: Final = 2000

REPEATED_TAG: Final = "feature_pipeline/repeated_by"
"""On a failed run: the backfill that repeats it, or why none does."""

FAILURES_OF_SURROUNDINGS: Final = frozenset(
    {
        FailureKind.IMAGE_PULL,
        FailureKind.UNSCHEDULABLE,
        FailureKind.EVICTED,
        FailureKind.STAGE_FAILED,
        FailureKind.PUBLISH_FAILED,
        FailureKind.CLUSTER_REFUSED,
        FailureKind.WORKER_DIED,
        FailureKind.UNKNOWN,
    }
)
"""Ends of hook runs that are not the hook's doing."""

_FAILED_RUNS: Final = 20
"""Of one batch, that are looked at for an asset."""

_SQL_STATES: Final = ("08", "53", "57")
"""Classes: no connection, no resources, stopped by an operator."""
_STATEMENT_CANCELLED: Final = "57014"
_OWN: Final = (StoreUnavailableError, OutcomeUnknownError, ConnectionFailedError)
# SQLAlchemy's and psycopg's own names for a lost connection; the second is of Dagster's storage.
_OTHERS: Final = ("OperationalError", "InterfaceError", "DagsterExecutionInterruptedError")


@cache
def _error_names() -> frozenset[str]:
    """Names of exceptions that a server which is gone, or refuses, causes."""
    names = {*(each.__name__ for each in _OWN), *_OTHERS}
    for each in vars(psycopg.errors).values():
        state = getattr(each, "sqlstate", None)
        if isinstance(state, str) and state[:2] in _SQL_STATES and state != _STATEMENT_CANCELLED:
            names.add(each.__name__)
    return frozenset(names)


def failed_by_infrastructure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tell whether a server that was gone, or refused, made the run or a step of it fail."""
    steps = _events(instance, run, dg.DagsterEventType.STEP_FAILURE)
    if steps:
        return any(_is_step_of_infrastructure(event) for event in steps)
    # A worker that died, or could not be started, leaves a failure without an error.
    failures = _events(instance, run, dg.DagsterEventType.RUN_FAILURE)
    known = [event.job_failure_data.error for event in failures if event.event_specific_data]
    return all(_is_of_infrastructure(error) for error in known if error is not None)


def _blameless(
    instance: dg.DagsterInstance, graph: AssetGraph, run: dg.DagsterRun
) -> tuple[dg.AssetKey, ...]:
    """The assets of a run but for those that failed by themselves and what is made from them."""
    steps = _events(instance, run, dg.DagsterEventType.STEP_FAILURE)
    failed = {event.step_key for event in steps if not _is_step_of_infrastructure(event)}
    chosen = run.asset_selection or frozenset()
    out = {key for key in chosen if "__".join(key.path) in failed}
    below = out
    while below:
        below = {key for key in chosen - out if graph.get(key).parent_keys & below}
        out |= below
    return tuple(sorted(chosen - out))


def _events(
    instance: dg.DagsterInstance, run: dg.DagsterRun, kind: dg.DagsterEventType
) -> list[dg.DagsterEvent]:
    records = instance.get_records_for_run(run.run_id, of_type=kind).records
    events = (record.event_log_entry.dagster_event for record in records)
    return [event for event in events if event is not None]


def _is_step_of_infrastructure(event: dg.DagsterEvent) -> bool:
    failure = event.step_failure_data
    if failure.user_failure_data is not None:
        kind = failure.user_failure_data.metadata.get("failure_kind")
        if kind is not None:
            return str(kind.value) in FAILURES_OF_SURROUNDINGS
    return failure.error is not None and _is_of_infrastructure(failure.error)


def _is_of_infrastructure(error: SerializableErrorInfo) -> bool:
    seen: SerializableErrorInfo | None = error
    while seen is not None:
        if seen.cls_name in _error_names():
            return True
        seen = seen.cause or seen.context
    return False


def pause_seconds(repeats: int) -> float:
    """How long work waits that was repeated so often."""
    return min(FIRST_PAUSE_SECONDS * 2.0 ** min(repeats, 30), LONGEST_PAUSE_SECONDS)


@dataclass(slots=True)
class _Cursor:
    after: float
    waiting: dict[str, float] = field(default_factory=dict)
    """When runs are to be repeated, by their ids."""

    @classmethod
    def read(cls, text: str | None, now: float) -> "_Cursor":
        if text is None:
            return cls(now - LOOK_BACK_SECONDS)
        stored = json.loads(text)
        return cls(stored["after"], stored["waiting"])

    def write(self) -> str:
        return json.dumps({"after": self.after, "waiting": self.waiting})


@dataclass(slots=True)
class Repeats:
    """What one look did."""

    requested: dict[str, int] = field(default_factory=dict)
    """Number of batches by backfill."""
    given_up: list[str] = field(default_factory=list)
    """Runs that were repeated too often."""
    waiting: int = 0


def repeat_failed_runs(
    instance: dg.DagsterInstance, graph: AssetGraph, cursor: str | None, now: float
) -> tuple[Repeats, str]:
    """Request the work of runs again that infrastructure made fail, once their pause is over.

    Only batches whose last run failed and that nothing is about to run are requested; a batch that
    was called off is not.

    Returns:
        What was done, and the next cursor.
    """
    state = _Cursor.read(cursor, now)
    _find_failed(instance, state)
    due = [run_id for run_id, at in state.waiting.items() if at <= now][:RUNS_PER_TICK]
    found = Repeats()
    wanted: dict[_Work, list[dg.DagsterRun]] = {}
    for run in instance.get_runs(dg.RunsFilter(run_ids=due)) if due else ():
        if AUTO_RETRY_RUN_ID_TAG in run.tags or _is_called_off(instance, run):
            continue
        if _repeats(run) >= MAX_REPEATS:
            instance.add_run_tags(run.run_id, {REPEATED_TAG: f"none: {MAX_REPEATS} repeats failed"})
            found.given_up.append(run.run_id)
        elif gone := sorted((run.asset_selection or frozenset()) - graph.get_all_asset_keys()):
            instance.add_run_tags(run.run_id, {REPEATED_TAG: f"none: {undefined(gone)}"[:250]})
        elif _exist(graph, run) and (assets := _blameless(instance, graph, run)):
            wanted.setdefault(_work(run, assets), []).append(run)
    for work, runs in wanted.items():
        backfill, batches = _request(instance, graph, work, runs, now)
        for run in runs:
            instance.add_run_tags(run.run_id, {REPEATED_TAG: backfill or "none: nothing is left"})
        if backfill is not None:
            found.requested[backfill] = batches
    for run_id in due:
        del state.waiting[run_id]
    found.waiting = len(state.waiting)
    return found, state.write()


@dataclass(frozen=True, slots=True)
class WaitingRepeat:
    """A failed run that is to be repeated."""

    assets: tuple[dg.AssetKey, ...]
    batches: tuple[str, ...]
    at: datetime
    """When it is requested again, at the earliest."""


def waiting_repeats(instance: dg.DagsterInstance) -> list[WaitingRepeat]:
    """Return the failed runs that the sensor has found and not requested again yet, next first."""
    waiting: dict[str, float] = {}
    for state in instance.all_instigator_state():
        cursor = getattr(state.instigator_data, "cursor", None)
        if state.name == SENSOR and cursor is not None:
            waiting |= _Cursor.read(cursor, 0.0).waiting
    ids = sorted(waiting, key=waiting.__getitem__)[:RUNS_PER_TICK]
    runs = instance.get_runs(dg.RunsFilter(run_ids=ids)) if ids else ()
    found = []
    for run in sorted(runs, key=lambda each: waiting[each.run_id]):
        assets = tuple(sorted(run.asset_selection or ()))
        batches = partitions_of_run(instance, assets[0].path[0], run) if assets else None
        at = datetime.fromtimestamp(waiting[run.run_id], UTC)
        found.append(WaitingRepeat(assets, tuple(batches or ()), at))
    return found


def last_failure(instance: dg.DagsterInstance, key: dg.AssetKey, batch: str) -> str | None:
    """Return why the last failed run of one batch of an asset failed; None if none is known.

    The text of the innermost error. Runs over a range of batches are not looked at.
    """
    tags = {PARTITION_NAME_TAG: batch}
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags=tags)
    for run in instance.get_runs(failed, limit=_FAILED_RUNS):
        if key not in (run.asset_selection or ()):
            continue
        steps = _events(instance, run, dg.DagsterEventType.STEP_FAILURE)
        own = [event for event in steps if event.step_key == "__".join(key.path)]
        for event in own or steps:
            failure = event.step_failure_data
            if failure.user_failure_data is not None and failure.user_failure_data.description:
                return failure.user_failure_data.description
            if failure.error is not None:
                return _innermost(failure.error).message.strip()
        return "its worker died, or could not be started"
    return None


def _innermost(error: SerializableErrorInfo) -> SerializableErrorInfo:
    while error.cause is not None:
        error = error.cause
    return error


def _find_failed(instance: dg.DagsterInstance, state: _Cursor) -> None:
    """Add runs that failed since the last look."""
    if len(state.waiting) >= MAX_WAITING:
        return
    records = instance.get_run_records(
        dg.RunsFilter(
            statuses=[dg.DagsterRunStatus.FAILURE],
            updated_after=datetime.fromtimestamp(state.after, UTC),
        ),
        limit=RUNS_PER_TICK,
        order_by="update_timestamp",
        ascending=True,
    )
    for record in records:
        run = record.dagster_run
        state.after = max(state.after, record.update_timestamp.replace(tzinfo=UTC).timestamp())
        # A tag that is added to a run makes it appear here again.
        if REPEATED_TAG in run.tags or run.run_id in state.waiting or not run.asset_selection:
            continue
        if AUTO_RETRY_RUN_ID_TAG not in run.tags and failed_by_infrastructure(instance, run):
            ended = record.end_time or state.after
            state.waiting[run.run_id] = ended + pause_seconds(_repeats(run))


def _repeats(run: dg.DagsterRun) -> int:
    return int(run.tags.get(REPEAT_TAG, "0"))


def _is_called_off(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    backfill_id = run.tags.get(BACKFILL_ID_TAG)
    backfill = None if backfill_id is None else instance.get_backfill(backfill_id)
    cancelled = (BulkActionStatus.CANCELING, BulkActionStatus.CANCELED)
    return backfill is not None and backfill.status in cancelled


def _exist(graph: AssetGraph, run: dg.DagsterRun) -> bool:
    """Return whether its assets are still defined, as assets of batches of one dataset."""
    keys = run.asset_selection or frozenset()
    datasets = {key.path[0] for key in keys}
    return len(datasets) == 1 and all(
        graph.has(key) and graph.get(key).partitions_def == batches_partitions(key.path[0])
        for key in keys
    )


def fail_undefined_runs(instance: dg.DagsterInstance, graph: AssetGraph) -> list[str]:
    """Fail queued runs of assets that are defined no more, with a sentence; their ids.

    A worker that took one could not even say what it was to run. Nothing is failed while a
    definition is too broken to tell which hook it is of.
    """
    known = graph.get_all_asset_keys()
    if any(key.path[0] == NAMELESS for key in known):
        return []
    failed = []
    queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
    for run in instance.get_runs(queued, limit=RUNS_PER_TICK):
        if gone := sorted((run.asset_selection or frozenset()) - known):
            instance.report_run_failed(run, undefined(gone))
            failed.append(run.run_id)
    return failed


def undefined(keys: Sequence[dg.AssetKey]) -> str:
    """Say that assets are defined no more, and what to do."""
    named = ", ".join(key.to_user_string() for key in keys)
    return (
        f"{named}: no definition has it any more. It was renamed or deleted while this run waited;"
        " materialize the batch of the asset that took its place"
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """What failed runs have in common that one backfill repeats."""

    assets: tuple[dg.AssetKey, ...]
    run_config: str
    repeats: int
    request: str | None

    @property
    def dataset(self) -> str:
        return self.assets[0].path[0]


def _work(run: dg.DagsterRun, assets: tuple[dg.AssetKey, ...]) -> _Work:
    config = json.dumps(run.run_config, sort_keys=True)
    # What a run was told to compute again is asked once, however often it is repeated.
    request = run.tags.get(REQUEST_TAG, run.root_run_id or run.run_id) if run.run_config else None
    return _Work(assets, config, _repeats(run), request)


def _request(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    work: _Work,
    runs: Sequence[dg.DagsterRun],
    now: float,
) -> tuple[str | None, int]:
    """Request a backfill of what the runs left undone; its id, and the number of its batches."""
    batches = _undone(instance, work, runs)
    if not batches:
        return None, 0
    backfill_id = uuid.uuid4().hex[:8]
    tags = {REPEAT_TAG: str(work.repeats + 1)}
    if work.request is not None:
        tags[REQUEST_TAG] = work.request
    config: Mapping[str, Any] = json.loads(work.run_config)
    instance.add_backfill(
        PartitionBackfill.from_asset_partitions(
            backfill_id=backfill_id,
            asset_graph=graph,
            partition_names=batches,
            asset_selection=list(work.assets),
            backfill_timestamp=now,
            tags=tags,
            dynamic_partitions_store=instance,
            all_partitions=False,
            title="repeated after an outage",
            description="Runs of these batches failed because a server was gone or refused.",
            run_config=config or None,
        )
    )
    return backfill_id, len(batches)


def _undone(instance: dg.DagsterInstance, work: _Work, runs: Sequence[dg.DagsterRun]) -> list[str]:
    """Batches of the runs whose last run failed and that nothing is about to run."""
    about = {b for run in runs for b in partitions_of_run(instance, work.dataset, run) or ()}
    failed: set[str] = set()
    busy: set[str] = set()
    for key in work.assets:
        failed |= partition_runs(instance, key, batches_partitions(work.dataset)).failed
        busy |= partitions_under_way(instance, key)
    known = _in_order(instance.get_dynamic_partitions(work.dataset), about & failed - busy)
    return list(known)


def _in_order(partitions: Sequence[str], wanted: Collection[str]) -> Iterator[str]:
    return (each for each in partitions if each in wanted)


def repeats_sensor() -> dg.SensorDefinition:
    """Repeats runs that infrastructure made fail, every `TICK_SECONDS`; running by default."""

    @dg.sensor(
        name=SENSOR,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Repeats runs that failed because a worker, S3, PostgreSQL, the code server or the"
            " cluster failed: after 30 seconds, then after twice as long each time, for a day. A"
            " hook's own failures are not repeated. Fails queued runs of assets that were renamed"
            " or deleted."
        ),
    )
    def repeat_after_outages(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        repository = context.repository_def
        if repository is None:
            return dg.SkipReason("evaluated without a code location")
        for run_id in fail_undefined_runs(context.instance, repository.asset_graph):
            context.log.error("run %s: its assets are not defined any more; failed", run_id)
        found, cursor = repeat_failed_runs(
            context.instance, repository.asset_graph, context.cursor, time.time()
        )
        context.update_cursor(cursor)
        for run_id in found.given_up:
            context.log.error(
                "run %s: repeated %d times and failed; repeat it by hand", run_id, MAX_REPEATS
            )
        batches = sum(found.requested.values())
        return dg.SkipReason(f"{batches} batches requested again, {found.waiting} runs wait")

    return repeat_after_outages
