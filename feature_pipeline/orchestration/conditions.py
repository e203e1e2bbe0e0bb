"""Automation conditions of features and tables."""

import os
import time

import dagster as dg

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.definition import Compute
from feature_pipeline.orchestration.dagster_internals import DATA_VERSION_TAG
from feature_pipeline.orchestration.events.data_versions import has_read
from feature_pipeline.orchestration.events.latest_events import events_after, latest_events
from feature_pipeline.orchestration.events.requested import (
    cancelled_partitions,
    last_run,
    partitions_under_way,
)

COMPARED_AT_MOST = 5_000
LATELY_SECONDS = 600.0
LATELY_AT_MOST = 1_000
GATHER_SECONDS = 60.0
"""Maximum time that an updated batch waits for running runs of its table."""
TABLES_PRIORITY = "10"
"""Runs without a priority have 0."""

# Dagster writes an event and then the asset's record of it. A tick in between takes the event for
# seen and looks at the record, which does not have it: the change would never be noticed. Given
# time to settle, a tick looks at nothing younger than its beginning.
os.environ.setdefault("DAGSTER_AUTOMATION_TICK_SETTLE_SECONDS", "0.5")

Entity = dg.AssetKey | dg.AssetCheckKey
Condition = dg.AutomationCondition[Entity]


def _asset(context: dg.AutomationContext[Entity]) -> dg.AssetKey:
    if not isinstance(context.key, dg.AssetKey):
        raise InvalidInputError(f"{context.key} is a check: only assets are made from inputs")
    return context.key


class InputsDiffer(dg.AutomationCondition[Entity]):
    """True of a partition that was made from other data versions than its inputs have now.

    Also true of a partition that was never made, if one of its inputs exists. Reads the latest
    event of every candidate: combine it with what narrows the candidates first. Of more than
    `COMPARED_AT_MOST` candidates the others are taken to be as they should, and are left to
    reconciliation: a tick has a minute.
    """

    @property
    def name(self) -> str:
        """What the UI shows."""
        return "inputs_differ"

    def evaluate(self, context: dg.AutomationContext[Entity]) -> dg.AutomationResult[Entity]:
        """Return the candidates whose inputs differ."""
        asset = _asset(context)
        candidates = context.candidate_subset.expensively_compute_partition_keys()
        keys = sorted(candidates)[:COMPARED_AT_MOST]
        instance = context.asset_graph_view.instance
        own = latest_events(instance, asset, keys)
        differing: set[str] = set()
        for source in context.asset_graph.get(asset).parent_keys if keys else ():
            versions = instance.event_log_storage.get_latest_tags_by_partition(
                source, dg.DagsterEventType.ASSET_MATERIALIZATION, [DATA_VERSION_TAG], keys
            )
            for partition, tags in versions.items():
                if not has_read(own.get(partition), source, tags[DATA_VERSION_TAG]):
                    differing.add(partition)
        subset = context.candidate_subset.compute_intersection_with_partition_keys(differing)
        return dg.AutomationResult(context, subset)


class InputsDifferLately(dg.AutomationCondition[Entity]):
    """True of a partition with a recently updated input whose version it has not read.

    Dagster's own conditions consider each event once, and one that coincides with a tick, a request
    or the end of a run may count as handled before it was considered. This one holds until a run
    has read the version.
    """

    @property
    def name(self) -> str:
        """Name in the UI."""
        return "inputs_differ_lately"

    def evaluate(self, context: dg.AutomationContext[Entity]) -> dg.AutomationResult[Entity]:
        """Return candidates with inputs that differ and were updated recently."""
        asset = _asset(context)
        instance = context.asset_graph_view.instance
        after = time.time() - LATELY_SECONDS
        updated = {
            source: events_after(instance, source, after, LATELY_AT_MOST)
            for source in context.asset_graph.get(asset).parent_keys
        }
        subset = context.candidate_subset.compute_intersection_with_partition_keys(
            set().union(*updated.values())
        )
        keys = subset.expensively_compute_partition_keys()
        own = latest_events(instance, asset, keys)
        differing = {
            partition
            for source, events in updated.items()
            for partition, event in events.items()
            if partition in keys
            and event.data_version is not None
            and not has_read(own.get(partition), source, event.data_version)
        }
        return dg.AutomationResult(
            context, subset.compute_intersection_with_partition_keys(differing)
        )


class InputsChangedMeanwhile(dg.AutomationCondition[Entity]):
    """True of a partition with an input that was updated after the partition's last run had begun.

    A run reads what is there when it begins, and what it computes itself is no change to it.
    """

    @property
    def name(self) -> str:
        """Name in the UI."""
        return "inputs_changed_meanwhile"

    def evaluate(self, context: dg.AutomationContext[Entity]) -> dg.AutomationResult[Entity]:
        """Return the candidates with such an input."""
        asset = _asset(context)
        instance = context.asset_graph_view.instance
        # Those beyond them count as answered by the request: a tick has a minute.
        keys = sorted(context.candidate_subset.expensively_compute_partition_keys())
        begun: dict[str, tuple[float, str]] = {}
        for key in keys[:COMPARED_AT_MOST]:
            run = last_run(instance, asset, key)
            if run is not None and run.start_time is not None:
                begun[key] = run.start_time, run.dagster_run.run_id
        changed = {
            partition
            for source in context.asset_graph.get(asset).parent_keys
            for partition, event in latest_events(instance, source, begun).items()
            if event.timestamp > begun[partition][0] and event.run_id != begun[partition][1]
        }
        subset = context.candidate_subset.compute_intersection_with_partition_keys(changed)
        return dg.AutomationResult(context, subset)


class RunCancelled(dg.AutomationCondition[Entity]):
    """True of a partition whose run, or backfill, was cancelled, until an input of it is updated.

    Without it, the next tick would request the cancelled run again.
    """

    @property
    def name(self) -> str:
        """Name in the UI."""
        return "run_cancelled"

    def evaluate(self, context: dg.AutomationContext[Entity]) -> dg.AutomationResult[Entity]:
        """Return the candidates that were cancelled since their inputs were updated."""
        asset = _asset(context)
        instance = context.asset_graph_view.instance
        keys = context.candidate_subset.expensively_compute_partition_keys()
        called_off = cancelled_partitions(instance, asset) if keys else {}
        cancelled = {partition: at for partition, at in called_off.items() if partition in keys}
        for source in context.asset_graph.get(asset).parent_keys if cancelled else ():
            # What is beyond them waits for an operator: a tick has a minute.
            events = latest_events(instance, source, sorted(cancelled)[:COMPARED_AT_MOST])
            cancelled = {
                partition: at
                for partition, at in cancelled.items()
                if partition not in events or events[partition].timestamp <= at
            }
        subset = context.candidate_subset.compute_intersection_with_partition_keys(set(cancelled))
        return dg.AutomationResult(context, subset)


class Gathered(dg.AutomationCondition[Entity]):
    """False of a recently updated partition while the asset's other partitions are run.

    Batches that end one after the other are then loaded together, once the run before has ended: a
    run takes seconds to start, and a batch takes less to load.
    """

    @property
    def name(self) -> str:
        """Name in the UI."""
        return "gathered"

    def evaluate(self, context: dg.AutomationContext[Entity]) -> dg.AutomationResult[Entity]:
        """Return the candidates that need not wait for a run, or have waited long enough."""
        asset = _asset(context)
        instance = context.asset_graph_view.instance
        keys = context.candidate_subset.expensively_compute_partition_keys()
        if not keys or not partitions_under_way(instance, asset):
            return dg.AutomationResult(context, context.candidate_subset)
        # What is beyond them is requested at once: a tick has a minute.
        compared = sorted(keys)[:COMPARED_AT_MOST]
        after = time.time() - GATHER_SECONDS
        lately = {
            partition
            for source in context.asset_graph.get(asset).parent_keys
            for partition, event in latest_events(instance, source, compared).items()
            if event.timestamp > after
        }
        subset = context.candidate_subset.compute_intersection_with_partition_keys(
            set(keys) - lately
        )
        return dg.AutomationResult(context, subset)


def _quiet() -> Condition:
    """Return a condition: neither the partition nor anything upstream of it is being run."""
    return (
        ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    )


def _input_changed() -> Condition:
    """Return a condition: an input changed, and no run was requested or read it since.

    `AutomationCondition.eager()` considers events, not data versions: an identical re-run would run
    everything downstream again. `since_last_handled()` takes every materialization for an answer:
    an input that changes during a run of its old content would wait for reconciliation. Nor is a
    request an answer to an input that changed before the next evaluation: the run may fail.
    """
    updated = dg.AutomationCondition.newly_updated()
    changed = dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.data_version_changed()
    ) | (updated & InputsDiffer())
    answered = (
        (dg.AutomationCondition.newly_requested() & ~(changed & InputsChangedMeanwhile()))
        | (updated & ~InputsDiffer())
        | dg.AutomationCondition.initial_evaluation()
    )
    return changed.since(answered.with_label("answered"))


def _overlooked() -> Condition:
    """Return a condition for missed runs; failed or cancelled ones wait for an operator."""
    return (
        _quiet()
        & ~dg.AutomationCondition.execution_failed()
        & InputsDifferLately()
        & ~RunCancelled()
    )


def tables() -> Condition:
    """Return the condition of tables: an input's data version changed; many batches per run."""
    changed = (_input_changed() & _quiet()) | _overlooked()
    return (changed & Gathered()).with_label("features changed")


def features() -> Condition:
    """Return the condition of features: a new batch, or a changed data version of input features.

    What failed or was cancelled waits for an operator.
    """
    absent = dg.AutomationCondition.missing() & ~dg.AutomationCondition.execution_failed()
    requested = absent & _quiet() & ~RunCancelled()
    changed = (_input_changed() & _quiet()) | _overlooked()
    return (requested | changed).with_label("batch missing or inputs changed")


class FirstBatch(dg.AutomationCondition[Entity]):
    """True of the dataset's first partition."""

    @property
    def name(self) -> str:
        """Name in the UI."""
        return "first_batch"

    def evaluate(self, context: dg.AutomationContext[Entity]) -> dg.AutomationResult[Entity]:
        """Return the candidate that is the dataset's first batch, if it is one."""
        instance = context.asset_graph_view.instance
        first = instance.get_dynamic_partitions(_asset(context).path[0])[:1]
        subset = context.candidate_subset.compute_intersection_with_partition_keys(set(first))
        return dg.AutomationResult(context, subset)


def condition_of(compute: Compute) -> Condition | None:
    """Return the automation condition of a feature asset; None if no condition runs it."""
    match compute:
        case Compute.AUTOMATICALLY:
            return features()
        case Compute.FIRST_BATCH:
            return (FirstBatch() & features()).with_label("first batch missing or inputs changed")
        case Compute.ON_REQUEST | Compute.ELSEWHERE:
            return None
