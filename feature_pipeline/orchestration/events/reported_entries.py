"""The artifacts and batches that were reported to Dagster, as evidence about the archive."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import dagster as dg

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.orchestration.events.latest_events import PartitionEvent, latest_events
from feature_pipeline.orchestration.keys import features_key, records_key

if TYPE_CHECKING:
    from feature_pipeline.archive.inspection.findings import Scope
    from feature_pipeline.archive.maintenance.compare_databases import (
        Knowledge,
        KnownBatch,
        KnownEntry,
    )
    from feature_pipeline.projections.catalog.database import Database


@dataclass(frozen=True, slots=True)
class KnownPartitions:
    """The artifacts or batches of the latest materializations of an asset's partitions."""

    key: dg.AssetKey
    events: Mapping[str, PartitionEvent]
    documents: Mapping[str, Digest] = field(init=False)
    """By partition, the manifest or batch that its event names."""

    def __post_init__(self) -> None:
        digests = {name: _digest(event) for name, event in self.events.items()}
        named = {name: digest for name, digest in digests.items() if digest is not None}
        object.__setattr__(self, "documents", named)

    @property
    def known_by(self) -> str:
        """Dagster and the asset, for display."""
        return f"Dagster ({self.key.to_user_string()})"

    def entries(self, dataset: str, hook: str) -> "Iterator[KnownEntry]":
        """Return the log entries of a feature asset's materializations."""
        from feature_pipeline.archive.maintenance.compare_databases import KnownEntry

        for batch, digest in self.documents.items():
            instant = _instant(self.events[batch])
            yield KnownEntry(dataset, hook, batch, None, digest, self.known_by, instant)

    def batches(self, dataset: str) -> "Iterator[KnownBatch]":
        """Return the batches of a records asset's materializations."""
        from feature_pipeline.archive.maintenance.compare_databases import KnownBatch

        for batch, digest in self.documents.items():
            event = self.events[batch]
            submitted_at = event.submitted_at
            yield KnownBatch(dataset, batch, digest, self.known_by, _instant(event), submitted_at)


def known_partitions(
    instance: dg.DagsterInstance, key: dg.AssetKey, names: Collection[str] | None = None
) -> KnownPartitions:
    """Return the latest materializations of an asset's partitions; of all if `names` is None.

    Costs a query, and one per 500 partitions.
    """
    if names is None:
        names = instance.get_materialized_partitions(key)
    return KnownPartitions(key, latest_events(instance, key, names))


def known_entries(
    instance: dg.DagsterInstance, dataset: str, hook: str, names: Collection[str] | None = None
) -> "list[KnownEntry]":
    """Return the log entries of a hook that Dagster has materializations of."""
    known = known_partitions(instance, features_key(dataset, hook), names)
    return list(known.entries(dataset, hook))


def known_batches(
    instance: dg.DagsterInstance, dataset: str, names: Collection[str] | None = None
) -> "list[KnownBatch]":
    """Return the batches of a dataset that Dagster has materializations of."""
    return list(known_partitions(instance, records_key(dataset), names).batches(dataset))


def query_dagster(
    instance: dg.DagsterInstance,
    dataset: str | None = None,
    hook: str | None = None,
    names: Collection[str] | None = None,
) -> "Knowledge":
    """Return the batches and artifacts that Dagster knows, whatever the archive still has.

    Args:
        instance: The Dagster instance.
        dataset: Only of this one.
        hook: Only artifacts of this hook.
        names: Only of these batches.
    """
    from feature_pipeline.archive.maintenance.compare_databases import Knowledge

    entries: list[KnownEntry] = []
    batches: list[KnownBatch] = []
    for key in instance.get_asset_keys():
        match list(key.path):
            case [of, "records"] if dataset in {None, of} and hook is None:
                batches += known_batches(instance, of, names)
            case [of, "features", named] if dataset in {None, of} and hook in {None, named}:
                entries += known_entries(instance, of, named, names)
    return Knowledge(entries, batches)


def query_databases(
    database: "Database",
    instance: dg.DagsterInstance,
    scope: "Scope",
    names: Collection[str] | None = None,
) -> "Knowledge":
    """Return what the tables and Dagster know of a part of the archive.

    Args:
        database: The tables' database. If it does not answer, the result has a note.
        instance: The Dagster instance.
        scope: The part.
        names: Only of these batches; of the scope's if None.
    """
    from feature_pipeline.projections.catalog.loaded_entries import query_tables

    if names is None and scope.batch is not None:
        names = [scope.batch]
    tables = query_tables(database, scope.dataset, scope.hook, names)
    return tables.joined(query_dagster(instance, scope.dataset, scope.hook, names))


def _digest(event: PartitionEvent) -> Digest | None:
    try:
        return None if event.document is None else Digest.parse(event.document)
    except InvalidInputError:
        return None


def _instant(event: PartitionEvent) -> datetime:
    return datetime.fromtimestamp(event.timestamp, UTC)
