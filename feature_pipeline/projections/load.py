"""Load tables from the archive: one batch, some, or all of them.

Any number of processes may load the same table at once: each batch is loaded once, by whichever
comes first; the others find it unchanged.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, TypeAlias

import psycopg

from feature_pipeline import measure
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.logs import log, tombstones
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry
from feature_pipeline.archive.maintenance.compare_databases import LostEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import ContentSum, Digest
from feature_pipeline.model.instruments import TABLE_LOADED_ROWS, TABLE_LOADED_SIZE
from feature_pipeline.model.outcomes import OutcomeCounts
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.projections.catalog.bookkeeping import Progress, all_progress
from feature_pipeline.projections.catalog.database import Connection, Database
from feature_pipeline.projections.catalog.generation import (
    Generation,
    TableState,
    build_anew,
    ensure_table,
    lock_table,
    read_table,
    require_table,
)
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.proof.missing_batches import (
    CurrentEntries,
    LostEntryError,
    current_entries,
)
from feature_pipeline.projections.rows.prepare import (
    PreparedBatch,
    PreparedGroup,
    prepare_batch,
    prepare_group,
)
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline.projections.rows.withhold import withhold_batch
from feature_pipeline.projections.rows.write import (
    RefusedBatchError,
    Replaced,
    TableChangedError,
    replace_batches,
)
from feature_pipeline.projections.switch.finalize import settle_table

_LOG: Final = logging.getLogger(__name__)
_END: Final = object()
_AHEAD: Final = 2
"""Groups that a worker prepares while it loads another. One waits for S3 most of its time."""
_GROUP_BYTES: Final = 4 << 20
"""Small batches are loaded together until they have this many bytes of rows: the statements around
a COPY then cost little compared to it, and memory is bounded by `_AHEAD` + 1 groups.
"""
_GROUP_BATCHES: Final = 64
_SHOWN_PROBLEMS: Final = 10


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The result of loading one batch.

    It is about the generation that is being built, if there is one, otherwise about the live one.

    Attributes:
        rows: Number of the batch's rows in the table after the load.
        foreign: Number of the batch's records that a later batch owns.
        is_unchanged: Whether the table had this content already, so that no row was written.
        live: If a generation is being built, the report about the live one, if that was loaded too.
        waiting: Why the live generation cannot store the artifact.
        left_out: Per record, why PostgreSQL cannot store its rows.
        counts: The artifact's; None if a later artifact was loaded already, so that this one was
            not read.
    """

    batch: str
    seq: int
    release: str
    release_digest: Digest
    manifest: Digest
    counts: OutcomeCounts | None
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
    left_out: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Task:
    """One batch to load, with everything known about it beforehand."""

    batch: BatchEntry
    entry: FeatureEntry


_Problem: TypeAlias = CannotEvolveError | CorruptDataError | NotFoundError | RefusedBatchError
"""Why a batch is not loaded: it does not fit, PostgreSQL refused it, its artifact is damaged or
incomplete, or what was loaded of it before is lost in the archive.
"""
_GivenUp: TypeAlias = dict[tuple[int, str], tuple[int, Digest]]
"""By generation and batch, the log entry (number, manifest) that it was loaded from, and whose loss
was accepted.
"""
_Prepared: TypeAlias = list[PreparedBatch | _Problem | None]
"""A task's rows for each generation that is loaded, or why there are none; None if it has them
already.
"""


@dataclass(frozen=True, slots=True)
class _Fit:
    """The tasks that one generation can store, and for the others the reason, by batch."""

    group: PreparedGroup | None
    problems: dict[str, _Problem]


@dataclass(frozen=True, slots=True)
class _Group:
    """Tasks that are loaded together, with their rows per generation."""

    tasks: list[_Task]
    state: TableState
    """The state of the table for which the rows were prepared."""
    wanted: _Fit
    live: _Fit | None
    """None while nothing is being built: the wanted generation is the live one."""


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

    Small batches share a transaction, and each is loaded completely or not at all: reported batches
    stay loaded whatever happens to the rest. When the iterator ends, all of it is on disk, and the
    table is settled (`settle_table`): a generation that is complete by now has been switched to.

    If a batch does not fit the wanted generation, PostgreSQL refuses it or its artifact is damaged,
    the others are still loaded; all problems are named at the end. Records of a damaged batch that
    was never loaded are withheld (`rows.withhold`). Any other error ends the work.

    Args:
        store: The archive.
        database: The table's database.
        spec: The table; it is created if it does not exist.
        batches: Which; all that have a current artifact if None.
        workers: Connections that load at the same time.
        is_forced: Write the rows again even if the table has them already.

    Raises:
        NotFoundError: A batch named is unknown, or has no current artifact under the hook.
        ConflictError: Another hook's table has this name.
        CorruptDataError: Artifacts are damaged, parts of them are gone, or the log has lost the
            entry that the table was loaded from; the rest is loaded.
        CannotEvolveError: Artifacts do not fit the table's columns; the rest is loaded.
        RefusedBatchError: PostgreSQL refused rows, as a unique index does; the rest is loaded.
        ProjectionError: PostgreSQL refused something else, or could not be reached.
    """
    if workers < 1:
        raise InvalidInputError(f"{workers} workers: write at least 1")
    chosen = None if batches is None else list(dict.fromkeys(batches))
    with database.connect(f"table {spec.name!r}") as connection:
        state = ensure_table(connection, spec)
        tasks, problems, given_up = _tasks(store, connection, spec, state, chosen)
        in_live = _entries_in_live(connection, state)
    tried_again: set[str] = set()
    withheld = _to_withhold(problems, state)
    while True:
        withdrawn = frozenset(tombstones.withdrawn(store, spec.dataset))
        work = _Work(
            store,
            database,
            spec,
            state,
            withdrawn,
            tasks,
            given_up,
            {} if is_forced else in_live,
            is_forced=is_forced,
        )
        yield from work.run(min(workers, max(1, len(tasks))))
        for task in tasks:
            problems.pop(task.batch.batch, None)
        problems |= work.problems
        withheld |= work.withheld
        if withheld:
            problems |= _withhold(store, database, spec, withheld, withdrawn)
        is_anew = bool(work.misplaced) and _build_anew(database, spec, work.misplaced)
        # What a unique index refused may be what another batch, loaded after it, gave up.
        again = set() if len(tasks) == len(work.problems) else _refused(problems) - tried_again
        tried_again |= again
        # Loaded meanwhile by code that did not know of the generation that is being built.
        report = settle_table(store, database, spec)
        late = set(report.late) - problems.keys()
        if report.is_discarded:
            _LOG.warning("table %r: %s", spec.name, report.summary())
        # Otherwise what was read before still is, and a fill is requested for the new one.
        if (report.is_discarded or is_anew) and (batches is None or report.live is None):
            late |= set(report.missing) - problems.keys()
        if not (late or again):
            break
        with database.connect(f"table {spec.name!r}") as connection:
            tasks, unusable, given_up = _tasks(store, connection, spec, state, late | again)
            in_live = _entries_in_live(connection, state)
        problems |= unusable
        withheld = _to_withhold(unusable, state)
    if problems:
        raise _summed_up(spec, list(problems.values())) from next(iter(problems.values()))


def _refused(problems: Mapping[str, _Problem]) -> set[str]:
    return {batch for batch, why in problems.items() if isinstance(why, RefusedBatchError)}


def _to_withhold(problems: Mapping[str, _Problem], state: TableState) -> dict[str, _Problem]:
    """Return the batches whose records no earlier batch answers for.

    Those that cannot be read; and, until the table is read for the first time, those that it cannot
    store. Later, a table keeps its rows while an artifact does not fit it.
    """
    return {
        batch: why
        for batch, why in problems.items()
        if state.live is None or isinstance(why, CorruptDataError | NotFoundError)
    }


def _withhold(
    store: BlobStore,
    database: Database,
    spec: TableSpec,
    batches: Mapping[str, _Problem],
    withdrawn: frozenset[str],
) -> dict[str, _Problem]:
    """Let these batches claim their records; return the problems of those that cannot."""
    problems: dict[str, _Problem] = {}
    with database.connect(f"table {spec.name!r}") as connection:
        for batch, why in batches.items():
            try:
                withhold_batch(store, connection, spec, batch, withdrawn)
            except NotFoundError as error:
                problems[batch] = type(why)(
                    f"{why}; nor is known which records it has ({error}), so records of it that"
                    " earlier batches have, too, are in the table as those say"
                )
            except StoreUnavailableError as error:
                problems[batch] = type(why)(f"{why}; nor could its records be read ({error})")
    return problems


def _build_anew(database: Database, spec: TableSpec, misplaced: Collection[int]) -> bool:
    """Request another generation in place of one that has records under the wrong batch.

    These are records of a batch that was taken for the last of all, because the archive could not
    tell when it was submitted.
    """
    with database.connect(f"table {spec.name!r}") as connection, connection.transaction():
        lock_table(connection, spec.name)
        wanted = require_table(connection, spec).wanted
        if wanted.id not in misplaced:
            return False
        build_anew(connection, spec, wanted)
        return True


def _summed_up(
    spec: TableSpec, problems: list[_Problem]
) -> CannotEvolveError | CorruptDataError | RefusedBatchError:
    """Return one error that names every batch that was not loaded, of the worst kind among them."""
    shown = first_few(problems, limit=_SHOWN_PROBLEMS, separator="\n")
    misfits = sum(isinstance(problem, CannotEvolveError) for problem in problems)
    refused = sum(isinstance(problem, RefusedBatchError) for problem in problems)
    lost = sum(isinstance(problem, LostEntryError) for problem in problems)
    damaged = len(problems) - misfits - refused - lost
    what = ", ".join(
        f"{count} {words}"
        for count, words in (
            (lost, "lost in the archive (`feature-pipeline repair` restores them, or gives up)"),
            (damaged, "damaged or incomplete (`feature-pipeline verify` names what is wrong)"),
            (refused, "refused by PostgreSQL"),
            (misfits, "that do not fit its columns"),
        )
        if count
    )
    kind: type[CannotEvolveError | CorruptDataError | RefusedBatchError] = CannotEvolveError
    if lost or damaged or refused:
        kind = CorruptDataError if lost or damaged else RefusedBatchError
    withheld = "; records of damaged batches are not taken from earlier ones" if damaged else ""
    return kind(
        f"table {spec.name!r}: batches of {spec.asset}: {what}; the rest is loaded, and rows"
        f" loaded before can still be read{withheld}:\n{shown}"
    )


def _tasks(
    store: BlobStore,
    connection: Connection,
    spec: TableSpec,
    state: TableState,
    chosen: Collection[str] | None,
) -> tuple[list[_Task], dict[str, _Problem], _GivenUp]:
    """Return the batches with their heads, last submitted first; and unloadable ones.

    Also return the given-up log entries that generations were loaded from: any entry replaces
    those.

    In this order a record that is in two batches is claimed by its owner at once, and its rows of
    other batches are never written.

    Raises:
        NotFoundError: A batch of `chosen` is unknown, or has no current artifact under the hook.
    """
    submitted = log.readable_batches(store, spec.dataset, chosen)
    current = current_entries(store, spec, chosen)
    problems: dict[str, _Problem] = {
        batch: CorruptDataError(f"batch {batch!r}: {damage.error}")
        for batch, damage in {**submitted.damage, **current.damage}.items()
        # A dataset's batch that the hook has nothing about is not the table's matter.
        if batch in current or batch in current.damage
    }
    lost, given_up = _unlogged(connection, state, current, chosen)
    problems |= {batch: LostEntryError(f"batch {batch!r}: {one}") for batch, one in lost.items()}
    for batch in chosen or ():
        if batch in problems:
            continue
        if batch not in submitted.intact and batch not in current:
            raise NotFoundError(f"dataset {spec.dataset!r} has no batch {batch!r}")
        if batch not in current:
            raise NotFoundError(f"batch {batch!r} has no current artifact in {spec.asset}")
    tasks = []
    for batch, entry in current.items():
        if batch in problems:
            continue
        if batch in submitted.intact:
            tasks.append(_Task(submitted.intact[batch], entry))
        else:
            problems[batch] = NotFoundError(
                f"batch {batch!r}: it is not in the log of batches of {spec.dataset!r}"
            )
    return sorted(tasks, key=lambda task: task.batch.order, reverse=True), problems, given_up


def _unlogged(
    connection: Connection,
    state: TableState,
    current: CurrentEntries,
    chosen: Collection[str] | None,
) -> tuple[dict[str, LostEntry], _GivenUp]:
    """Return what generations were loaded from entries that the archive no longer has.

    A batch whose entry is lost is not loaded from another entry: it must be decided first whether
    the archive is right. A batch whose loss was accepted is.
    """
    lost: dict[str, LostEntry] = {}
    given_up: _GivenUp = {}
    for generation in state.write_targets:
        progress = all_progress(connection, generation.id, chosen)
        found, gone = current.compare_logs(progress)
        lost |= found
        for batch in gone:
            one = progress[batch]
            given_up[generation.id, batch] = (one.seq, one.manifest)
    return lost, given_up


class _Work:
    """Tasks shared by workers; each worker loads some batches while it prepares its next ones."""

    def __init__(
        self,
        store: BlobStore,
        database: Database,
        spec: TableSpec,
        state: TableState,
        withdrawn: frozenset[str],
        tasks: list[_Task],
        given_up: _GivenUp,
        in_live: dict[tuple[int, str], int],
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
        self._given_up = given_up
        self.problems: dict[str, _Problem] = {}
        """Batches that were not loaded into the wanted generation, each with the reason."""
        self.withheld: dict[str, _Problem] = {}
        """Batches whose records no earlier batch answers for."""
        self.misplaced: set[int] = set()
        """Generations in which a batch was taken for the last of all before it was loaded."""
        self._in_live = in_live
        self._lock = threading.Lock()
        self._is_stopped = False
        self._prepared_bytes = 0
        """No group is larger than all before it, so that loading begins with the first batch."""

    def run(self, workers: int) -> Iterator[LoadReport]:
        """Yield reports as they come. The first worker's error is raised once all have stopped."""
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
                upcoming = deque(ahead.submit(self._prepare_next) for _ in range(_AHEAD))
                while upcoming:
                    # One that found no task may stand before one that took the last.
                    if (group := upcoming.popleft().result()) is None:
                        continue
                    upcoming.append(ahead.submit(self._prepare_next))
                    for report in self._load(connection, group):
                        reports.put(report)
                _flush(connection, self._state.wanted)
        except BaseException:
            self._is_stopped = True
            raise
        finally:
            reports.put(_END)

    def _prepare_next(self) -> _Group | None:
        """Return the next batches that are loaded together; None if none is left."""
        state = self._state
        tasks: list[_Task] = []
        prepared: list[_Prepared] = []
        size, limit = 0, min(_GROUP_BYTES, self._prepared_bytes)
        while not tasks or (size < limit and len(tasks) < _GROUP_BATCHES):
            with self._lock:
                task = None if self._is_stopped else next(self._tasks, None)
            if task is None:
                break
            tasks.append(task)
            prepared.append(self._prepare(task, state))
            size += sum(one.size for one in prepared[-1] if isinstance(one, PreparedBatch))
        with self._lock:
            self._prepared_bytes += size
        return _group(tasks, state, prepared) if tasks else None

    def _prepare_again(self, tasks: list[_Task]) -> _Group:
        state = self._state
        return _group(tasks, state, [self._prepare(task, state) for task in tasks])

    def _prepare(self, task: _Task, state: TableState) -> _Prepared:
        """Return the task's rows for each generation."""
        return [
            None if self._is_in_live(task, generation) else self._prepare_for(task, generation)
            for generation in state.write_targets
        ]

    def _is_in_live(self, task: _Task, generation: Generation) -> bool:
        key = generation.id, task.batch.batch
        return key not in self._given_up and self._in_live.get(key, 0) >= task.entry.seq

    def _prepare_for(self, task: _Task, generation: Generation) -> PreparedBatch | _Problem:
        try:
            return prepare_batch(self._store, generation, task.batch, task.entry, self._withdrawn)
        except (CannotEvolveError, CorruptDataError, NotFoundError) as error:
            return type(error)(f"batch {task.batch.batch!r}: {error}")
        except NewerVersionError as error:
            return CorruptDataError(f"batch {task.batch.batch!r}: {error}")

    def _load(self, connection: Connection, group: _Group) -> list[LoadReport]:
        while True:
            try:
                return self._feed(connection, group)
            except (TableChangedError, psycopg.errors.UndefinedTable) as error:
                with self._lock:
                    if self._state is group.state:
                        self._state = ensure_table(connection, self._spec)
                    is_same = self._state == group.state
                if is_same and not isinstance(error, TableChangedError):
                    raise
                group = self._prepare_again(group.tasks)

    def _feed(self, connection: Connection, group: _Group) -> list[LoadReport]:
        """Load the wanted generation, then the live one, in transactions of their own.

        A problem with one of them does not affect the other.
        """
        state = group.state
        first, *rest = state.write_targets
        wanted, refused = self._load_into(connection, state, first, group.wanted)
        self.problems |= group.wanted.problems | refused
        live: dict[str, LoadReport] = {}
        waiting: dict[str, _Problem] = {}
        if group.live is not None:
            live, refused = self._load_into(connection, state, rest[0], group.live)
            waiting = group.live.problems | refused
        return [
            replace(report, live=live.get(batch))
            if batch not in waiting
            else replace(report, waiting=str(waiting[batch]))
            for batch, report in wanted.items()
        ]

    def _load_into(
        self,
        connection: Connection,
        state: TableState,
        generation: Generation,
        fit: _Fit,
    ) -> tuple[dict[str, LoadReport], dict[str, _Problem]]:
        """Return reports by batch, and reasons for those that the generation cannot store."""
        self.withheld |= _to_withhold(fit.problems, state)
        if fit.group is None:
            return {}, {}
        started = time.monotonic()
        with measure.timed(self._spec.name, "load"):
            replaced = replace_batches(
                connection,
                state,
                generation,
                fit.group,
                is_forced=self._is_forced,
                given_up={
                    batch: entry
                    for (own, batch), entry in self._given_up.items()
                    if own == generation.id
                },
            )
        if any(one.was_unplaced for one in replaced.done):
            self.misplaced.add(generation.id)
        self._count(fit.group, replaced)
        seconds = (time.monotonic() - started) / len(fit.group.batches)
        counts = {one.entry.manifest: one.manifest.counts for one in fit.group.batches}
        reports = {
            replacement.progress.batch: _report(
                generation,
                replacement.progress,
                counts.get(replacement.progress.manifest),
                is_unchanged=replacement.is_unchanged,
                foreign=replacement.foreign,
                seconds=seconds,
                left_out=replacement.left_out,
            )
            for replacement in replaced.done
        }
        refused: dict[str, _Problem] = dict(replaced.refused)
        self.withheld |= _to_withhold(refused, state)
        return reports, refused

    def _count(self, group: PreparedGroup, replaced: Replaced) -> None:
        written = {
            one.progress.batch: one.progress.rows for one in replaced.done if not one.is_unchanged
        }
        sizes = sum(one.size for one in group.batches if one.batch in written)
        measure.count(TABLE_LOADED_ROWS, sum(written.values()), table=self._spec.name)
        measure.count(TABLE_LOADED_SIZE, sizes, table=self._spec.name)


def _entries_in_live(connection: Connection, state: TableState) -> dict[tuple[int, str], int]:
    """Return the live generation's log entry of each batch, while another one is being built.

    These need not be read, decoded and offered to it a second time.
    """
    if state.building is None or state.live is None:
        return {}
    progress = all_progress(connection, state.live.id)
    return {(state.live.id, batch): each.seq for batch, each in progress.items()}


def _group(tasks: list[_Task], state: TableState, prepared: list[_Prepared]) -> _Group:
    fits = []
    for generation, column in zip(state.write_targets, zip(*prepared, strict=True), strict=True):
        fitting = [one for one in column if isinstance(one, PreparedBatch)]
        problems = {
            task.batch.batch: one
            for task, one in zip(tasks, column, strict=True)
            if one is not None and not isinstance(one, PreparedBatch)
        }
        fits.append(_Fit(prepare_group(fitting, generation) if fitting else None, problems))
    return _Group(tasks, state, fits[0], fits[1] if len(fits) > 1 else None)


def fed_loads(database: Database, spec: TableSpec) -> dict[str, LoadReport]:
    """Return what a table was loaded with, by batch, as its last load reported it.

    Of the wanted generation, and of the live one for batches that only that one has. Empty if the
    table does not exist. Nothing is read from the archive, so there are no counts.
    """
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        return {
            batch: _report(generation, loaded, None, is_unchanged=True)
            for generation in reversed([] if state is None else state.write_targets)
            for batch, loaded in all_progress(connection, generation.id).items()
        }


def _report(
    generation: Generation,
    loaded: Progress,
    counts: OutcomeCounts | None,
    *,
    is_unchanged: bool,
    foreign: int = 0,
    seconds: float = 0.0,
    left_out: Mapping[str, str] = MappingProxyType({}),
) -> LoadReport:
    return LoadReport(
        batch=loaded.batch,
        seq=loaded.seq,
        release=loaded.release,
        release_digest=loaded.release_digest,
        manifest=loaded.manifest,
        counts=counts,
        content_digest=loaded.content_digest,
        rows_digest=loaded.rows_digest,
        data_version=data_version(generation, loaded.content_digest),
        rows=loaded.rows,
        foreign=foreign,
        is_unchanged=is_unchanged,
        generation=generation.relation,
        seconds=seconds,
        left_out=left_out,
    )


def data_version(generation: Generation, content: Digest) -> str:
    """Return a value that changes with an artifact's content or a table's form of it."""
    return Digest.of(f"{generation.digest} {content}".encode()).hex[:32]


def _flush(connection: Connection, generation: Generation) -> None:
    """Ensure that everything committed so far is on disk."""
    connection.execute("set synchronous_commit = on")
    # A commit flushes only if its transaction wrote something.
    connection.execute(
        "update feature_pipeline.generations set id = id where id = %s", [generation.id]
    )
