"""Repeat runs that failed because of infrastructure or a definition, until they succeed.

A worker that was killed, a code server, S3 or PostgreSQL that was unavailable, and a cluster that
refused are no verdict on the hook, so its batch does not wait for an operator. Neither is a
definition that could not be used when the run began: its assets are run once it can be. A hook's
own failure is not repeated. Dagster's run retries come first; they have no backoff.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import dagster as dg

from feature_pipeline.model.text.counted import counted
from feature_pipeline.orchestration.dagster_internals import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    AssetGraph,
    BulkActionStatus,
)
from feature_pipeline.orchestration.events.backfill_request import request_backfill
from feature_pipeline.orchestration.events.requested import partitions_of_run, partitions_under_way
from feature_pipeline.orchestration.events.staleness import partition_runs
from feature_pipeline.orchestration.keys import REPEAT_TAG, REQUEST_TAG, batches_partitions
from feature_pipeline.orchestration.sensors.repeat_backfills import (
    MAX_REPEATS,
    FailedBackfills,
    repeat_failed_backfills,
)
from feature_pipeline.orchestration.sensors.repeat_causes import (
    classify_failed_assets,
    config_of,
    is_blocked,
    is_nameless,
    is_repeatable,
)

SENSOR: Final = "repeat_after_outages"
TICK_SECONDS: Final = 15
FIRST_BACKOFF_SECONDS: Final = 30.0
LONGEST_BACKOFF_SECONDS: Final = 1800.0
LOOKBACK_SECONDS: Final = 86_400.0
"""Maximum age of a failure that the first poll finds."""
RUNS_PER_TICK: Final = 200
MAX_WAITING: Final = 2000

REPEATED_TAG: Final = "feature_pipeline/repeated_by"
"""On a failed run: the backfill that repeats it, or why none does."""


def backoff_seconds(repeats: int) -> float:
    """Return the delay before another repetition after this many."""
    return min(FIRST_BACKOFF_SECONDS * 2.0 ** min(repeats, 30), LONGEST_BACKOFF_SECONDS)


@dataclass(slots=True)
class _Cursor:
    after: float
    waiting: dict[str, float] = field(default_factory=dict)
    """When runs are to be repeated, by their ids."""
    held: dict[str, list[str]] = field(default_factory=dict)
    """Assets of runs that wait until a definition can be used, by the runs' ids."""
    backfills: FailedBackfills = field(default_factory=FailedBackfills)

    @classmethod
    def read(cls, text: str | None, now: float) -> "_Cursor":
        if text is None:
            return cls(now - LOOKBACK_SECONDS)
        stored = json.loads(text)
        backfills = FailedBackfills(**stored.get("backfills", {}))
        return cls(stored["after"], stored["waiting"], stored.get("held", {}), backfills)

    def write(self) -> str:
        return json.dumps(asdict(self))

    def pop_due(self, graph: AssetGraph, now: float) -> dict[str, list[dg.AssetKey] | None]:
        """Remove and return what is due now: runs, and their assets if not all."""
        due: dict[str, list[dg.AssetKey] | None] = {}
        for run_id, texts in list(self.held.items()):
            keys = [dg.AssetKey.from_user_string(text) for text in texts]
            if len(due) < RUNS_PER_TICK and not any(is_blocked(graph, key) for key in keys):
                due[run_id] = keys
                del self.held[run_id]
        for run_id, at in list(self.waiting.items()):
            if at <= now and run_id not in due and len(due) < RUNS_PER_TICK:
                due[run_id] = None
                del self.waiting[run_id]
        return due


@dataclass(slots=True)
class Repeats:
    """The result of one poll."""

    requested: dict[str, int] = field(default_factory=dict)
    """Number of batches by backfill."""
    given_up: list[str] = field(default_factory=list)
    """Runs that were repeated too often."""
    waiting: int = 0


def repeat_failed_runs(
    instance: dg.DagsterInstance, graph: AssetGraph, cursor: str | None, now: float
) -> tuple[Repeats, str]:
    """Request failed runs again that did not fail by themselves, once their delay is over.

    Only batches whose last run failed and that no other run is about to process are requested; a
    cancelled batch is not. Assets of a run that were renamed or deleted do not affect the others.

    Returns:
        What was done, and the next cursor.
    """
    state = _Cursor.read(cursor, now)
    _find_failed(instance, graph, state)
    due = state.pop_due(graph, now)
    repeats = Repeats()
    wanted: dict[_Work, list[dg.DagsterRun]] = {}
    for run in instance.get_runs(dg.RunsFilter(run_ids=list(due))) if due else ():
        if AUTO_RETRY_RUN_ID_TAG in run.tags or _is_called_off(instance, run):
            continue
        if _repeats(run) >= MAX_REPEATS:
            instance.add_run_tags(run.run_id, {REPEATED_TAG: f"none: {MAX_REPEATS} repeats failed"})
            repeats.given_up.append(run.run_id)
            continue
        shares = classify_failed_assets(instance, graph, run, due[run.run_id])
        if shares.blocked and len(state.held) < MAX_WAITING:
            state.held[run.run_id] = [key.to_user_string() for key in shares.blocked]
        if shares.repeatable:
            wanted.setdefault(_work(run, shares.repeatable), []).append(run)
        elif shares.removed:
            why = f"none: {undefined(shares.removed)}"
            instance.add_run_tags(run.run_id, {REPEATED_TAG: why[:250]})
    for work, runs in wanted.items():
        backfill, batches = _request(instance, work, runs)
        for run in runs:
            instance.add_run_tags(run.run_id, {REPEATED_TAG: backfill or "none: nothing is left"})
        if backfill is not None:
            repeats.requested[backfill] = batches
    repeats.requested |= repeat_failed_backfills(instance, graph, state.backfills, now)
    repeats.waiting = len(state.waiting) + len(state.held) + len(state.backfills.held)
    return repeats, state.write()


@dataclass(frozen=True, slots=True)
class WaitingRepeat:
    """A failed run that is to be repeated."""

    assets: tuple[dg.AssetKey, ...]
    batches: tuple[str, ...]
    at: datetime | None
    """When it is requested again, at the earliest; None: once a definition can be used."""


def waiting_repeats(instance: dg.DagsterInstance) -> list[WaitingRepeat]:
    """Return the failed runs that are waiting to be requested again, next first."""
    waiting: dict[str, float] = {}
    blocked: dict[str, list[str]] = {}
    for state in instance.all_instigator_state():
        text = getattr(state.instigator_data, "cursor", None)
        if state.name == SENSOR and text is not None:
            cursor = _Cursor.read(text, 0.0)
            waiting |= cursor.waiting
            blocked |= cursor.held
    ids = [*sorted(waiting, key=waiting.__getitem__), *blocked][:RUNS_PER_TICK]
    runs = {run.run_id: run for run in instance.get_runs(dg.RunsFilter(run_ids=ids))} if ids else {}
    repeats = []
    for run_id in (run_id for run_id in dict.fromkeys(ids) if run_id in runs):
        run = runs[run_id]
        waits_for_definition = run_id not in waiting
        assets = (
            tuple(map(dg.AssetKey.from_user_string, blocked[run_id]))
            if waits_for_definition
            else tuple(sorted(run.asset_selection or ()))
        )
        batches = partitions_of_run(instance, assets[0].path[0], run) if assets else None
        at = None if waits_for_definition else datetime.fromtimestamp(waiting[run_id], UTC)
        repeats.append(WaitingRepeat(assets, tuple(batches or ()), at))
    return repeats


def _find_failed(instance: dg.DagsterInstance, graph: AssetGraph, state: _Cursor) -> None:
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
        if REPEATED_TAG in run.tags or not run.asset_selection:
            continue
        if run.run_id in state.waiting or run.run_id in state.held:
            continue
        if AUTO_RETRY_RUN_ID_TAG not in run.tags and is_repeatable(instance, graph, run):
            ended = record.end_time or state.after
            state.waiting[run.run_id] = ended + backoff_seconds(_repeats(run))


def _repeats(run: dg.DagsterRun) -> int:
    return int(run.tags.get(REPEAT_TAG, "0"))


def _is_called_off(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    backfill_id = run.tags.get(BACKFILL_ID_TAG)
    backfill = None if backfill_id is None else instance.get_backfill(backfill_id)
    cancelled = (BulkActionStatus.CANCELING, BulkActionStatus.CANCELED)
    return backfill is not None and backfill.status in cancelled


def fail_undefined_runs(instance: dg.DagsterInstance, graph: AssetGraph) -> list[str]:
    """Fail queued runs of assets that are no longer defined, with an error; return their ids.

    A worker that took such a run could not even name its assets. Other assets of the run are
    requested again by `repeat_failed_runs`. Nothing is failed while a definition is too broken to
    name its hook.
    """
    known = graph.get_all_asset_keys()
    if is_nameless(graph):
        return []
    failed = []
    queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
    for run in instance.get_runs(queued, limit=RUNS_PER_TICK):
        if removed := sorted((run.asset_selection or frozenset()) - known):
            instance.report_run_failed(run, undefined(removed))
            failed.append(run.run_id)
    return failed


def undefined(keys: Sequence[dg.AssetKey]) -> str:
    """Return the message for assets that are no longer defined, with the remedy."""
    named = ", ".join(key.to_user_string() for key in keys)
    return (
        f"{named}: no definition has it any more. It was renamed or deleted while this run waited;"
        " materialize the batch of the asset that took its place"
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """The properties shared by failed runs that one backfill repeats."""

    assets: tuple[dg.AssetKey, ...]
    run_config: str
    repeats: int
    request: str | None

    @property
    def dataset(self) -> str:
        return self.assets[0].path[0]


def _work(run: dg.DagsterRun, assets: tuple[dg.AssetKey, ...]) -> _Work:
    config = json.dumps(config_of(run.run_config, assets), sort_keys=True)
    # What a run was told to compute again is asked once, however often it is repeated.
    request = run.tags.get(REQUEST_TAG, run.root_run_id or run.run_id) if run.run_config else None
    return _Work(assets, config, _repeats(run), request)


def _request(
    instance: dg.DagsterInstance,
    work: _Work,
    runs: Sequence[dg.DagsterRun],
) -> tuple[str | None, int]:
    """Request a backfill of the runs' unfinished work; return its id and batch count."""
    batches = _undone(instance, work, runs)
    if not batches:
        return None, 0
    tags = {REPEAT_TAG: str(work.repeats + 1)}
    if work.request is not None:
        tags[REQUEST_TAG] = work.request
    config: Mapping[str, Any] = json.loads(work.run_config)
    backfill_id = request_backfill(
        instance,
        dict.fromkeys(work.assets, batches),
        title="repeated after an outage",
        description="Runs of these batches failed because a server was unavailable or"
        " refused, or because a definition could not be used.",
        tags=tags,
        run_config=config or None,
    )
    return backfill_id, len(batches)


def _undone(instance: dg.DagsterInstance, work: _Work, runs: Sequence[dg.DagsterRun]) -> list[str]:
    """Return the runs' batches whose last run failed and that no other run will process."""
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
    """Return the sensor that repeats runs after infrastructure failures; running by default."""

    @dg.sensor(
        name=SENSOR,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Repeats runs that failed because a worker, S3, PostgreSQL, the code server or the"
            " cluster failed: after 30 seconds, then after twice as long each time, for a day. Runs"
            " that failed over a wrong definition are repeated once it is corrected. A hook's own"
            " failures are not repeated. Fails queued runs of assets that were renamed or deleted."
        ),
    )
    def repeat_after_outages(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        repository = context.repository_def
        if repository is None:
            return dg.SkipReason("evaluated without a code location")
        for run_id in fail_undefined_runs(context.instance, repository.asset_graph):
            context.log.error("run %s: its assets are no longer defined; failed", run_id)
        repeats, cursor = repeat_failed_runs(
            context.instance, repository.asset_graph, context.cursor, time.time()
        )
        context.update_cursor(cursor)
        for run_id in repeats.given_up:
            context.log.error(
                "run %s: repeated %d times and failed; repeat it by hand", run_id, MAX_REPEATS
            )
        batches = sum(repeats.requested.values())
        return dg.SkipReason(
            f"{counted(batches, 'batch')} requested again,"
            f" {counted(repeats.waiting, 'run')} waiting"
        )

    return repeat_after_outages
