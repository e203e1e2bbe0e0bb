"""The raw output that is made of a hook run's rows, and its decoding a column at a time.

Decoding reads the text that is stored, as a hook's output is read (`hooks.output`). It does so a
column at a time if every value is one that this is known to decode to the same value; otherwise
the caller decodes the text a row at a time. So no error has a rule of its own here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.encode import arrow_field, rows_schema
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.json_lines import MOST_LINE_BYTES, MOST_LINE_VALUES
from feature_pipeline.model.columns import Column, ColumnType, decode_value
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.digest import MAX_NESTING
from feature_pipeline.model.text.json_text import read_json
from feature_pipeline.osa.history.reconstructed import row_ids_schema
from feature_pipeline.projections.proof.json_texts import canonical_texts

_compute: Final[Any] = pc

_NULL: Final = b"null"
_MOST_EXACT: Final = 2.0**53
_LOST_SIGN_OR_DIGITS: Final = r":[ \t\r]*-0(?:[^0-9.])|[0-9][eE]-[0-9]{3}|\.0{20}"
"""What may be a zero with a sign that is lost, or a number that only as float64 is zero."""
_JSON_ONE_BY_ONE: Final = r"\\|[0-9][eE]|\.0{20}|(?:^|[^0-9.])[0-9]{16}"
"""What in an array or object costs its value the slower way.

These are escapes, behind which a quote ends no string, and numbers that float64 may not have.
"""
_TYPES: Final[Mapping[str, Any]] = {
    "string": str,
    "number": float,
    "integer": int,
    "boolean": bool,
    "json": msgspec.Raw,
    # decoded one by one
    "date": str,
    "date-time": str,
    "uuid": str,
}
"""By kind of column, what its JSON value is read as."""


@dataclass(frozen=True, slots=True)
class RunLines:
    """The raw output made of the rows of a hook run."""

    text: bytes
    """`features.jsonl`."""
    ids: pa.Table
    """The table of `row_ids_schema`, one row per row of the text, in its order."""


def run_lines(order: Sequence[str], srns: Mapping[str, str], rows: pa.Table) -> RunLines:
    """Return the raw output of the rows of these records, in this order; leave out other rows.

    Args:
        order: Ids of records.
        srns: Their SRNs, by id.
        rows: The rows as `HookTable.rows` returns them.
    """
    positions = _compute.index_in(
        rows.column("record_srn"), pa.array([srns[each] for each in order], pa.string())
    )
    rows = rows.filter(_compute.is_valid(positions))
    places = np.asarray(_compute.drop_null(positions)).astype(np.int64)
    in_order: Any = pa.array(np.argsort(places, kind="stable"))
    rows = rows.take(in_order).combine_chunks()
    counts = np.bincount(places, minlength=len(order))
    records, ordinals = _keys(order, counts)
    arrays = {"record": records, "row": ordinals}
    arrays |= {name: rows.column(name) for name in ("id", "record_srn", "created_at")}
    ids = pa.table(arrays, schema=row_ids_schema()).combine_chunks()
    return RunLines(_text(order, counts, rows.column("text")), ids)


def _keys(order: Sequence[str], counts: npt.NDArray[np.int64]) -> tuple[Any, Any]:
    """Return record id and ordinal of each row."""
    ends = np.cumsum(counts)
    places = np.repeat(np.arange(len(order)), counts)
    records = _compute.take(pa.array(order, pa.string()), pa.array(places))
    ordinals = np.arange(len(places)) - np.repeat(ends - counts, counts)
    return records, pa.array(ordinals.astype(np.int32))


def _text(order: Sequence[str], counts: npt.NDArray[np.int64], rows: Any) -> bytes:
    """Return a line for each record, of which each has a row, with the JSON texts of its rows."""
    if not len(rows):
        return b""
    last = np.cumsum(counts) - 1
    before, after = np.full(len(rows), ",", object), np.full(len(rows), "", object)
    before[last - counts + 1] = [
        f'{{"id":{json.dumps(each, ensure_ascii=False)},"features":[' for each in order
    ]
    after[last] = "]}\n"
    text = pa.large_string()
    parts = pa.array(before, text), rows.cast(text), pa.array(after, text)
    lines: Any = _compute.binary_join_element_wise(*parts, pa.scalar("", text)).combine_chunks()
    _, offsets, data = lines.buffers()
    ends = np.frombuffer(offsets, np.int64)[lines.offset : lines.offset + len(lines) + 1]
    return bytes(memoryview(data)[int(ends[0]) : int(ends[-1])])


def decode_lines(
    text: bytes, order: Sequence[str], columns: Sequence[Column], cardinality: Cardinality
) -> pa.Table | None:
    """Return the rows of a text of `run_lines` as `encode.rows_table` has them.

    None if they are to be decoded one by one, which may show an error.

    Args:
        text: The text. In each of its rows no key occurs twice.
        order: Ids of the records, one a line; each has rows.
        columns: The declared columns.
        cardinality: Of the rows.
    """
    has_former = any(column.former_names for column in columns)
    has_default = any(column.default is not None for column in columns)
    if has_former or has_default or not columns:
        return None
    if len(text) > MOST_LINE_BYTES or sum(map(text.count, (b",", b"[", b"{"))) > MOST_LINE_VALUES:
        return None
    try:
        lines = _decoder(columns).decode_lines(text)
        if [line.id for line in lines] != list(order):
            return None
        counts = [len(line.features) for line in lines]
        if 0 in counts or (cardinality is Cardinality.ONE and max(counts, default=0) > 1):
            return None
        rows = list(chain.from_iterable(line.features for line in lines))
        arrays = []
        for number, column in enumerate(columns):
            arrays.append(_array(column, list(map(attrgetter(f"c{number}"), rows))))
    except (
        msgspec.MsgspecError,
        RecursionError,
        OverflowError,
        InvalidInputError,
        pa.ArrowInvalid,
        _Unsure,
    ):
        return None
    if any(c.required and a.null_count for c, a in zip(columns, arrays, strict=True)):
        return None
    if any(c.kind == "number" for c in columns) and _may_lose(text):
        return None
    keys = _keys(order, np.array(counts, np.int64))
    return pa.Table.from_arrays([*keys, *arrays], schema=rows_schema(columns))


class _Unsure(Exception):
    """A value is to be decoded in the slower way."""


def _may_lose(text: bytes) -> bool:
    (is_match,) = _compute.match_substring_regex(
        pa.array([text], pa.large_binary()), _LOST_SIGN_OR_DIGITS
    )
    return bool(is_match.as_py())


def _decoder(columns: Sequence[Column]) -> Any:
    names = {f"c{number}": column.name for number, column in enumerate(columns)}
    fields = [
        # raw values may be null anyway
        (key, _TYPES[c.kind] if c.kind == "json" else _TYPES[c.kind] | None, None)
        for key, c in zip(names, columns, strict=True)
    ]
    row = msgspec.defstruct("Row", fields, rename=names, forbid_unknown_fields=True, gc=False)
    line = msgspec.defstruct("Line", [("id", str), ("features", list[row])], gc=False)  # type: ignore[valid-type]
    return msgspec.json.Decoder(line)


def _array(column: Column, values: list[Any]) -> Any:
    field_type = arrow_field(column).type
    if column.kind == "json":
        return _json_array(column, values)
    if column.kind in {"date", "date-time", "uuid"}:
        values = [None if each is None else decode_value(column, each) for each in values]
    array: Any = pa.array(values, field_type, from_pandas=False)
    if column.kind == "string" and _compute.any(_compute.match_substring(array, "\0")).as_py():
        raise _Unsure
    # beyond it, an integer may lose digits
    if column.kind == "number" and _is_any_false(_compute.less(_compute.abs(array), _MOST_EXACT)):
        raise _Unsure
    return array


def _json_array(column: Column, values: list[Any]) -> Any:
    """Return canonical JSON of the texts of arrays, or of objects."""
    texts = [None if each is None else bytes(each) for each in values]
    array: Any = pa.array([None if each == _NULL else each for each in texts], pa.binary())
    array = array.cast(pa.string())
    mark = "[" if column.type is ColumnType.ARRAY else "{"
    if _is_any_false(_compute.starts_with(array, mark)):
        raise _Unsure
    nesting = _compute.add(
        _compute.count_substring(array, "["), _compute.count_substring(array, "{")
    )
    is_slow = _compute.or_(
        _compute.match_substring_regex(array, _JSON_ONE_BY_ONE),
        _compute.greater(nesting, MAX_NESTING),
    )
    is_slow = _compute.fill_null(is_slow, False)
    fast = _compute.if_else(is_slow, None, array)
    written: Any = canonical_texts(pa.chunked_array([fast])) if len(fast) else fast
    # fewer texts than before: an object has a key twice
    if _quotes(fast) != _quotes(written):
        raise _Unsure
    slow = [
        decode_value(column, read_json(each.encode(), column.name))
        for each in array.filter(is_slow).to_pylist()
    ]
    if slow:
        written = _compute.replace_with_mask(written, is_slow, pa.array(slow, pa.string()))
    return written


def _is_any_false(values: Any) -> bool:
    return _compute.all(values).as_py() is False


def _quotes(texts: Any) -> int:
    return _compute.sum(_compute.count_substring(texts, '"')).as_py() or 0
