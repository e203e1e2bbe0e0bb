"""Read rows back from PostgreSQL as Arrow columns, without loss.

CSV rather than binary: Arrow parses it a block at a time, while binary rows have to be walked one
by one. PostgreSQL writes the shortest text that gives the same float64, and quotes an empty text
but not a NULL, so nothing is lost on the way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg import sql

from feature_pipeline.archive.format.encode import arrow_field
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog.database import Connection

CHUNK_BYTES: Final = 4 << 20
"""Bytes of text parsed at a time; the memory needed is a multiple of it."""


def read_back(
    connection: Connection,
    source: sql.Composable,
    fields: Mapping[str, pa.DataType],
    tail: sql.Composable,
) -> Iterator[pa.Table]:
    """Yield the columns of a table in chunks of whole rows.

    Args:
        connection: Its transaction is what the rows are read in.
        source: The table.
        fields: The Arrow type of each column; values that do not fit raise.
        tail: The rest of the statement after `from <source>`: conditions and order, without
            parameters.
    """
    query = sql.SQL("copy (select {} from {} {}) to stdout (format csv, encoding 'UTF8')").format(
        sql.SQL(", ").join(map(sql.Identifier, fields)), source, tail
    )
    parts: list[bytes] = []
    size = 0
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        # One row each time, so a chunk ends where a row does, however long its values are.
        while row := copy.read():
            parts.append(bytes(row))
            size += len(row)
            if size >= CHUNK_BYTES:
                yield _parse(b"".join(parts), fields)
                parts, size = [], 0
    if parts:
        yield _parse(b"".join(parts), fields)


def column_fields(columns: tuple[Column, ...]) -> dict[str, pa.DataType]:
    """Return record, batch, ordinal, then the declared columns, as `read_back` takes them."""
    fixed: dict[str, pa.DataType] = {
        "record_id": pa.string(),
        "batch": pa.string(),
        "ordinal": pa.int32(),
    }
    declared: dict[str, pa.DataType] = {c.name: arrow_field(c).type for c in columns}
    return fixed | declared


def _parse(text: bytes, fields: Mapping[str, pa.DataType]) -> pa.Table:
    source: Any = pa.BufferReader(text)
    return pa_csv.read_csv(
        source,
        # One block: a row may be longer than any block size chosen beforehand.
        read_options=pa_csv.ReadOptions(
            column_names=list(fields), block_size=len(text) + 1, use_threads=False
        ),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict(fields),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t"],
            false_values=["f"],
        ),
    )
