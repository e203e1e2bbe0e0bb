"""When the inbox's sensor has a tick, for the sensors whose conditions wait for its events.

Dagster's daemon begins a round of sensors every five seconds. It evaluates them in threads, or one
after another in an order that changes with each round. A condition that is evaluated before the
inbox's events are stored sees them in the next round. So conditions are evaluated after the inbox's
tick of the same round, wherever both are evaluated by one process.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import dagster as dg

ROUND_SECONDS: Final = 5.0
"""The shortest time between the beginnings of two of the daemon's rounds."""
TICK_SECONDS: Final = 1
"""Interval of sensors that are wanted in every round.

With five seconds, a round that begins a moment early would leave the sensor out.
"""
_BEGINS_WITHIN: Final = 0.5
"""Seconds by which one thread of the daemon may be ahead of another."""
_ENDS_WITHIN: Final = 5.0
_STORED_WITHIN: Final = 5.0
_POLL_SECONDS: Final = 0.05


class InboxTicks:
    """The ticks of the inbox's sensor in this process.

    Thread-safe. What waits here is late by some seconds at most and misses nothing: events that are
    stored later are seen in the next round.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._began: float | None = None
        self._last_event: dg.AssetMaterialization | None = None
        self._last_partition: tuple[str, str] | None = None

    @contextmanager
    def tick(self) -> Iterator[None]:
        """Let others know that a tick of the inbox is under way."""
        with self._changed:
            self._under_way += 1
            self._began = time.monotonic()
            self._last_event = self._last_partition = None
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def reports(
        self, events: Sequence[dg.AssetMaterialization], partitions: Mapping[str, Sequence[str]]
    ) -> None:
        """Note what the daemon stores after this tick: events, then the batches of datasets."""
        with self._changed:
            self._last_event = events[-1] if events else None
            pairs = [
                (dataset, batch) for dataset, batches in partitions.items() for batch in batches
            ]
            self._last_partition = pairs[-1] if pairs else None

    def wait(self, instance: dg.DagsterInstance) -> None:
        """Wait until this round's tick of the inbox is over and Dagster has stored its result.

        Returns at once if this process evaluates no such sensor.
        """
        with self._changed:
            if self._began is None:
                return
            if time.monotonic() - self._began > 2 * ROUND_SECONDS:
                return  # stopped, or evaluated elsewhere
            self._changed.wait_for(self._has_begun, _BEGINS_WITHIN)
            if not self._changed.wait_for(lambda: not self._under_way, _ENDS_WITHIN):
                return
            event, partition = self._last_event, self._last_partition
        end = time.monotonic() + _STORED_WITHIN
        while not _is_stored(instance, event, partition) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)

    def _has_begun(self) -> bool:
        began = self._began
        return began is not None and time.monotonic() - began < ROUND_SECONDS / 2


def _is_stored(
    instance: dg.DagsterInstance,
    event: dg.AssetMaterialization | None,
    partition: tuple[str, str] | None,
) -> bool:
    if partition is not None and not instance.has_dynamic_partition(*partition):
        return False
    if event is None:
        return True
    stored = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            event.asset_key,
            asset_partitions=None if event.partition is None else [event.partition],
        ),
        limit=1,
    ).records
    return any(
        record.asset_materialization is not None and record.asset_materialization.tags == event.tags
        for record in stored
    )
