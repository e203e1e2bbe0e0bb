"""Read rows back from PostgreSQL as Arrow columns, without loss.

CSV rather than binary: Arrow parses it a block at a time, while binary rows have to be walked one
by one. PostgreSQL writes the shortest text that gives the same float64, and quotes an empty text
but not a NULL, so nothing is lost on the way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import Any, Final

import psycopg
import pyarrow as pa
import pyarrow.csv as pa_csv
from psycopg import generators, sql
from psycopg.pq import ExecStatus

from feature_pipeline.archive.format.encode import arrow_field
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog.database import Connection

CHUNK_BYTES: Final = 2 << 20
"""Bytes of text parsed at a time; the memory needed is a multiple of it."""

_DELIMITER: Final = "\x02"
_QUOTE: Final = "\x01"
"""Values rarely have these, so few are quoted: JSON has commas and quotes, which would have to be
doubled by PostgreSQL and read again here.
"""


def read_texts(
    connection: Connection,
    source: sql.Composable,
    fields: Iterable[str],
    tail: sql.Composable,
) -> Generator[bytes]:
    """Yield the columns of a table as CSV, in chunks of whole rows that `parse` reads.

    Args:
        connection: The rows are read in its transaction.
        source: The table.
        fields: The names of the columns.
        tail: The rest of the statement after `from <source>`: conditions and order, without
            parameters.
    """
    query = sql.SQL(
        "copy (select {} from {} {}) to stdout"
        " (format csv, delimiter {}, quote {}, encoding 'UTF8')"
    ).format(sql.SQL(", ").join(map(sql.Identifier, fields)), source, tail, _DELIMITER, _QUOTE)
    parts: list[bytes] = []
    size, is_end = 0, False
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        receive = connection.pgconn.get_copy_data
        while not is_end:
            # One row each time, so a chunk ends where a row does, however long its values are.
            if not (row := copy.read()):
                break
            # What has arrived with it needs no waiting, which takes longer than a row.
            count = len(row)
            while count > 0:
                # Views would count as objects that Python's garbage collector has to visit.
                parts.append(bytes(row))
                size += count
                if size >= CHUNK_BYTES:
                    yield b"".join(parts)
                    parts, size = [], 0
                count, row = receive(1)
            if count < 0:
                _finish(connection)
                is_end = True
    if parts:
        yield b"".join(parts)


def _finish(connection: Connection) -> None:
    """Receive what follows the last row of a COPY.

    `PGconn.get_result` would wait for it with the interpreter's lock: no thread of the process
    could do anything until the server answers.
    """
    for result in connection.wait(generators.fetch_many(connection.pgconn)):
        if result.status != ExecStatus.COMMAND_OK:
            raise psycopg.errors.error_from_result(result)


def column_fields(columns: tuple[Column, ...]) -> dict[str, pa.DataType]:
    """Return record, batch, ordinal, then the declared columns, as `parse` takes them."""
    fixed: dict[str, pa.DataType] = {
        "record_id": pa.string(),
        "batch": pa.string(),
        "ordinal": pa.int32(),
    }
    declared: dict[str, pa.DataType] = {c.name: arrow_field(c).type for c in columns}
    return fixed | declared


def parse(text: bytes, fields: Mapping[str, pa.DataType]) -> pa.Table:
    """Return the rows of one chunk of `read_texts`.

    Args:
        text: The chunk.
        fields: The Arrow type of each column; values that do not fit raise.
    """
    source: Any = pa.BufferReader(text)
    return pa_csv.read_csv(
        source,
        # One block: a row may be longer than any block size chosen beforehand.
        read_options=pa_csv.ReadOptions(
            column_names=list(fields), block_size=len(text) + 1, use_threads=False
        ),
        parse_options=pa_csv.ParseOptions(
            delimiter=_DELIMITER, quote_char=_QUOTE, newlines_in_values=True
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict(fields),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            true_values=["t"],
            false_values=["f"],
        ),
    )
