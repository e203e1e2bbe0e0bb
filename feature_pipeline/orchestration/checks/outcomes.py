"""Asset checks of outcomes and tables."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence

import dagster as dg

from feature_pipeline.archive import read
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.erasures import erased
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, FeaturePipelineError, NotFoundError
from feature_pipeline.model.definition import CheckDefinition, HookDefinition, Threshold
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import OutcomeCounts
from feature_pipeline.model.text.counted import counted
from feature_pipeline.orchestration.assets.equality_check import EQUALITY_CHECK, judge_equality
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.checks.thresholds import Level, RowChange, judge
from feature_pipeline.orchestration.dagster_internals import UnresolvedAssetJobDefinition
from feature_pipeline.orchestration.events.check_history import (
    NAMED_BATCHES,
    previously_named,
    run_batches,
)
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.resources import ArchiveResource, DatabaseResource
from feature_pipeline.parallel import map_threads

OUTCOMES_CHECK = "outcomes"


def feature_checks(definition: HookDefinition) -> Sequence[dg.AssetChecksDefinition]:
    """Return the checks of a feature asset: `outcomes`."""
    dataset, hook, checks = definition.dataset, definition.name, definition.checks

    @dg.asset_check(
        asset=features_key(dataset, hook),
        name=OUTCOMES_CHECK,
        description=(
            "Outcomes are within the hook's thresholds: "
            + _thresholds_text(checks)
            + " In a run, the check covers the run's batches and those that failed it"
            " before. Executed alone, as the job `check_outcomes` does every day, it covers all"
            " current artifacts."
        ),
    )
    def outcomes(
        context: dg.AssetCheckExecutionContext, archive: ArchiveResource
    ) -> dg.AssetCheckResult:
        store = archive.store()
        counts, damaged = _counts(store, dataset, hook, _to_judge(context, definition))
        change = (
            row_change(store, dataset, hook, counts, damaged)
            if checks.row_count_change.is_set
            else None
        )
        judgement = judge(checks, counts, change)
        totals = {
            name: sum(getattr(count, name) for count in counts.values())
            for name in ("records", "passed", "rejected", "errored", "rows")
        }
        sentences = [
            f"of {counted(totals['records'], 'record')}, {totals['errored']} errored and"
            f" {totals['rejected']} rejected; above a threshold: {len(judgement.failing)} of"
            f" {counted(len(counts), 'batch')}"
        ]
        if damaged:
            sentences.append(
                f"{counted(len(damaged), 'batch')} damaged or lost in the archive, and not checked"
            )
        if change is not None:
            sentences.append(f"against the previous release, {change}")
        shown = list(judgement.failing.items())[:NAMED_BATCHES]
        return dg.AssetCheckResult(
            passed=judgement.level is Level.FINE and not damaged,
            severity=(
                dg.AssetCheckSeverity.ERROR
                if judgement.level is Level.FAIL or damaged
                else dg.AssetCheckSeverity.WARN
            ),
            description="; ".join(sentences),
            metadata={
                **totals,
                "batches": len(counts),
                "damaged": dg.MetadataValue.json(dict(list(damaged.items())[:NAMED_BATCHES])),
                "failing_batches": dg.MetadataValue.json(
                    {
                        batch: {name: round(rate, 6) for name, rate in rates.items()}
                        for batch, rates in shown
                    }
                ),
                **({"rows_before": change.before, "rows_now": change.now} if change else {}),
            },
        )

    return [outcomes]


def _counts(
    store: BlobStore, dataset: str, hook: str, batches: Collection[str] | None
) -> tuple[dict[str, OutcomeCounts], dict[str, str]]:
    """Return the current artifacts' counts by batch, and why others' are not known."""
    readable = log.readable_heads(store, dataset, hook, batches)
    damaged = {batch: str(damage.error) for batch, damage in readable.damage.items()}
    counts: dict[str, OutcomeCounts] = {}
    manifests = map_threads(
        lambda head: _try(lambda: read.manifest_of(store, head)), readable.intact.values()
    )
    for batch, manifest in zip(readable.intact, manifests, strict=True):
        if isinstance(manifest, Manifest):
            counts[batch] = manifest.counts
        else:
            damaged[batch] = str(manifest)
    return counts, damaged


def _try(read_one: Callable[[], Manifest]) -> Manifest | FeaturePipelineError:
    try:
        return read_one()
    except (NotFoundError, CorruptDataError, NewerVersionError) as error:
        return error


def _to_judge(
    context: dg.AssetCheckExecutionContext, definition: HookDefinition
) -> set[str] | None:
    """Return the batches whose outcomes are checked; None for all.

    A run that computes one batch does not read the manifests of a hundred thousand, unless rows are
    compared with those of the release before, which concerns all of them.
    """
    batches = run_batches(context, definition.dataset)
    if batches is None or definition.checks.row_count_change.is_set:
        return None
    key = dg.AssetCheckKey(features_key(definition.dataset, definition.name), OUTCOMES_CHECK)
    before = (
        previously_named(context.instance, key, entry) for entry in ("failing_batches", "damaged")
    )
    return {*batches, *itertools.chain(*before)}


def outcomes_job(hooks: Sequence[HookDefinition]) -> UnresolvedAssetJobDefinition:
    """Return the job `check_outcomes`: `outcomes` of every hook over all current artifacts."""
    keys = [
        dg.AssetCheckKey(features_key(hook.dataset, hook.name), OUTCOMES_CHECK) for hook in hooks
    ]
    return dg.define_asset_job(
        "check_outcomes",
        selection=dg.AssetSelection.checks(*keys),
        description="Compares the outcomes of all current artifacts with their hooks' thresholds.",
    )


def outcomes_schedule() -> dg.ScheduleDefinition:
    """Return the schedule that runs `check_outcomes` every day; running by default."""
    return dg.ScheduleDefinition(
        name="check_outcomes_daily",
        job_name="check_outcomes",
        cron_schedule="41 3 * * *",
        description="Compares the outcomes of all hooks with their thresholds, once a day.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def _thresholds_text(checks: CheckDefinition) -> str:
    parts = []
    for name in CheckDefinition.model_fields:
        threshold: Threshold = getattr(checks, name)
        for word, limit in (("warns", threshold.warn), ("fails", threshold.fail)):
            if limit is not None:
                parts.append(f"{name} above {limit:g} {word}")
    return (", ".join(parts) or "none are set") + "."


def row_change(
    store: BlobStore,
    dataset: str,
    hook: str,
    counts: Mapping[str, OutcomeCounts],
    damaged: dict[str, str] | None = None,
) -> RowChange | None:
    """Compare rows under the newest release with those under the one before, in the same batches.

    Args:
        store: The archive.
        dataset: The hook's dataset.
        hook: The hook.
        counts: Of every current artifact, by batch.
        damaged: Receives the batches whose earlier artifact cannot be read, with the reason; they
            are left out.

    Returns:
        None while no batch has current artifacts of both.
    """
    damaged = {} if damaged is None else damaged
    readable = log.readable_feature_logs(store, dataset, hook)
    damaged |= {b: str(readable.damage[b].error) for b in counts if b in readable.damage}
    logs = readable.intact
    current = {
        batch: [entry for entry in logs[batch] if entry.verdict is Verdict.CURRENT]
        for batch in counts
        if batch in logs
    }
    newest = max((entries[-1].release_seq for entries in current.values()), default=0)
    known = erased(store, dataset)
    before: dict[str, Digest] = {}
    for batch, entries in current.items():
        head = entries[-1]
        earlier = [entry for entry in entries if entry.release != head.release]
        if head.release_seq == newest and earlier:
            before[batch] = known.manifest_now(earlier[-1].manifest)
    manifests = map_threads(
        lambda digest: _try(lambda: read.read_manifest(store, digest)), before.values()
    )
    rows: dict[str, int] = {}
    for batch, manifest in zip(before, manifests, strict=True):
        if isinstance(manifest, Manifest):
            rows[batch] = manifest.counts.rows
        else:
            damaged[batch] = str(manifest)
    if not rows:
        return None
    return RowChange(
        batches=len(rows),
        before=sum(rows.values()),
        now=sum(counts[batch].rows for batch in rows),
    )


def table_checks(definition: HookDefinition) -> Sequence[dg.AssetChecksDefinition]:
    """Return the checks of a table asset: `equals_archive`. None for hooks without a table."""
    if not definition.has_table:
        return []
    spec = table_spec(definition)
    key = table_key(definition.dataset, spec.name)

    @dg.asset_check(
        asset=key,
        name=EQUALITY_CHECK,
        description=(
            "The digest of the rows read back from PostgreSQL equals the archive's. In a run,"
            " the check covers the run's batches and those that differed before. Executed alone, it"
            " covers the whole table and reads all of it."
        ),
    )
    def equals_archive(
        context: dg.AssetCheckExecutionContext,
        archive: ArchiveResource,
        database: DatabaseResource,
    ) -> dg.AssetCheckResult:
        judgement = judge_equality(
            archive.store(),
            database.database(),
            context.instance,
            spec,
            run_batches(context, definition.dataset),
        )
        return dg.AssetCheckResult(
            passed=judgement.passed, description=judgement.description, metadata=judgement.metadata
        )

    return [equals_archive]
