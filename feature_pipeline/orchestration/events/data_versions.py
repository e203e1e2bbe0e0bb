"""Dagster event tags with the inputs of a materialization.

Dagster's staleness compares, per input, the data version recorded here with the input's current
one. An event that lacks a tag shows as stale for ever, so every event of this project, inside a run
or outside any, gets all of them from here.
"""

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from feature_pipeline.archive.logs.cache import LruCache
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.release import HookRelease
from feature_pipeline.orchestration.dagster_internals import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    database_id,
    extract_data_version_from_entry,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)

BEFORE_ANY_EVENT = "1"
"""A pointer to before the input's first event: every event of the input is newer. With Dagster's
own value for "none", it compares the latest event with itself.
"""
MANIFEST = "manifest"
BATCH = "digest"
SUBMITTED_AT = "submitted_at"
"""Metadata entries that name the object of the archive that a materialization is about."""
_EVENTS_KEPT = 5_000
"""In memory, about 2 KB each. Sensors look at events of the last minutes in every tick, and taking
one apart costs 0.3 ms.
"""
_EVENTS_SEARCHED = 100
"""Number of a partition's events that are searched for the one with the version that was read."""


@dataclass(frozen=True, slots=True)
class InputVersion:
    """The version of an upstream partition that was read.

    It consists of the data version, and Dagster's event for it. Dagster calls a partition stale if
    an input's latest event has another data version than the event that is pointed at; it does not
    compare with the data version that was recorded. So the event must be one with the version that
    was read; None if Dagster has none.
    """

    data_version: str
    storage_id: int | None


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


_events: LruCache[tuple[str, PartitionEvent]] = LruCache(_EVENTS_KEPT)
"""Partition and event, by the storage that has them and their number in it. Events never change."""
_cursors: LruCache[int] = LruCache(1_000)
"""By storage and asset: events up to this number are earlier than what is asked for."""


def latest_events(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Iterable[str]
) -> dict[str, PartitionEvent]:
    """Return the latest materialization of each partition that has one, by partition."""
    wanted = list(partitions)
    if not wanted:
        return {}
    storage_ids = instance.event_log_storage.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, set(wanted)
    )
    numbers = [storage_ids[p] for p in wanted if p in storage_ids]
    return _read_events(instance, key, _storage_id(instance), numbers) if numbers else {}


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
    storage = _storage_id(instance)
    cursor_key = storage, key
    before = _cursors.get(cursor_key)
    storage_ids = instance.event_log_storage.get_latest_storage_id_by_partition(
        key, dg.DagsterEventType.ASSET_MATERIALIZATION, after_cursor=before
    )
    newest = sorted(storage_ids.values())[-limit:]
    events = _read_events(instance, key, storage, newest)
    later = {name: event for name, event in events.items() if event.timestamp > timestamp}
    # Not the last earlier event: one of a machine whose clock is late may follow later ones.
    first = min((event.storage_id for event in later.values()), default=None)
    after = newest[-1] if newest and first is None else (first or 1) - 1
    if newest:
        _cursors.put(cursor_key, after)
    return later


def _storage_id(instance: dg.DagsterInstance) -> str:
    """Return the id that Dagster's database was given when it was made.

    Another database, or the same one after it was lost, has other events under the same numbers.
    """
    # Without an id, nothing that was read before is used.
    return database_id(instance) or uuid.uuid4().hex


def _read_events(
    instance: dg.DagsterInstance, key: dg.AssetKey, storage: str, storage_ids: Sequence[int]
) -> dict[str, PartitionEvent]:
    """Return these materializations by partition; those read before from memory."""
    read = {number: _events.get((storage, number)) for number in storage_ids}
    unread = [number for number, event in read.items() if event is None]
    events = dict(event for event in read.values() if event is not None)
    for start in range(0, len(unread), 500):
        chunk = unread[start : start + 500]
        records = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=key, storage_ids=chunk), limit=len(chunk)
        ).records
        for record in records:
            materialization = record.asset_materialization
            if materialization is None or materialization.partition is None:
                continue
            version = extract_data_version_from_entry(record.event_log_entry)
            tags = materialization.tags or {}
            event = PartitionEvent(
                data_version=version.value if version else None,
                code_version=tags.get(CODE_VERSION_TAG),
                storage_id=record.storage_id,
                timestamp=record.timestamp,
                run_id=record.run_id,
                tags=tags,
                document=_text(materialization, MANIFEST) or _text(materialization, BATCH),
                submitted_at=_instant(_text(materialization, SUBMITTED_AT)),
            )
            events[materialization.partition] = event
            _events.put((storage, record.storage_id), (materialization.partition, event))
    return events


def _text(materialization: dg.AssetMaterialization, name: str) -> str | None:
    value = materialization.metadata.get(name)
    return value.value if isinstance(value, dg.TextMetadataValue) else None


def _instant(text: str | None) -> datetime | None:
    try:
        parsed = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if parsed is None or parsed.tzinfo is None else parsed.astimezone(UTC)


def has_read(event: PartitionEvent | None, source: dg.AssetKey, version: str) -> bool:
    """Return whether a materialization records that it was made from this version of an input."""
    if event is None:
        return False
    # Of a partition that one of its own runs read, Dagster records the hash of the version.
    hashed = hashlib.sha256(version.encode()).hexdigest()
    return event.tags.get(get_input_data_version_tag(source)) in {version, hashed}


def read_version(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    partition: str,
    data_version: str,
    latest: PartitionEvent | None,
) -> InputVersion:
    """Return the version of a partition that was read, with the last event that has it.

    Args:
        instance: The Dagster instance.
        key: The input.
        partition: The partition.
        data_version: The version that was read.
        latest: The partition's latest event, if there is one.
    """
    if latest is None or latest.data_version == data_version:
        return InputVersion(data_version, latest.storage_id if latest else None)
    for record in instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=_EVENTS_SEARCHED
    ).records:
        version = extract_data_version_from_entry(record.event_log_entry)
        if version is not None and version.value == data_version:
            return InputVersion(data_version, record.storage_id)
    return InputVersion(data_version, None)


def event_tags(
    data_version: str,
    code_version: str | None,
    inputs: Mapping[dg.AssetKey, InputVersion | None],
) -> dict[str, str]:
    """Return every provenance tag of one materialization event.

    An input of None is one without an event in Dagster; its first one makes this event stale, as
    does any event of an input that never had the version that was read.
    """
    tags = {DATA_VERSION_TAG: data_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
    if code_version is not None:
        tags[CODE_VERSION_TAG] = code_version
    for key, version in inputs.items():
        tags[get_input_data_version_tag(key)] = (
            DEFAULT_DATA_VERSION.value if version is None else version.data_version
        )
        tags[get_input_event_pointer_tag(key)] = (
            BEFORE_ANY_EVENT
            if version is None or version.storage_id is None
            else str(version.storage_id)
        )
    return tags


def feature_code_version(release: HookRelease, columns: Sequence[Column], cardinality: str) -> str:
    """Return a value that changes when a re-materialization could change the content.

    Descriptions and units of columns are not part of it.
    """
    declared = [
        column.model_dump(mode="json", exclude={"unit", "description"}) for column in columns
    ]
    return Digest.of(document_bytes([str(release.digest), declared, cardinality])).short
