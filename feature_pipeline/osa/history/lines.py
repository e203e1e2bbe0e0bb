"""The raw output that is made of a hook run's rows, and its decoding a column at a time.

Decoding reads the text that is stored, as a hook's output is read (`hooks.output`). It does so a
column at a time where a value is one that this is known to decode to the same value. The lines of
other values are decoded by the decoder of hooks' output, so no error has a rule of its own here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.encode import arrow_field, rows_schema, rows_table
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.json_lines import MOST_LINE_BYTES, MOST_LINE_VALUES
from feature_pipeline.hooks.output import FEATURES, decode_output
from feature_pipeline.model.columns import Column, ColumnType, decode_value
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.digest import INT64_MAX, INT64_MIN, MAX_NESTING
from feature_pipeline.model.outcomes import DecodedOutput, Outcome
from feature_pipeline.model.text.json_text import read_json
from feature_pipeline.osa.history.reconstructed import row_ids_schema
from feature_pipeline.projections.proof.json_texts import canonical_texts

_compute: Final[Any] = pc

_Flags: TypeAlias = npt.NDArray[np.bool_]

_NULL: Final = b"null"
_MOST_EXACT: Final = 2.0**53
_NOT_BY_COLUMN: Final = r":[ \t\r]*(?:-0[^0-9.]|-?(?:NaN|Infinity))|[0-9][eE]-[0-9]{3}|\.0{20}"
"""What may be a zero with a sign that is lost, no number of JSON, or a number that only as float64
is zero.
"""
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


@dataclass(frozen=True, slots=True)
class DecodedLines:
    """The content of a text of `run_lines`."""

    rows: pa.Table
    """Rows of the records that passed, in order, as `encode.rows_table` has them."""
    one_by_one: DecodedOutput
    """Of the records whose lines were not decoded by column; rows of those that passed are in
    `rows` as well.
    """

    @property
    def others(self) -> dict[str, Outcome]:
        """The outcomes of records without rows."""
        return {each.record_id: each for each in self.one_by_one.outcomes if not each.rows}


def decode_lines(
    text: bytes, order: Sequence[str], columns: Sequence[Column], cardinality: Cardinality
) -> DecodedLines:
    """Decode a text of `run_lines` as a hook's output is decoded.

    Args:
        text: The text. In each of its rows no key occurs twice.
        order: Ids of the records, one a line; each has rows.
        columns: The declared columns.
        cardinality: Of the rows.

    Raises:
        InvalidInputError: It is not the text of these records.
    """
    lines = text.split(b"\n")[:-1]
    rows, places, is_left = _by_column(lines, order, columns, cardinality)
    if not is_left.any():
        return DecodedLines(rows, DecodedOutput(()))
    left = np.flatnonzero(is_left).tolist()
    # Empty lines are skipped, and those of errors keep their numbers.
    of_left = b"".join((line if is_left[at] else b"") + b"\n" for at, line in enumerate(lines))
    ids = [order[at] for at in left]
    decoded = decode_output({FEATURES: of_left}, ids, columns, cardinality, {})
    further = rows_table(columns, decoded.outcomes)
    counts = [len(outcome.rows) for outcome in decoded.outcomes]
    all_places = np.concatenate([places, np.repeat(np.array(left, np.int64), counts)])
    in_order: Any = pa.array(np.argsort(all_places, kind="stable"))
    return DecodedLines(pa.concat_tables([rows, further]).take(in_order).combine_chunks(), decoded)


def _by_column(
    lines: Sequence[bytes],
    order: Sequence[str],
    columns: Sequence[Column],
    cardinality: Cardinality,
) -> tuple[pa.Table, npt.NDArray[np.int64], _Flags]:
    """Decode lines by column.

    Returns:
        The rows, the position of each one's line, and which lines are to be decoded otherwise.
    """
    nothing = rows_schema(columns).empty_table(), np.zeros(0, np.int64)
    has_former = any(column.former_names for column in columns)
    has_default = any(column.default is not None for column in columns)
    if has_former or has_default or not columns:
        return *nothing, np.ones(len(lines), np.bool_)
    is_left = _unsure_lines(lines)
    parsed = _parsed(_decoder(columns), lines, is_left)
    for at, line in parsed.items():
        count = len(line.features)
        is_left[at] = (
            line.id != order[at] or not count or (cardinality is Cardinality.ONE and count > 1)
        )
    chosen = [(at, line) for at, line in parsed.items() if not is_left[at]]
    if not chosen:
        return *nothing, is_left
    rows = list(chain.from_iterable(line.features for _, line in chosen))
    counts = np.array([len(line.features) for _, line in chosen], np.int64)
    places = np.repeat(np.array([at for at, _ in chosen], np.int64), counts)
    is_odd = np.zeros(len(rows), np.bool_)
    arrays = []
    for number, column in enumerate(columns):
        array, is_odd_value = _array(column, list(map(attrgetter(f"c{number}"), rows)))
        arrays.append(array)
        is_odd |= is_odd_value
        if column.required:
            is_odd |= np.asarray(array.is_null())
    keys = _keys([order[at] for at, _ in chosen], counts)
    table = pa.Table.from_arrays([*keys, *arrays], schema=rows_schema(columns))
    if is_odd.any():
        is_left[places[is_odd]] = True
        is_kept = ~is_left[places]
        table, places = table.filter(pa.array(is_kept)), places[is_kept]
    return table, places, is_left


def _unsure_lines(lines: Sequence[bytes]) -> _Flags:
    """Return which lines may have a value that is decoded one by one, or are too long."""
    texts: Any = pa.array(lines, pa.large_binary())
    is_unsure: _Flags = np.asarray(_compute.match_substring_regex(texts, _NOT_BY_COLUMN)).copy()
    if sum(map(_values, lines)) > MOST_LINE_VALUES or sum(map(len, lines)) > MOST_LINE_BYTES:
        for at, line in enumerate(lines):
            is_unsure[at] |= _values(line) > MOST_LINE_VALUES or len(line) >= MOST_LINE_BYTES
    return is_unsure


def _values(line: bytes) -> int:
    """Return how many values a line has at most."""
    return line.count(b",") + line.count(b"[") + line.count(b"{")


def _parsed(decoder: Any, lines: Sequence[bytes], is_left: _Flags) -> dict[int, Any]:
    """Return the parsed lines, by position; set the flag of those that cannot be parsed."""
    chosen: list[int] = np.flatnonzero(~is_left).tolist()
    try:
        return dict(
            zip(chosen, decoder.decode_lines(b"\n".join(lines[at] for at in chosen)), strict=True)
        )
    except (msgspec.MsgspecError, RecursionError):
        pass
    parsed: dict[int, Any] = {}
    for at in chosen:
        try:
            parsed[at] = decoder.decode(lines[at])
        except (msgspec.MsgspecError, RecursionError):
            is_left[at] = True
    return parsed


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


def _array(column: Column, values: list[Any]) -> tuple[Any, _Flags]:
    """Return the values, and which of them are to be decoded one by one."""
    if column.kind == "json":
        return _json_array(column, values)
    is_odd = np.zeros(len(values), np.bool_)
    if column.kind in {"date", "date-time", "uuid"}:
        values, is_odd = _decoded_values(column, values)
    if column.kind == "integer":
        is_odd = np.array([v is not None and not INT64_MIN <= v <= INT64_MAX for v in values])
        values = [None if odd else v for v, odd in zip(values, is_odd.tolist(), strict=True)]
    array: Any = pa.array(values, arrow_field(column).type, from_pandas=False)
    if column.kind == "string":
        is_odd = _flags(_compute.match_substring(array, "\0"))
    if column.kind == "number":
        # beyond it, an integer may lose digits
        is_odd = _flags(_compute.invert(_compute.less(_compute.abs(array), _MOST_EXACT)))
    return array, is_odd


def _decoded_values(column: Column, values: Sequence[Any]) -> tuple[list[Any], _Flags]:
    """Return the values of a column, None for those that are refused, and which are."""
    decoded: list[Any] = []
    is_odd = np.zeros(len(values), np.bool_)
    for at, value in enumerate(values):
        try:
            decoded.append(None if value is None else decode_value(column, value))
        except InvalidInputError:
            decoded.append(None)
            is_odd[at] = True
    return decoded, is_odd


def _json_array(column: Column, values: list[Any]) -> tuple[Any, _Flags]:
    """Return canonical JSON of the texts of arrays, or of objects, and which are refused."""
    texts = [None if each is None else bytes(each) for each in values]
    array: Any = pa.array([None if each == _NULL else each for each in texts], pa.binary())
    array = array.cast(pa.string())
    mark = "[" if column.type is ColumnType.ARRAY else "{"
    is_odd = _flags(_compute.invert(_compute.starts_with(array, mark)))
    nesting = _compute.add(
        _compute.count_substring(array, "["), _compute.count_substring(array, "{")
    )
    is_slow = ~is_odd & _flags(
        _compute.or_(
            _compute.match_substring_regex(array, _JSON_ONE_BY_ONE),
            _compute.greater(nesting, MAX_NESTING),
        )
    )
    fast = _compute.if_else(pa.array(is_slow | is_odd), None, array)
    written: Any = canonical_texts(pa.chunked_array([fast])) if len(fast) else fast
    # fewer texts than before: an object has a key twice
    is_odd |= _flags(_compute.not_equal(_quotes(fast), _quotes(written)))
    if is_slow.any():
        read, is_refused = _read_values(column, array.filter(pa.array(is_slow)).to_pylist())
        written = _compute.replace_with_mask(written, pa.array(is_slow), read)
        is_odd[np.flatnonzero(is_slow)[is_refused]] = True
    return written, is_odd


def _read_values(column: Column, texts: Sequence[str]) -> tuple[Any, _Flags]:
    """Return what a column decodes texts of arrays or objects to, and which are refused."""
    decoded: list[Any] = []
    for text in texts:
        try:
            decoded.append(decode_value(column, read_json(text.encode(), column.name)))
        except InvalidInputError:
            decoded.append(None)
    return pa.array(decoded, pa.string()), np.array([each is None for each in decoded], np.bool_)


def _flags(values: Any) -> _Flags:
    """Return which values are true; NULL is not."""
    flags: _Flags = np.asarray(_compute.fill_null(values, False)).copy()
    return flags


def _quotes(texts: Any) -> Any:
    return _compute.count_substring(texts, '"')
