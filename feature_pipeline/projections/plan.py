"""What loading a table under its definition would do, found before anything is touched.

What belongs here: comparing a definition with a table and with every current artifact. Not here:
doing it (`generation`, `load`).
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import psycopg
from psycopg import sql

from feature_pipeline.archive import log
from feature_pipeline.archive.align import describe_type, find_source
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.log import FeatureEntry
from feature_pipeline.archive.manifest import ROWS, Manifest
from feature_pipeline.archive.read import read_manifest, read_rows
from feature_pipeline.archive.threads import map_threads
from feature_pipeline.columns import Column
from feature_pipeline.hooks.definition import IndexDefinition
from feature_pipeline.projections import evolve
from feature_pipeline.projections.bookkeeping import all_progress
from feature_pipeline.projections.database import READ_SCHEMA, Connection, Database, fetch_value
from feature_pipeline.projections.dependents import read_views
from feature_pipeline.projections.generation import (
    Generation,
    TableState,
    is_current_definition,
    is_followed,
    read_table,
)
from feature_pipeline.projections.indexes import index_changes
from feature_pipeline.projections.prepare import prepare_batch
from feature_pipeline.projections.progress import compare_progress, current_entries
from feature_pipeline.projections.switch import renames_in_place
from feature_pipeline.projections.table_spec import TableSpec
from feature_pipeline.projections.upcast import CannotEvolveError
from feature_pipeline.projections.view import is_shown

_SAMPLED_BATCHES: Final = 3
_SERVER_FACTOR: Final = 2.0
"""PostgreSQL needs about as long for rows as preparing them takes, primary key included."""
_SHOWN: Final = 5


class PlanAction(StrEnum):
    """What the next run of the table asset does."""

    CREATE = "create"
    """The table does not exist."""
    BUILD = "build"
    """A generation is built beside the live one and then switched to."""
    CATCH_UP = "catch_up"
    """A generation that was live before holds these columns; it is brought up to date."""
    ADJUST = "adjust"
    """Indexes or comments change, or the view is put back; no row is loaded."""
    LOAD = "load"
    """Batches are loaded into the live generation."""
    NOTHING = "nothing"
    """The table is what its definition and the archive say."""
    OLDER_CODE = "older_code"
    """A later definition was seen: this code feeds what is there."""


@dataclass(frozen=True, slots=True)
class TablePlan:
    """What would change, what it costs, and what would be refused.

    `refused` gives the reason per batch that does not fit, `violations` what unique indexes
    would refuse, `remade_views` the views that are dropped and made again at the switch.
    """

    table: str
    action: PlanAction
    added: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
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

    @property
    def is_refused(self) -> bool:
        """Whether the table could not be completed as declared."""
        return bool(self.refused or self.violations)

    def to_json(self) -> dict[str, Any]:
        """The plan for programs."""
        return {
            "table": self.table,
            "action": self.action.value,
            "added": list(self.added),
            "dropped": list(self.dropped),
            "changed": list(self.changed),
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
        }


def plan_table(store: BlobStore, database: Database, spec: TableSpec) -> TablePlan:
    """Everything that the next runs of the table asset would do. Nothing is changed.

    Every manifest that would be loaded is read; rows are read only where a rule or an upcaster
    depends on values. Unique indexes are tried on the live table's rows, if it has their columns;
    those on new columns are tried when they are built, before the switch.

    Raises:
        ConflictError: Another hook's table has this name.
        ProjectionError: PostgreSQL refused something, or could not be reached.
        NotFoundError, CorruptDataError: An artifact is missing, or damaged.
    """
    heads = current_entries(store, spec, None)
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        action, wanted = _action(connection, spec, state, heads)
        if action is PlanAction.OLDER_CODE:
            return TablePlan(spec.name, action)
        pending = _pending(connection, wanted, heads)
        live = None if state is None else state.live
        added, dropped = index_changes(connection, wanted or live, spec)
        table_bytes = None
        views: tuple[str, ...] = ()
        violations: tuple[str, ...] = ()
        if live is not None:
            table_bytes = _table_bytes(connection, live)
            violations = tuple(_violations(connection, live, spec))
            if action in {PlanAction.BUILD, PlanAction.CATCH_UP}:
                views = tuple(_remade_views(connection, spec, live))
    manifests = _manifests(store, pending)
    rows = sum(manifest.counts.rows for manifest in manifests.values())
    before = spec.columns if live is None else live.columns
    return TablePlan(
        table=spec.name,
        action=action,
        added=tuple(_added(before, spec.columns)),
        dropped=tuple(_dropped(before, spec.columns)),
        changed=tuple(_changed(before, spec.columns)),
        indexes_added=added,
        indexes_dropped=dropped,
        remade_views=views,
        batches=len(pending),
        rows=rows,
        archive_bytes=sum(m.blobs[ROWS].size for m in manifests.values() if ROWS in m.blobs),
        table_bytes=None if table_bytes is None else int(table_bytes * rows),
        seconds=_estimate(store, spec, pending, manifests),
        refused=_refused(store, spec, manifests),
        violations=violations,
    )


def _action(
    connection: Connection,
    spec: TableSpec,
    state: TableState | None,
    heads: Mapping[str, FeatureEntry],
) -> tuple[PlanAction, Generation | None]:
    """What would be done, and the generation that it would be done to, if it is there."""
    if state is None:
        return PlanAction.CREATE, None
    is_followed_now = is_followed(connection, spec)
    if is_followed_now and not is_current_definition(connection, spec):
        return PlanAction.OLDER_CODE, state.live
    known = [g for g in state.fed if g.digest == spec.generation_digest]
    if not known:
        return PlanAction.BUILD, None
    wanted = known[0]
    if wanted.id != state.live.id:
        action = PlanAction.BUILD if wanted.switched_at is None else PlanAction.CATCH_UP
        return action, wanted
    compared = compare_progress(heads, all_progress(connection, wanted.id))
    if compared.batches_to_load():
        return PlanAction.LOAD, wanted
    added, dropped = index_changes(connection, wanted, spec)
    is_adjusted = added or dropped or not is_followed_now or not is_shown(connection, spec.name)
    return (PlanAction.ADJUST if is_adjusted else PlanAction.NOTHING), wanted


def _pending(
    connection: Connection, wanted: Generation | None, heads: Mapping[str, FeatureEntry]
) -> dict[str, FeatureEntry]:
    if wanted is None:
        return dict(heads)
    compared = compare_progress(heads, all_progress(connection, wanted.id))
    return {batch: heads[batch] for batch in compared.batches_to_load()}


def _manifests(store: BlobStore, entries: Mapping[str, FeatureEntry]) -> dict[str, Manifest]:
    manifests = map_threads(
        lambda entry: read_manifest(store, entry.manifest), list(entries.values())
    )
    return dict(zip(entries, manifests, strict=True))


def _added(before: Iterable[Column], after: Iterable[Column]) -> list[str]:
    known = {column.name for column in before}
    return [c.name for c in after if known.isdisjoint({c.name, *c.former_names})]


def _dropped(before: Iterable[Column], after: Iterable[Column]) -> list[str]:
    kept = {name for column in after for name in (column.name, *column.former_names)}
    return [column.name for column in before if column.name not in kept]


def _changed(before: Iterable[Column], after: Iterable[Column]) -> list[str]:
    known = {column.name: column for column in before}
    changes = []
    for column in after:
        old = find_source(known, column)
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


def _refused(
    store: BlobStore, spec: TableSpec, manifests: Mapping[str, Manifest]
) -> dict[str, str]:
    def reason(item: tuple[str, Manifest]) -> str | None:
        manifest = item[1]
        try:
            if _depends_on_values(spec, manifest):
                rows = read_rows(store, manifest)
                evolve.artifact_rows(manifest, rows, spec.columns, spec.upcasters)
        except CannotEvolveError as error:
            return str(error)
        return None

    found = map_threads(reason, list(manifests.items()))
    return {batch: why for batch, why in zip(manifests, found, strict=True) if why is not None}


def _depends_on_values(spec: TableSpec, manifest: Manifest) -> bool:
    """Whether the rows themselves decide if the artifact fits.

    Raises:
        CannotEvolveError: It does not fit, whatever they are.
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
    pending: Mapping[str, FeatureEntry],
    manifests: Mapping[str, Manifest],
) -> float:
    """Seconds, from the time that preparing some of the batches takes here and now."""
    by_size = sorted(pending, key=lambda batch: manifests[batch].counts.rows)
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
            entry = log.batch_entry(store, spec.dataset, batch)
            prepare_batch(store, planned, entry, pending[batch])
        except CannotEvolveError:
            continue
        spent += time.monotonic() - started
        rows += manifests[batch].counts.rows + 1
    total = sum(manifest.counts.rows + 1 for manifest in manifests.values())
    return _SERVER_FACTOR * spent * total / rows if rows else 0.0


def _table_bytes(connection: Connection, live: Generation) -> float | None:
    """Bytes a row, indexes included; None if it has none to go by."""
    size = fetch_value(
        connection, "select pg_total_relation_size(%s)", [live.identifier.as_string(connection)]
    )
    rows = sum(progress.rows for progress in all_progress(connection, live.id).values())
    return size / rows if rows else None


def _remade_views(connection: Connection, spec: TableSpec, live: Generation) -> list[str]:
    if renames_in_place(live.columns, spec.columns):
        return []
    views = read_views(connection, sql.Identifier(READ_SCHEMA, spec.name))
    return [view.label for view in views[1:]]


def _violations(connection: Connection, live: Generation, spec: TableSpec) -> list[str]:
    kinds = {column.name: column.kind for column in live.columns}
    same = {c.name for c in spec.columns if kinds.get(c.name) == c.kind} | {"record_id", "batch"}
    found = []
    for index in spec.indexes:
        if index.unique and (index.expression is not None or same.issuperset(index.columns)):
            found += _duplicates(connection, live, index)
    return found


def _duplicates(connection: Connection, live: Generation, index: IndexDefinition) -> list[str]:
    keys: list[sql.Composable] = [sql.Identifier(name) for name in index.columns]
    if index.expression is not None:
        keys = [sql.SQL("({})").format(sql.SQL(index.expression))]
    # A unique index takes two NULLs for different.
    condition = sql.SQL(" and ").join(sql.SQL("{} is not null").format(key) for key in keys)
    if index.where is not None:
        condition = sql.SQL("{} and ({})").format(condition, sql.SQL(index.where))
    query = sql.SQL(
        "select array[{texts}], count(*) from {table} where {condition}"
        " group by {keys} having count(*) > 1 order by 2 desc limit {shown}"
    ).format(
        texts=sql.SQL(", ").join(sql.SQL("{}::text").format(key) for key in keys),
        table=live.identifier,
        condition=condition,
        keys=sql.SQL(", ").join(keys),
        shown=sql.Literal(_SHOWN),
    )
    name = index.name or ", ".join(index.columns) or index.expression
    try:
        rows = connection.execute(query).fetchall()
    except psycopg.errors.UndefinedColumn:
        return []  # an expression over a column that is new
    return [f"unique index {name}: {', '.join(key)} is there {count} times" for key, count in rows]
