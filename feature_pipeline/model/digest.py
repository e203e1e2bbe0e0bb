"""Digests of bytes, canonical JSON, and the order-independent sums for comparing contents."""

import hashlib
import json
import math
import struct
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, BinaryIO, Final, Self

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.json_text import INT64_MAX as INT64_MAX
from feature_pipeline.model.text.json_text import INT64_MIN as INT64_MIN
from feature_pipeline.model.text.json_text import MAX_NESTING as MAX_NESTING
from feature_pipeline.model.text.json_text import Number, exact_integer

_MODULUS: Final = 2**256
_HEX: Final = frozenset("0123456789abcdef")

Value = str | int | float | bool | date | datetime | None
"""A typed cell: arrays and objects are their canonical JSON text, uuids lower-case text,
instants timezone-aware UTC datetimes."""


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The SHA-256 of exactly these bytes, written `sha256:<64 hex digits>`."""

    hex: str

    def __post_init__(self) -> None:
        if len(self.hex) != 64 or not _HEX.issuperset(self.hex):
            raise InvalidInputError(f"{self.hex!r} is not a SHA-256: 64 lower-case hex digits")

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        """Return the digest of `data`."""
        return cls(hashlib.sha256(data).hexdigest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the digest written as `sha256:<hex>`.

        Raises:
            InvalidInputError: `text` is anything else.
        """
        algorithm, _, value = text.partition(":")
        if algorithm != "sha256":
            raise InvalidInputError(f"{text!r} is not a digest: write sha256:<64 hex digits>")
        return cls(value)

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        """The first twelve hex digits, for people."""
        return self.hex[:12]


def digest_stream(stream: BinaryIO, chunk_bytes: int = 1 << 20) -> tuple[Digest, int]:
    """Return the digest and size in bytes of the rest of `stream`, read in chunks."""
    hasher, size = hashlib.sha256(), 0
    while chunk := stream.read(chunk_bytes):
        hasher.update(chunk)
        size += len(chunk)
    return Digest(hasher.hexdigest()), size


def canonical_json(value: object) -> str:
    """Return the one text of a JSON value, whatever its spelling.

    Keys are sorted by code point, no white space, non-ASCII characters unescaped. A number with a
    64-bit integral value is written as that integer (so 1, 1.0 and 1e0 are one value, and -0 is 0);
    any other number as the shortest text that gives the same float64, or as the integer that this
    float64 is.

    Raises:
        InvalidInputError: NaN, infinity, an integer beyond float64, a lone surrogate, a NUL
            character, or nesting deeper than `MAX_NESTING`.

    Source: RFC 8785 chose the same shape; it is not followed exactly because 64-bit integers
        must stay exact.
    """
    if (text := plain_json(value)) is not None:
        return text
    parts: list[str] = []
    _write_json(value, parts, 0)
    return "".join(parts)


def plain_json(value: object) -> str | None:
    """Return the canonical JSON of a value that Python's compiled writer writes in this way.

    None of a value that it writes in another way, or that has no canonical JSON. So every number of
    a value with a result is a 64-bit integer or a finite float64 that is not integral.
    """
    level, depth = [value], 0
    while level:
        below: list[object] = []
        for item in level:
            kind = type(item)
            if kind is float:
                # neither finite nor integral: NaN and infinities
                if not -math.inf < item < math.inf or item.is_integer():  # type: ignore[operator,attr-defined]
                    return None
            elif kind is int:
                if not INT64_MIN <= item <= INT64_MAX:  # type: ignore[operator]
                    return None
            elif kind is list or kind is dict:
                if depth == MAX_NESTING:
                    return None
                if kind is dict:
                    keys = set(map(type, item))  # type: ignore[call-overload]
                    if not keys <= {str}:
                        return None
                    below.extend(item.values())  # type: ignore[attr-defined]
                else:
                    below.extend(item)  # type: ignore[arg-type]
            elif kind is not str and item is not None and kind is not bool:
                return None
        level, depth = below, depth + 1
    text = write_plain(value)
    # NUL characters are escaped, lone surrogates are not
    if "\\u0000" in text or not (text.isascii() or _is_unicode(text)):
        return None
    return text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _make_plain_writer() -> Callable[[object], str]:
    encoder = json.JSONEncoder(
        sort_keys=True, separators=(",", ":"), ensure_ascii=False, check_circular=False
    )
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return encoder.encode
    # What `JSONEncoder.encode` builds for every value, which takes it longer than writing one.
    compiled: Any = make(
        None, encoder.default, json.encoder.encode_basestring, None, ":", ",", True, False, False
    )
    return lambda value: "".join(compiled(value, 0))


write_plain: Final = _make_plain_writer()
"""Writes a JSON value with sorted keys and without white space; numbers as Python's `repr`."""


def canonical_json_bytes(value: object) -> bytes:
    """Return `canonical_json` as UTF-8."""
    return canonical_json(value).encode()


def document_bytes(document: object) -> bytes:
    """Return deterministic JSON of a stored document, with numbers unchanged.

    Keys are sorted, and there is no white space.

    Unlike `canonical_json` it keeps 2.0 apart from 2 and 1.10 from 1.1, so that values of a
    depositor or a hook's author reach the hook unchanged.

    Raises:
        InvalidInputError: NaN, infinity, or text that UTF-8 cannot represent.
    """
    try:
        try:
            text = json.dumps(document, default=_meet, **_DOCUMENT)
        except _NumberMet:
            parts: list[str] = []
            _write_document(document, parts)
            text = "".join(parts)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"not a JSON document: {error}") from error


_DOCUMENT: Final[dict[str, Any]] = {
    "sort_keys": True,
    "separators": (",", ":"),
    "ensure_ascii": False,
    "allow_nan": False,
}


class _NumberMet(Exception):
    """The document has a number whose spelling Python's compiled writer cannot reproduce."""


def _meet(value: object) -> object:
    if isinstance(value, Number):
        raise _NumberMet
    raise TypeError(f"{type(value).__name__} is not a JSON value")


def _write_document(value: object, parts: list[str]) -> None:
    """Write like `json.dumps`, with the numbers' original spelling."""
    if isinstance(value, Number):
        parts.append(value.text)
    elif isinstance(value, dict):
        parts.append("{")
        for position, key in enumerate(sorted(value)):
            if position:
                parts.append(",")
            parts.append(json.dumps({key: 0}, **_DOCUMENT)[1:-2])
            _write_document(value[key], parts)
        parts.append("}")
    elif isinstance(value, list | tuple):
        parts.append("[")
        for position, item in enumerate(value):
            if position:
                parts.append(",")
            _write_document(item, parts)
        parts.append("]")
    else:
        parts.append(json.dumps(value, default=_meet, **_DOCUMENT))


def _write_json(value: object, parts: list[str], depth: int) -> None:
    if isinstance(value, str):
        parts.append(_json_string(value))
    elif value is None or isinstance(value, bool):
        parts.append("null" if value is None else "true" if value else "false")
    elif isinstance(value, int | float | Number):
        parts.append(_json_number(value))
    elif isinstance(value, dict | list | tuple) and depth == MAX_NESTING:
        raise InvalidInputError(f"nested deeper than {MAX_NESTING} levels")
    elif isinstance(value, dict):
        parts.append("{")
        for position, key in enumerate(sorted(value)):
            if position:
                parts.append(",")
            parts.append(_json_string(key))
            parts.append(":")
            _write_json(value[key], parts, depth + 1)
        parts.append("}")
    elif isinstance(value, list | tuple):
        parts.append("[")
        for position, item in enumerate(value):
            if position:
                parts.append(",")
            _write_json(item, parts, depth + 1)
        parts.append("]")
    else:
        raise InvalidInputError(f"{type(value).__name__} is not a JSON value")


def _json_string(text: str) -> str:
    if not isinstance(text, str):
        raise InvalidInputError(f"an object's key is {type(text).__name__}, not text")
    check_text(text)
    return json.dumps(text, ensure_ascii=False)


def check_text(text: str) -> None:
    """Check that PostgreSQL and UTF-8 can both represent `text`.

    Raises:
        InvalidInputError: It has a NUL character or a lone surrogate.
    """
    if "\x00" in text:
        raise InvalidInputError(f"NUL character at position {text.index(chr(0))}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"lone surrogate \\u{ord(text[error.start]):04x} at position {error.start}"
        ) from error


def _json_number(value: int | float | Number) -> str:
    integer = exact_integer(value)
    if integer is not None:
        return str(integer)
    try:
        number = float(value.text if isinstance(value, Number) else value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        problem = f"{value} is not a JSON number" if isinstance(value, float) else None
        raise InvalidInputError(problem or "a number is beyond float64")
    if number.is_integer() and INT64_MIN <= number <= INT64_MAX:
        return str(int(number))
    return repr(number)


@dataclass(frozen=True, slots=True)
class ContentSum:
    """A sum modulo 2^256 of one SHA-256 per record: equal for equal sets, in whatever order.

    Sums add up: the sum of a table is the sum of its batches' sums.
    """

    value: int = 0

    @classmethod
    def of(cls, record_digests: Iterable[bytes]) -> Self:
        """Return the sum over `record_digests`, 32 bytes each."""
        return cls(sum(int.from_bytes(digest) for digest in record_digests) % _MODULUS)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the sum written as 64 hex digits."""
        return cls(int(Digest(text).hex, 16))

    def __add__(self, other: "ContentSum") -> "ContentSum":
        return ContentSum((self.value + other.value) % _MODULUS)

    def __sub__(self, other: "ContentSum") -> "ContentSum":
        return ContentSum((self.value - other.value) % _MODULUS)

    def to_bytes(self) -> bytes:
        """Return 32 bytes, most significant first."""
        return self.value.to_bytes(32)

    def __str__(self) -> str:
        return f"{self.value:064x}"


_U32 = struct.Struct(">I").pack
_I64 = struct.Struct(">q").pack
_F64 = struct.Struct(">d").pack
_NAN = b"d" + _F64(math.nan)
_EPOCH_DATE = date(1970, 1, 1).toordinal()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _encode_text(tag: bytes, text: str) -> bytes:
    data = text.encode()
    return tag + _U32(len(data)) + data


def _encode_number(value: float) -> bytes:
    # NaN alone differs from itself; all NaNs are one value, while -0.0 and 0.0 are two.
    return _NAN if value != value else b"d" + _F64(value)


def _encode_instant(value: datetime) -> bytes:
    since = value - _EPOCH
    return b"t" + _I64((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds)


_ENCODERS: Final[dict[str, Callable[[Any], bytes]]] = {
    "string": lambda value: _encode_text(b"s", value),
    "number": _encode_number,
    "integer": lambda value: b"i" + _I64(value),
    "boolean": lambda value: b"T" if value else b"F",
    "json": lambda value: _encode_text(b"j", value),
    "date": lambda value: b"D" + _I64(value.toordinal() - _EPOCH_DATE),
    "date-time": _encode_instant,
    "uuid": lambda value: b"u" + uuid.UUID(value).bytes,
}


class RowEncoder:
    """Computes the digests of records' typed rows, by which contents are compared.

    Args:
        header: Canonical JSON of the columns' names, types and formats.
        kinds: For each column one of string, number, integer, boolean, json, date, date-time, uuid.
    """

    __slots__ = ("_encoders", "_header", "header")

    def __init__(self, header: bytes, kinds: Sequence[str]) -> None:
        self.header = header
        self._header = hashlib.sha256(_U32(len(header)) + header)
        self._encoders = [_ENCODERS[kind] for kind in kinds]

    def rows(self, rows: Sequence[Sequence[Value]]) -> bytes:
        """Return the canonical encoding of a record's rows, in the order of their ordinals."""
        parts = [_U32(len(rows))]
        for row in rows:
            parts.extend(
                b"N" if value is None else encode(value)
                for encode, value in zip(self._encoders, row, strict=True)
            )
        return b"".join(parts)

    def rows_digest(self, record_id: str, encoded_rows: bytes) -> bytes:
        """Return the 32-byte digest of one record's rows. Records without rows have none."""
        hasher = self.hasher()
        hasher.update(_encode_text(b"s", record_id) + encoded_rows)
        return hasher.digest()

    def hasher(self) -> "hashlib._Hash":
        """Return a SHA-256 that has read the header."""
        return self._header.copy()

    def outcome_digest(
        self, record_id: str, status: str, reason: str | None, encoded_rows: bytes
    ) -> bytes:
        """Return the 32-byte digest of one record's outcome."""
        hasher = self._header.copy()
        hasher.update(
            _encode_text(b"s", record_id)
            + _encode_text(b"s", status)
            + (b"N" if reason is None else _encode_text(b"s", reason))
            + encoded_rows
        )
        return hasher.digest()

    def content_digest(self, outcomes: ContentSum) -> Digest:
        """Return an artifact's digest, columns included: the data version of its partition."""
        return Digest.of(_U32(len(self.header)) + self.header + outcomes.to_bytes())
