"""Convert rows of artifacts with different declarations to one declaration.

A reader accepts a null in a column that has become required; a table (`projections.rows.evolve`)
does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.encode import arrow_field, rows_schema
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.column_sources import pair_columns
from feature_pipeline.model.columns import Column, ColumnType, decode_value
from feature_pipeline.model.text.counted import counted

_SHOWN: Final = 5


class MisfitError(InvalidInputError):
    """Rows cannot be read under other columns; the message gives the reason per column."""


@dataclass(frozen=True, slots=True)
class ColumnSource:
    """The source of a wanted column: a written column, or its default."""

    column: Column
    written: Column | None


def align_rows(
    rows: pa.Table, written: Sequence[Column], wanted: Sequence[Column], subject: str
) -> pa.Table:
    """Return `rows` with record_id, ordinal and the wanted columns, in their order.

    `column_sources` decides where values come from; a column that was not written has its default,
    else NULL. Integers are read as numbers by the rule for raw output: rounded to the nearest
    float64, unless a digit is lost.

    Args:
        rows: Rows as written, of the columns `written`.
        written: The columns that the rows' own manifest declares.
        wanted: The columns to return.
        subject: The rows, for messages.

    Raises:
        InvalidInputError: A column has another type or format now, or an integer loses a
            digit as a number.
    """
    try:
        return select_columns(rows, map_columns(written, wanted))
    except MisfitError as error:
        raise InvalidInputError(
            f"{subject}: {error}; read batches of one declaration together, or a batch by itself,"
            " which has its own columns"
        ) from error


def map_columns(written: Sequence[Column], wanted: Sequence[Column]) -> tuple[ColumnSource, ...]:
    """Find the source of each wanted column, by declarations alone.

    Raises:
        MisfitError: A column's type or format changed in a way that is not allowed, or a written
            column may be either of two wanted ones.
    """
    pairs = pair_columns(written, wanted)
    refusals = pairs.refusals()
    for column, source in zip(wanted, pairs.sources, strict=True):
        if source is not None and not can_become(source, column):
            refusals.append(
                f"column {column.name!r}: was {describe_type(source)},"
                f" is now {describe_type(column)}"
            )
    if refusals:
        raise MisfitError("; ".join(refusals))
    return tuple(map(ColumnSource, wanted, pairs.sources))


def select_columns(
    rows: pa.Table, mappings: Sequence[ColumnSource], *, is_strict: bool = False
) -> pa.Table:
    """Return the rows with `record_id`, `ordinal` and the wanted columns, in their order.

    Args:
        is_strict: Refuse nulls in columns that are required.

    Raises:
        MisfitError: An integer loses a digit as a number, or a required column would have a null;
            the message names the column and some of the values or records.
    """
    columns = [rows["record_id"], rows["ordinal"]]
    refusals: list[str] = []
    for mapping in mappings:
        values = _values(rows, mapping, refusals)
        if is_strict and mapping.column.required and values.null_count:
            holders = rows["record_id"].filter(pc.is_null(values)).unique()
            refusals.append(
                f"column {mapping.column.name!r}: is now required, but null in"
                f" {counted(len(holders), 'record')}: {_some(holders.to_pylist())}"
            )
        columns.append(values)
    if refusals:
        raise MisfitError("; ".join(refusals))
    schema = rows_schema([mapping.column for mapping in mappings])
    return pa.Table.from_arrays(columns, schema=schema)


def _values(rows: pa.Table, mapping: ColumnSource, refusals: list[str]) -> pa.ChunkedArray[Any]:
    column, written = mapping.column, mapping.written
    arrow_type = arrow_field(column).type
    if written is None:
        repeat: Any = pa.repeat
        default: pa.Array[Any] = repeat(pa.scalar(column.default_value, arrow_type), len(rows))
        return pa.chunked_array([default])
    values = rows[written.name]
    if written.kind == column.kind:
        return values
    numbers, is_inexact = _integers_as_numbers(values)
    at = np.flatnonzero(is_inexact)
    holders = zip(rows["record_id"].take(at).to_pylist(), values.take(at).to_pylist(), strict=True)
    shown = [
        f"{value} of record {record_id!r}"
        for record_id, value in holders
        if not _is_decoded(column, value)
    ]
    if shown:
        refusals.append(
            f"column {column.name!r}: {counted(len(shown), 'integer')} not exact as a number:"
            f" {_some(shown, str)}"
        )
    return numbers


def _is_decoded(column: Column, value: object) -> bool:
    """Return whether decoding would accept this integer of raw output as a value of the column."""
    try:
        decode_value(column, value)
    except InvalidInputError:
        return False
    return True


def can_become(written: Column, wanted: Column) -> bool:
    """Return whether the types allow reading values of one column as values of the other."""
    if written.type is wanted.type:
        return written.format is wanted.format
    return written.type is ColumnType.INTEGER and wanted.type is ColumnType.NUMBER


def _integers_as_numbers(
    values: pa.ChunkedArray[Any],
) -> tuple[pa.ChunkedArray[Any], npt.NDArray[np.bool_]]:
    """Return the values as float64, and which of them changed thereby."""
    # Arrow's own safe cast refuses everything beyond 2^53, exact or not. Chunk by chunk: of empty
    # ones, the cast of a chunked array drops some.
    numbers = [chunk.cast(pa.float64(), safe=False) for chunk in values.chunks]
    is_inexact: list[npt.NDArray[np.bool_]] = [np.empty(0, np.bool_)]
    for before, after in zip(values.chunks, numbers, strict=True):
        integers = before.fill_null(0).to_numpy()
        floats = after.fill_null(0.0).to_numpy()
        # 2^63 itself is a float64 beyond int64: integers that round up to it are inexact.
        fits = floats < 2.0**63
        back = np.where(fits, floats, 0.0).astype(np.int64)
        is_inexact.append(~fits | (back != integers))
    return pa.chunked_array(numbers, pa.float64()), np.concatenate(is_inexact)


def describe_type(column: Column) -> str:
    """Return a column's type and format for messages."""
    return column.type.value + (f" ({column.format.value})" if column.format else "")


def _some(values: Sequence[object], show: Callable[[object], str] = repr) -> str:
    shown = ", ".join(show(value) for value in values[:_SHOWN])
    return shown + (", ..." if len(values) > _SHOWN else "")
