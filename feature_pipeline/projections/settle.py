"""Bringing a table to what its definition asks for, once its rows are there.

What belongs here: when a generation is complete, what is done before it is read, which generations
are kept. Not here: rows (`load`), the change of the view (`switch`).

A complete generation is indexed, proven equal to the archive and switched to. Whoever is killed on
the way leaves a table that is read as before; the next run goes on from there.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import psycopg

from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.errors import ProjectionError
from feature_pipeline.projections import dependents
from feature_pipeline.projections.bookkeeping import Progress, all_progress, count_progress
from feature_pipeline.projections.database import (
    Connection,
    Database,
    fetch_value,
    session_lock,
)
from feature_pipeline.projections.generation import (
    Generation,
    TableState,
    drop_generation,
    is_current_definition,
    is_followed,
    list_generations,
    lock_table,
    read_table,
    require_table,
)
from feature_pipeline.projections.indexes import are_declared, follow_indexes
from feature_pipeline.projections.progress import compare_progress, current_entries
from feature_pipeline.projections.proof import Proof, prove_once
from feature_pipeline.projections.switch import switch, wait_for_older_snapshots
from feature_pipeline.projections.table_spec import TableSpec
from feature_pipeline.projections.view import is_shown

_ROUNDS: Final = 10
_FILL_AGAIN_AFTER: Final = "1 hour"
"""A fill that was requested this long ago and is not complete is requested again."""


@dataclass(frozen=True, slots=True)
class TableReport:
    """How far a table is with what its definition asks for.

    `missing` are the batches that the generation being built lacks. `late` are those that came
    while it was verified: it was complete, and once they are loaded it can be settled. `kept` says
    which generations that nobody needs cannot be dropped, and what depends on them.
    """

    table: str
    live: str
    building: str | None
    batches: int
    missing: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    is_switched: bool = False
    is_pinned: bool = False
    is_older_code: bool = False
    kept: tuple[str, ...] = ()

    @property
    def is_settled(self) -> bool:
        """Whether people read what the definition of this code asks for."""
        return self.building is None and not self.is_older_code

    def summary(self) -> str:
        """One line for people."""
        return "; ".join((self._standing(), *self.kept))

    def _standing(self) -> str:
        if self.is_older_code:
            return (
                f"{self.table}: a later definition than this code's has been seen; this code feeds"
                " the table and builds nothing. `feature-pipeline rebuild` with this code goes back"
            )
        if self.building is None:
            done = "switched to" if self.is_switched else "read from"
            return f"{self.table}: {done} generation {self.live}, {self.batches} batches"
        progress = (
            f"{self.table}: building {self.batches - len(self.missing)} of {self.batches} batches;"
            f" live serves the old columns"
        )
        if self.is_pinned:
            return f"{progress}; pinned to {self.live} until `feature-pipeline rollback --unpin`"
        return f"{progress}; backfill all partitions" if self.missing else progress


def settle_table(store: BlobStore, database: Database, spec: TableSpec) -> TableReport:
    """Indexes are those declared; a generation that is complete has become the live one.

    Complete means that it holds every current artifact. It is then indexed, proven, and switched
    to. Safe in any number of processes at once: one does it, the others find it done.

    Raises:
        NotFoundError: The table does not exist.
        ProjectionError: An index cannot be built, or what was built differs from the archive.
        ConflictError: The view could not be switched; the message says what held it.
        CorruptDataError: Stored bytes are not what their digest says.
    """
    with database.connect(f"table {spec.name!r}") as connection:
        if _superseded(connection, spec, require_table(connection, spec)):
            drop_superseded(connection, spec)
        report = read_report(store, connection, spec)
        if report.is_older_code:
            return report
        if report.building is None:
            state = require_table(connection, spec)
            follow_indexes(connection, state.live, spec, is_read=True)
            return report
        if report.missing or report.is_pinned:
            return report
        with session_lock(connection, "settle", spec.name):
            return _finish(store, connection, spec)


def table_report(store: BlobStore, database: Database, spec: TableSpec) -> TableReport | None:
    """How far the table is; None if it does not exist. Changes nothing."""
    with database.connect(f"table {spec.name!r}") as connection:
        if read_table(connection, spec) is None:
            return None
        return read_report(store, connection, spec)


def batches_to_load(store: BlobStore, database: Database, spec: TableSpec) -> list[str]:
    """The batches whose loading brings the table to what its definition asks for.

    Those that the live generation or the one being built lacks. If there are none, and the table
    still is not as it is declared, any batch: the run that loads it settles the table.
    """
    heads = current_entries(store, spec, None)
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        if state is None:
            return sorted(heads)
        lacking = {
            batch
            for generation in state.fed
            for batch in compare_progress(
                heads, all_progress(connection, generation.id)
            ).batches_to_load()
        }
        if not lacking and not _is_as_declared(connection, spec, state):
            lacking = set(sorted(heads)[:1])
    return sorted(lacking)


def _is_as_declared(connection: Connection, spec: TableSpec, state: TableState) -> bool:
    if not (is_followed(connection, spec) and is_shown(connection, spec.name)):
        return False
    if not is_current_definition(connection, spec) or state.is_pinned:
        return True  # older code, or somebody's wish: not for this code to change
    return state.building is None and are_declared(connection, state.live, spec)


def read_report(store: BlobStore, connection: Connection, spec: TableSpec) -> TableReport:
    """`table_report` on a connection, for a table that exists."""
    state = require_table(connection, spec)
    report = TableReport(
        table=spec.name,
        live=state.live.relation,
        building=None if state.building is None else state.building.relation,
        batches=count_progress(connection, state.wanted.id),
        is_pinned=state.is_pinned,
        is_older_code=not is_current_definition(connection, spec),
        kept=tuple(_kept(connection, spec, state)),
    )
    if state.building is None:
        return report
    heads = current_entries(store, spec, None)
    compared = compare_progress(heads, all_progress(connection, state.wanted.id))
    return replace(report, batches=len(heads), missing=tuple(compared.batches_to_load()))


def request_fill(connection: Connection, spec: TableSpec) -> bool:
    """Whether the caller is the one who is to have all missing batches loaded.

    True once for a generation that is being built, and again when an hour has not completed it.
    """
    return bool(
        fetch_value(
            connection,
            "with asked as (update feature_pipeline.generations g set fill_requested_at = now()"
            " from feature_pipeline.tables t"
            " where t.name = %s and g.id = t.wanted and t.wanted <> t.live"
            " and (g.fill_requested_at is null or g.fill_requested_at < now() - %s::interval)"
            " returning 1) select exists (select from asked)",
            [spec.name, _FILL_AGAIN_AFTER],
        )
    )


def drop_superseded(connection: Connection, spec: TableSpec) -> list[str]:
    """Generations that are neither live, wanted nor the last one live before are gone; their names.

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
    """The generation that was live before the live one, if it is kept."""
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
    return {generation.id for generation in state.fed}


def _finish(store: BlobStore, connection: Connection, spec: TableSpec) -> TableReport:
    """Index, prove and switch; under the lock that one process holds for this table."""
    for _ in range(_ROUNDS):
        report = read_report(store, connection, spec)
        state = require_table(connection, spec)
        if state.building is None or state.is_pinned or report.is_older_code:
            return report
        building = state.building
        # Batches whose loss was accepted: live holds what the log does not.
        _, gone = current_entries(store, spec, None).compare_logs(
            all_progress(connection, state.live.id)
        )
        if late := {*report.missing, *(set(_late(connection, state)) - gone)}:
            # It was complete a moment ago: these have come since, or only live has them.
            return replace(report, late=tuple(sorted(late)))
        follow_indexes(connection, building, spec, is_read=False)
        proven = _prove(store, connection, spec, building)
        wait_for_older_snapshots(connection, spec)

        def is_still_so(
            under_lock: Connection,
            now: TableState,
            building: Generation = building,
            proven: Mapping[str, Progress] = proven,
            gone: frozenset[str] = frozenset(gone),
        ) -> bool:
            return (
                now.building is not None
                and now.building.id == building.id
                and not now.is_pinned
                and all_progress(under_lock, building.id) == proven
                and not set(_late(under_lock, now)) - gone
            )

        if switch(connection, spec, building, is_still_so, is_pinned=False):
            drop_superseded(connection, spec)
            return replace(read_report(store, connection, spec), is_switched=True)
    raise ProjectionError(
        f"table {spec.name!r}: batches kept arriving while generation {building.relation} was"
        f" verified, {_ROUNDS} times; it is complete, and the next run switches to it"
    )


def _prove(
    store: BlobStore, connection: Connection, spec: TableSpec, building: Generation
) -> dict[str, Progress]:
    """The progress of the generation, all of which equals the archive."""
    progress = all_progress(connection, building.id)
    proof = prove_once(store, connection, spec, building)
    if not proof.has_equal_content:
        raise ProjectionError(
            f"table {spec.name!r}: generation {building.relation} was not switched to:"
            f" {proof.summary()}; {_remedy(proof)}"
        )
    return progress


def _remedy(proof: Proof) -> str:
    if proof.unreadable:
        return "the archive is damaged: `feature-pipeline verify` names what is wrong with it"
    return "load these batches again with `feature-pipeline rebuild --batch`"


def _late(connection: Connection, state: TableState) -> tuple[str, ...]:
    """Batches that the live generation holds in a later version than the one being built."""
    if state.building is None:
        return ()
    rows = connection.execute(
        "select l.batch from feature_pipeline.progress l"
        " left join feature_pipeline.progress b on b.generation = %s and b.batch = l.batch"
        " where l.generation = %s and (b.seq is null or b.seq < l.seq) order by l.batch",
        [state.building.id, state.live.id],
    )
    return tuple(row[0] for row in rows)
