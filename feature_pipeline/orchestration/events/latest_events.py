"""The latest materializations of partitions, as Dagster has them.

Sensors look at the same events in every tick, and taking one apart costs 0.3 ms, so events are read
once per process. Events never change and are only appended, but a database that was lost, or
restored from an older copy, gives their numbers to other events, also while this process goes on.
The last event that was read tells the histories apart: while it is the same, those before it are.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from feature_pipeline.archive.logs.cache import LruCache
from feature_pipeline.orchestration.dagster_internals import (
    CODE_VERSION_TAG,
    database_id,
    extract_data_version_from_entry,
)

MANIFEST = "manifest"
BATCH = "digest"
SUBMITTED_AT = "submitted_at"
"""Metadata entries that name the object of the archive that a materialization is about."""
_EVENTS_KEPT = 5_000
"""In memory, about 2 KB each."""


@dataclass(frozen=True, slots=True)
class PartitionEvent:
    """The latest materialization in Dagster of an asset's partition."""

    data_version: str | None
    code_version: str | None
    storage_id: int
    timestamp: float
    run_id: str
    tags: Mapping[str, str]
    document: str | None = None
    """Digest of the manifest or batch that it is about; events made by hand name none."""
    submitted_at: datetime | None = None
    """When a batch was submitted, if the event has that."""


class _History:
    """What was read of the events of one database, while it is the same."""

    def __init__(self) -> None:
        self.events: LruCache[tuple[str, PartitionEvent]] = LruCache(_EVENTS_KEPT)
        """Partition and event, by the event's number."""
        self.cursors: dict[dg.AssetKey, int] = {}
        """Events up to this number are earlier than what is asked for."""
        self._last: tuple[dg.AssetKey, int, float, str] | None = None
        """The event with the highest number that was read: asset, number, time, run."""

    def is_continued(self, instance: dg.DagsterInstance) -> bool:
        """Return whether the database still has what was read, and at most more."""
        if self._last is None:
            return True
        key, number, timestamp, run_id = self._last
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=key, storage_ids=[number]), limit=1
        ).records
        return [(one.timestamp, one.run_id) for one in records] == [(timestamp, run_id)]

    def read(
        self, instance: dg.DagsterInstance, key: dg.AssetKey, storage_ids: Sequence[int]
    ) -> dict[str, PartitionEvent]:
        """Return these materializations by partition; those read before from memory."""
        read = {number: self.events.get(number) for number in storage_ids}
        unread = [number for number, event in read.items() if event is None]
        events = dict(event for event in read.values() if event is not None)
        for start in range(0, len(unread), 500):
            chunk = unread[start : start + 500]
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=key, storage_ids=chunk), limit=len(chunk)
            ).records
            for record in records:
                if (event := _event(record)) is None:
                    continue
                events.update([event])
                self.events.put(record.storage_id, event)
                if self._last is None or self._last[1] < record.storage_id:
                    self._last = key, record.storage_id, record.timestamp, record.run_id
        return events


_histories: LruCache[_History] = LruCache(4)
"""By the id that Dagster gave its database when it made it."""


def _history(instance: dg.DagsterInstance) -> _History:
    """Return what was read of this instance's events before; nothing if they are others now."""
    if (database := database_id(instance)) is None:
        return _History()
    history = _histories.get(database)
    if history is None or not history.is_continued(instance):
        history = _History()
        _histories.put(database, history)
    return history


def latest_events(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Iterable[str]
) -> dict[str, PartitionEvent]:
    """Return the latest materialization of each partition that has one, by partition."""
    wanted = list(partitions)
    if not wanted:
        return {}
    history = _history(instance)
    storage_ids = instance.event_log_storage.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, set(wanted)
    )
    return history.read(instance, key, [storage_ids[p] for p in wanted if p in storage_ids])


def events_after(
    instance: dg.DagsterInstance, key: dg.AssetKey, timestamp: float, limit: int
) -> dict[str, PartitionEvent]:
    """Return the latest materialization of each partition that was updated after a time.

    A process that asks again and again, with later times, reads each event once.

    Args:
        instance: The Dagster instance.
        key: The asset.
        timestamp: In seconds since the epoch.
        limit: The maximum number of partitions: those updated last.
    """
    history = _history(instance)
    storage_ids = instance.event_log_storage.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, after_cursor=history.cursors.get(key)
    )
    newest = sorted(storage_ids.values())[-limit:]
    events = history.read(instance, key, newest)
    later = {name: event for name, event in events.items() if event.timestamp > timestamp}
    # Not the last earlier event: one of a machine whose clock is late may follow later ones.
    first = min((event.storage_id for event in later.values()), default=None)
    after = newest[-1] if newest and first is None else (first or 1) - 1
    if newest:
        history.cursors[key] = after
    return later


def _event(record: dg.EventLogRecord) -> tuple[str, PartitionEvent] | None:
    """Return partition and event of a materialization; None if it is of no partition."""
    materialization = record.asset_materialization
    if materialization is None or materialization.partition is None:
        return None
    version = extract_data_version_from_entry(record.event_log_entry)
    tags = materialization.tags or {}
    return materialization.partition, PartitionEvent(
        data_version=version.value if version else None,
        code_version=tags.get(CODE_VERSION_TAG),
        storage_id=record.storage_id,
        timestamp=record.timestamp,
        run_id=record.run_id,
        tags=tags,
        document=_text(materialization, MANIFEST) or _text(materialization, BATCH),
        submitted_at=_instant(_text(materialization, SUBMITTED_AT)),
    )


def _text(materialization: dg.AssetMaterialization, name: str) -> str | None:
    value = materialization.metadata.get(name)
    return value.value if isinstance(value, dg.TextMetadataValue) else None


def _instant(text: str | None) -> datetime | None:
    try:
        parsed = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if parsed is None or parsed.tzinfo is None else parsed.astimezone(UTC)
