"""Encode outcomes as Parquet, and decode them."""

import io
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_pipeline.archive.format.parquet_bounds import (
    check_decoded_size,
    check_texts,
    open_parquet,
)
from feature_pipeline.errors import CorruptDataError, FeaturePipelineError, InvalidInputError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest, Value
from feature_pipeline.model.outcomes import Outcome, Status, outcome_kind
from feature_pipeline.model.text.counted import counted

RECORD_ID: Final = "record_id"
ORDINAL: Final = "ordinal"

MOST_ROWS: Final = 2_000_000
"""Maximum number of rows of an artifact: as Python values they take a gigabyte with ten columns."""

_ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "string": pa.string(),
    "number": pa.float64(),
    "integer": pa.int64(),
    "boolean": pa.bool_(),
    "json": pa.string(),
    "date": pa.date32(),
    "date-time": pa.timestamp("us", tz="UTC"),
    "uuid": pa.string(),
}

_OUTCOME_FIELDS: Final[list["pa.Field[Any]"]] = [
    pa.field(RECORD_ID, pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("reason", pa.string()),
    pa.field("kind", pa.string()),
    pa.field("retryable", pa.bool_(), nullable=False),
    pa.field("row_count", pa.int32(), nullable=False),
    pa.field("action", pa.string()),
    pa.field("carried_from", pa.string()),
]
OUTCOMES_SCHEMA: Final = pa.schema(_OUTCOME_FIELDS)
"""One row per record of the batch, in the batch's order."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def arrow_field(column: Column) -> "pa.Field[pa.DataType]":
    """Return the Arrow field of a column; its metadata has what Arrow's type cannot express."""
    metadata = {"type": column.type.value}
    if column.format is not None:
        metadata["format"] = column.format.value
    if column.kind == "json":
        metadata["encoding"] = "json"
    if column.unit is not None:
        metadata["unit"] = column.unit
    if column.description is not None:
        metadata["description"] = column.description
    return pa.field(column.name, _ARROW_TYPES[column.kind], metadata=metadata)


def rows_schema(columns: Sequence[Column]) -> pa.Schema:
    """Return the schema: record id, ordinal, then the declared columns in order."""
    fields: list[pa.Field[Any]] = [
        pa.field(RECORD_ID, pa.string(), nullable=False),
        pa.field(ORDINAL, pa.int32(), nullable=False),
        *(arrow_field(column) for column in columns),
    ]
    return pa.schema(fields)


def encode_rows(columns: Sequence[Column], outcomes: Sequence[Outcome]) -> bytes:
    """Return Parquet of every row: records in the order given, rows of a record by ordinal from 0.

    NaN, infinities and -0.0 are preserved; NULL is not NaN. Arrays and objects are canonical JSON.
    """
    return encode_table(rows_table(columns, outcomes))


def rows_table(columns: Sequence[Column], outcomes: Sequence[Outcome]) -> pa.Table:
    """Return the table that `encode_rows` writes."""
    schema = rows_schema(columns)
    ids: list[str] = []
    ordinals: list[int] = []
    rows: list[tuple[Value, ...]] = []
    for outcome in outcomes:
        ids.extend([outcome.record_id] * len(outcome.rows))
        ordinals.extend(range(len(outcome.rows)))
        rows.extend(outcome.rows)
    values = list(zip(*rows, strict=True)) if rows else [()] * len(columns)
    arrays: list[Any] = [pa.array(ids, pa.string()), pa.array(ordinals, pa.int32())]
    arrays += [
        # from_pandas=False: NaN is a value here, not a hole.
        pa.array(column_values, field.type, from_pandas=False)
        for column_values, field in zip(values, list(schema)[2:], strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def encode_outcomes(outcomes: Sequence[Outcome]) -> bytes:
    """Return Parquet of `OUTCOMES_SCHEMA`, in the order given."""
    return encode_table(outcomes_table(outcomes))


def outcomes_table(outcomes: Sequence[Outcome]) -> pa.Table:
    """Return the table that `encode_outcomes` writes."""
    arrays: list[Any] = [
        pa.array([o.record_id for o in outcomes], pa.string()),
        pa.array([o.status.value for o in outcomes], pa.string()),
        pa.array([o.reason for o in outcomes], pa.string()),
        pa.array([None if o.kind is None else str(o.kind) for o in outcomes], pa.string()),
        pa.array([o.is_retryable for o in outcomes], pa.bool_()),
        pa.array([len(o.rows) for o in outcomes], pa.int32()),
        pa.array([_text(o.action) for o in outcomes], pa.string()),
        pa.array([_text(o.carried_from) for o in outcomes], pa.string()),
    ]
    return pa.Table.from_arrays(arrays, schema=OUTCOMES_SCHEMA)


def _text(digest: Digest | None) -> str | None:
    return None if digest is None else str(digest)


def encode_table(table: pa.Table) -> bytes:
    """Return Parquet of a table of an artifact."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_bounded(data: bytes, subject: str, schema: pa.Schema, rows: int) -> pa.Table:
    """Return the table in `data`, which any writer may have made, if it is within the limits.

    Its pages are measured first: see `archive.format.parquet_bounds`. A few bytes of a dictionary
    can stand for many texts: these are decoded only once their total length is known.

    Args:
        data: Parquet.
        subject: The table, for messages.
        schema: Its columns.
        rows: The number of rows that it must have.

    Raises:
        InvalidInputError: It has others, or is too large.
        CorruptDataError: `data` is not Parquet, or has texts that are not UTF-8.
    """
    file = open_parquet(data, subject)
    try:
        if (count := file.metadata.num_rows) != rows or count > MOST_ROWS:
            raise InvalidInputError(
                f"{subject}: {count:,} rows; its manifest has {rows:,}, and the limit is"
                f" {MOST_ROWS:,}"
            )
        if not file.schema_arrow.equals(schema, check_metadata=False):
            raise InvalidInputError(
                f"{subject}: its columns are {_describe(file.schema_arrow)}; expected"
                f" {_describe(schema)}"
            )
        texts = [field.name for field in schema if pa.types.is_string(field.type)]
        table = pq.ParquetFile(
            pa.BufferReader(data), metadata=file.metadata, read_dictionary=texts
        ).read(use_threads=False)
        check_decoded_size(sum(_text_bytes(table.column(name)) for name in texts), subject)
        table = table.cast(schema)
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError(f"{subject} is not Parquet: {error}") from error
    check_texts(table, subject)
    return table


def _text_bytes(column: Any) -> int:
    """Return the total length of a column's texts without decoding its dictionaries."""
    return sum(
        pc.sum(pc.take(pc.binary_length(chunk.dictionary), chunk.indices)).as_py() or 0
        for chunk in column.chunks
    )


def read_parquet(data: bytes, subject: str) -> pa.Table:
    """Return the table in `data`, in this process's memory.

    Raises:
        CorruptDataError: `data` is not Parquet.
    """
    try:
        # `pq.read_table` makes a data set of the file first, which takes a third of its time.
        return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError(f"{subject} is not Parquet: {error}") from error


def check_rows_schema(table: pa.Table, columns: Sequence[Column], subject: str = "rows") -> None:
    """Return if the table has exactly record id, ordinal and these columns with their types.

    Raises:
        CorruptDataError: It has other columns.
    """
    wanted = rows_schema(columns)
    if not table.schema.equals(wanted, check_metadata=False):
        raise CorruptDataError(
            f"{subject}: its columns are {_describe(table.schema)}; expected {_describe(wanted)}"
        )


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def decode_outcomes(columns: Sequence[Column], rows: pa.Table, outcomes: pa.Table) -> list[Outcome]:
    """Return the outcomes of the two tables, in the order of the outcomes table.

    Raises:
        CorruptDataError: The tables do not agree: a record twice, rows of a record that did not
            pass or does not exist, ordinals that are not 0..n-1, or another number of rows.
    """
    lines = _outcome_lines(outcomes)
    rows_of: dict[str, tuple[tuple[Value, ...], ...]] = {}
    for record_id, record_rows in iter_record_rows(rows, columns):
        if record_id in rows_of:
            raise CorruptDataError(f"rows: record {record_id!r} occurs in two places")
        rows_of[record_id] = record_rows
    decoded: list[Outcome] = []
    seen: set[str] = set()
    for line in lines:
        record_id, row_count = line[0], line[5]
        record_rows = rows_of.pop(record_id, ())
        if len(record_rows) != row_count:
            raise CorruptDataError(
                f"record {record_id!r}: {counted(row_count, 'row')} by its outcome, but"
                f" {len(record_rows)} in rows"
            )
        if record_id in seen:
            raise CorruptDataError(f"outcomes: record {record_id!r} occurs twice")
        seen.add(record_id)
        decoded.append(_outcome(line, record_rows))
    if rows_of:
        raise CorruptDataError(f"rows: record {next(iter(rows_of))!r} has no outcome")
    return decoded


def outcomes_without_rows(table: pa.Table) -> list[Outcome]:
    """Return the outcomes of the outcomes table, in its order, as if none had rows.

    Raises:
        CorruptDataError: It is not such a table.
    """
    return [_outcome(line, ()) for line in _outcome_lines(table)]


def _outcome_lines(table: pa.Table) -> list[tuple[Any, ...]]:
    if not table.schema.equals(OUTCOMES_SCHEMA, check_metadata=False):
        raise CorruptDataError(f"outcomes: columns are {_describe(table.schema)}")
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _outcome(line: tuple[Any, ...], rows: tuple[tuple[Value, ...], ...]) -> Outcome:
    record_id, status, reason, kind, retryable, _, action, carried_from = line
    try:
        return Outcome(
            record_id=record_id,
            status=Status(status),
            rows=rows,
            reason=reason,
            kind=None if kind is None else outcome_kind(kind),
            is_retryable=retryable,
            action=None if action is None else Digest.parse(action),
            carried_from=None if carried_from is None else Digest.parse(carried_from),
        )
    except (ValueError, FeaturePipelineError) as error:
        raise CorruptDataError(f"outcomes: record {record_id!r}: {error}") from error


def iter_record_rows(
    table: pa.Table, columns: Sequence[Column]
) -> Iterator[tuple[str, tuple[tuple[Value, ...], ...]]]:
    """Yield id and rows by ordinal of each record with rows, in the table's order.

    Raises:
        CorruptDataError: The columns are others, or the ordinals of a record are not 0..n-1 in
            order and together.
    """
    check_rows_schema(table, columns)
    if not table.num_rows:
        return
    ids: list[Any] = table.column(0).to_pylist()
    ordinals = table.column(1).to_pylist()
    values = [
        _READERS.get(column.kind, _read_plain)(table.column(position + 2))
        for position, column in enumerate(columns)
    ]
    rows: list[tuple[Value, ...]] = list(zip(*values, strict=True)) if values else [()] * len(ids)
    starts = [i for i, ordinal in enumerate(ordinals) if ordinal == 0]
    if not starts or starts[0] != 0:
        raise CorruptDataError(
            f"rows: the first row, of record {ids[0]!r}, does not have ordinal 0"
        )
    for start, end in pairwise([*starts, len(ids)]):
        record_id = ids[start]
        if ordinals[start:end] != list(range(end - start)) or ids[start:end] != [record_id] * (
            end - start
        ):
            raise CorruptDataError(
                f"rows: record {record_id!r}: its rows are not contiguous, with ordinals 0, 1, 2, …"
            )
        yield record_id, tuple(rows[start:end])


def _read_plain(array: "pa.ChunkedArray[Any]") -> list[Value]:
    return array.to_pylist()


def instants(array: "pa.ChunkedArray[Any]") -> list[Value]:
    """Return the instants of a column of times in UTC, None for null."""
    # to_pylist attaches whichever UTC class is installed; this gives datetime.UTC, and no pandas.
    return [
        None if since is None else _EPOCH + timedelta(microseconds=since)
        for since in pc.cast(array, pa.int64()).to_pylist()
    ]


_READERS: Final[dict[str, Callable[["pa.ChunkedArray[Any]"], list[Value]]]] = {
    "date-time": instants,
}
