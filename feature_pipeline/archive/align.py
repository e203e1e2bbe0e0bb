"""Rows of artifacts that were written under different columns, brought under one declaration.

What belongs here: reading old rows as the newest declaration means them, for people who read the
archive itself. Not here: what a table may become (`projections.evolve`), which refuses more: a
reader takes a null in a column that is required by now, a table must not.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.encode import arrow_field, rows_schema
from feature_pipeline.columns import Column, ColumnType
from feature_pipeline.errors import InvalidInputError


def align_rows(
    rows: pa.Table, written: Sequence[Column], wanted: Sequence[Column], what: str
) -> pa.Table:
    """`rows` with record_id, ordinal and the wanted columns, in their order.

    A column absent under its name is looked for under `renamed_from`; one absent there too holds
    its default, else NULL. Integers are read as numbers where all of them are exact.

    Args:
        rows: Rows as written, of the columns `written`.
        written: What the rows' own manifest declares.
        wanted: What is wanted of them.
        what: The rows, for messages.

    Raises:
        InvalidInputError: A column has another type or format now, or an integer is not exact as
            a number.
    """
    by_name = {column.name: column for column in written}
    arrays: list[Any] = [rows.column(0), rows.column(1)]
    for column in wanted:
        source = by_name.get(column.name) or by_name.get(column.renamed_from or "")
        arrays.append(_values(rows, source, column, what))
    return pa.Table.from_arrays(arrays, schema=rows_schema(wanted))


def _values(
    rows: pa.Table, source: Column | None, column: Column, what: str
) -> "pa.ChunkedArray[Any]":
    arrow_type = arrow_field(column).type
    if source is None:
        repeat: Any = pa.repeat
        default: pa.Array[Any] = repeat(pa.scalar(column.default_value, arrow_type), len(rows))
        return pa.chunked_array([default])
    values = rows.column(source.name)
    if (source.type, source.format) == (column.type, column.format):
        return values
    if source.type is ColumnType.INTEGER and column.type is ColumnType.NUMBER:
        return _exact_numbers(values, column, what)
    raise InvalidInputError(
        f"{what}: column {column.name!r} was {_shown(source)} and is now {_shown(column)}; read"
        " batches of one declaration together, or a batch by itself, which has its own columns"
    )


def _exact_numbers(
    values: "pa.ChunkedArray[Any]", column: Column, what: str
) -> "pa.ChunkedArray[Any]":
    numbers = pc.cast(values, pa.float64(), safe=False)
    for integer, number in zip(values.to_pylist(), numbers.to_pylist(), strict=True):
        # Python compares an int with a float exactly, without rounding either.
        if integer != number:
            raise InvalidInputError(
                f"{what}: column {column.name!r} is a number now, and {integer} is not exact in"
                " float64"
            )
    return numbers


def _shown(column: Column) -> str:
    return column.type.value + (f" ({column.format.value})" if column.format else "")
