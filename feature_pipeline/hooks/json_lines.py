"""Parse hooks' JSON lines: for each, its record and its error, if any.

A line that names its record never invalidates the file, whatever else is wrong with it; a line that
does not makes the whole file unparsable.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.json_text import (
    BYTE_ORDER_MARK,
    MAX_NESTING,
    WHITE_SPACE,
    SyntaxProblem,
    find_problem,
    parse_float,
    parse_int,
    syntax_error,
    walk,
)
from feature_pipeline.model.text.quoting import quoted

_WHITE: Final = WHITE_SPACE.encode()
MOST_LINE_BYTES: Final = 64 << 20
"""The longest line, or document, that is parsed."""
MOST_LINE_VALUES: Final = 4_000_000
"""Maximum number of values in one line: each takes some 60 bytes of memory, however short it is."""
_BEGINNING_BYTES: Final = 8192
_FIRST_ID: Final = re.compile(
    rb'[ \t\r]*\{[ \t\r]*"id"[ \t\r]*:[ \t\r]*("(?:[^"\\\x00-\x1f]|\\.)*")', re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line: the record it names, its members, and its error, if any."""

    number: int
    record_id: str
    members: dict[str, object]
    problem: str | None = None


def read_lines(name: str, data: bytes | BinaryIO) -> Iterator[Line]:
    """Yield the lines of a file, in order; empty ones are skipped, a byte order mark is ignored.

    Args:
        name: The file's name, for messages.
        data: Its bytes, or a stream of them.

    Raises:
        InvalidInputError: A line is not JSON, is not an object, or has no `id` that is text. The
            message names file, line and column, and whether the file is cut off there.
    """
    parser = _Parser()
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    number = 0
    while raw := stream.readline(MOST_LINE_BYTES + 1):
        number += 1
        line = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
        place = f"{name} line {number}"
        if (problem := excess(line)) is not None:
            size = len(line) + (_rest_of_line(stream, line) if len(line) > MOST_LINE_BYTES else 0)
            problem = _bytes(size) if size > MOST_LINE_BYTES else problem
            yield _too_much(place, number, line, problem)
        elif line.strip(_WHITE):
            yield _read_line(parser, place, number, line)


def read_document(name: str, data: bytes) -> tuple[object, str | None]:
    """Return the one JSON value of a file, and its error, if any.

    Raises:
        InvalidInputError: It is not one JSON value; the message names line and column.
    """
    if (problem := excess(data)) is not None:
        raise InvalidInputError(f"{name}: {problem}")
    parsed = _Parser().parse(data.removeprefix(BYTE_ORDER_MARK), f"{name}:", is_whole_file=True)
    return parsed.value, parsed.problem


def _rest_of_line(stream: BinaryIO, line: bytes) -> int:
    """Skip the rest of the line that begins with `line`; return its length."""
    size = 0
    while line and not line.endswith(b"\n"):
        line = stream.readline(1 << 20)
        size += len(line)
    return size


def _bytes(size: int) -> str:
    return f"has {size:,} bytes; at most {MOST_LINE_BYTES:,} are read"


def excess(data: bytes) -> str | None:
    """Return the error if a line or document is too large to be parsed, otherwise None."""
    if len(data) > MOST_LINE_BYTES:
        return _bytes(len(data))
    if sum(map(data.count, (b",", b"[", b"{"))) <= MOST_LINE_VALUES:
        return None
    count = 0
    try:
        for token in walk(data.decode("utf-8", "replace")):
            count += token.kind not in ("key", "close")
            if count > MOST_LINE_VALUES:
                return f"has more than {MOST_LINE_VALUES:,} values, which is the most that is read"
    except SyntaxProblem:
        pass  # the parser says where, before it has made more values than these
    return None


def _too_much(place: str, number: int, line: bytes, problem: str) -> Line:
    """Return the line that is too large to be parsed, if it begins with the id of its record."""
    if (match := _FIRST_ID.match(line, 0, _BEGINNING_BYTES)) is not None:
        record_id = json.loads(match[1].decode("utf-8", "surrogateescape"))
        return Line(number, record_id, {}, problem)
    raise InvalidInputError(
        f'{place}: {problem}. Its record is unknown, because the line does not begin with "id"'
    )


def _read_line(parser: "_Parser", place: str, number: int, raw: bytes) -> Line:
    parsed = parser.parse(raw, place)
    members = parsed.value
    if not isinstance(members, dict):
        raise InvalidInputError(f'{place}: expected an object, {{"id": ...}}')
    if "id" not in members:
        raise InvalidInputError(f"{place}: has no id, so its record is unknown")
    record_id = members["id"]
    if not isinstance(record_id, str):
        raise InvalidInputError(f"{place}: id is {quoted(str(record_id))!r}, not text")
    if parsed.names_two:
        raise InvalidInputError(f"{place}: has two ids, {quoted(record_id)!r} being the last")
    return Line(number, record_id, members, parsed.problem)


@dataclass(frozen=True, slots=True)
class _Parsed:
    value: object
    problem: str | None
    names_two: bool = False


class _Parser:
    """A JSON parser that continues after errors and records them."""

    def __init__(self) -> None:
        self._has_repeated = False
        self._last: list[tuple[str, object]] = []
        hooks = {
            "object_pairs_hook": self._object,
            "parse_float": parse_float,
            "parse_int": parse_int,
        }
        self._strict = json.JSONDecoder(**hooks)  # type: ignore[arg-type]
        self._lenient = json.JSONDecoder(strict=False, **hooks)  # type: ignore[arg-type]

    def parse(self, raw: bytes, place: str, is_whole_file: bool = False) -> _Parsed:
        problem: str | None = None
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            # bytes that are not UTF-8 become lone surrogates, so that the rest can be read
            text = raw.decode("utf-8", "surrogateescape")
            column = _column(text, len(raw[: error.start].decode()))
            problem = f"column {column}: byte 0x{raw[error.start]:02x} is not UTF-8"
        self._has_repeated = False
        value: object
        try:
            value = self._strict.decode(text)
        except RecursionError:
            return _Parsed(_skim(text, place), f"nested deeper than {MAX_NESTING} levels")
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Invalid control character"):
                raise _unparsable(text, place, error, is_whole_file) from error
            problem = problem or f"column {error.colno}: {syntax_error(text, error)}"
            try:
                value = self._lenient.decode(text)
            except RecursionError:
                value = _skim(text, place)
            except json.JSONDecodeError as other:
                raise _unparsable(text, place, other, is_whole_file) from other
        if not self._has_repeated:
            return _Parsed(value, problem)
        # the outermost object is the last to be finished
        ids = {repr(item) for key, item in self._last if key == "id"}
        if problem is None and (objection := find_problem(text, is_output=True)) is not None:
            problem = f"column {_column(text, objection.position)}: {objection.description}"
        return _Parsed(value, problem, names_two=len(ids) > 1)

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            self._has_repeated = True
        self._last = pairs
        return members


def _column(text: str, position: int) -> int:
    """Return the column, counted from 1, in characters."""
    return position - text.rfind("\n", 0, position)


def _unparsable(
    text: str, place: str, error: json.JSONDecodeError, is_whole_file: bool
) -> InvalidInputError:
    problem = syntax_error(text, error)
    # every line that was written completely ends in a line feed
    if not is_whole_file and not text.endswith("\n") and "carriage return" not in problem:
        problem = problem.replace("not JSON", "truncated", 1)
    where = f" line {error.lineno}" if is_whole_file else ""
    return InvalidInputError(f"{place}{where}, column {error.colno}: {problem}")


def _skim(text: str, place: str) -> object:
    """Return `{"id": ...}` of an object too deep to be parsed, after checking that it is JSON."""
    depth, key = 0, ""
    members: dict[str, object] = {}
    try:
        for token in walk(text):
            if token.kind == "open":
                depth += 1
            elif token.kind == "close":
                depth -= 1
            elif token.kind == "key":
                key = json.loads(token.text, strict=False) if depth == 1 else key
            elif depth == 1 and key == "id":
                record_id = json.loads(token.text, strict=False)
                if members.setdefault("id", record_id) != record_id:
                    shown = quoted(str(record_id))
                    raise InvalidInputError(f"{place}: has two ids, {shown!r} being the last")
    except SyntaxProblem as error:
        state = "not JSON" if text.endswith("\n") else "truncated"
        raise InvalidInputError(
            f"{place}, column {_column(text, error.position)}: {state}"
        ) from error
    return members if text.lstrip(WHITE_SPACE).startswith("{") else None
