"""JSON text: strict reading that preserves the spelling of numbers, and exact values of numbers.

All JSON is read through this module: submitted records, hook output, stored documents.

CPython's compiled parser does the reading. It does not report the position of a repeated key or of
a literal such as NaN, and it stops at some depth, so a text that it refuses is walked again, token
by token.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, NoReturn

from pydantic import PlainValidator, WithJsonSchema

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.quoting import quoted

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
MAX_NESTING: Final = 64
"""Deepest nesting of arrays and objects in an input value."""

WHITE_SPACE: Final = " \t\r\n"
BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"

_NUMBER: Final = re.compile(r"(-?)(\d+)(?:\.(\d+))?(?:[eE]([-+]?\d+))?", re.ASCII)
_MAX_INTEGER_DIGITS: Final = 4300
"""CPython refuses to convert longer texts to an int."""
_LARGEST_DIGITS: Final = 308
"""Integers with this many digits are within float64."""
_MAX_EXPONENT_DIGITS: Final = 18
_MAX_SHOWN: Final = 40


class Number:
    """A JSON number whose spelling a Python int or float would not preserve, such as `1.10`.

    Parsers return any other number as the int or float that Python writes in the same way. So every
    number can be written as it was read, and its exact value is at hand. Not a dataclass: pydantic
    would take it to pieces.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        """Take the text of a number found by a parser."""
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return shortened(self.text)


_SCALARS: Final = frozenset({str, int, float, bool, type(None), Number})


def parse_number(text: str) -> int | float | Number:
    """Return the number found by a JSON parser, spelling preserved."""
    return parse_int(text) if text.removeprefix("-").isdigit() else parse_float(text)


def parse_int(text: str) -> int | Number:
    """Return the number of digits only found by a JSON parser, spelling preserved."""
    if len(text) > _MAX_INTEGER_DIGITS or text == "-0":
        return Number(text)
    return int(text)


def parse_float(text: str) -> float | Number:
    """Return the number with point or exponent found by a JSON parser, spelling preserved."""
    value = float(text)
    return value if repr(value) == text else Number(text)


def number_text(value: int | float | Number) -> str:
    """Return the number's spelling.

    Raises:
        InvalidInputError: NaN or an infinity, which JSON does not have.
    """
    if isinstance(value, Number):
        return value.text
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInputError(f"{value} is not a JSON number")
    return repr(value) if isinstance(value, float) else str(int(value))


def exact_integer(value: int | float | Number) -> int | None:
    """Return the number as a 64-bit integer; None if its value is not one.

    The value is that of the text: `9007199254740993.0` is odd, though the nearest float64 is even.
    """
    if isinstance(value, int):
        return int(value) if INT64_MIN <= value <= INT64_MAX else None
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        if abs(value) < 2**53:
            return int(value) if value.is_integer() else None
    sign, digits, exponent = _decimal(number_text(value))
    if exponent < 0 or len(digits) + exponent > 19:
        return None
    integer = int(digits or "0") * 10**exponent * sign
    return integer if INT64_MIN <= integer <= INT64_MAX else None


def is_integral(value: int | float | Number) -> bool:
    """Return whether the number's value is an integer, of whatever size."""
    if isinstance(value, int):
        return True
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return _decimal(number_text(value))[2] >= 0


def nearest_float(value: int | float | Number) -> float:
    """Return the float64 that represents the number.

    It is the one nearest to the number's value, of two equally near ones the even. NaN and
    infinities are unchanged.

    Raises:
        InvalidInputError: The value is beyond float64; is not zero and would become zero; or is an
            integer of which a digit would be lost.
    """
    if isinstance(value, float):
        return value
    try:
        number = float(value.text if isinstance(value, Number) else value)
    except OverflowError:
        raise InvalidInputError("an integer is beyond float64") from None
    if 0 < abs(number) < 2**53:
        return number  # in range, and every integer there is exact
    text = number_text(value)
    if math.isinf(number):
        raise InvalidInputError(f"{shortened(text)} is beyond float64")
    _, digits, exponent = _decimal(text)
    if number == 0 and digits:
        raise InvalidInputError(f"{shortened(text)} is not zero, but the nearest float64 is")
    if exponent >= 0 and digits and not _keeps_digits(number, digits):
        raise InvalidInputError(
            f"{shortened(text)} has more digits than a float64 holds: the nearest one is"
            f" {int(number)}"
        )
    return number


def shortened(text: str) -> str:
    """Return `text`; if it is long, its beginning and length."""
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 12]}... ({len(text)} long)"


def _decimal(text: str) -> tuple[int, str, int]:
    """Return sign, digits without zeros at either end, and power of ten; no digits for zero."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"{text!r} is not a JSON number")
    minus, whole, fraction, power = match[1], match[2], match[3] or "", match[4] or "0"
    digits = (whole + fraction).lstrip("0")
    kept = digits.rstrip("0")
    if not kept:
        return -1 if minus else 1, "", 0
    if len(power.lstrip("+-0")) > _MAX_EXPONENT_DIGITS:
        power = f"{'-' if power.startswith('-') else ''}{'9' * _MAX_EXPONENT_DIGITS}"
    exponent = int(power) - len(fraction) + len(digits) - len(kept)
    return -1 if minus else 1, kept, exponent


def _keeps_digits(number: float, digits: str) -> bool:
    """Return whether `number`, written with the given number of significant digits, has these."""
    written = f"{abs(number):.{len(digits) - 1}e}".partition("e")[0]
    return written.replace(".", "") == digits


def check_object(value: object) -> dict[str, Any]:
    """Return `value` if it is a JSON object, numbers unchanged.

    Raises:
        InvalidInputError: It is something else, or contains something that JSON does not have.
    """
    if not isinstance(value, dict):
        raise InvalidInputError(f"expected an object, found {_kind(value)}")
    stack: list[dict[Any, Any] | list[Any]] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            for key in item:
                if not isinstance(key, str):
                    raise InvalidInputError(f"an object's key is {key!r}, not text")
        members = item.values() if isinstance(item, dict) else item
        if _SCALARS.issuperset(map(type, members)):
            continue
        for member in members:
            if isinstance(member, dict | list):
                stack.append(member)
            elif not (member is None or isinstance(member, str | bool | int | float | Number)):
                raise InvalidInputError(f"{type(member).__name__} is not a JSON value")
    return value


def _kind(value: object) -> str:
    """Return the JSON name of a value's type."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "a number")


JsonObject = Annotated[
    dict[str, Any], PlainValidator(check_object), WithJsonSchema({"type": "object"})
]
"""A field of a document that is dumped as Python values: `document_bytes` writes its numbers."""


@dataclass(frozen=True, slots=True)
class Problem:
    """The problem of a text, and its position: the index of a character."""

    position: int
    description: str


def read_json(data: bytes, where: str, first_line: int = 1) -> object:
    """Parse the one JSON value of a file, or of a line, preserving the spelling of numbers.

    A byte order mark is ignored.

    Args:
        data: The bytes.
        where: The file, for messages.
        first_line: The number of the first line of `data` in the file.

    Raises:
        InvalidInputError: The bytes are not UTF-8, or not one JSON value; an object has a duplicate
            key; a number is beyond float64 or not JSON's; text has a lone surrogate; or nesting is
            deeper than `MAX_NESTING`. The message names file, line and column.
    """
    try:
        text = data.removeprefix(BYTE_ORDER_MARK).decode()
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode()
        description = f"byte 0x{error.object[error.start]:02x} is not UTF-8"
        raise _misplaced(before, Problem(len(before), description), where, first_line) from error
    try:
        value: object = _STRICT.decode(text)
    except json.JSONDecodeError as error:
        problem = Problem(error.pos, syntax_error(text, error))
        raise _misplaced(text, problem, where, first_line) from error
    except (_Objection, RecursionError) as error:
        first_problem = find_problem(text) or Problem(0, str(error))
        raise _misplaced(text, first_problem, where, first_line) from error
    if text.count("[") + text.count("{") > MAX_NESTING or _SURROGATE.search(text):
        late_problem = find_problem(text)
        if late_problem is not None:
            raise _misplaced(text, late_problem, where, first_line)
    return value


def parse_document(data: bytes) -> object:
    """Parse the JSON of a stored document, preserving the spelling of numbers.

    Documents were checked when they were stored, by rules that were laxer once: here a number may
    be beyond float64, and nesting as deep as the interpreter allows.

    Raises:
        InvalidInputError: The bytes are not UTF-8 or not JSON, an object has a duplicate key, or
            text has a lone surrogate, which could neither be stored nor shown.
    """
    try:
        text = data.decode()
        value: object = _STORED.decode(text)
    except RecursionError as error:
        raise InvalidInputError("nested too deep to be read") from error
    except (ValueError, _Objection) as error:
        raise InvalidInputError(f"not JSON: {error}") from error
    if _SURROGATE.search(text):
        for place, leaf in leaves(value):
            if isinstance(leaf, str) and _LONE_SURROGATE.search(leaf):
                raise InvalidInputError(f"not a document: {quoted(place)} has a lone surrogate")
    return value


def leaves(document: object) -> Iterator[tuple[str, object]]:
    """Yield keys and values of a document that contain no others, each with its place.

    A place is the keys that lead there, with points between them.
    """
    stack: list[tuple[str, object]] = [("", document)]
    while stack:
        place, value = stack.pop()
        if isinstance(value, Mapping):
            for key, item in value.items():
                yield f"a key of {place or 'the document'}", key
                stack.append((f"{place}.{key}" if place else str(key), item))
        elif isinstance(value, list | tuple):
            stack += [(place, item) for item in value]
        else:
            yield place, value


def find_problem(text: str, *, is_output: bool = False) -> Problem | None:
    """Return the first problem in a JSON text that strict reading finds, besides syntax.

    Args:
        text: Any text; nothing after the first syntax error is read.
        is_output: Of a hook. Its columns check numbers and texts: here NaN, numbers beyond float64
            and lone surrogates are accepted.
    """
    keys: list[set[str]] = []
    try:
        for token in walk(text):
            kind, written = token.kind, token.text
            description: str | None = None
            if kind == "open":
                keys.append(set())
                if len(keys) > MAX_NESTING:
                    description = f"nested deeper than {MAX_NESTING} levels"
            elif kind == "close":
                keys.pop()
            elif kind in ("key", "text"):
                if control := _CONTROL.search(written):
                    return Problem(token.position + control.start(), _unescaped(control[0]))
                decoded: str = json.loads(written)
                if kind == "key" and decoded in keys[-1]:
                    description = f"key {shortened(_shown(decoded))!r} is in one object twice"
                elif not is_output and (lone := _LONE_SURROGATE.search(decoded)):
                    description = f"lone surrogate \\u{ord(lone[0]):04x}"
                if kind == "key":
                    keys[-1].add(decoded)
            elif not is_output and written in _NON_NUMBERS:
                description = f"{written} is not a JSON number"
            elif not is_output and kind == "number" and math.isinf(float(written)):
                description = f"{shortened(written)} is beyond float64"
            if description is not None:
                return Problem(token.position, description)
    except SyntaxProblem:
        return None
    return None


@dataclass(frozen=True, slots=True)
class Token:
    """A part of a JSON text: `open`, `close`, `key`, `text`, `number` or `word`."""

    kind: str
    text: str
    position: int


class SyntaxProblem(Exception):
    """The text is not JSON from `position` on."""

    def __init__(self, position: int) -> None:
        super().__init__(position)
        self.position = position


_TOKEN: Final = re.compile(
    r"""[ \t\r\n]*(?:
        (?P<text>"(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")
      | (?P<number>-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?)
      | (?P<word>true|false|null|NaN|-?Infinity)
      | (?P<mark>[\[\]{},:])
    )""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_NON_NUMBERS: Final = frozenset({"NaN", "Infinity", "-Infinity"})
_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_LONE_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def walk(text: str) -> Iterator[Token]:
    """Yield the tokens of a JSON text of any depth, without commas and colons.

    Control characters within texts, NaN and infinities are accepted.

    Raises:
        SyntaxProblem: The text is not one JSON value, when the walk arrives there.
    """
    position, open_marks, expected = 0, [""], "value"
    while match := _TOKEN.match(text, position):
        token, mark = match[0].lstrip(WHITE_SPACE), match["mark"]
        start = match.end() - len(token)
        kind = ""
        if mark in ("[", "{") and "value" in expected:
            open_marks.append(mark)
            expected, kind = ("value or ]" if mark == "[" else "key or }"), "open"
        elif mark in ("]", "}") and (mark in expected or expected == f"comma in {open_marks[-1]}"):
            if {"]": "[", "}": "{"}[mark] != open_marks.pop():
                break
            expected, kind = f"comma in {open_marks[-1]}", "close"
        elif mark == "," and expected in ("comma in [", "comma in {"):
            expected = "value" if expected == "comma in [" else "key"
        elif mark == ":" and expected == "colon":
            expected = "value"
        elif match["text"] and expected.startswith("key"):
            expected, kind = "colon", "key"
        elif not mark and expected.startswith("value"):
            kind = match.lastgroup or ""
            expected = f"comma in {open_marks[-1]}"
        else:
            break
        if kind:
            yield Token(kind, token, start)
        position = match.end()
    rest = text[position:].lstrip(WHITE_SPACE)
    if expected != "comma in " or rest:
        raise SyntaxProblem(len(text) - len(rest))


def syntax_error(text: str, error: json.JSONDecodeError) -> str:
    """Return the parser's error in words."""
    before = text[: error.pos]
    white = before[len(before.rstrip(WHITE_SPACE)) :]
    if error.msg == "Extra data" and "\r" in white and "\n" not in white:
        return "not JSON: lines end in a carriage return alone; end each with a line feed"
    if error.msg.startswith("Invalid control character"):
        return _unescaped(text[error.pos])
    return f"not JSON: {error.msg}"


def _unescaped(character: str) -> str:
    return f"control character U+{ord(character):04X} that is not escaped"


def _shown(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _misplaced(text: str, problem: Problem, where: str, first_line: int) -> InvalidInputError:
    line = first_line + text.count("\n", 0, problem.position)
    column = problem.position - text.rfind("\n", 0, problem.position)
    return InvalidInputError(f"{where}, line {line}, column {column}: {problem.description}")


class _Objection(Exception):
    """The parser has found something that strict reading refuses."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _Objection("a key is in one object twice")
    return members


def _non_number(text: str) -> NoReturn:
    raise _Objection(f"{text} is not a JSON number")


def _finite_int(text: str) -> int | Number:
    if len(text) > _LARGEST_DIGITS and math.isinf(float(text)):
        raise _Objection(f"{shortened(text)} is beyond float64")
    return parse_int(text)


def _finite_float(text: str) -> float | Number:
    if math.isinf(float(text)):
        raise _Objection(f"{shortened(text)} is beyond float64")
    return parse_float(text)


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_finite_float,
    parse_int=_finite_int,
    parse_constant=_non_number,
)
_STORED: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=parse_float,
    parse_int=parse_int,
    parse_constant=_non_number,
)
