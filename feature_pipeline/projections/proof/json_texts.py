"""Write `jsonb` values as canonical JSON, a column at a time."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.arrow_values import (
    bytes_array,
    null_scalar,
    number_array,
    text_array,
    text_scalar,
)
from feature_pipeline.model.digest import INT64_MAX, INT64_MIN, write_plain
from feature_pipeline.model.text.json_text import exact_integer, parse_number

_compute: Final[Any] = pc
_LINE_FEED: Final = ord("\n")
_QUOTE: Final = ord('"')
_SPACE: Final = ord(" ")
_BRACKET: Final = ord("[")
_NOT_PLAIN: Final = (ord("{"), ord("\\"))
_SAMPLE: Final = 64
"""Texts of a column that show what most of it is."""
_NOT_AS_STORED: Final = (
    r"[{\\]|\.[0-9]*0(?:[^0-9]|$)|0\.0000|[0-9][0-9.]{15}|[0-9][eE]|-0(?:[^0-9.]|$)"
)
"""What needs more than the removal of white space to be canonical, or may need it.

These are objects, whose keys `jsonb` sorts by length; escapes, behind which a quote ends no string;
and numbers that a float64 may not have, or not in this spelling.
"""
_NOT_AS_WRITTEN: Final = r"\.0(?:[^0-9]|$)|0\.0000|[0-9][eE]|[0-9]{19}"
"""What msgspec may write in another way than `digest.canonical_json`.

These are integral float64, very small and very large ones, and integers of more than 18 digits.
"""
_read_fast: Final = msgspec.json.Decoder().decode
_write_lines: Final = msgspec.json.Encoder(order="sorted").encode_lines


def canonical_texts(values: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    """Return the canonical JSON (`digest.canonical_json`) of what `jsonb` wrote as text.

    Of most arrays, only the white space is removed. msgspec writes the rest again: it sorts keys by
    code point, and writes a float64 with the fewest digits, as `canonical_json` does. What it may
    write in another way is written by Python's parser and writer. A string that looks like a number
    of the kind in question costs its value the slower way, and nothing else.
    """
    texts: Any = values.combine_chunks()
    written: pa.Array[Any]
    if _have_strings_only(texts):
        written = _compute.replace_substring(texts, " ", "")
    elif _compute.all(_matches(texts[:_SAMPLE], _NOT_AS_STORED)).as_py():
        # The pattern need not be looked for: what writes the few also writes the rest.
        written = _by_msgspec(texts)
    else:
        written = _split(texts, _NOT_AS_STORED, _without_spaces, _by_msgspec)
    return written


def _have_strings_only(texts: Any) -> bool:
    """Return whether all values are arrays of strings without spaces, if that is quickly seen.

    Without objects, a text has as many separators as scalars and empty arrays but one, and `jsonb`
    writes a space behind each separator. So if all texts together have as many spaces as strings
    but one each, then no string has a space, and nothing but strings is in them.
    """
    offsets, data = _buffers(texts)
    starts = offsets[:-1][np.diff(offsets) > 1]
    if len(starts) == 0 or len(starts) < len(texts) - texts.null_count:
        return False
    if not ((data[starts] == _BRACKET).all() and (data[starts + 1] == _QUOTE).all()):
        return False
    if any((data == one).any() for one in _NOT_PLAIN):
        return False
    strings = np.count_nonzero(data == _QUOTE) // 2
    return bool(np.count_nonzero(data == _SPACE) == strings - len(starts))


def _split(texts: Any, pattern: str, few: Callable[[Any], Any], many: Callable[[Any], Any]) -> Any:
    """Return `few` of the texts without a match of the pattern, and `many` of the others."""
    matched = _matches(texts, pattern)
    if not _compute.any(matched).as_py():
        return few(texts)
    if _compute.all(matched).as_py():
        return many(texts)
    written = _compute.replace_with_mask(texts, matched, many(texts.filter(matched)))
    others = _compute.invert(matched)
    return _compute.replace_with_mask(written, others, few(texts.filter(others)))


def _matches(texts: Any, pattern: str) -> Any:
    """Return for each text whether it matches; NULL does not."""
    matched = _compute.match_substring_regex(texts, pattern)
    return _compute.and_kleene(texts.is_valid(), matched) if texts.null_count else matched


def _without_spaces(texts: Any) -> Any:
    """Remove the spaces between values; in texts without escapes, quotes alternate."""
    if _has_spaces_between_only(texts):
        return _compute.replace_substring(texts, " ", "")
    offsets, data = _buffers(texts)
    is_inside = np.bitwise_xor.accumulate(data == _QUOTE)
    is_kept = is_inside | (data != _SPACE)
    removed_before = np.searchsorted(np.flatnonzero(~is_kept), offsets)
    return _array(texts, (offsets - removed_before).astype(np.int32), data[is_kept])


def _has_spaces_between_only(texts: Any) -> bool:
    """Return whether no string has a space, if that is quickly seen.

    `jsonb` writes a space between two strings of a text, so no text has fewer spaces than strings
    but one. If all texts together have just as many, none is left for the strings.
    """
    _, data = _buffers(texts)
    octets = data.tobytes()
    strings = octets.count(b'"') // 2
    texts_with_strings = _compute.sum(_compute.match_substring(texts, '"'), min_count=0).as_py()
    return octets.count(b" ") == strings - texts_with_strings or strings == 0


def _by_msgspec(texts: Any) -> Any:
    try:
        written = _written_again(texts)
    except (msgspec.MsgspecError, OverflowError, RecursionError):
        # Integers beyond 64 bits, or deeper than it follows.
        return _by_python(texts)
    unsure = _matches(written, _NOT_AS_WRITTEN)
    if not _compute.any(unsure).as_py():
        return written
    return _compute.replace_with_mask(written, unsure, _by_python(texts.filter(unsure)))


def _written_again(texts: Any) -> Any:
    # Parsed and written as one list: a call costs more than a small value.
    ends = number_array(pa.int32(), np.array([0, len(texts)], np.int32))
    filled = _compute.fill_null(texts, text_scalar("null"))
    from_arrays: Any = pa.ListArray.from_arrays
    (joined,) = _compute.binary_join(from_arrays(ends, filled), text_scalar(","))
    with _without_collection():
        lines = np.frombuffer(_write_lines(_read_fast(b"[%b]" % joined.as_buffer())), np.uint8)
    # A line feed in a text is escaped, so each one is an end.
    is_end = lines == _LINE_FEED
    offsets = np.zeros(len(texts) + 1, np.int32)
    offsets[1:] = np.flatnonzero(is_end) - np.arange(len(texts))
    return _array(texts, offsets, lines[~is_end])


@contextmanager
def _without_collection() -> Iterator[None]:
    """Keep Python from looking for garbage, which it does for every few hundred arrays made.

    The values of a chunk are all in use until they are written; looking takes several times as long
    as parsing. A thread that finds it off leaves it to the one that has turned it off.
    """
    is_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_on:
            gc.enable()


def _by_python(texts: Any) -> Any:
    written = ["" if text is None else _canonical_text(text) for text in texts.to_pylist()]
    return _with_nulls_of(texts, text_array(written))


def _buffers(texts: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """Return the offsets of the texts and their bytes, both from 0."""
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    whole = np.frombuffer(data or b"", np.uint8)
    return ends - ends[0], whole[ends[0] : ends[-1]]


def _array(like: Any, offsets: npt.NDArray[np.int32], data: npt.NDArray[np.uint8]) -> Any:
    """Return texts with NULL where `like` has it."""
    return _with_nulls_of(like, bytes_array(pa.string(), offsets, data))


def _with_nulls_of(like: Any, texts: Any) -> Any:
    if like.null_count == 0:
        return texts
    return _compute.if_else(like.is_valid(), texts, null_scalar(pa.string()))


def _canonical_text(text: str) -> str:
    """Return `canonical_json` of a JSON text, using Python's compiled parser and writer.

    Only numbers need another spelling than the writer's, so these are replaced in parsing.
    """
    return write_plain(_DECODE(text))


def _number(text: str) -> int | float:
    value = float(text)
    if not value.is_integer() or abs(value) > INT64_MAX + 1:
        return value
    exact = exact_integer(parse_number(text)) if abs(value) >= 2**53 else int(value)
    if exact is not None:
        return exact
    return int(value) if INT64_MIN <= value <= INT64_MAX else value


def _integer(text: str) -> int | float:
    value = int(text)
    return value if INT64_MIN <= value <= INT64_MAX else _number(text)


_DECODE: Final = json.JSONDecoder(parse_float=_number, parse_int=_integer).decode
