"""Bring a table in line with its definition, once its rows are loaded.

A complete generation is indexed, proved equal to the archive and switched to; a first one is proved
as far as it is loaded. If the process is killed in between, the table is read as before, and the
next run continues.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Final

import psycopg

from feature_pipeline import measure
from feature_pipeline.archive.logs import tombstones
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import NotFoundError, ProjectionError, StoreUnavailableError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.projections.catalog import dependents
from feature_pipeline.projections.catalog.bookkeeping import (
    Progress,
    all_progress,
    count_progress,
    read_left_out,
)
from feature_pipeline.projections.catalog.database import (
    UNHOLDABLE,
    Connection,
    Database,
    fetch_value,
    session_lock,
)
from feature_pipeline.projections.catalog.generation import (
    DISCARDED_FOR,
    Generation,
    TableState,
    build_anew,
    discarded_lately,
    drop_generation,
    empty_generation,
    ensure_key,
    is_current_definition,
    is_followed,
    list_generations,
    lock_table,
    read_table,
    record_discarded,
    require_table,
    why_discarded,
)
from feature_pipeline.projections.catalog.indexes import (
    UnholdableRowsError,
    are_declared,
    follow_indexes,
)
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.catalog.view import is_shown
from feature_pipeline.projections.proof.missing_batches import compare_progress, current_entries
from feature_pipeline.projections.proof.proof import (
    Proof,
    describe_left_out,
    prove_generation,
    prove_once,
)
from feature_pipeline.projections.rows.withhold import withhold_batch
from feature_pipeline.projections.switch.switch import switch, wait_for_older_snapshots

_ROUNDS: Final = 10
_FILL_AGAIN_AFTER: Final = "1 hour"
"""A fill that was requested this long ago and is not complete is requested again."""


@dataclass(frozen=True, slots=True)
class TableReport:
    """The progress of a table towards its definition.

    `live` is None as long as no generation was proved. `missing` are the batches that the
    generation being built lacks. `late` are those that came while it was verified: it was complete,
    and can be settled once they are loaded. `lost` are generations that are live or wanted and
    whose tables were dropped or altered by hand. `discarded` is the reason why the generation
    before the one being built was discarded, and `is_discarded` means that this just happened.
    `kept` has unneeded generations that cannot be dropped, with what depends on them. `left_out`
    gives for records of the wanted generation the reason why PostgreSQL cannot store their rows.
    """

    table: str
    live: str | None
    building: str | None
    batches: int
    missing: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    is_switched: bool = False
    is_pinned: bool = False
    is_older_code: bool = False
    lost: tuple[str, ...] = ()
    discarded: str | None = None
    is_discarded: bool = False
    kept: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_settled(self) -> bool:
        """Whether users read what this code's definition declares."""
        return self.building is None and not self.is_older_code and not self.lost

    def summary(self) -> str:
        """Return a one-line summary."""
        lost = [
            f"generation {name} was dropped or altered by hand: load any batch, or run"
            " `feature-pipeline rebuild`, to build it again"
            for name in self.lost
        ]
        discarded = [] if self.discarded is None else [self.discarded]
        left_out = [describe_left_out(self.left_out)] if self.left_out else []
        return "; ".join((self._standing(), *lost, *discarded, *self.kept, *left_out))

    def _standing(self) -> str:
        if self.is_older_code:
            return (
                f"{self.table}: a later definition than this code's has been seen; this code"
                " loads the table and builds nothing. `feature-pipeline rebuild` with this code"
                " goes back"
            )
        if self.building is None:
            done = "switched to" if self.is_switched else "read from"
            return f"{self.table}: {done} generation {self.live}, {counted(self.batches, 'batch')}"
        progress = (
            f"{self.table}: building {self.batches - len(self.missing)} of"
            f" {counted(self.batches, 'batch')}"
        )
        if self.live is None:
            return f"{progress}; nothing can be read before it is proved"
        progress = f"{progress}; the live generation has the old columns"
        if self.is_pinned:
            return f"{progress}; pinned to {self.live} until `feature-pipeline rollback --unpin`"
        return f"{progress}; backfill all partitions" if self.missing else progress


def settle_table(store: BlobStore, database: Database, spec: TableSpec) -> TableReport:
    """Apply the declared indexes, and make a complete generation the live one.

    Complete means that it has every current artifact. It is then indexed, proved, and switched to.
    One whose rows differ from the archive's is discarded, and another one is begun. A changed view
    is restored. Safe with concurrent processes: one does it, the others find it done.

    Raises:
        NotFoundError: The table does not exist.
        ProjectionError: An index cannot be built, the archive cannot be read, or the generation
            that was built differs from the archive again.
        ConflictError: The view could not be switched; the message names what blocked it.
        CorruptDataError: Stored bytes do not match their digest.
    """
    with database.connect(f"table {spec.name!r}") as connection:
        state = require_table(connection, spec)
        if _superseded(connection, spec, state):
            drop_superseded(connection, spec)
        report = read_report(store, connection, spec)
        if state.live is None:
            with session_lock(connection, "settle", spec.name):
                return _finish(store, connection, spec)
        if report.is_older_code:
            return report
        if state.live.is_whole and not is_shown(connection, spec.name):
            _show_again(connection, spec, state.live)
        if report.building is None:
            follow_indexes(connection, state.live, spec, is_read=True)
            return report
        if report.missing or report.is_pinned:
            return report
        with session_lock(connection, "settle", spec.name):
            return _finish(store, connection, spec)


def _show_again(connection: Connection, spec: TableSpec, live: Generation) -> None:
    """Make the view show the complete live generation again."""

    def is_still_live(_: Connection, now: TableState) -> bool:
        return now.live is not None and now.live.id == live.id

    state = require_table(connection, spec)
    switch(connection, spec, live, is_still_live, is_pinned=state.is_pinned)


def table_report(store: BlobStore, database: Database, spec: TableSpec) -> TableReport | None:
    """Return the progress of the table; None if it does not exist. Changes nothing."""
    with database.connect(f"table {spec.name!r}") as connection:
        if read_table(connection, spec) is None:
            return None
        return read_report(store, connection, spec)


def batches_to_load(store: BlobStore, database: Database, spec: TableSpec) -> list[str]:
    """Return the batches whose loading brings the table in line with its definition.

    Those that the live generation or the one being built lacks. If there are none, and the table
    still differs from its declaration, any batch: the run that loads it settles the table.
    """
    heads = current_entries(store, spec, None)
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        if state is None:
            return sorted(heads)
        lacking = {
            batch
            for generation in state.write_targets
            for batch in compare_progress(
                heads, all_progress(connection, generation.id)
            ).batches_to_load()
        }
        if not lacking and not _is_as_declared(connection, spec, state):
            lacking = set(sorted(heads)[:1])
    return sorted(lacking)


def _is_as_declared(connection: Connection, spec: TableSpec, state: TableState) -> bool:
    if state.live is None or state.lost:
        return False
    if not (is_followed(connection, spec) and is_shown(connection, spec.name)):
        return False
    if not is_current_definition(connection, spec) or state.is_pinned:
        return True  # older code, or a user's wish: not for this code to change
    return state.building is None and are_declared(connection, state.live, spec)


def read_report(store: BlobStore, connection: Connection, spec: TableSpec) -> TableReport:
    """Return `table_report` on a connection, for a table that exists."""
    state = require_table(connection, spec)
    report = TableReport(
        table=spec.name,
        live=None if state.live is None else state.live.relation,
        building=None if state.building is None else state.building.relation,
        batches=count_progress(connection, state.wanted.id),
        is_pinned=state.is_pinned,
        is_older_code=not is_current_definition(connection, spec),
        lost=state.lost,
        discarded=None
        if state.building is None
        else why_discarded(connection, spec, state.building),
        kept=tuple(_kept(connection, spec, state)),
        left_out=read_left_out(connection, state.wanted.id),
    )
    if state.building is None:
        return report
    heads = current_entries(store, spec, None)
    compared = compare_progress(heads, all_progress(connection, state.wanted.id))
    return replace(report, batches=len(heads), missing=tuple(compared.batches_to_load()))


def request_fill(connection: Connection, spec: TableSpec) -> bool:
    """Claim the backfill of all missing batches. True for exactly one caller.

    True once for a generation that is being built, and again if it is incomplete after an hour.
    """
    return bool(
        fetch_value(
            connection,
            "with asked as (update feature_pipeline.generations g set fill_requested_at = now()"
            " from feature_pipeline.tables t"
            " where t.name = %s and g.id = t.wanted and t.wanted is distinct from t.live"
            " and (g.fill_requested_at is null or g.fill_requested_at < now() - %s::interval)"
            " returning 1) select exists (select from asked)",
            [spec.name, _FILL_AGAIN_AFTER],
        )
    )


def drop_superseded(connection: Connection, spec: TableSpec) -> list[str]:
    """Drop generations that are neither live, wanted nor the previous one; return their names.

    One that is still being read, or that something depends on, stays; the next run tries again.
    """
    state = require_table(connection, spec)
    return [
        generation.relation
        for generation in _superseded(connection, spec, state)
        if _drop_if_free(connection, spec, generation)
    ]


def _drop_if_free(connection: Connection, spec: TableSpec, generation: Generation) -> bool:
    try:
        with connection.transaction():
            connection.execute("set local lock_timeout = '500ms'")
            lock_table(connection, spec.name)
            state = require_table(connection, spec)
            if generation.id not in {g.id for g in _superseded(connection, spec, state)}:
                return False  # gone already, or wanted again
            if dependents.users_of(connection, generation.identifier):
                return False  # known without asking for locks that readers would wait for
            drop_generation(connection, generation)
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DependentObjectsStillExist):
        return False
    return True


def previous_generation(
    connection: Connection, spec: TableSpec, state: TableState
) -> Generation | None:
    """Return the generation that was live before the live one, if it still exists."""
    before = [
        generation
        for generation in list_generations(connection, spec)
        if generation.switched_at is not None and generation.id not in _in_use(state)
    ]
    return max(before, key=lambda g: g.switched_at or g.created_at, default=None)


def _superseded(connection: Connection, spec: TableSpec, state: TableState) -> list[Generation]:
    previous = previous_generation(connection, spec, state)
    kept = _in_use(state) | ({previous.id} if previous else set())
    return [g for g in list_generations(connection, spec) if g.id not in kept]


def _kept(connection: Connection, spec: TableSpec, state: TableState) -> Iterator[str]:
    for generation in _superseded(connection, spec, state):
        if users := dependents.users_of(connection, generation.identifier):
            yield (
                f"generation {generation.relation} is not dropped because {', '.join(users)}"
                f" depends on it: read features.{spec.name} instead"
            )


def _in_use(state: TableState) -> set[int]:
    return {generation.id for generation in (state.live, state.building) if generation is not None}


def _finish(store: BlobStore, connection: Connection, spec: TableSpec) -> TableReport:
    """Index, prove and switch, under the lock that one process has for this table.

    A first generation need not be complete: nothing else is read in the meantime. What it has by
    then is proved, and later batches are loaded into the live table.
    """
    proven: dict[str, Progress] = {}
    for _ in range(_ROUNDS):
        report = read_report(store, connection, spec)
        state = require_table(connection, spec)
        building, is_first = state.building, state.live is None
        if building is None or (not is_first and (state.is_pinned or report.is_older_code)):
            return report
        # Batches whose loss was accepted: live holds what the log does not.
        gone = (
            frozenset[str]()
            if state.live is None
            else _accepted(store, connection, spec, state.live)
        )
        if not is_first and (late := {*report.missing, *(set(_late(connection, state)) - gone)}):
            # It was complete a moment ago: these have come since, or only live has them.
            return replace(report, late=tuple(sorted(late)))
        _withhold_damaged(store, connection, spec)
        with measure.timed(spec.name, "index"):
            try:
                ensure_key(connection, building)
                problem = _index(connection, building, spec, report)
            except psycopg.IntegrityError as error:
                what = error.diag.message_detail or error
                _discard(connection, spec, building, f"its key cannot be built: {what}")
                return replace(read_report(store, connection, spec), is_discarded=True)
            except (UnholdableRowsError, *UNHOLDABLE):
                # Loaded with the indexes in place, the rows that these cannot store are left out.
                emptied = empty_generation(connection, building)
                ensure_key(connection, building)
                follow_indexes(connection, building, spec, is_read=False)
                return replace(read_report(store, connection, spec), late=tuple(emptied))
        progress = all_progress(connection, building.id)
        proof = _prove(store, connection, spec, building, progress, proven)
        if not proof.has_equal_content:
            _discard(connection, spec, building, proof.summary())
            return replace(read_report(store, connection, spec), is_discarded=True)
        proven = progress
        if not is_first:
            wait_for_older_snapshots(connection, spec)

        def is_still_so(
            under_lock: Connection,
            now: TableState,
            building: Generation = building,
            proven: Mapping[str, Progress] = proven,
            gone: frozenset[str] = gone,
            was_first: bool = is_first,
        ) -> bool:
            return (
                now.building is not None
                and now.building.id == building.id
                and now.building.is_whole
                and now.building.is_keyed
                and (now.live is None) == was_first
                and not now.is_pinned
                and all_progress(under_lock, building.id) == proven
                and not set(_late(under_lock, now)) - gone
            )

        with measure.timed(spec.name, "switch"):
            is_switched = switch(connection, spec, building, is_still_so, is_pinned=False)
        if is_switched:
            drop_superseded(connection, spec)
            if problem is not None:
                raise problem
            return replace(read_report(store, connection, spec), is_switched=True)
    raise ProjectionError(
        f"table {spec.name!r}: batches arrived during each of {_ROUNDS} proofs of generation"
        f" {report.building}; the next run proves it again and switches to it"
    )


def _withhold_damaged(store: BlobStore, connection: Connection, spec: TableSpec) -> None:
    """Let the batches whose log is damaged claim their records: no load need have named them."""
    damaged = current_entries(store, spec, None).damage
    if not damaged:
        return
    withdrawn = tombstones.withdrawn(store, spec.dataset)
    for batch in damaged:
        # What is not known of it, the load and the checks of the table report.
        with suppress(NotFoundError, StoreUnavailableError):
            withhold_batch(store, connection, spec, batch, withdrawn)


def _accepted(
    store: BlobStore, connection: Connection, spec: TableSpec, live: Generation
) -> frozenset[str]:
    """Return the batches that live was loaded with from log entries whose loss was accepted."""
    progress = all_progress(connection, live.id)
    return frozenset(current_entries(store, spec, None).compare_logs(progress)[1])


def _index(
    connection: Connection, building: Generation, spec: TableSpec, report: TableReport
) -> ProjectionError | None:
    """Build the generation's indexes; return the problem, for a first generation.

    A first generation is read without the index, because there is nothing else to be read.

    Raises:
        UnholdableRowsError: An index cannot store values of some rows.
        ProjectionError: An index cannot be built, and another generation is read.
    """
    if report.is_older_code:
        return None  # the indexes are those of a later definition
    try:
        follow_indexes(connection, building, spec, is_read=False)
    except ProjectionError as error:
        if report.live is not None or isinstance(error, UnholdableRowsError):
            raise
        return error
    return None


def _prove(
    store: BlobStore,
    connection: Connection,
    spec: TableSpec,
    building: Generation,
    progress: Mapping[str, Progress],
    proven: Mapping[str, Progress],
) -> Proof:
    """Compare the generation with the archive, except for what was compared already.

    Raises:
        ProjectionError: The archive's side cannot be read.
    """
    changed = [batch for batch, loaded in progress.items() if proven.get(batch) != loaded]
    if proven and len(changed) < len(progress):
        proof = prove_generation(store, connection, spec, building, changed)
    else:
        proof = prove_once(store, connection, spec, building)
    if proof.unreadable:
        raise ProjectionError(
            f"table {spec.name!r}: generation {building.relation} was not switched to:"
            f" {proof.summary()}; `feature-pipeline verify` names what is damaged in the archive"
        )
    return proof


def _discard(connection: Connection, spec: TableSpec, building: Generation, reason: str) -> None:
    """Discard a generation with wrong rows, and request another one.

    Raises:
        ProjectionError: That was done a short while ago.
    """
    with connection.transaction():
        lock_table(connection, spec.name)
        is_again = discarded_lately(connection, spec)
        record_discarded(connection, spec, building, reason)
        state = require_table(connection, spec)
        is_ours = state.building is not None and state.building.id == building.id
        if is_ours and not is_again:
            build_anew(connection, spec, building)
    if is_again:
        raise ProjectionError(
            f"table {spec.name!r}: generation {building.relation} was not switched to:"
            f" {reason}. It was built again less than {DISCARDED_FOR} ago: remove"
            " the cause, for example a trigger, and run `feature-pipeline rebuild`"
        )


def _late(connection: Connection, state: TableState) -> tuple[str, ...]:
    """Return batches of which the live generation has a later version than the one being built."""
    if state.building is None or state.live is None:
        return ()
    rows = connection.execute(
        "select l.batch from feature_pipeline.progress l"
        " left join feature_pipeline.progress b on b.generation = %s and b.batch = l.batch"
        " where l.generation = %s and (b.seq is null or b.seq < l.seq) order by l.batch",
        [state.building.id, state.live.id],
    )
    return tuple(row[0] for row in rows)
