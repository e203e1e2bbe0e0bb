"""Dagster event tags with the inputs of a materialization.

Dagster's staleness compares, per input, the data version recorded here with the input's current
one. An event that lacks a tag shows as stale for ever, so every event of this project, inside a run
or outside any, gets all of them from here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.release import HookRelease
from feature_pipeline.orchestration.dagster_internals import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    DEFAULT_DATA_VERSION,
    extract_data_version_from_entry,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from feature_pipeline.orchestration.events.latest_events import PartitionEvent

BEFORE_ANY_EVENT = "1"
"""A pointer to before the input's first event: every event of the input is newer. With Dagster's
own value for "none", it compares the latest event with itself.
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
