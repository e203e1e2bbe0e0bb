"""How every batch of a hook stands: in the archive, in its table, in Dagster.

Belongs here: the facts, and which of them make a batch missing, failed, stale or of an old release.
Not here: what is done about it (`backfills`), drift that is mended without any run (`reconcile`).

The archive's logs and the tables' bookkeeping come first. Dagster adds what they cannot know: runs
that left nothing in the archive, and changed columns.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import dagster as dg

from feature_pipeline.archive import log, read
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.log import BatchEntry, FeatureEntry, Verdict
from feature_pipeline.archive.manifest import Manifest
from feature_pipeline.archive.threads import map_threads
from feature_pipeline.hooks.definition import HookDefinition
from feature_pipeline.orchestration.features import feature_code_version
from feature_pipeline.orchestration.keys import (
    batches_partitions,
    features_key,
    records_key,
    table_key,
)
from feature_pipeline.orchestration.staleness import (
    PartitionRuns,
    partition_runs,
    stale_partitions,
)
from feature_pipeline.orchestration.tables import table_code_version, table_spec
from feature_pipeline.outcomes import Status
from feature_pipeline.projections.bookkeeping import Progress, all_progress
from feature_pipeline.projections.database import Database
from feature_pipeline.projections.generation import read_table
from feature_pipeline.release import HookRelease

_LIST_ALL_FROM: Final = 32
"""Batches from which one listing of all is faster than one of each."""


class Reason(StrEnum):
    """Why a partition is to be run again."""

    MISSING = "missing"
    FAILED = "failed"
    STALE = "stale"
    OLD_RELEASE = "old-release"


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """What is known of one partition of a feature asset or a table asset."""

    is_there: bool
    """It has a current artifact, or is loaded."""
    is_failed: bool = False
    """Its last hook run left a failure in the log, or its last Dagster run failed."""
    has_retryable_errors: bool = False
    """Its current artifact has errored records that a run would compute again."""
    is_behind: bool = False
    """It was made from something else than what is current now."""
    is_stale_in_dagster: bool = False
    is_other_release: bool = False
    """Features: another release than the declared one made it. Table: it was loaded from an
    artifact of another release than the current artifact's."""

    def reasons(self) -> frozenset[Reason]:
        """Everything that speaks for running the partition."""
        found = set()
        if not self.is_there:
            found.add(Reason.MISSING)
        if self.is_failed or self.has_retryable_errors:
            found.add(Reason.FAILED)
        if self.is_there and (self.is_behind or self.is_stale_in_dagster):
            found.add(Reason.STALE)
        if self.is_there and self.is_other_release:
            found.add(Reason.OLD_RELEASE)
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class Standing:
    """How the partitions of one asset stand."""

    key: dg.AssetKey
    facts: Mapping[str, BatchFacts]
    """By batch, in the order of submission. Of a table: those with a current artifact."""
    running: frozenset[str] = frozenset()
    """Batches that Dagster is running, or has queued."""
    reasons: Mapping[str, frozenset[Reason]] = field(init=False)

    def __post_init__(self) -> None:
        found = {batch: facts.reasons() for batch, facts in self.facts.items()}
        object.__setattr__(self, "reasons", found)

    def batches(self, reason: Reason) -> list[str]:
        """The batches that this reason speaks for, in the order of submission."""
        return [batch for batch, reasons in self.reasons.items() if reason in reasons]


@dataclass(frozen=True, slots=True)
class HookStanding:
    """How a hook's batches stand. Made by `hook_standing`."""

    definition: HookDefinition
    release: HookRelease
    """As it is declared: what a run would use."""
    is_registered: bool
    """Whether the archive knows that release as the last one."""
    features: Standing
    table: Standing | None
    """None for a hook without a table, or if the table was left out."""
    heads: Mapping[str, FeatureEntry]
    without_input: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Per input hook the batches of which it has no artifact: a run could only fail."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where facts come from."""

    store: BlobStore
    database: Database | None = None
    """None leaves tables out."""
    instance: dg.DagsterInstance | None = None
    """None leaves out what only Dagster knows."""


def hook_standing(
    sources: Sources,
    definition: HookDefinition,
    folder: Path,
    *,
    batches: Collection[str] | None = None,
    is_deep: bool = False,
) -> HookStanding:
    """How the hook's batches stand now.

    Costs two listings, one small object per log entry, one query of the table's bookkeeping, and a
    few queries of Dagster's events per 500 batches. Manifests are read only of hooks with inputs
    and of batches of which a record was erased.

    Args:
        sources: Archive, tables and Dagster.
        definition: The hook.
        folder: What the definition's code files are relative to.
        batches: Look at these alone; at all of the dataset if None.
        is_deep: Read every current manifest, and the outcomes of those that have errors, to find
            errored records that are worth another try.
    """
    store, dataset, hook = sources.store, definition.dataset, definition.name
    entries = _batch_entries(store, dataset, batches)
    logs = _logs(store, dataset, hook, entries, batches)
    found = {batch: log.last_current(lines) for batch, lines in logs.items()}
    heads = {batch: head for batch, head in found.items() if head is not None}
    inputs = {name: _heads(store, dataset, name, entries, batches) for name in definition.inputs}
    release = definition.hook_release(folder)
    releases = log.releases(store, dataset, hook)
    features = _features_standing(
        sources, definition, release, entries, logs, heads, inputs, is_deep
    )
    return HookStanding(
        definition=definition,
        release=release,
        is_registered=bool(releases) and releases[-1].release.digest == release.digest,
        features=features,
        table=_table_standing(sources, definition, entries, heads),
        heads=heads,
        without_input={
            name: frozenset(entries.keys() - known.keys()) for name, known in inputs.items()
        },
    )


def _batch_entries(
    store: BlobStore, dataset: str, batches: Collection[str] | None
) -> dict[str, BatchEntry]:
    """The batches in the order of submission.

    Raises:
        NotFoundError: One that is named was never accepted.
    """
    is_listed = batches is None or len(batches) > _LIST_ALL_FROM
    found = log.batches(store, dataset) if is_listed else {}
    for batch in batches or ():
        if batch not in found:
            found[batch] = log.batch_entry(store, dataset, batch)
    wanted = found if batches is None else batches
    return {e.batch: e for e in sorted((found[b] for b in wanted), key=lambda e: e.order)}


def _logs(
    store: BlobStore,
    dataset: str,
    hook: str,
    entries: Mapping[str, BatchEntry],
    batches: Collection[str] | None,
) -> dict[str, list[FeatureEntry]]:
    if batches is None or len(batches) > _LIST_ALL_FROM:
        logs = log.feature_logs(store, dataset, hook)
        return {batch: logs[batch] for batch in entries if batch in logs}
    found = map_threads(lambda batch: log.read_log(store, dataset, hook, batch), entries)
    return {batch: lines for batch, lines in zip(entries, found, strict=True) if lines}


def _heads(
    store: BlobStore,
    dataset: str,
    hook: str,
    entries: Mapping[str, BatchEntry],
    batches: Collection[str] | None,
) -> dict[str, FeatureEntry]:
    logs = _logs(store, dataset, hook, entries, batches)
    found = {batch: log.last_current(lines) for batch, lines in logs.items()}
    return {batch: head for batch, head in found.items() if head is not None}


def is_last_run_failed(entries: Collection[FeatureEntry]) -> bool:
    """Whether the last hook run that counts failed: superseded ones change nothing."""
    counted = [entry.verdict for entry in entries if entry.verdict is not Verdict.SUPERSEDED]
    return bool(counted) and counted[-1] is Verdict.FAILED


def _features_standing(
    sources: Sources,
    definition: HookDefinition,
    release: HookRelease,
    entries: Mapping[str, BatchEntry],
    logs: Mapping[str, list[FeatureEntry]],
    heads: Mapping[str, FeatureEntry],
    inputs: Mapping[str, Mapping[str, FeatureEntry]],
    is_deep: bool,
) -> Standing:
    key = features_key(definition.dataset, definition.name)
    made_from = [
        records_key(definition.dataset),
        *(features_key(definition.dataset, name) for name in definition.inputs),
    ]
    code_version = feature_code_version(
        release, definition.feature.columns, definition.feature.cardinality.value
    )
    runs, stale = _dagster(sources, key, code_version, made_from, entries)
    behind: set[str] = set()
    retryable: set[str] = set()
    looked_at = [b for b in heads if is_deep or inputs or entries[b].seq > 1]
    for batch, manifest in _manifests(sources.store, heads, looked_at):
        if _is_behind(manifest, entries[batch], inputs):
            behind.add(batch)
        if is_deep and _has_retryable_errors(sources.store, manifest):
            retryable.add(batch)
    facts = {}
    for batch in entries:
        head = heads.get(batch)
        is_other = head is not None and head.release != release.digest
        facts[batch] = BatchFacts(
            is_there=head is not None,
            is_failed=batch in runs.failed or is_last_run_failed(logs.get(batch, ())),
            has_retryable_errors=batch in retryable,
            is_behind=is_other or batch in behind,
            is_stale_in_dagster=batch in stale,
            is_other_release=is_other,
        )
    return Standing(key, facts, runs.running)


def _dagster(
    sources: Sources,
    key: dg.AssetKey,
    code_version: str,
    made_from: list[dg.AssetKey],
    batches: Collection[str],
) -> tuple[PartitionRuns, set[str]]:
    if sources.instance is None:
        return PartitionRuns(), set()
    partitions = batches_partitions(key.path[0])
    return (
        partition_runs(sources.instance, key, partitions),
        stale_partitions(sources.instance, key, code_version, made_from, batches),
    )


def _manifests(
    store: BlobStore, heads: Mapping[str, FeatureEntry], batches: list[str]
) -> Iterator[tuple[str, Manifest]]:
    """Manifests of these batches, a few hundred in memory at a time."""
    for start in range(0, len(batches), 256):
        chunk = batches[start : start + 256]
        found = map_threads(lambda batch: read.manifest_of(store, heads[batch]), chunk)
        yield from zip(chunk, found, strict=True)


def _is_behind(
    manifest: Manifest, entry: BatchEntry, inputs: Mapping[str, Mapping[str, FeatureEntry]]
) -> bool:
    """Whether the artifact was made from another batch or other input features than current."""
    now = {
        name: heads[entry.batch].content_digest
        for name, heads in inputs.items()
        if entry.batch in heads
    }
    return manifest.batch_digest != entry.digest or any(
        manifest.inputs.get(name) != digest for name, digest in now.items()
    )


def _has_retryable_errors(store: BlobStore, manifest: Manifest) -> bool:
    if not manifest.counts.errored:
        return False
    outcomes = read.read_outcomes(store, manifest)
    return any(
        status == Status.ERRORED and is_retryable
        for status, is_retryable in zip(
            outcomes.column("status").to_pylist(),
            outcomes.column("retryable").to_pylist(),
            strict=True,
        )
    )


def _table_standing(
    sources: Sources,
    definition: HookDefinition,
    entries: Mapping[str, BatchEntry],
    heads: Mapping[str, FeatureEntry],
) -> Standing | None:
    if sources.database is None or not definition.has_table:
        return None
    spec = table_spec(definition)
    key = table_key(definition.dataset, spec.name)
    code_version = table_code_version(spec)
    source = features_key(definition.dataset, definition.name)
    runs, stale = _dagster(sources, key, code_version, [source], heads)
    live, building = _loaded(sources.database, definition)
    facts = {}
    for batch in entries:
        if (head := heads.get(batch)) is None:
            continue
        held = [progress.get(batch) for progress in (live, building) if progress is not None]
        facts[batch] = BatchFacts(
            is_there=None not in held,
            is_failed=batch in runs.failed,
            is_behind=any(p is not None and p.content_digest != head.content_digest for p in held),
            is_stale_in_dagster=batch in stale,
            is_other_release=any(p is not None and p.release_digest != head.release for p in held),
        )
    return Standing(key, facts, runs.running)


def _loaded(
    database: Database, definition: HookDefinition
) -> tuple[dict[str, Progress], dict[str, Progress] | None]:
    """What the generation that is read holds, and what the one being built holds, if one is."""
    spec = table_spec(definition)
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        if state is None:
            return {}, None
        live = all_progress(connection, state.live.id)
        if state.building is None:
            return live, None
        return live, all_progress(connection, state.building.id)
