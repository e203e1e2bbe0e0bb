"""The PostgreSQL form of declared columns: types, names, indexes, comments, generation digest."""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from psycopg import sql

from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.projections.catalog.database import BOOKKEEPING_SCHEMA
from feature_pipeline.projections.catalog.spec import TableSpec

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy.dialects.postgresql.base import PGDialect
    from sqlalchemy.types import TypeEngine

KEY: Final = ("record_id", "ordinal")
"""The columns of a generation's primary key."""


def column_kinds(columns: Sequence[Column]) -> dict[str, str]:
    """Return every column of a generation, in its order, with the kind `copy_format` encodes it as.

    `batch` precedes the declared columns, so that a column declared later is appended to the view
    and `create or replace view` can add it.
    """
    fixed = {"record_id": "string", "ordinal": "ordinal", "batch": "string"}
    return fixed | {column.name: column.kind for column in columns}


def column_types(columns: Sequence[Column]) -> dict[str, str]:
    """Return every column of a generation with its type, as PostgreSQL names it (`format_type`)."""
    return {
        name: "integer" if kind == "ordinal" else type_name(kind).as_string().lower()
        for name, kind in column_kinds(columns).items()
    }


def type_name(kind: str) -> sql.SQL:
    """Return the SQL type of a declared column's kind."""
    return sql.SQL(_type(kind).compile(dialect=_dialect()))


def create_table(
    relation: str,
    columns: Sequence[Column],
    schema: str = BOOKKEEPING_SCHEMA,
    *,
    is_keyed: bool = True,
) -> sql.SQL:
    """Return the DDL of a generation: typed columns, and its primary key if `is_keyed`."""
    from sqlalchemy.schema import CreateTable

    return _ddl(CreateTable(_table(relation, columns, schema, is_keyed=is_keyed)))


def add_key(relation: str) -> sql.Composed:
    """Return the DDL that gives a generation its primary key, under the name of `create_table`."""
    return sql.SQL("alter table {} add primary key ({})").format(
        sql.Identifier(BOOKKEEPING_SCHEMA, relation),
        sql.SQL(", ").join(map(sql.Identifier, KEY)),
    )


def create_index(
    relation: str,
    columns: Sequence[Column],
    index: IndexDefinition,
    name: str,
    *,
    is_concurrent: bool = False,
    schema: str = BOOKKEEPING_SCHEMA,
) -> sql.SQL:
    """Return the DDL of a generation's index; built concurrently, it does not block loads."""
    import sqlalchemy as sa

    table = _table(relation, columns, schema)
    # literal_column, not text: text takes a colon for a parameter.
    parts: list[sa.ColumnElement[Any]] = (
        [table.c[column] for column in index.columns]
        if index.expression is None
        else [sa.literal_column(f"({index.expression})")]
    )
    built = sa.Index(
        name,
        *parts,
        unique=index.unique,
        postgresql_using=index.method.value,
        postgresql_concurrently=is_concurrent,
        postgresql_where=None if index.where is None else sa.literal_column(index.where),
        _table=table,
    )
    return _ddl(sa.schema.CreateIndex(built))


def index_name(relation: str, index: IndexDefinition) -> str:
    """Return a name that is unique in the schema and identifies the index by digest."""
    label = truncate_identifier(index.name or relation, 45)
    identity = [relation, index.model_dump(mode="json")]
    return f"{label}_{Digest.of(document_bytes(identity)).hex[:16]}"


def relation_name(spec: TableSpec, number: int) -> str:
    """Return the name of a generation's real table; `number` makes it unique.

    Only word characters of the table's name are kept: a `%` would be taken for a parameter in the
    statements that load.
    """
    label = truncate_identifier(re.sub(r"\W", "_", spec.name), 36)
    return f"{label}_{spec.generation_digest.hex[:8]}_{number}"


def truncate_identifier(text: str, max_bytes: int) -> str:
    """Return the longest start of `text` within `max_bytes` of UTF-8."""
    return text.encode()[:max_bytes].decode(errors="ignore")


def comments(
    kind: sql.SQL, schema: str, relation: str, description: str | None, columns: Sequence[Column]
) -> Iterator[sql.Composed]:
    """Return statements that comment a table or view and its columns."""
    target = sql.Identifier(schema, relation)
    yield sql.SQL("comment on {} {} is {}").format(kind, target, sql.Literal(description))
    texts = {
        "record_id": "Record that the hook made this feature of.",
        "ordinal": "Position among the record's features, from 0.",
        "batch": "Batch whose artifact the row comes from; joins to feature_pipeline.progress.",
    }
    for column in columns:
        unit = f"[{column.unit}]" if column.unit else None
        text = " ".join(filter(None, (column.description, unit)))
        texts[column.name] = text
    for name, text in texts.items():
        yield sql.SQL("comment on column {}.{} is {}").format(
            target, sql.Identifier(name), sql.Literal(text or None)
        )


def _table(
    relation: str,
    columns: Sequence[Column],
    schema: str = BOOKKEEPING_SCHEMA,
    *,
    is_keyed: bool = True,
) -> "sa.Table":
    import sqlalchemy as sa

    return sa.Table(
        relation,
        sa.MetaData(),
        # "C": ids are compared by code point, as everywhere in the archive, and faster.
        sa.Column("record_id", sa.Text(collation="C"), nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("batch", sa.Text(collation="C"), nullable=False),
        *(
            sa.Column(column.name, _type(column.kind), nullable=not column.required)
            for column in columns
        ),
        *([sa.PrimaryKeyConstraint(*KEY)] if is_keyed else []),
        schema=schema,
    )


@functools.cache
def _dialect() -> "PGDialect":
    from sqlalchemy.dialects.postgresql.base import PGDialect

    # paramstyle "named": the driver's dialect would double every % in an expression.
    return PGDialect(paramstyle="named")  # type: ignore[no-untyped-call]


def _type(kind: str) -> "TypeEngine[Any]":
    import sqlalchemy as sa
    from sqlalchemy.dialects.postgresql import JSONB

    types: dict[str, TypeEngine[Any]] = {
        "string": sa.Text(),
        "number": sa.Double(),
        "integer": sa.BigInteger(),
        "boolean": sa.Boolean(),
        "json": JSONB(),
        "date": sa.Date(),
        "date-time": sa.TIMESTAMP(timezone=True),
        "uuid": sa.Uuid(),
    }
    return types[kind]


def _ddl(element: "sa.schema.ExecutableDDLElement") -> sql.SQL:
    # Identifiers in it were quoted by SQLAlchemy's compiler.
    return sql.SQL(str(element.compile(dialect=_dialect())))
