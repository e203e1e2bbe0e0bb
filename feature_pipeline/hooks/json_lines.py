"""Lines of JSON as hooks write them, each with the record it names and what is wrong with it.

What belongs here: the syntax. A line that names its record never spoils the file, whatever else is
wrong with it; a line that does not makes the whole file unparsable. Not here: what the members of
a line mean (`hooks.output`).
"""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

from feature_pipeline.columns import NumberBeyondRange
from feature_pipeline.digest import MAX_NESTING
from feature_pipeline.errors import InvalidInputError

_WHITE: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"
# CPython refuses to turn longer texts into an int; no number that long is within 64 bits anyway.
_MAX_INTEGER_DIGITS: Final = 4300


@dataclass(frozen=True, slots=True)
class Line:
    """One line: the record it names, its members, and why they do not count, if they do not."""

    number: int
    record_id: str
    members: dict[str, object]
    problem: str | None = None


def read_lines(name: str, data: bytes | BinaryIO) -> Iterator[Line]:
    """The lines of a file, in order; empty ones are skipped, a byte order mark is ignored.

    Args:
        name: The file's name, for messages.
        data: Its bytes, or a stream of them.

    Raises:
        InvalidInputError: A line is not JSON, is not an object, or has no `id` that is text. The
            message names file, line and column, and says whether the file is cut off there.
    """
    parser = _Parser()
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    for number, raw in enumerate(stream, 1):
        line = raw.removeprefix(_BOM) if number == 1 else raw
        if line.strip(_WHITE):
            yield _read_line(parser, f"{name} line {number}", number, line)


def read_document(name: str, data: bytes) -> tuple[object, str | None]:
    """The one JSON value that a file holds, and why it does not count, if it does not.

    Raises:
        InvalidInputError: It is not one JSON value; the message names line and column.
    """
    parsed = _Parser().parse(data.removeprefix(_BOM), f"{name}:", is_whole_file=True)
    return parsed.value, parsed.problem


def _read_line(parser: "_Parser", place: str, number: int, raw: bytes) -> Line:
    parsed = parser.parse(raw, place)
    members = parsed.value
    if not isinstance(members, dict):
        raise InvalidInputError(f'{place}: expected an object, {{"id": ...}}')
    if "id" not in members:
        raise InvalidInputError(f"{place}: has no id, so no record can be told")
    record_id = members["id"]
    if not isinstance(record_id, str):
        raise InvalidInputError(f"{place}: id is {str(record_id)[:40]!r}, not text")
    if parsed.names_two:
        raise InvalidInputError(f"{place}: has two ids, {record_id!r} being the last")
    return Line(number, record_id, members, parsed.problem)


@dataclass(frozen=True, slots=True)
class _Parsed:
    value: object
    problem: str | None
    names_two: bool = False


class _Parser:
    """A JSON parser that takes whatever can still be understood, and says what was wrong."""

    def __init__(self) -> None:
        self._repeated: str | None = None
        self._last: list[tuple[str, object]] = []
        hooks = {
            "object_pairs_hook": self._object,
            "parse_float": _parse_float,
            "parse_int": _parse_int,
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
            problem = f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8"
        self._take_repeated()
        value: object
        try:
            value = self._strict.decode(text)
        except RecursionError:
            return _Parsed(_skim(text, place), f"nested deeper than {MAX_NESTING} levels")
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Invalid control character"):
                raise _unparsable(text, place, error, is_whole_file) from error
            code = ord(text[error.pos])
            problem = f"column {error.colno}: control character U+{code:04X} that is not escaped"
            try:
                value = self._lenient.decode(text)
            except RecursionError:
                value = _skim(text, place)
            except json.JSONDecodeError as other:
                raise _unparsable(text, place, other, is_whole_file) from other
        if (repeated := self._take_repeated()) is None:
            return _Parsed(value, problem)
        # the outermost object is the last to be finished
        ids = {repr(item) for key, item in self._last if key == "id"}
        problem = problem or f"key {_shown(repeated)!r} is in one object twice"
        return _Parsed(value, problem, names_two=len(ids) > 1)

    def _take_repeated(self) -> str | None:
        repeated, self._repeated = self._repeated, None
        return repeated

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        members = dict(pairs)
        if len(members) != len(pairs):
            self._repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        self._last = pairs
        return members


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _parse_float(text: str) -> float | NumberBeyondRange:
    value = float(text)
    return value if math.isfinite(value) else NumberBeyondRange(text)


def _parse_int(text: str) -> int | NumberBeyondRange:
    return int(text) if len(text) < _MAX_INTEGER_DIGITS else NumberBeyondRange(text)


def _unparsable(
    text: str, place: str, error: json.JSONDecodeError, is_whole_file: bool
) -> InvalidInputError:
    # every line that was written completely ends in a line feed
    is_cut_off = not is_whole_file and not text.endswith("\n")
    where = f"line {error.lineno}, column {error.colno}" if is_whole_file else None
    what = "truncated" if is_cut_off else "not JSON"
    separator = " " if is_whole_file else ", "
    return InvalidInputError(
        f"{place}{separator}{where or f'column {error.colno}'}: {what}: {error.msg}"
    )


_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<text>"(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")
      | (?P<scalar>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null|NaN|-?Infinity)
      | (?P<mark>[\[\]{},:])
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)


def _skim(text: str, place: str) -> object:
    """`{"id": ...}` of an object too deep to be parsed, which is checked to be JSON throughout."""
    position, open_marks, expected = 0, [""], "value"
    key: str | None = None
    found: dict[str, object] = {}
    while match := _TOKEN.match(text, position):
        token, mark = match[0].lstrip(), match["mark"]
        if mark in ("[", "{") and "value" in expected:
            open_marks.append(mark)
            expected = "value or ]" if mark == "[" else "key or }"
        elif mark in ("]", "}") and (mark in expected or expected == f"comma in {open_marks[-1]}"):
            if {"]": "[", "}": "{"}[mark] != open_marks.pop():
                break
            expected = f"comma in {open_marks[-1]}"
        elif mark == "," and expected in ("comma in [", "comma in {"):
            expected = "value" if expected == "comma in [" else "key"
        elif mark == ":" and expected == "colon":
            expected = "value"
        elif match["text"] and expected.startswith("key"):
            key, expected = json.loads(token, strict=False), "colon"
        elif not mark and expected.startswith("value"):
            if len(open_marks) == 2 and open_marks[-1] == "{" and key == "id":
                record_id = json.loads(token, strict=False)
                if found.setdefault("id", record_id) != record_id:
                    raise InvalidInputError(f"{place}: has two ids, {record_id!r} being the last")
            expected = f"comma in {open_marks[-1]}"
        else:
            break
        position = match.end()
    if expected != "comma in " or text[position:].strip(_WHITE.decode()):
        state = "not JSON" if text.endswith("\n") else "truncated"
        raise InvalidInputError(f"{place}, column {position + 1}: {state}")
    return found if text.lstrip().startswith("{") else None
