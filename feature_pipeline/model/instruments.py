"""Every metric: its name, unit and labels, and when it is observed.

What belongs here: the instruments as values. Not here: observing them (`feature_pipeline.measure`
where work is done, `feature_pipeline.observability` for what the archive, the tables and Dagster
hold), OpenTelemetry.

Names, units and `error.type` follow OpenTelemetry's conventions. Labels have bounded sets of
values: datasets, hooks, tables, releases (the first digits of their digest), sensors, and states
that are listed here or are enumerations. No label holds a record, a batch, a run, an address or
anything that a record says.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from feature_pipeline.errors import InvalidInputError

PREFIX: Final = "feature_pipeline."
ERROR_TYPE: Final = "error.type"
HTTP_STATUS: Final = "http.response.status_code"
NO_ANSWER: Final = "none"
"""In place of an HTTP status: the connection failed, or no answer came."""


class Kind(StrEnum):
    """What is done with the values."""

    COUNTER = "counter"
    """They add up; it never decreases."""
    GAUGE = "gauge"
    """The last one counts."""
    HISTOGRAM = "histogram"
    """Their distribution over fixed bounds."""


class Origin(StrEnum):
    """Where the values come from."""

    LOG = "log"
    """Once per log entry, from the archive: a restarted reader gets the same."""
    STATE = "state"
    """What the archive, the tables or Dagster hold at the time."""
    WORK = "work"
    """The process that does the work: it leaves its counts at its end."""


@dataclass(frozen=True, slots=True)
class Instrument:
    """One metric. `bounds` are those of a histogram."""

    name: str
    kind: Kind
    origin: Origin
    unit: str
    """By UCUM; `{…}` is a word for what is counted."""
    description: str
    labels: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    """Labels that a value may lack."""
    bounds: tuple[float, ...] = ()

    def check_labels(self, labels: Mapping[str, str]) -> None:
        """Return if a value may have these labels.

        Raises:
            InvalidInputError: One is missing, or does not belong to the instrument.
        """
        needed = set(self.labels) - set(self.optional)
        if not needed <= labels.keys() <= set(self.labels):
            raise InvalidInputError(
                f"metric {self.name} has the labels {', '.join(self.labels) or 'none'}:"
                f" not {', '.join(sorted(labels)) or 'none'}"
            )


_SECONDS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0)
_LAG_SECONDS: Final = (5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 86_400.0)
_MEMORY_BYTES: Final = tuple(float(1 << power) for power in range(26, 39, 2))
"""64 MiB to 256 GiB."""
_HOOK: Final = ("dataset", "hook")
_TABLE: Final = ("dataset", "table")


def _counter(
    name: str,
    unit: str,
    description: str,
    labels: tuple[str, ...] = (),
    origin: Origin = Origin.WORK,
    optional: tuple[str, ...] = (),
) -> Instrument:
    return Instrument(PREFIX + name, Kind.COUNTER, origin, unit, description, labels, optional)


def _gauge(name: str, unit: str, description: str, labels: tuple[str, ...] = ()) -> Instrument:
    return Instrument(PREFIX + name, Kind.GAUGE, Origin.STATE, unit, description, labels)


def _histogram(
    name: str,
    unit: str,
    description: str,
    labels: tuple[str, ...],
    origin: Origin,
    bounds: tuple[float, ...],
) -> Instrument:
    return Instrument(
        PREFIX + name, Kind.HISTOGRAM, origin, unit, description, labels, bounds=bounds
    )


# From the log, once per entry.
HOOK_RUNS: Final = _counter(
    "hook.runs",
    "{run}",
    "Completions that were accepted. status: current, superseded, failed (the log entry's verdict);"
    " error.type: the failure's kind.",
    (*_HOOK, "release", "status", ERROR_TYPE),
    Origin.LOG,
    (ERROR_TYPE,),
)
HOOK_RUN_DURATION: Final = _histogram(
    "hook.run.duration",
    "s",
    "From the first start of the hook to the end of the last. Runs that started none are left out.",
    (*_HOOK, "release", "status"),
    Origin.LOG,
    _SECONDS,
)
HOOK_RUN_MEMORY: Final = _histogram(
    "hook.run.memory",
    "By",
    "Peak memory of a hook run, where the runner can tell.",
    (*_HOOK, "release"),
    Origin.LOG,
    _MEMORY_BYTES,
)

# The state of the archive.
HOOK_RECORDS: Final = _gauge(
    "hook.records",
    "{record}",
    "Records in current artifacts. outcome: passed, rejected, errored.",
    (*_HOOK, "outcome"),
)
HOOK_ROWS: Final = _gauge("hook.rows", "{row}", "Rows in current artifacts.", _HOOK)
HOOK_BATCHES: Final = _gauge(
    "hook.batches",
    "{batch}",
    "Batches of a hook by state: archived, missing, failed, stale, old_release, running, damaged,"
    " lost. As `status` counts them; one batch can be in several.",
    (*_HOOK, "state"),
)
HOOK_RELEASE: Final = _gauge(
    "hook.release",
    "{release}",
    "1 for the release that a definition declares.",
    (*_HOOK, "release", "version"),
)
INBOX_ENTRIES: Final = _gauge(
    "inbox.entries",
    "{entry}",
    "What waits to be accepted. kind: batch, completion, unreadable.",
    ("kind",),
)
INBOX_AGE: Final = _gauge("inbox.age", "s", "How long the oldest of them has waited; 0 if none.")
QUARANTINE_ENTRIES: Final = _gauge(
    "quarantine.entries",
    "{entry}",
    "What could not be accepted. kind: batch, completion, unreadable.",
    ("kind",),
)
QUARANTINE_AGE: Final = _gauge(
    "quarantine.age", "s", "How long the oldest of them has been there; 0 if none."
)
ARCHIVE_OBJECTS: Final = _gauge(
    "archive.objects", "{object}", "Stored objects, by the first part of their key.", ("kind",)
)
ARCHIVE_SIZE: Final = _gauge(
    "archive.size", "By", "Their bytes, by the first part of their key.", ("kind",)
)

# The state of the tables.
TABLE_BATCHES: Final = _gauge(
    "table.batches",
    "{batch}",
    "Batches with a current artifact. state: loaded, to_load; and failed, stale as Dagster has it.",
    (*_TABLE, "state"),
)
TABLE_ROWS: Final = _gauge("table.rows", "{row}", "Rows of the table that is read.", _TABLE)
TABLE_SIZE: Final = _gauge(
    "table.size", "By", "Its size on PostgreSQL's disk, with indexes.", _TABLE
)
TABLE_LAG: Final = _gauge(
    "table.lag",
    "s",
    "How long the oldest current artifact that the table lacks has been published; 0 if it lacks"
    " none. Tables that are loaded on request are left out.",
    _TABLE,
)
TABLE_LOAD_LAG: Final = _histogram(
    "table.load.lag",
    "s",
    "From a completion's publication to its rows in the table that is read, for each that was seen"
    " to be loaded since the reader began.",
    _TABLE,
    Origin.STATE,
    _LAG_SECONDS,
)

# The state of Dagster.
DAGSTER_RUNS: Final = _gauge(
    "dagster.runs",
    "{run}",
    "Runs that are not finished. status: queued, not_started, starting, started, canceling.",
    ("status",),
)
DAGSTER_RUNS_FAILED: Final = _gauge(
    "dagster.runs.failed", "{run}", "Runs that failed in the last hour."
)
SENSOR_TICK_DURATION: Final = _gauge(
    "sensor.tick.duration", "s", "The longest tick of the last ten minutes.", ("sensor",)
)
SENSOR_TICK_FAILURES: Final = _gauge(
    "sensor.tick.failures", "{tick}", "Ticks that failed in the last ten minutes.", ("sensor",)
)
SENSOR_TICK_AGE: Final = _gauge(
    "sensor.tick.age", "s", "How long ago the last tick began.", ("sensor",)
)
CHECKS_FAILING: Final = _gauge(
    "check.failing",
    "{check}",
    "1 if the last evaluation of a check failed, else 0.",
    ("dataset", "asset", "check"),
)

# The reader itself.
SOURCE_UP: Final = _gauge(
    "source.up",
    "{source}",
    "1 if the last reading of a source went through, else 0; its metrics are then left out."
    " source: definitions, archive, objects, tables, dagster.",
    ("source",),
)
SOURCE_READ_AT: Final = _gauge(
    "source.read.timestamp", "s", "When a source was last read, as Unix time.", ("source",)
)
SOURCE_READ_DURATION: Final = _gauge(
    "source.read.duration", "s", "How long its last reading took.", ("source",)
)
DEFINITIONS_WRONG: Final = _gauge(
    "definitions.wrong", "{definition}", "Definitions of hooks that cannot be used."
)

# Of the process that does it.
S3_REQUESTS: Final = _counter(
    "s3.requests",
    "{request}",
    "Requests to the archive's store, repetitions included. http.response.status_code: none if no"
    " answer came.",
    ("operation", HTTP_STATUS),
)
S3_RETRIES: Final = _counter(
    "s3.retries", "{request}", "Those of them that repeated one before.", ("operation",)
)
TABLE_OPERATIONS: Final = _counter(
    "table.operations",
    "{operation}",
    "What was done to tables. operation: load (a group of batches), index, proof, switch, rebuild.",
    ("table", "operation"),
)
TABLE_OPERATION_TIME: Final = _counter(
    "table.operation.time", "s", "How long that took, added up.", ("table", "operation")
)
TABLE_LOADED_ROWS: Final = _counter(
    "table.loaded.rows", "{row}", "Rows of batches that were loaded, or loaded again.", ("table",)
)
TABLE_LOADED_SIZE: Final = _counter(
    "table.loaded.size", "By", "Bytes of these rows, as Arrow holds them.", ("table",)
)

INSTRUMENTS: Final = {
    each.name: each for each in tuple(globals().values()) if isinstance(each, Instrument)
}
"""By name, in the order of this module."""
