"""Preview what loading a table under its definition would do, without changing anything."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import psycopg
from psycopg import sql

from feature_pipeline.archive.format.align_columns import describe_type
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.manifest import ROWS, Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry
from feature_pipeline.archive.read import manifest_of, read_rows
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, NotFoundError
from feature_pipeline.model.column_sources import pair_columns
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition, IndexMethod
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.parallel import map_threads
from feature_pipeline.projections.catalog import ddl, dependents
from feature_pipeline.projections.catalog.bookkeeping import all_progress
from feature_pipeline.projections.catalog.database import (
    READ_SCHEMA,
    Connection,
    Database,
    fetch_value,
)
from feature_pipeline.projections.catalog.generation import (
    Generation,
    TableState,
    is_current_definition,
    is_followed,
    read_table,
)
from feature_pipeline.projections.catalog.indexes import (
    are_declared,
    describe_index,
    missing_indexes,
    surplus_indexes,
)
from feature_pipeline.projections.catalog.own_views import (
    ViewState,
    find_view,
    is_defined_as,
    obstacle,
)
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.catalog.view import is_shown, surviving_columns, view_query
from feature_pipeline.projections.proof.missing_batches import (
    CurrentEntries,
    compare_progress,
    current_entries,
)
from feature_pipeline.projections.rows import evolve
from feature_pipeline.projections.rows.prepare import prepare_batch
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline.projections.switch.prepare_views import renames_in_place, try_views

# Which keys of the index are in several rows, the most frequent first?
_DUPLICATE_KEYS: Final = """
select array[{texts}], count(*) from {keyed} where {there} group by {names}
having count(*) > 1 order by 2 desc limit {shown}"""


_SAMPLED_BATCHES: Final = 3
_SERVER_FACTOR: Final = 2.0
"""PostgreSQL needs about as long for rows as preparing them takes, primary key included."""
_SHOWN: Final = 5
_TEMPORARY: Final = "pg_temp"
_TRIED: Final = "tried"
_LONG_KEY_BYTES: Final = 2_000
"""A btree stores keys of up to 2,704 bytes: keys shorter than this, as text, are not tried."""
_TRIED_KEYS: Final = 1_000
"""The longest keys, on which an index is tried."""


class PlanAction(StrEnum):
    """The action of the table asset's next run."""

    CREATE = "create"
    """The table does not exist, or nothing of it was proved yet."""
    BUILD = "build"
    """A generation is built beside the live one and then switched to."""
    CATCH_UP = "catch_up"
    """A generation that was live before has these columns; it is brought up to date."""
    ADJUST = "adjust"
    """Indexes or comments change, or the view is restored; no row is loaded."""
    LOAD = "load"
    """Batches are loaded into the live generation."""
    NOTHING = "nothing"
    """The table matches its definition and the archive."""
    OLDER_CODE = "older_code"
    """A later definition was seen: this code only loads existing generations."""


@dataclass(frozen=True, slots=True)
class TablePlan:
    """The changes, their cost, and what would be refused.

    `without_values` are sentences on columns that have NULL or their default in batches that were
    written without them. `refused` gives the reason per batch that does not fit, `violations` what
    indexes would refuse, `remade_views` the views that are dropped and created again at the switch,
    `blocked` the objects that have the table's name, or depend on it, and would prevent it from
    being read. `repairs` are sentences on what was dropped or changed by hand, and what happens to
    it, `not_kept` on what the switch changes about views that it creates again.

    `damaged` gives the reason per batch that cannot be read, `lost` per batch that was loaded from
    a log entry which the archive no longer has: nothing else of the plan is about them.
    """

    table: str
    action: PlanAction
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    without_values: tuple[str, ...] = ()
    indexes_added: tuple[str, ...] = ()
    indexes_dropped: tuple[str, ...] = ()
    remade_views: tuple[str, ...] = ()
    batches: int = 0
    rows: int = 0
    archive_bytes: int = 0
    table_bytes: int | None = None
    seconds: float = 0.0
    refused: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[str, ...] = ()
    blocked: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    not_kept: tuple[str, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_all(self) -> bool:
        """Whether the plan is about every batch: none is damaged or lost."""
        return not (self.damaged or self.lost)

    @property
    def is_refused(self) -> bool:
        """Whether the table could not be completed as declared."""
        return bool(self.refused or self.violations or self.blocked)

    def to_json(self) -> dict[str, Any]:
        """Return the plan for programs."""
        return {
            "table": self.table,
            "action": self.action.value,
            "added": list(self.added),
            "dropped": list(self.dropped),
            "changed": list(self.changed),
            "without_values": list(self.without_values),
            "indexes_added": list(self.indexes_added),
            "indexes_dropped": list(self.indexes_dropped),
            "remade_views": list(self.remade_views),
            "batches": self.batches,
            "rows": self.rows,
            "archive_bytes": self.archive_bytes,
            "table_bytes": self.table_bytes,
            "seconds": round(self.seconds, 1),
            "refused": dict(self.refused),
            "violations": list(self.violations),
            "blocked": list(self.blocked),
            "repairs": list(self.repairs),
            "not_kept": list(self.not_kept),
            "damaged": dict(self.damaged),
            "lost": dict(self.lost),
        }


def plan_table(store: BlobStore, database: Database, spec: TableSpec) -> TablePlan:
    """Plan everything that the next runs of the table asset would do. Changes nothing.

    Every manifest that would be loaded is read; rows are read only if a rule or an upcaster depends
    on values. Indexes are tried on the live table's rows in the form of the wanted columns.
    Violations that only artifacts can show, for example of a column that the live table lacks, are
    found when the index is built, before the switch. A damaged artifact affects its own batch only.
    Rows that no rule depends on are sampled only: damage to others is found by loading, and by
    `verify`.

    Raises:
        ConflictError: Another hook's table has this name.
        ProjectionError: PostgreSQL refused something, or could not be reached.
        StoreUnavailableError: The store did not answer.
    """
    heads = current_entries(store, spec, None)
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        action, wanted = _action(connection, spec, state, heads)
        if action is PlanAction.OLDER_CODE:
            return TablePlan(spec.name, action)
        lost = {} if state is None else _lost(connection, state, heads)
        to_load = _ToLoad.read(store, spec, _pending(connection, wanted, heads, lost))
        manifests = to_load.manifests
        live = None if state is None else state.live
        missing = missing_indexes(connection, wanted or live, spec)
        surplus = surplus_indexes(connection, wanted or live, spec)
        to_build = missing if wanted is not None else spec.indexes
        # Whether the manifests are those of all current artifacts.
        is_all = wanted is None and not (to_load.damaged or heads.damage or lost)
        violations = _violations(connection, live, spec, to_build, manifests, is_all)
        table_bytes = None if live is None else _table_bytes(connection, live)
        views: tuple[str, ...] = ()
        not_kept: tuple[str, ...] = ()
        blocked = _obstacles(connection, spec, live)
        if live is not None and action in {PlanAction.BUILD, PlanAction.CATCH_UP} and not blocked:
            views, blocked, not_kept = _views(connection, spec, live)
        repairs = tuple(_repairs(connection, spec, state))
    seconds = _estimate(store, spec, to_load)
    rows = sum(manifest.counts.rows for manifest in manifests.values())
    before = spec.columns if live is None else live.columns
    return TablePlan(
        table=spec.name,
        action=action,
        added=tuple(_added(before, spec.columns)),
        dropped=tuple(_dropped(before, spec.columns)),
        changed=tuple(_changed(before, spec.columns)),
        without_values=tuple(_without_values(before, spec, manifests)),
        indexes_added=tuple(describe_index(index) for index in missing),
        indexes_dropped=surplus,
        remade_views=views,
        batches=len(manifests),
        rows=rows,
        archive_bytes=sum(m.blobs[ROWS].size for m in manifests.values() if ROWS in m.blobs),
        table_bytes=None if table_bytes is None else int(table_bytes * rows),
        seconds=seconds,
        refused=to_load.refused,
        violations=violations,
        blocked=blocked,
        repairs=repairs,
        not_kept=not_kept,
        damaged={b: str(damage.error) for b, damage in heads.damage.items()} | to_load.damaged,
        lost=lost,
    )


def _obstacles(connection: Connection, spec: TableSpec, live: Generation | None) -> tuple[str, ...]:
    """Return the object that has the view's name and is not the pipeline's, if any."""
    view = find_view(connection, spec.name)
    is_foreign = view.state is ViewState.FOREIGN
    if view.state is ViewState.UNKNOWN:
        is_foreign = live is None or not (
            is_shown(connection, spec.name)
            or is_defined_as(connection, spec.name, view_query(live))
        )
    return (obstacle(spec.name, view),) if is_foreign else ()


def _repairs(connection: Connection, spec: TableSpec, state: TableState | None) -> Iterator[str]:
    """Return what was dropped or changed by hand, and what the next run does about it."""
    if state is None:
        return
    for relation in state.lost:
        yield f"generation {relation} was dropped or altered by hand: it is built again"
    view = find_view(connection, spec.name)
    if view.state is ViewState.CHANGED:
        yield f"{view.description} was changed by hand: its definition is restored"
    elif view.state is ViewState.ABSENT and state.live is not None:
        yield f"view {READ_SCHEMA}.{spec.name} was dropped by hand: it is created again"


def _action(
    connection: Connection,
    spec: TableSpec,
    state: TableState | None,
    heads: CurrentEntries,
) -> tuple[PlanAction, Generation | None]:
    """Return the action, and the generation concerned, if it exists."""
    if state is None:
        return PlanAction.CREATE, None
    is_followed_now = is_followed(connection, spec)
    if is_followed_now and not is_current_definition(connection, spec):
        return PlanAction.OLDER_CODE, state.live
    known = [g for g in state.write_targets if g.digest == spec.generation_digest]
    if not known:
        return PlanAction.BUILD, None
    wanted = known[0]
    if state.live is None:
        return PlanAction.CREATE, wanted
    if wanted.id != state.live.id:
        action = PlanAction.BUILD if wanted.switched_at is None else PlanAction.CATCH_UP
        return action, wanted
    compared = compare_progress(heads, all_progress(connection, wanted.id))
    if compared.batches_to_load():
        return PlanAction.LOAD, wanted
    is_as_declared = (
        is_followed_now
        and are_declared(connection, wanted, spec)
        and is_shown(connection, spec.name)
    )
    return (PlanAction.NOTHING if is_as_declared else PlanAction.ADJUST), wanted


def _pending(
    connection: Connection,
    wanted: Generation | None,
    heads: CurrentEntries,
    lost: Collection[str],
) -> dict[str, FeatureEntry]:
    if wanted is None:
        return {batch: entry for batch, entry in heads.items() if batch not in lost}
    compared = compare_progress(heads, all_progress(connection, wanted.id))
    return {batch: heads[batch] for batch in compared.batches_to_load() if batch not in lost}


def _lost(connection: Connection, state: TableState, heads: CurrentEntries) -> dict[str, str]:
    """Return, by batch, what a generation was loaded from and the log no longer has."""
    lost: dict[str, str] = {}
    for generation in state.write_targets:
        lost_entries = heads.find_lost(all_progress(connection, generation.id))
        lost |= {batch: str(one) for batch, one in lost_entries.items()}
    return lost


@dataclass(frozen=True, slots=True)
class _ToLoad:
    """The batches that would be loaded, as far as the archive can be read."""

    tasks: dict[str, tuple[BatchEntry, FeatureEntry]]
    manifests: dict[str, Manifest]
    refused: dict[str, str]
    """Why batches do not fit the table."""
    damaged: dict[str, str]
    """Why batches cannot be read; they are not among the others."""

    @classmethod
    def read(
        cls, store: BlobStore, spec: TableSpec, pending: Mapping[str, FeatureEntry]
    ) -> "_ToLoad":
        submitted = log.readable_batches(store, spec.dataset, pending)
        damaged = {batch: str(damage.error) for batch, damage in submitted.damage.items()}
        for batch in pending.keys() - submitted.intact.keys() - damaged.keys():
            damaged[batch] = f"it is not in the log of batches of {spec.dataset!r}"
        refused: dict[str, str] = {}
        manifests: dict[str, Manifest] = {}
        names = [batch for batch in pending if batch not in damaged]
        read = map_threads(lambda batch: _read(store, spec, pending[batch]), names)
        for batch, (manifest, refusal, damage) in zip(names, read, strict=True):
            if damage is not None:
                damaged[batch] = damage
                continue
            if manifest is not None:
                manifests[batch] = manifest
            if refusal is not None:
                refused[batch] = refusal
        refused |= {
            batch: why
            for batch, why in evolve.contradictions(manifests, spec.columns, spec.upcasters).items()
            if batch not in refused
        }
        tasks = {batch: (submitted.intact[batch], pending[batch]) for batch in manifests}
        return cls(tasks, manifests, refused, damaged)


def _read(
    store: BlobStore, spec: TableSpec, entry: FeatureEntry
) -> tuple[Manifest | None, str | None, str | None]:
    """Return an artifact's manifest, why it does not fit the table, and why it cannot be read."""
    try:
        manifest = manifest_of(store, entry)
        try:
            if _depends_on_values(spec, manifest):
                rows = read_rows(store, manifest)
                evolve.artifact_rows(manifest, rows, spec.columns, spec.upcasters)
        except CannotEvolveError as error:
            return manifest, str(error), None
    except (NotFoundError, CorruptDataError, NewerVersionError) as error:
        return None, None, str(error)
    return manifest, None, None


def _added(before: Sequence[Column], after: Sequence[Column]) -> list[str]:
    sources = pair_columns(before, after).sources
    return [c.name for c, source in zip(after, sources, strict=True) if source is None]


def _dropped(before: Sequence[Column], after: Sequence[Column]) -> list[str]:
    kept = {source.name for source in pair_columns(before, after).sources if source is not None}
    return [column.name for column in before if column.name not in kept]


def _changed(before: Sequence[Column], after: Sequence[Column]) -> list[str]:
    changes = []
    for column, old in zip(after, pair_columns(before, after).sources, strict=True):
        if old is None:
            continue
        if old.name != column.name:
            changes.append(f"{old.name} is renamed to {column.name}")
        if old.kind != column.kind or old.type is not column.type:
            types = [describe_type(each) for each in (old, column)]
            changes.append(f"{column.name}: {' becomes '.join(types)}")
        if old.required is not column.required:
            changes.append(f"{column.name} becomes {'required' if column.required else 'optional'}")
    return changes


def _without_values(
    before: Sequence[Column], spec: TableSpec, manifests: Mapping[str, Manifest]
) -> Iterator[str]:
    """Return sentences on the columns that some of these artifacts were written without."""
    current = pair_columns(before, spec.columns).sources
    converted = [
        (batch, manifest.columns, pair_columns(manifest.columns, spec.columns))
        for batch, manifest in manifests.items()
        if manifest.counts.rows
        and evolve.upcaster_for(manifest, spec.columns, spec.upcasters) is None
    ]
    for position, column in enumerate(spec.columns):
        lacking = {
            batch: written
            for batch, written, pairs in converted
            if pairs.sources[position] is None and not pairs.unclear
        }
        if not lacking:
            continue
        default = "NULL" if column.default is None else "its default"
        batches = f"{len(lacking)} of {counted(len(manifests), 'batch')}"
        sentence = (
            f"{column.name} is {default} in {batches}, written without it: {first_few(lacking)}"
        )
        if (shown := current[position]) is not None:
            lost = {
                source.name
                for written in lacking.values()
                if (source := pair_columns(written, before).sources[before.index(shown)])
            }
            if lost:
                sentence += (
                    f"; the table that is read has values there, which were written as"
                    f" {first_few(sorted(lost))}: add that to renamed_from of {column.name}"
                )
        yield sentence


def _depends_on_values(spec: TableSpec, manifest: Manifest) -> bool:
    """Return whether the rows themselves decide if the artifact fits.

    Raises:
        CannotEvolveError: It does not fit, whatever its rows are.
    """
    if evolve.upcaster_for(manifest, spec.columns, spec.upcasters) is not None:
        return True
    mappings = evolve.map_columns(manifest.columns, spec.columns)
    return manifest.counts.rows > 0 and any(
        (mapping.written is not None and mapping.written.kind != mapping.column.kind)
        or (mapping.column.required and not (mapping.written and mapping.written.required))
        for mapping in mappings
    )


def _estimate(
    store: BlobStore,
    spec: TableSpec,
    to_load: _ToLoad,
) -> float:
    """Return seconds, from the time that preparing some of the batches takes here and now."""
    manifests = to_load.manifests
    by_size = sorted(manifests, key=lambda batch: manifests[batch].counts.rows)
    step = max(1, len(by_size) // _SAMPLED_BATCHES)
    sample = by_size[step // 2 :: step][:_SAMPLED_BATCHES]
    planned = Generation(
        id=0,
        table_name=spec.name,
        relation="",
        digest=spec.generation_digest,
        columns=spec.columns,
        upcasters=spec.upcasters,
        created_at=datetime.now(UTC),
        switched_at=None,
    )
    spent, rows = 0.0, 0
    for batch in sample:
        started = time.monotonic()
        try:
            prepare_batch(store, planned, *to_load.tasks[batch])
        except CannotEvolveError:
            continue
        except (NotFoundError, CorruptDataError) as error:
            to_load.damaged[batch] = str(error)
            del manifests[batch]
            continue
        spent += time.monotonic() - started
        rows += manifests[batch].counts.rows + 1
    total = sum(manifest.counts.rows + 1 for manifest in manifests.values())
    return _SERVER_FACTOR * spent * total / rows if rows else 0.0


def _table_bytes(connection: Connection, live: Generation) -> float | None:
    """Return bytes per row, indexes included; None if there are no rows to measure."""
    size = fetch_value(
        connection, "select pg_total_relation_size(%s)", [live.identifier.as_string(connection)]
    )
    rows = sum(progress.rows for progress in all_progress(connection, live.id).values())
    return size / rows if rows else None


def _views(
    connection: Connection, spec: TableSpec, live: Generation
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the views that the switch would create again, obstacles to that, and changes by it.

    Unless there is an obstacle, it is tried whether they can be created on the new columns.
    """
    if renames_in_place(live.columns, spec.columns):
        return (), (), ()
    views = dependents.read_views(connection, sql.Identifier(READ_SCHEMA, spec.name))
    if not views:  # it was dropped by hand
        return (), (), ()
    root, *others = views
    names = surviving_columns(live.columns, spec.columns)
    blocked = dependents.unrestorable(views)
    blocked += [
        f"{user} uses column {column!r}, which is dropped"
        for user, column in dependents.columns_used(connection, root)
        if column not in names
    ]
    for user in dependents.users_of(connection, root.identifier, *(v.identifier for v in others)):
        if not user.startswith(("view ", "materialized view ")):
            blocked.append(f"{user} cannot be recreated")
    if others and not blocked and (why := try_views(connection, spec, live)) is not None:
        blocked.append(why)
    return (
        tuple(view.label for view in others),
        tuple(blocked),
        tuple(dependents.changed_by_restore(views)),
    )


def _violations(
    connection: Connection,
    live: Generation | None,
    spec: TableSpec,
    indexes: Iterable[IndexDefinition],
    manifests: Mapping[str, Manifest],
    is_all: bool,
) -> tuple[str, ...]:
    """Return why these indexes could not be built.

    Args:
        connection: To the table's database.
        live: The generation that is read.
        spec: The table's declaration.
        indexes: To be built.
        manifests: Of artifacts that would be loaded.
        is_all: Whether these are all current artifacts.
    """
    rows = None if live is None else _live_rows(live, spec, manifests.values(), is_all)
    violations: list[str] = []
    # A temporary table, which goes with the transaction.
    with connection.transaction(force_rollback=True):
        tried = [column.model_copy(update={"required": False}) for column in spec.columns]
        connection.execute(ddl.create_table(_TRIED, tried, _TEMPORARY))
        for number, index in enumerate(indexes):
            try:
                with connection.transaction():
                    connection.execute(
                        ddl.create_index(_TRIED, tried, index, f"by_{number}", schema=_TEMPORARY)
                    )
                # A column may be one of which only the artifacts know what it holds.
                with suppress(psycopg.errors.UndefinedColumn), connection.transaction():
                    violations += [] if rows is None else _try_index(connection, rows, index)
            except (psycopg.ProgrammingError, psycopg.DataError) as error:
                reason = error.diag.message_primary or str(error)
                violations.append(f"index {_label(index)} cannot be built: {reason}")
    return tuple(violations)


def _live_rows(
    live: Generation, spec: TableSpec, manifests: Iterable[Manifest], is_all: bool
) -> sql.Composable | None:
    """Return a query of the live rows in the form of the wanted columns; None if unknown.

    Without the columns whose values are in artifacts and not in the live table.
    """
    if spec.upcasters != live.upcasters:
        return None
    try:
        mappings = evolve.map_columns(live.columns, spec.columns)
    except CannotEvolveError:
        return None
    written = [pair_columns(manifest.columns, spec.columns).sources for manifest in manifests]
    chosen = [sql.Identifier(name) for name in ddl.column_kinds(())]
    parts: list[sql.Composable] = list(chosen)
    for position, (source, column) in enumerate((m.written, m.column) for m in mappings):
        if source is not None:
            value: sql.Composable = sql.Identifier(source.name)
        elif is_all and not any(sources[position] for sources in written):
            value = sql.Literal(column.default_value)
        else:
            continue
        parts.append(
            sql.SQL("({})::{} as {}").format(
                value, ddl.type_name(column.kind), sql.Identifier(column.name)
            )
        )
    return sql.SQL("select {} from {}").format(sql.SQL(", ").join(parts), live.identifier)


def _try_index(connection: Connection, rows: sql.Composable, index: IndexDefinition) -> list[str]:
    """Return keys that the index would refuse: too long ones, and duplicates in a unique one.

    Raises:
        psycopg.ProgrammingError: The index is not valid for these columns.
        psycopg.DataError: Its expression has no value for one of the rows.
    """
    keys: list[sql.Composable] = [sql.Identifier(name) for name in index.columns]
    if index.expression is not None:
        keys = [sql.SQL("({})").format(sql.SQL(index.expression))]
    names = [sql.Identifier(f"key_{number}") for number in range(len(keys))]
    keyed = sql.SQL("(select {} from ({}) wanted where {}) keyed").format(
        sql.SQL(", ").join(
            sql.SQL("{} as {}").format(key, name) for key, name in zip(keys, names, strict=True)
        ),
        rows,
        sql.SQL("true" if index.where is None else index.where),
    )
    long = [] if index.method is not IndexMethod.BTREE else _long_keys(connection, keyed, index)
    if not index.unique:
        counts = sql.SQL(", ").join(sql.SQL("count({})").format(name) for name in names)
        connection.execute(sql.SQL("select {} from {}").format(counts, keyed))
        return long
    # A unique index takes two NULLs for different.
    query = sql.SQL(_DUPLICATE_KEYS).format(
        texts=sql.SQL(", ").join(sql.SQL("{}::text").format(name) for name in names),
        keyed=keyed,
        there=sql.SQL(" and ").join(sql.SQL("{} is not null").format(name) for name in names),
        names=sql.SQL(", ").join(names),
        shown=sql.Literal(_SHOWN),
    )
    return long + [
        f"unique index {_label(index)}: {', '.join(key)} is there {count} times"
        for key, count in connection.execute(query).fetchall()
    ]


def _long_keys(connection: Connection, keyed: sql.Composable, index: IndexDefinition) -> list[str]:
    """Return why the index refuses the longest of these keys, tried on a table with them."""
    names = [sql.Identifier(f"key_{number}") for number in range(len(index.columns) or 1)]
    length = sql.SQL(" + ").join(
        sql.SQL("coalesce(octet_length({}::text), 0)").format(name) for name in names
    )
    keys = sql.Identifier(_TEMPORARY, "long_keys")
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(
                sql.SQL(
                    "create table {} as select * from {} where {} > {} order by {} desc limit {}"
                ).format(
                    keys,
                    keyed,
                    length,
                    sql.Literal(_LONG_KEY_BYTES),
                    length,
                    sql.Literal(_TRIED_KEYS),
                )
            )
            connection.execute(
                sql.SQL("create index on {} ({})").format(keys, sql.SQL(", ").join(names))
            )
    except psycopg.errors.ProgramLimitExceeded as error:
        why = error.diag.message_primary or str(error)
        return [f"index {_label(index)} cannot hold rows of the table that is read: {why}"]
    return []


def _label(index: IndexDefinition) -> str:
    return index.name or index.expression or ", ".join(index.columns)
