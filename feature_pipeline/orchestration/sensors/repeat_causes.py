"""Classify failed runs: by infrastructure, an unusable definition, or the hook itself."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from feature_pipeline.errors import FULL_DISK, OutcomeUnknownError, StoreUnavailableError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.orchestration.assets.wrong_definitions import (
    NAMELESS,
    SENTENCE_METADATA,
    WRONG_DEFINITION_FAILURE,
)
from feature_pipeline.orchestration.dagster_internals import (
    PARTITION_NAME_TAG,
    AssetGraph,
    PartitionBackfill,
)
from feature_pipeline.orchestration.keys import batches_partitions

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
"""Kinds of failures of hook runs that are not caused by the hook."""

_FAILED_RUNS: Final = 20
"""Number of an asset's failed runs of one batch that are read."""

_BACKFILL_ERRORS: Final = (
    "DagsterAssetBackfillDataLoadError",
    "DagsterDefinitionChangedDeserializationError",
    "DagsterUserCodeUnreachableError",
    "DagsterCodeLocationLoadError",
)
"""The errors with which Dagster fails a backfill if one of its assets is not available."""
_LOADING: Final = ("DagsterInvalidSubsetError", "DagsterInvalidDefinitionError")
"""The error of a worker whose definitions lack the run's assets."""
_SQL_STATES: Final = ("08", "53", "57")
"""Classes: no connection, no resources, stopped by an operator."""
_STATEMENT_CANCELLED: Final = "57014"
# SQLAlchemy's and psycopg's own names for a lost connection; the second is of Dagster's storage.
_OTHERS: Final = ("OperationalError", "InterfaceError", "DagsterExecutionInterruptedError")


@cache
def _error_names() -> frozenset[str]:
    """Return the names of exceptions that an unavailable or refusing server causes."""
    import psycopg

    from feature_pipeline.projections.catalog.database import ConnectionFailedError

    own = (StoreUnavailableError, OutcomeUnknownError, ConnectionFailedError)
    names = {*(each.__name__ for each in own), *_OTHERS}
    for each in vars(psycopg.errors).values():
        state = getattr(each, "sqlstate", None)
        if isinstance(state, str) and state[:2] in _SQL_STATES and state != _STATEMENT_CANCELLED:
            names.add(each.__name__)
    return frozenset(names)


def is_repeatable(instance: dg.DagsterInstance, graph: AssetGraph, run: dg.DagsterRun) -> bool:
    """Return whether something other than a hook made the run or one of its steps fail.

    A server that was unavailable, or refused; or a definition that could not be used or was
    renamed.
    """
    steps = _events(instance, run, dg.DagsterEventType.STEP_FAILURE)
    if steps:
        return not all(_is_own(event) for event in steps)
    if (run.asset_selection or frozenset()) - graph.get_all_asset_keys():
        return True
    # A worker that died, or could not be started, leaves a failure without an error.
    failures = _events(instance, run, dg.DagsterEventType.RUN_FAILURE)
    known = [event.job_failure_data.error for event in failures if event.event_specific_data]
    return all(
        _is_of_infrastructure(error) or error.cls_name in _LOADING
        for error in known
        if error is not None
    )


def is_backfill_of_surroundings(backfill: PartitionBackfill) -> bool:
    """Return whether Dagster failed the backfill because definitions or servers changed."""
    error = backfill.error
    return error is not None and (
        error.cls_name in _BACKFILL_ERRORS or _is_of_infrastructure(error)
    )


@dataclass(frozen=True, slots=True)
class FailedAssets:
    """The assets of a failed run, except those that failed by themselves and their descendants."""

    repeatable: tuple[dg.AssetKey, ...]
    blocked: tuple[dg.AssetKey, ...]
    """Those that wait until a definition can be used."""
    removed: tuple[dg.AssetKey, ...]
    """Those that no definition has any more."""


def classify_failed_assets(
    instance: dg.DagsterInstance,
    graph: AssetGraph,
    run: dg.DagsterRun,
    only: Collection[dg.AssetKey] | None = None,
) -> FailedAssets:
    """Classify each asset of a failed run.

    Args:
        instance: Has the run's events.
        graph: The current definitions.
        run: The run.
        only: Of these assets alone.
    """
    chosen = frozenset(run.asset_selection or ())
    chosen = chosen if only is None else chosen & frozenset(only)
    absent = chosen - graph.get_all_asset_keys()
    there = chosen - absent
    steps = _events(instance, run, dg.DagsterEventType.STEP_FAILURE)
    failed = {event.step_key for event in steps if _is_own(event)}
    own = _with_those_below(graph, {key for key in there if step_of(key) in failed}, there)
    blocked = (
        _with_those_below(graph, {key for key in there if is_blocked(graph, key)}, there) - own
    )
    if any(is_blocked(graph, key) for key in absent):
        blocked, absent = blocked | absent, frozenset()
    left = there - own - blocked
    datasets = {key.path[0] for key in left}
    are_of_batches = len(datasets) == 1 and all(
        graph.get(key).partitions_def == batches_partitions(key.path[0]) for key in left
    )
    return FailedAssets(
        tuple(sorted(left)) if are_of_batches else (), tuple(sorted(blocked)), tuple(sorted(absent))
    )


def is_blocked(graph: AssetGraph, key: dg.AssetKey) -> bool:
    """Return whether an unusable definition declares the asset, or may declare it."""
    if graph.has(key):
        return SENTENCE_METADATA in graph.get(key).metadata
    return is_nameless(graph)


def is_nameless(graph: AssetGraph) -> bool:
    """Return whether a definition is too broken to name its hook."""
    return any(key.path[0] == NAMELESS for key in graph.get_all_asset_keys())


def step_of(key: dg.AssetKey) -> str:
    """Return the name of the asset's step, and of its entry in a run's config."""
    return "__".join(key.path)


def config_of(run_config: Mapping[str, Any], assets: Collection[dg.AssetKey]) -> dict[str, Any]:
    """Return the config of a run or backfill without the parts for other assets than these."""
    config = dict(run_config)
    if "ops" in config:
        names = {step_of(key) for key in assets}
        config["ops"] = {name: part for name, part in config["ops"].items() if name in names}
    return config


def _with_those_below(
    graph: AssetGraph, keys: set[dg.AssetKey], among: Collection[dg.AssetKey]
) -> frozenset[dg.AssetKey]:
    reached = below = set(keys)
    while below:
        below = {key for key in set(among) - reached if graph.get(key).parent_keys & below}
        reached = reached | below
    return frozenset(reached)


def last_failure(instance: dg.DagsterInstance, key: dg.AssetKey, batch: str) -> str | None:
    """Return why the last failed run of one batch of an asset failed; None if unknown.

    The text of the innermost error. Runs over a range of batches are not considered.
    """
    tags = {PARTITION_NAME_TAG: batch}
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags=tags)
    for run in instance.get_runs(failed, limit=_FAILED_RUNS):
        if key not in (run.asset_selection or ()):
            continue
        steps = _events(instance, run, dg.DagsterEventType.STEP_FAILURE)
        own = [event for event in steps if event.step_key == step_of(key)]
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


def _events(
    instance: dg.DagsterInstance, run: dg.DagsterRun, kind: dg.DagsterEventType
) -> list[dg.DagsterEvent]:
    records = instance.get_records_for_run(run.run_id, of_type=kind).records
    events = (record.event_log_entry.dagster_event for record in records)
    return [event for event in events if event is not None]


def _is_own(event: dg.DagsterEvent) -> bool:
    """Return whether the step failed by itself."""
    failure = event.step_failure_data
    if failure.user_failure_data is not None:
        kind = failure.user_failure_data.metadata.get("failure_kind")
        if kind is not None:
            return str(kind.value) not in {*FAILURES_OF_SURROUNDINGS, WRONG_DEFINITION_FAILURE}
    return failure.error is None or not _is_of_infrastructure(failure.error)


def _is_full_disk(error: SerializableErrorInfo) -> bool:
    """Return whether the worker's disk was full. Dagster stores the message, not the number."""
    return error.cls_name == OSError.__name__ and any(
        f"[Errno {number}]" in error.message for number in FULL_DISK
    )


def _is_of_infrastructure(error: SerializableErrorInfo) -> bool:
    seen: SerializableErrorInfo | None = error
    while seen is not None:
        if seen.cls_name in _error_names() or _is_full_disk(seen):
            return True
        seen = seen.cause or seen.context
    return False
