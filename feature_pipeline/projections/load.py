"""Tables from the archive: one batch, some, or all of them.

What belongs here: which batches are loaded, by how many workers, in which order. Not here: how one
is (`replace`), when Dagster asks for it (`orchestration`).

Any number of processes may do this at once for the same table: each batch is loaded once, whoever
is first, and who comes later finds it unchanged.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final

from feature_pipeline.archive import log, tombstones
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.log import BatchEntry, FeatureEntry
from feature_pipeline.digest import ContentSum, Digest
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.projections.database import Connection, Database
from feature_pipeline.projections.generation import Generation, TableState, ensure_table
from feature_pipeline.projections.prepare import PreparedBatch, prepare_batch
from feature_pipeline.projections.progress import current_entries
from feature_pipeline.projections.replace import TableChangedError, replace_batch
from feature_pipeline.projections.settle import settle_table
from feature_pipeline.projections.table_spec import TableSpec
from feature_pipeline.projections.upcast import CannotEvolveError

_END: Final = object()
_AHEAD: Final = 2
"""Batches a worker prepares while it loads another. One waits for S3 most of its time."""
_SHOWN_REFUSALS: Final = 10


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What loading one batch did.

    `rows` counts the batch's rows in the table afterwards, `foreign` its records that belong to
    a batch submitted later. `is_unchanged` says that no row was written: the content was there
    already. While a generation is being built the report is of that one; `live` is then the
    report of the one that is read, or `waiting` says why that one cannot hold the artifact.
    """

    batch: str
    seq: int
    manifest: Digest
    content_digest: Digest
    rows_digest: ContentSum
    data_version: str
    rows: int
    foreign: int
    is_unchanged: bool
    generation: str
    seconds: float
    live: "LoadReport | None" = None
    waiting: str | None = None


@dataclass(frozen=True, slots=True)
class _Task:
    """One batch to load, with all that is known of it beforehand."""

    batch: BatchEntry
    entry: FeatureEntry


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A task's rows per generation that is fed; the reason instead where they do not fit."""

    task: _Task
    state: TableState
    """What the rows are for."""
    wanted: PreparedBatch | CannotEvolveError
    live: PreparedBatch | CannotEvolveError | None
    """None while nothing is being built: the wanted generation is the live one."""


def load_batch(store: BlobStore, database: Database, spec: TableSpec, batch: str) -> LoadReport:
    """The table holds the batch's current artifact, or one accepted later.

    The log's head is read before the batch is locked: under the lock a higher seq is never
    replaced by a lower, so a head that moved on meanwhile can only be a later run's to load.

    Raises:
        NotFoundError: The batch is unknown, or has no current artifact under the hook.
        ConflictError: Another hook's table has this name.
        CannotEvolveError: The artifact does not fit the table's columns.
        ProjectionError: PostgreSQL refused something, or could not be reached.
    """
    [report] = load_batches(store, database, spec, [batch])
    return report


def load_batches(
    store: BlobStore,
    database: Database,
    spec: TableSpec,
    batches: Iterable[str] | None = None,
    *,
    workers: int = 1,
    is_forced: bool = False,
) -> Generator[LoadReport]:
    """Load these batches, or all that have a current artifact; yield a report for each when done.

    Each batch is a transaction of its own, so what was reported stays loaded whatever happens to
    the rest. When the iterator ends, all of it is on disk, and the table is settled
    (`settle_table`): a generation that is complete by now has been switched to.

    A batch that does not fit the wanted generation stops no other; the refusals are raised at the
    end. Any other error ends the work.

    Args:
        store: The archive.
        database: Where the table is.
        spec: The table; it is created if it does not exist.
        batches: Which; all that have a current artifact if None.
        workers: Connections that load at the same time.
        is_forced: Write the rows anew even where the table holds them already.

    Raises:
        NotFoundError: A batch named is unknown, or has no current artifact under the hook.
        ConflictError: Another hook's table has this name.
        CannotEvolveError: Artifacts do not fit the table's columns; the rest is loaded.
        ProjectionError: PostgreSQL refused something, or could not be reached.
    """
    if workers < 1:
        raise InvalidInputError(f"{workers} workers: at least 1 is needed")
    with database.connect(f"table {spec.name!r}") as connection:
        state = ensure_table(connection, spec)
    tasks = _tasks(store, spec, batches)
    refusals: list[CannotEvolveError] = []
    while True:
        withdrawn = frozenset(tombstones.withdrawn(store, spec.dataset))
        work = _Work(store, database, spec, state, withdrawn, tasks, is_forced=is_forced)
        yield from work.run(min(workers, max(1, len(tasks))))
        refusals += work.refusals
        late = settle_table(store, database, spec).late
        if not late:
            break
        # Loaded meanwhile by code that did not know of the generation that is being built.
        tasks = _tasks(store, spec, late)
    if refusals:
        raise _refusal(spec, refusals)


def _refusal(spec: TableSpec, refusals: list[CannotEvolveError]) -> CannotEvolveError:
    shown = "\n".join(str(refusal) for refusal in refusals[:_SHOWN_REFUSALS])
    more = (
        f"\nand {len(refusals) - _SHOWN_REFUSALS} more" if len(refusals) > _SHOWN_REFUSALS else ""
    )
    return CannotEvolveError(
        f"table {spec.name!r}: {len(refusals)} batches of {spec.asset} do not fit its columns; the"
        f" rest is loaded, and what was read before still is:\n{shown}{more}"
    )


def _tasks(store: BlobStore, spec: TableSpec, batches: Iterable[str] | None) -> list[_Task]:
    """The batches with their heads, those submitted last first.

    In this order a record that is in two batches is claimed by its owner at once, and the rows
    that it has elsewhere are never written.
    """
    chosen = None if batches is None else list(dict.fromkeys(batches))
    if chosen is not None and len(chosen) == 1:
        entries = {chosen[0]: log.batch_entry(store, spec.dataset, chosen[0])}
    else:
        entries = log.batches(store, spec.dataset)
    heads = current_entries(store, spec, chosen)
    for batch in chosen or ():
        if batch not in heads:
            raise NotFoundError(f"batch {batch!r} has no current artifact in {spec.asset}")
    tasks = []
    for batch, entry in heads.items():
        if batch not in entries:
            raise NotFoundError(f"batch {batch!r} of {spec.dataset!r} is not in the log of batches")
        tasks.append(_Task(entries[batch], entry))
    return sorted(tasks, key=lambda task: task.batch.order, reverse=True)


class _Work:
    """Tasks shared by workers; each worker loads one batch while it prepares its next ones."""

    def __init__(
        self,
        store: BlobStore,
        database: Database,
        spec: TableSpec,
        state: TableState,
        withdrawn: frozenset[str],
        tasks: list[_Task],
        *,
        is_forced: bool,
    ) -> None:
        self._store = store
        self._database = database
        self._spec = spec
        self._state = state
        self._withdrawn = withdrawn
        self._is_forced = is_forced
        self._tasks = iter(tasks)
        self.refusals: list[CannotEvolveError] = []
        """Batches that do not fit the wanted generation, each with the reason."""
        self._lock = threading.Lock()
        self._is_stopped = False

    def run(self, workers: int) -> Iterator[LoadReport]:
        """Reports as they come. The first worker's error is raised once all have stopped."""
        reports: queue.SimpleQueue[LoadReport | object] = queue.SimpleQueue()
        with ThreadPoolExecutor(workers, thread_name_prefix="load") as pool:
            futures = [pool.submit(self._work, reports) for _ in range(workers)]
            try:
                for _ in range(workers):
                    while (report := reports.get()) is not _END:
                        assert isinstance(report, LoadReport)  # noqa: S101
                        yield report
            finally:
                self._is_stopped = True
        for future in futures:
            future.result()

    def _work(self, reports: "queue.SimpleQueue[LoadReport | object]") -> None:
        try:
            with (
                self._database.connect(f"table {self._spec.name!r}") as connection,
                ThreadPoolExecutor(_AHEAD, thread_name_prefix="prepare") as ahead,
            ):
                # One flush at the end in place of one per batch: a crash of the server may take
                # the last loads back, rows and progress together, and they are then loaded again.
                connection.execute("set synchronous_commit = off")
                upcoming = deque(self._prepare_next(ahead) for _ in range(_AHEAD))
                while (current := upcoming.popleft()) is not None:
                    prepared = current.result()
                    upcoming.append(self._prepare_next(ahead))
                    report = self._load(connection, prepared)
                    if report is not None:
                        reports.put(report)
                _flush(connection, self._state.wanted)
        except BaseException:
            self._is_stopped = True
            raise
        finally:
            reports.put(_END)

    def _prepare_next(self, ahead: ThreadPoolExecutor) -> "Future[_Prepared] | None":
        with self._lock:
            task = None if self._is_stopped else next(self._tasks, None)
        return None if task is None else ahead.submit(self._prepare, task)

    def _prepare(self, task: _Task) -> _Prepared:
        state = self._state
        wanted = self._prepare_for(task, state.wanted)
        live = None if state.building is None else self._prepare_for(task, state.live)
        return _Prepared(task, state, wanted, live)

    def _prepare_for(
        self, task: _Task, generation: Generation
    ) -> PreparedBatch | CannotEvolveError:
        try:
            return prepare_batch(self._store, generation, task.batch, task.entry, self._withdrawn)
        except CannotEvolveError as error:
            return CannotEvolveError(f"batch {task.batch.batch!r}: {error}")

    def _load(self, connection: Connection, prepared: _Prepared) -> LoadReport | None:
        while True:
            try:
                return self._feed(connection, prepared)
            except TableChangedError:
                with self._lock:
                    if self._state is prepared.state:
                        self._state = ensure_table(connection, self._spec)
                prepared = self._prepare(prepared.task)

    def _feed(self, connection: Connection, prepared: _Prepared) -> LoadReport | None:
        """Feed the wanted generation, then the live one: each in a transaction of its own.

        Neither waits for the other's sake: what one of them cannot hold, the other still gets.
        """
        state, report, live = prepared.state, None, None
        if isinstance(prepared.wanted, PreparedBatch):
            report = self._load_into(connection, state, state.wanted, prepared.wanted)
        if isinstance(prepared.live, PreparedBatch):
            live = self._load_into(connection, state, state.live, prepared.live)
        if isinstance(prepared.wanted, CannotEvolveError):
            self.refusals.append(prepared.wanted)
            return None
        if report is None or prepared.live is None:
            return report
        if isinstance(prepared.live, CannotEvolveError):
            return replace(report, waiting=str(prepared.live))
        return replace(report, live=live)

    def _load_into(
        self,
        connection: Connection,
        state: TableState,
        generation: Generation,
        prepared: PreparedBatch,
    ) -> LoadReport:
        started = time.monotonic()
        done = replace_batch(connection, state, generation, prepared, is_forced=self._is_forced)
        held = done.held
        return LoadReport(
            batch=held.batch,
            seq=held.seq,
            manifest=held.manifest,
            content_digest=held.content_digest,
            rows_digest=held.rows_digest,
            data_version=data_version(generation, held.content_digest),
            rows=held.rows,
            foreign=done.foreign,
            is_unchanged=done.is_unchanged,
            generation=generation.relation,
            seconds=time.monotonic() - started,
        )


def data_version(generation: Generation, content: Digest) -> str:
    """Changes when an artifact says something else, or a table shows it otherwise."""
    return Digest.of(f"{generation.digest} {content}".encode()).hex[:32]


def _flush(connection: Connection, generation: Generation) -> None:
    """Everything that this and earlier transactions committed is on disk."""
    connection.execute("set synchronous_commit = on")
    # A commit flushes only if its transaction wrote something.
    connection.execute(
        "update feature_pipeline.generations set id = id where id = %s", [generation.id]
    )
