"""The status of a hook's batches in the archive, in its table and in Dagster.

The archive's logs and the tables' bookkeeping come first. Dagster adds what they cannot know: runs
that left nothing in the archive, and changed columns.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import dagster as dg

from feature_pipeline.archive import read
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.damage import Readable
from feature_pipeline.archive.logs.known_lengths import known_logs
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry, Verdict
from feature_pipeline.archive.maintenance.compare_databases import KnownEntry, find_lost
from feature_pipeline.archive.query.history import RELEASES
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, FeaturePipelineError, NotFoundError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.outcomes import OutcomeCounts, Status
from feature_pipeline.model.release import HookRelease
from feature_pipeline.orchestration.assets.tables import table_code_version, table_spec
from feature_pipeline.orchestration.events.data_versions import feature_code_version
from feature_pipeline.orchestration.events.reported_entries import known_entries
from feature_pipeline.orchestration.events.staleness import (
    PartitionRuns,
    partition_runs,
    stale_partitions,
)
from feature_pipeline.orchestration.keys import (
    batches_partitions,
    features_key,
    records_key,
    table_key,
)
from feature_pipeline.parallel import map_threads
from feature_pipeline.projections.catalog.bookkeeping import (
    Progress,
    all_progress,
    read_left_out,
)
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.generation import read_table
from feature_pipeline.projections.catalog.loaded_entries import known_entry

ERRORED_AT_MOST: Final = 20
"""Number of errored records of a hook that are named."""


class Reason(StrEnum):
    """The reason to run a partition again."""

    MISSING = "missing"
    FAILED = "failed"
    STALE = "stale"
    OLD_RELEASE = "old-release"


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """The facts about one partition of a feature asset or a table asset."""

    is_there: bool
    """It has a current artifact, or is loaded."""
    is_failed: bool = False
    """Its last hook run left a failure in the log, or its last Dagster run failed."""
    failure: str | None = None
    """Why the last hook run failed, if the log has that."""
    has_retryable_errors: bool = False
    """Its current artifact has errored records that a run would compute again."""
    is_behind: bool = False
    """It was made from something that is no longer current."""
    is_stale_in_dagster: bool = False
    problem: str | None = None
    """What the archive has damaged or lost of it: nothing else is known then, and only an operator
    can decide to run it.
    """
    is_other_release: bool = False
    """Features: a release other than the declared one made it. Table: it was loaded from an
    artifact of a release other than the current artifact's.
    """

    def reasons(self) -> frozenset[Reason]:
        """Return every reason to run the partition."""
        reasons: set[Reason] = set()
        if self.problem is not None:
            return frozenset()
        if not self.is_there:
            reasons.add(Reason.MISSING)
        if self.is_failed or self.has_retryable_errors:
            reasons.add(Reason.FAILED)
        if self.is_there and (self.is_behind or self.is_stale_in_dagster):
            reasons.add(Reason.STALE)
        if self.is_there and self.is_other_release:
            reasons.add(Reason.OLD_RELEASE)
        return frozenset(reasons)


@dataclass(frozen=True, slots=True)
class AssetStatus:
    """The status of one asset's partitions."""

    key: dg.AssetKey
    facts: Mapping[str, BatchFacts]
    """By batch, in the order of submission. Of a table: those with a current artifact."""
    running: frozenset[str] = frozenset()
    """Batches that Dagster is running, or has queued."""
    reasons: Mapping[str, frozenset[Reason]] = field(init=False)

    def __post_init__(self) -> None:
        reasons = {batch: facts.reasons() for batch, facts in self.facts.items()}
        object.__setattr__(self, "reasons", reasons)

    def batches(self, reason: Reason) -> list[str]:
        """Return the batches with this reason, in the order of submission."""
        return [batch for batch, reasons in self.reasons.items() if reason in reasons]


@dataclass(frozen=True, slots=True)
class HookStatus:
    """The status of a hook's batches. Made by `hook_status`."""

    definition: HookDefinition
    release: HookRelease
    """The declared one, which a run would use."""
    is_registered: bool
    """Whether it is the last registered release of the archive."""
    features: AssetStatus
    table: AssetStatus | None
    """None for a hook without a table, or if the table was left out."""
    heads: Mapping[str, FeatureEntry]
    without_input: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """By input hook, the batches for which it has no artifact: a run would fail."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Batches that cannot be read completely in the archive, with the reason. The hook's releases
    are under `RELEASES`.
    """
    counts: Mapping[str, OutcomeCounts] = field(default_factory=dict)
    """Totals of the current artifacts' counts, as far as manifests were read."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Batches of which the table or Dagster knows an artifact that the log no longer has."""
    errored: Mapping[str, str] = field(default_factory=dict)
    """The first errored records of current artifacts, with their reasons, as far as outcomes were
    read.
    """
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Records that the live table cannot store, with PostgreSQL's reason."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of the facts."""

    store: BlobStore
    database: Database | None = None
    """None leaves tables out."""
    instance: dg.DagsterInstance | None = None
    """None leaves out what only Dagster knows."""


def hook_status(
    sources: Sources,
    definition: HookDefinition,
    folder: Path,
    *,
    batches: Collection[str] | None = None,
    is_deep: bool = False,
) -> HookStatus:
    """Return the current status of the hook's batches.

    Costs two listings, one small object per log entry, one query of the table's bookkeeping, and a
    few queries of Dagster's events per 500 batches. Manifests are read only of hooks with inputs,
    of batches from which a record was erased, and of last runs that failed. Damage affects its own
    batch only.

    Args:
        sources: Archive, tables and Dagster.
        definition: The hook.
        folder: The folder that the definition's code files are relative to.
        batches: Only these; all of the dataset if None.
        is_deep: Read every current manifest, and the outcomes of those that have errors, to find
            retryable errors.
    """
    store, dataset, hook = sources.store, definition.dataset, definition.name
    known = known_logs(store)
    submitted = log.readable_batches(store, dataset, batches, known)
    damaged = {batch: str(damage.error) for batch, damage in submitted.damage.items()}
    entries = _in_order(dataset, submitted, batches)
    names = None if batches is None else entries
    readable = log.readable_feature_logs(store, dataset, hook, names, known)
    damaged |= {batch: str(damage.error) for batch, damage in readable.damage.items()}
    logs = {batch: readable.intact[batch] for batch in entries if batch in readable.intact}
    last_entries = {batch: log.last_current(lines) for batch, lines in logs.items()}
    heads = {batch: head for batch, head in last_entries.items() if head is not None}
    inputs = {
        name: log.readable_heads(store, dataset, name, names).intact for name in definition.inputs
    }
    loaded, left_out = _loaded(sources.database, definition)
    lost = _lost(sources, definition, heads, loaded)
    if batches is not None:
        lost = {batch: why for batch, why in lost.items() if batch in entries}
    release = definition.hook_release(folder)
    try:
        releases = log.releases(store, dataset, hook, known)
    except (CorruptDataError, NewerVersionError) as error:
        releases, damaged[RELEASES] = [], str(error)
    read_now = _Read(damaged)
    features = _features_status(
        sources, definition, release, entries, logs, heads, inputs, is_deep, lost, read_now
    )
    return HookStatus(
        definition=definition,
        release=release,
        is_registered=bool(releases) and releases[-1].release.digest == release.digest,
        features=features,
        table=_table_status(sources, definition, entries, heads, loaded, lost, damaged),
        heads=heads,
        without_input={
            name: frozenset(entries.keys() - known.keys()) for name, known in inputs.items()
        },
        damaged=damaged,
        lost=lost,
        counts=read_now.counts,
        errored=read_now.errored,
        left_out=left_out,
    )


@dataclass(slots=True)
class _Read:
    """The current artifacts that were read."""

    damaged: dict[str, str]
    """Receives the batches whose artifacts are found damaged."""
    counts: dict[str, OutcomeCounts] = field(default_factory=dict)
    retryable: set[str] = field(default_factory=set)
    """Batches with records that a run would compute again."""
    errored: dict[str, str] = field(default_factory=dict)

    def add_errors(self, store: BlobStore, batch: str, manifest: Manifest) -> None:
        """Read the outcomes of an artifact that has errored records."""
        if not manifest.counts.errored:
            return
        outcomes = read.read_outcomes(store, manifest).select(
            ["record_id", "status", "reason", "retryable"]
        )
        for row in outcomes.to_pylist():
            if row["status"] != Status.ERRORED:
                continue
            if row["retryable"]:
                self.retryable.add(batch)
            if len(self.errored) < ERRORED_AT_MOST:
                self.errored[row["record_id"]] = row["reason"] or "no reason is given"


def _in_order(
    dataset: str, submitted: Readable[BatchEntry], batches: Collection[str] | None
) -> dict[str, BatchEntry]:
    """Return the readable batches in the order of submission.

    Raises:
        NotFoundError: One that is named was never accepted.
    """
    for batch in batches or ():
        if batch not in submitted.intact and batch not in submitted.damage:
            raise NotFoundError(
                f"dataset {dataset!r} has no batch {batch!r}; submit it, or wait for the inbox"
            )
    return {e.batch: e for e in sorted(submitted.intact.values(), key=lambda e: e.order)}


def _lost(
    sources: Sources,
    definition: HookDefinition,
    heads: Mapping[str, FeatureEntry],
    loaded: Sequence[Mapping[str, Progress]],
) -> dict[str, str]:
    """Return, by batch, what the table and Dagster know and the hook's logs do not have."""
    dataset, hook = definition.dataset, definition.name
    known: list[KnownEntry] = []
    if loaded:
        spec = table_spec(definition)
        known += [known_entry(spec, one) for entries in loaded for one in entries.values()]
    if sources.instance is not None:
        known += known_entries(sources.instance, dataset, hook)
    lost = find_lost(sources.store, known, heads)
    return {one.known.batch: str(one) for one in reversed(lost)}


def _last_failure(store: BlobStore, entries: Sequence[FeatureEntry]) -> str | None:
    """Return why the last hook run that counts failed; superseded and cancelled ones do not.

    Manifests are read of failed runs alone, because a log does not show which of them were
    cancelled. One that cannot be read counts as failed. None if it did not fail.
    """
    for entry in reversed(entries):
        if entry.verdict is Verdict.SUPERSEDED:
            continue
        if entry.verdict is not Verdict.FAILED:
            return None
        manifest = _manifest(store, entry)
        if not isinstance(manifest, Manifest):
            return str(manifest)
        if manifest.failure is None:
            return "its manifest states no reason"
        if manifest.failure.kind != FailureKind.CANCELLED:
            return f"{manifest.failure.kind}: {manifest.failure.reason}"
    return None


def _features_status(
    sources: Sources,
    definition: HookDefinition,
    release: HookRelease,
    entries: Mapping[str, BatchEntry],
    logs: Mapping[str, list[FeatureEntry]],
    heads: Mapping[str, FeatureEntry],
    inputs: Mapping[str, Mapping[str, FeatureEntry]],
    is_deep: bool,
    lost: Mapping[str, str],
    read_now: _Read,
) -> AssetStatus:
    key = features_key(definition.dataset, definition.name)
    sources_of = [
        records_key(definition.dataset),
        *(features_key(definition.dataset, name) for name in definition.inputs),
    ]
    code_version = feature_code_version(
        release, definition.feature.columns, definition.feature.cardinality.value
    )
    runs, stale = _dagster(sources, key, code_version, sources_of, entries)
    behind: set[str] = set()
    damaged = read_now.damaged
    looked_at = [b for b in heads if is_deep or inputs or entries[b].seq > 1]
    for batch, manifest in _manifests(sources.store, heads, looked_at, damaged):
        read_now.counts[batch] = manifest.counts
        if _is_behind(manifest, entries[batch], inputs):
            behind.add(batch)
        try:
            if is_deep:
                read_now.add_errors(sources.store, batch, manifest)
        except (NotFoundError, CorruptDataError) as error:
            damaged[batch] = str(error)
    failures = map_threads(
        lambda batch: _last_failure(sources.store, logs.get(batch, ())), list(entries)
    )
    facts = {}
    for batch, failure in zip(entries, failures, strict=True):
        head = heads.get(batch)
        is_other = head is not None and head.release != release.digest
        facts[batch] = BatchFacts(
            is_there=head is not None,
            is_failed=batch in runs.failed or failure is not None,
            failure=failure,
            has_retryable_errors=batch in read_now.retryable,
            is_behind=is_other or batch in behind,
            is_stale_in_dagster=batch in stale,
            problem=damaged.get(batch) or lost.get(batch),
            is_other_release=is_other,
        )
    return AssetStatus(key, facts, runs.running)


def _dagster(
    sources: Sources,
    key: dg.AssetKey,
    code_version: str,
    sources_of: list[dg.AssetKey],
    batches: Collection[str],
) -> tuple[PartitionRuns, set[str]]:
    if sources.instance is None:
        return PartitionRuns(), set()
    partitions = batches_partitions(key.path[0])
    return (
        partition_runs(sources.instance, key, partitions),
        stale_partitions(sources.instance, key, code_version, sources_of, batches),
    )


def _manifests(
    store: BlobStore,
    heads: Mapping[str, FeatureEntry],
    batches: list[str],
    damaged: dict[str, str],
) -> Iterator[tuple[str, Manifest]]:
    """Yield manifests of these batches, a few hundred at a time; others go to `damaged`."""
    for start in range(0, len(batches), 256):
        chunk = batches[start : start + 256]
        results = map_threads(lambda batch: _manifest(store, heads[batch]), chunk)
        for batch, manifest in zip(chunk, results, strict=True):
            if isinstance(manifest, Manifest):
                yield batch, manifest
            else:
                damaged[batch] = str(manifest)


def _manifest(store: BlobStore, head: FeatureEntry) -> Manifest | FeaturePipelineError:
    try:
        return read.manifest_of(store, head)
    except (NotFoundError, CorruptDataError, NewerVersionError) as error:
        return error


def _is_behind(
    manifest: Manifest, entry: BatchEntry, inputs: Mapping[str, Mapping[str, FeatureEntry]]
) -> bool:
    """Return whether the artifact was made from a batch or input features that are not current."""
    now = {
        name: heads[entry.batch].content_digest
        for name, heads in inputs.items()
        if entry.batch in heads
    }
    return manifest.batch_digest != entry.digest or any(
        manifest.inputs.get(name) != digest for name, digest in now.items()
    )


def _table_status(
    sources: Sources,
    definition: HookDefinition,
    entries: Mapping[str, BatchEntry],
    heads: Mapping[str, FeatureEntry],
    loaded: Sequence[Mapping[str, Progress]],
    lost: Mapping[str, str],
    damaged: Mapping[str, str],
) -> AssetStatus | None:
    if sources.database is None or not definition.has_table:
        return None
    spec = table_spec(definition)
    key = table_key(definition.dataset, spec.name)
    code_version = table_code_version(spec)
    source = features_key(definition.dataset, definition.name)
    runs, stale = _dagster(sources, key, code_version, [source], heads)
    facts = {}
    for batch in entries:
        if (head := heads.get(batch)) is None:
            continue
        loads = [progress.get(batch) for progress in loaded]
        facts[batch] = BatchFacts(
            is_there=bool(loads) and None not in loads,
            is_failed=batch in runs.failed,
            is_behind=any(p is not None and p.content_digest != head.content_digest for p in loads),
            is_stale_in_dagster=batch in stale,
            problem=damaged.get(batch) or lost.get(batch),
            is_other_release=any(p is not None and p.release_digest != head.release for p in loads),
        )
    return AssetStatus(key, facts, runs.running)


def _loaded(
    database: Database | None, definition: HookDefinition
) -> tuple[list[Mapping[str, Progress]], Mapping[str, str]]:
    """Return the content of the live generation, and of the one being built, if there is one.

    Empty if there is no table. The third value are the records left out of the live one.
    """
    if database is None or not definition.has_table:
        return [], {}
    spec = table_spec(definition)
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        if state is None:
            return [], {}
        # Nothing is read of a table before its first generation was proved.
        live = {} if state.live is None else all_progress(connection, state.live.id)
        shown = state.live or state.building
        left_out = {} if shown is None else read_left_out(connection, shown.id)
        if state.building is None:
            return [live], left_out
        return [live, all_progress(connection, state.building.id)], left_out
