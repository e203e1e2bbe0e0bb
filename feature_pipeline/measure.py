"""Counts of what a process does, for a collector; without one, nothing is counted.

In a process that reports its counts, `observability.push` connects itself here. In all others, a
call costs one comparison, and OpenTelemetry is not imported.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Final, TypeAlias

from feature_pipeline import settings
from feature_pipeline.model.instruments import (
    TABLE_OPERATION_TIME,
    TABLE_OPERATIONS,
    Instrument,
)

Sink: TypeAlias = Callable[[Instrument, float, dict[str, str]], None]

_LOG: Final = logging.getLogger(__name__)
_sink: Sink | None = None


def connect(sink: Sink | None) -> None:
    """Give every later count of this process to `sink`; to none if it is None."""
    global _sink
    _sink = sink


def is_connected() -> bool:
    """Whether counts go anywhere."""
    return _sink is not None


def count(instrument: Instrument, value: float, /, **labels: str) -> None:
    """Add `value` to the instrument. Labels whose names have dots: `count_labelled`."""
    if _sink is not None:
        _sink(instrument, value, labels)


def count_labelled(instrument: Instrument, value: float, labels: dict[str, str]) -> None:
    """Add `value` to the instrument, with these labels."""
    if _sink is not None:
        _sink(instrument, value, labels)


def report_counts() -> None:
    """Have this process report its counts, if the environment says where to.

    Without `FEATURE_PIPELINE_METRICS_URL` nothing is imported and nothing is counted. Metrics are
    never why a run fails: without the extra `otel` a warning says what is missing.
    """
    url = settings.metrics_url()
    if url is None:
        return
    try:
        push = import_module("feature_pipeline.observability.push")
    except ModuleNotFoundError as error:
        _LOG.warning(
            "%s is set, and nothing is counted: %s; pip install 'feature-pipeline[otel]'",
            settings.METRICS_URL,
            error,
        )
        return
    push.start(url)


@contextmanager
def timed(table: str, operation: str) -> Iterator[None]:
    """Count an operation on a table, and how long the block takes; not if it raises."""
    if _sink is None:
        yield
        return
    started = time.monotonic()
    yield
    count(TABLE_OPERATIONS, 1, table=table, operation=operation)
    count(TABLE_OPERATION_TIME, time.monotonic() - started, table=table, operation=operation)
