"""One reading of everything: the archive, the tables, Dagster.

What belongs here: which sources there are, in which order they are read, and what a source that
cannot be read costs. Not here: how each is read (`archive_state`, `hook_runs`, `table_state`,
`dagster_state`), for whom (`meters`).

A source that cannot be read is never taken for an empty one: `source.up` is 0, and its metrics are
left out until it can be read again.
"""

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, TypeVar

import dagster as dg

from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.definitions import DefinedHook
from feature_pipeline.errors import InvalidInputError, NotFoundError, ProjectionError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.model.definition import Materialize
from feature_pipeline.model.instruments import (
    DEFINITIONS_WRONG,
    ERROR_TYPE,
    HOOK_BATCHES,
    HOOK_RELEASE,
    HOOK_RUNS,
    SOURCE_READ_AT,
    SOURCE_READ_DURATION,
    SOURCE_UP,
    TABLE_BATCHES,
    TABLE_LAG,
    TABLE_LOADED_ROWS,
    TABLE_LOADED_SIZE,
    TABLE_OPERATION_TIME,
    TABLE_OPERATIONS,
)
from feature_pipeline.observability.archive_state import object_samples, waiting_samples
from feature_pipeline.observability.dagster_state import (
    check_samples,
    run_samples,
    sensor_samples,
)
from feature_pipeline.observability.hook_runs import HookRuns
from feature_pipeline.observability.samples import Sample, sample
from feature_pipeline.observability.table_state import Loads
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.operations.batch_status import (
    AssetStatus,
    HookStatus,
    Reason,
    Sources,
    hook_status,
)
from feature_pipeline.projections.catalog.database import Database

T = TypeVar("T")

_DAGSTERS_DRIVERS: Final = frozenset({"sqlalchemy", "psycopg2", "dagster", "dagster_postgres"})
_OPERATIONS: Final = ("load", "index", "proof", "switch", "rebuild")
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Defined:
    """What the code location defines."""

    hooks: Sequence[DefinedHook]
    wrong: int
    """Definitions that cannot be used."""
    checks: Collection[dg.AssetCheckKey]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one reading gave."""

    added: list[Sample]
    """Of counters and histograms, to be added once."""
    state: list[Sample]
    """Of gauges, in place of the last reading's."""

    def add(self, read: tuple[list[Sample], list[Sample]] | None) -> None:
        """Extend both with what a part of the reading gave."""
        if read is not None:
            self.added.extend(read[0])
            self.state.extend(read[1])


@dataclass(slots=True)
class _Source:
    is_up: bool = False
    read_at: float | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class StateReader:
    """Reads the sources repeatedly; log entries are read once.

    Args:
        defined: Loads the code location.
        store: Opens the archive, or returns it.
        database: Where the tables are.
        instance: Dagster's; None leaves out what only Dagster knows.
        objects_seconds: How often all stored objects are listed.
    """

    defined: Callable[[], Defined]
    store: Callable[[], BlobStore]
    database: Database
    instance: dg.DagsterInstance | None
    objects_seconds: float = 3600.0
    _runs: HookRuns = field(default_factory=HookRuns)
    _loads: Loads = field(default_factory=Loads)
    _sources: dict[str, _Source] = field(default_factory=dict)
    _objects: list[Sample] | None = None

    def read(self) -> Reading:
        """Read every source. What is wrong with one is logged and costs its own metrics."""
        reading = Reading([], [])
        now = utc_now()
        for name in self._sources.keys() - {"objects"}:
            self._sources[name] = _Source(is_up=True)
        defined = self._try("definitions", self.defined) or Defined((), 0, ())
        if self._sources["definitions"].is_up:
            reading.state.append(sample(DEFINITIONS_WRONG, defined.wrong))
        store = self._try("archive", self.store)
        database = self._try("tables", self._reachable)
        instance = self._read_dagster(reading, defined, now)
        if store is not None:
            self._read_archive(reading, store, now)
            sources = Sources(store, database, instance)
            away = self._away()
            for hook in defined.hooks if "archive" not in away else ():
                self._read_hook(reading, sources, hook, now)
                if self._away() - away - {"definitions"}:
                    break  # what is away now is away for the other hooks, too
        else:
            self._sources["objects"] = _Source()
        reading.state.extend(self._source_samples())
        return reading

    def _reachable(self) -> Database:
        with self.database.connect("metrics"):
            return self.database

    def _read_dagster(
        self, reading: "Reading", defined: Defined, now: datetime
    ) -> dg.DagsterInstance | None:
        """Read Dagster; return it if it answers."""
        instance = self.instance
        if instance is None:
            return None
        samples = self._try(
            "dagster",
            lambda: [
                *run_samples(instance, now),
                *sensor_samples(instance, now),
                *check_samples(instance, defined.checks),
            ],
        )
        reading.state.extend(samples or ())
        return None if samples is None else instance

    def _read_archive(self, reading: "Reading", store: BlobStore, now: datetime) -> None:
        reading.state.extend(self._try("archive", lambda: waiting_samples(store, now)) or ())
        if "archive" not in self._away():
            reading.add(self._try("archive", lambda: self._runs.read(store)))
        source = self._sources.get("objects")
        last = source.read_at if source is not None and source.is_up else None
        if last is None or time.time() - last >= self.objects_seconds:
            self._sources["objects"] = _Source(is_up=True)
            self._objects = self._try("objects", lambda: object_samples(store))
        reading.state.extend(self._objects or ())

    def _read_hook(
        self, reading: "Reading", sources: Sources, hook: DefinedHook, now: datetime
    ) -> None:
        # Without the tables' database the batches of hooks are still known.
        status = self._try("archive", lambda: hook_status(sources, hook.definition, hook.folder))
        if status is None:
            return
        reading.state.extend(_hook_samples(status, now))
        reading.added.extend(_zeros(status))
        if sources.database is not None and status.table is not None:
            database, spec = sources.database, table_spec(hook.definition)
            reading.add(self._try("tables", lambda: self._loads.read(database, spec, status.heads)))

    def _away(self) -> set[str]:
        return {name for name, source in self._sources.items() if not source.is_up}

    def _try(self, name: str, read: Callable[[], T]) -> T | None:
        """Return the result of `read`; None if a source that it reads does not answer."""
        source = self._sources.setdefault(name, _Source(is_up=True))
        started = time.monotonic()
        try:
            return read()
        except Exception as error:  # noqa: BLE001  (one source's trouble is not the process's end)
            away = _source_of(error, name)
            self._sources.setdefault(away, _Source()).is_up = False
            _LOG.warning("metrics: the source %r cannot be read: %s", away, error)
            return None
        finally:
            source.seconds += time.monotonic() - started
            source.read_at = time.time()

    def _source_samples(self) -> list[Sample]:
        samples = []
        for name, source in self._sources.items():
            samples.append(sample(SOURCE_UP, float(source.is_up), source=name))
            if source.is_up and source.read_at is not None:
                samples.append(sample(SOURCE_READ_AT, source.read_at, source=name))
                samples.append(sample(SOURCE_READ_DURATION, source.seconds, source=name))
        return samples


def _source_of(error: Exception, name: str) -> str:
    """Return the source that failed: reading `name` may have queried another one, too."""
    if isinstance(error, ProjectionError):
        return "tables"
    if isinstance(error, InvalidInputError | NotFoundError) and name == "archive":
        return "definitions"  # a file of a hook's code is gone
    is_drivers = type(error).__module__.partition(".")[0] in _DAGSTERS_DRIVERS
    return "dagster" if is_drivers else name


def _hook_samples(status: HookStatus, now: datetime) -> list[Sample]:
    definition = status.definition
    dataset, hook = definition.dataset, definition.name
    features = status.features
    states = {
        "archived": len(status.heads),
        **_reasons(features),
        "running": len(features.running),
        "damaged": len(status.damaged),
        "lost": len(status.lost),
    }
    samples = [
        sample(HOOK_BATCHES, count, dataset=dataset, hook=hook, state=state)
        for state, count in states.items()
    ]
    release = status.release.digest.short
    version = status.release.document.version
    samples.append(
        sample(HOOK_RELEASE, 1, dataset=dataset, hook=hook, release=release, version=version)
    )
    if status.table is not None:
        samples += _table_samples(status, status.table, now)
    return samples


def _zeros(status: HookStatus) -> list[Sample]:
    """Return series at zero: the rate of a series hides the event with which it begins."""
    definition = status.definition
    labels = {
        "dataset": definition.dataset,
        "hook": definition.name,
        "release": status.release.digest.short,
    }
    zeros = [
        Sample(HOOK_RUNS, 0, {**labels, "status": verdict.value})
        for verdict in (Verdict.CURRENT, Verdict.SUPERSEDED)
    ]
    zeros += [
        Sample(HOOK_RUNS, 0, {**labels, "status": Verdict.FAILED.value, ERROR_TYPE: kind.value})
        for kind in FailureKind
    ]
    if status.table is not None:
        table = definition.table_name
        zeros += [sample(one, 0, table=table) for one in (TABLE_LOADED_ROWS, TABLE_LOADED_SIZE)]
        zeros += [
            sample(one, 0, table=table, operation=operation)
            for one in (TABLE_OPERATIONS, TABLE_OPERATION_TIME)
            for operation in _OPERATIONS
        ]
    return zeros


def _table_samples(status: HookStatus, table: AssetStatus, now: datetime) -> list[Sample]:
    definition = status.definition
    labels = {"dataset": definition.dataset, "table": definition.table_name}
    lacking = [b for b, facts in table.facts.items() if not facts.is_there or facts.is_behind]
    reasons = _reasons(table)
    states = {
        "loaded": len(table.facts) - len(lacking),
        "to_load": len(lacking),
        **{name: reasons[name] for name in ("failed", "stale")},
    }
    samples = [Sample(TABLE_BATCHES, count, {**labels, "state": s}) for s, count in states.items()]
    if definition.table.materialize is Materialize.ALWAYS:
        heads = [status.heads[batch] for batch in lacking]
        waited = [(now - head.published_or_accepted_at).total_seconds() for head in heads]
        samples.append(Sample(TABLE_LAG, max([0.0, *waited]), labels))
    return samples


def _reasons(status: AssetStatus) -> dict[str, int]:
    return {r.value.replace("-", "_"): len(status.batches(r)) for r in Reason}
