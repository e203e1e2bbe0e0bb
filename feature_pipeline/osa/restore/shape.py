"""The shape of the server's table `features.<hook>`: columns, keys, indexes, sequence.

The names are those that the server's own statements give, so that its later migrations find them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from psycopg import sql

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.osa.definitions import declared_columns
from feature_pipeline.osa.server.schema import COLUMN_TYPES, FIXED_COLUMNS, table_columns
from feature_pipeline.projections.catalog.database import Connection, fetch_one, fetch_value

SCHEMA: Final = "features"
CATALOGUE_VERSION: Final = 1
"""`schema_version` in public.feature_tables of every table of the server."""

# Which keys has the table?
_KEYS: Final = """
select c.contype::text, c.conname, c.confrelid::regclass::text, c.confdeltype::text, c.convalidated,
       (select string_agg(a.attname, ',' order by k.at) from unnest(c.conkey) with ordinality
        as k (number, at) join pg_attribute as a
        on a.attrelid = c.conrelid and a.attnum = k.number)
from pg_constraint as c where c.conrelid = %s and c.contype in ('p', 'f')"""

# Which indexes has the table?
_INDEXES: Final = """
select c.relname from pg_index as i join pg_class as c on c.oid = i.indexrelid
where i.indrelid = %s and i.indisvalid"""

# Which relation has this name, what is it, and to whom does it belong?
_RELATION: Final = """
select c.oid, c.relkind::text, pg_get_userbyid(c.relowner)
from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
where n.nspname = %s and c.relname = %s"""

# Which number did the sequence of `id` give last, if this role may know it?
_SEQUENCE: Final = """
select s.schemaname, s.sequencename, coalesce(s.last_value,
case when has_sequence_privilege(c.oid, 'usage, select') then s.start_value - 1 end)
from pg_sequences as s join pg_class as c on c.relname = s.sequencename
join pg_namespace as n on n.oid = c.relnamespace and n.nspname = s.schemaname
where c.oid = to_regclass(pg_get_serial_sequence(%s, 'id'))"""


@dataclass(frozen=True, slots=True)
class Shape:
    """A hook's table as the server makes it."""

    hook: str
    table: str
    """Its name in the schema `features`: `pg_table` of public.feature_tables."""
    columns: tuple[Column, ...]
    """The hook's, after `id`, `record_srn`, `run_id` and `created_at`."""
    document: Mapping[str, Any]
    """`feature_schema` there."""

    @classmethod
    def of(cls, hook: str, table: str | None, feature_spec: Mapping[str, Any]) -> "Shape":
        """Return the shape of a hook's table.

        Args:
            hook: The hook.
            table: The name in the server's catalogue; None if the catalogue has no row of it.
            feature_spec: `feature_spec` of public.hooks.

        Raises:
            InvalidInputError: A column's type is unknown.
        """
        columns = declared_columns(feature_spec, f"hook {hook!r}")
        return cls(hook, table or hook, columns, {"columns": feature_spec["columns"]})

    @property
    def fixed(self) -> Mapping[str, str]:
        """The names of primary key, indexes and sequence, by what they are."""
        return {
            "key": f"{self.table}_pkey",
            "record_srn": f"ix_features_{self.table}_record_srn",
            "run_id": f"ix_features_{self.table}_run_id",
            "sequence": f"{self.table}_id_seq",
        }

    @property
    def building(self) -> str:
        """The table's name until it takes its place: no hook can have it."""
        return f"{self.table}-restoring"

    def replaced(self, number: int) -> str:
        """Return the name of a table that was replaced; later ones have higher numbers."""
        return f"{self.table}-replaced" + (f"-{number}" if number > 1 else "")

    @property
    def names(self) -> list[str]:
        """The columns in order, `id` first."""
        return ["id", "record_srn", "run_id", "created_at", *(c.name for c in self.columns)]

    @property
    def kinds(self) -> list[str]:
        """The columns' kinds, as `copy_format` encodes them."""
        return ["integer", "string", "uuid", "date-time", *(c.kind for c in self.columns)]

    def selected(self) -> sql.Composed:
        """Return the columns for a statement."""
        return sql.SQL(", ").join(map(sql.Identifier, self.names))

    def create(self, name: str) -> sql.Composed:
        """Return the statement that makes the table, without keys and indexes."""
        own = [
            sql.SQL("{} {}{}").format(
                sql.Identifier(column.name),
                sql.SQL(COLUMN_TYPES[column.kind]),
                sql.SQL(" not null" if column.required else ""),
            )
            for column in self.columns
        ]
        fixed = sql.SQL(
            "id bigserial not null, record_srn text not null, run_id uuid not null,"
            " created_at timestamptz not null default now()"
        )
        return sql.SQL("create table {} ({})").format(
            relation(name), sql.SQL(", ").join([fixed, *own])
        )

    def foreign_keys(self, name: str) -> list[tuple[str, sql.Composed]]:
        """Return name and statement of each foreign key; rows that are there are not checked."""
        targets = {
            "record_srn": "public.records (srn) on delete cascade",
            "run_id": "public.hook_runs (id)",
        }
        statements = []
        for column, target in targets.items():
            key = f"{self.table}_{column}_fkey"
            statement = sql.SQL(
                "alter table {} add constraint {} foreign key ({}) references {} not valid"
            ).format(
                relation(name),
                sql.Identifier(key),
                sql.Identifier(column),
                sql.SQL(target),
            )
            statements.append((key, statement))
        return statements


def relation(name: str) -> sql.Identifier:
    """Return the identifier of a table of the schema `features`."""
    return sql.Identifier(SCHEMA, name)


def quoted_name(name: str) -> str:
    """Return the table's name for messages and functions that take one as text."""
    return f'{SCHEMA}."{name}"'


@dataclass(frozen=True, slots=True)
class Existing:
    """A relation of the schema `features`."""

    oid: int
    kind: str
    owner: str


def existing(connection: Connection, name: str) -> Existing | None:
    """Return the relation of this name in the schema `features`; None if there is none."""
    row = fetch_one(connection, _RELATION, [SCHEMA, name])
    return None if row is None else Existing(*row)


def sequence_of(connection: Connection, name: str) -> tuple[sql.Identifier, int | None] | None:
    """Return the sequence of a table's `id`, and the last number it gave; None if it has none.

    The number is None if this role may not know it.
    """
    row = fetch_one(connection, _SEQUENCE, [quoted_name(name)])
    return None if row is None else (sql.Identifier(row[0], row[1]), row[2])


def shape_problems(connection: Connection, shape: Shape) -> list[str]:
    """Return how the table that the server uses differs from what the server would have made.

    The order of columns does not count, and neither do further columns with a default: the server
    names columns when it writes. There is such a table.

    Raises:
        InvalidInputError: It is not a table.
    """
    present = existing(connection, shape.table)
    if present is None or present.kind != "r":
        raise InvalidInputError(f"{quoted_name(shape.table)} is not an ordinary table")
    problems: list[str] = []
    columns = table_columns(connection, shape.table)
    wanted = {name: (kind, True) for name, kind in FIXED_COLUMNS.items()}
    wanted |= {c.name: (COLUMN_TYPES[c.kind], c.required) for c in shape.columns}
    for name, described in wanted.items():
        if columns.get(name) != described:
            problems.append(
                f"column {name!r} is {_described(columns.get(name))}, and should be"
                f" {_described(described)}"
            )
    keys = {
        (kind, column, target, action)
        for kind, _, target, action, is_validated, column in connection.execute(
            _KEYS, [present.oid]
        )
        if is_validated
    }
    for key, what in (
        (("p", "id", "-", " "), "primary key (id)"),
        (("f", "record_srn", "records", "c"), "foreign key to public.records that cascades"),
        (("f", "run_id", "hook_runs", "a"), "foreign key to public.hook_runs"),
    ):
        if key not in keys:
            problems.append(f"it has no {what}")
    indexes = {name for (name,) in connection.execute(_INDEXES, [present.oid])}
    lacking = [each for what, each in shape.fixed.items() if what in {"record_srn", "run_id"}]
    if lacking := [name for name in lacking if name not in indexes]:
        problems.append(f"it has no index {first_few(lacking)}")
    sequence = sequence_of(connection, shape.table)
    statement = sql.SQL("select coalesce(max(id), 0) from {}").format(relation(shape.table))
    if sequence is None:
        problems.append("its id has no sequence")
    elif "id" in columns and sequence[1] is not None:
        highest = fetch_value(connection, statement)
        if sequence[1] < highest:
            problems.append(f"its sequence is at {sequence[1]}, and it has the id {highest}")
    return problems


def _described(column: tuple[str, bool] | None) -> str:
    if column is None:
        return "absent"
    return f"{column[0]}{' not null' if column[1] else ''}"


# What is built upon the table and would stay with it when it is renamed?
_DEPENDENTS: Final = """
select 'view ' || r.ev_class::regclass::text from pg_depend as d
join pg_rewrite as r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
where d.refclassid = 'pg_class'::regclass and d.refobjid = %(table)s and r.ev_class <> %(table)s
union
select 'table ' || conrelid::regclass::text || ' by its foreign key ' || conname
from pg_constraint where confrelid = %(table)s and contype = 'f'
union
select 'trigger ' || tgname from pg_trigger where tgrelid = %(table)s and not tgisinternal
union
select 'row security policy ' || polname from pg_policy where polrelid = %(table)s
order by 1"""


def dependents(connection: Connection, table: int) -> list[str]:
    """Return what is built upon a table and would not follow a renaming."""
    return [name for (name,) in connection.execute(_DEPENDENTS, {"table": table})]


def check_columns(shape: Shape, declared: Sequence[Column], where: str) -> tuple[Column, ...]:
    """Return the declarations of the server's columns in a definition of this project.

    Raises:
        InvalidInputError: One is not declared, or with another type.
    """
    ours = {column.name: column for column in declared}
    for column in shape.columns:
        if column.name not in ours:
            raise InvalidInputError(
                f"{where} does not declare column {column.name!r} of the server's table:"
                " `feature-pipeline osa plan` shows how definitions differ"
            )
        if ours[column.name].kind != column.kind:
            raise InvalidInputError(
                f"{where} declares column {column.name!r} as {ours[column.name].kind}, and the"
                f" server's table has {column.kind}: `feature-pipeline osa plan` shows how"
                " definitions differ"
            )
    return tuple(ours[column.name] for column in shape.columns)
