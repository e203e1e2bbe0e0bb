"""Declared columns: names, types, nullability, and the decoding of JSON values."""

import math
import re
import reprlib
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Annotated, Final, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import (
    RowEncoder,
    Value,
    canonical_json,
    canonical_json_bytes,
    check_text,
    document_bytes,
    plain_json,
)
from feature_pipeline.model.text.json_text import Number, exact_integer, is_integral, nearest_float

RESERVED_COLUMNS: Final = frozenset({"record_id", "ordinal", "batch"})
"""Columns that every table has already."""

SYSTEM_COLUMNS: Final = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})
"""Names that PostgreSQL reserves in every table. Source: its manual, section 5.6."""

ColumnName = Annotated[str, Field(pattern=r"^[^\W\d][\w]{0,62}$", max_length=63)]


FormerNames = Annotated[tuple[ColumnName, ...], Field(min_length=1)]


class ColumnType(StrEnum):
    """The JSON type of a column's values."""

    STRING = "string"
    NUMBER = "number"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    ARRAY = "array"
    OBJECT = "object"


class ColumnFormat(StrEnum):
    """The meaning of a string column's text."""

    DATE = "date"
    DATE_TIME = "date-time"
    UUID = "uuid"


class Column(BaseModel):
    """One declared column of a hook's features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ColumnName = Field(
        description="Column name: a letter or _, then letters, digits, _; at most 63 bytes."
    )
    type: ColumnType = Field(description="JSON type of the values.")
    format: ColumnFormat | None = Field(
        None, description="For string columns: date, date-time or uuid."
    )
    required: bool = Field(
        False, description="Whether every row must hold a value that is not null."
    )
    unit: str | None = Field(None, description="Unit of the values, as people write it: Å, kDa, %.")
    description: str | None = Field(None, description="What the column means.")
    default: JsonValue = Field(None, description="Value of rows in which the column is absent.")
    renamed_from: ColumnName | FormerNames | None = Field(
        None,
        description="Name under which older releases wrote it, or a list of such names, the newest"
        " first.",
    )

    @field_validator("renamed_from")
    @classmethod
    def _one_name_is_a_name(cls, value: str | tuple[str, ...] | None) -> object:
        # However it was written: a declaration's digest is that of what it says.
        return value[0] if isinstance(value, tuple) and len(value) == 1 else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name.lower() in RESERVED_COLUMNS:
            raise ValueError(f"column {self.name!r}: every table has a column of that name already")
        if self.name in SYSTEM_COLUMNS:
            raise ValueError(f"column {self.name!r}: PostgreSQL has a column of that name already")
        if len(self.name.encode()) > 63:
            raise ValueError(f"column {self.name!r}: longer than 63 bytes, PostgreSQL's limit")
        if isinstance(self.renamed_from, tuple):
            names = (self.name, *self.renamed_from)
            for name in names:
                if names.count(name) > 1:
                    raise ValueError(
                        f"column {self.name!r}: renamed_from: {name!r} occurs twice, or"
                        " is the column's own name: list each former name once, the newest first"
                    )
        if self.format is not None and self.type is not ColumnType.STRING:
            raise ValueError(
                f"column {self.name!r}: format {self.format.value} is for type string, "
                f"not {self.type.value}"
            )
        if self.default is not None:
            try:
                decode_value(self, self.default)
                # declarations are stored as JSON, which has no NaN
                document_bytes(self.default)
            except InvalidInputError as error:
                raise ValueError(f"column {self.name!r}: default: {error}") from error
        return self

    @property
    def kind(self) -> str:
        """Kind of the value: the format, else the type, with `json` for arrays and objects."""
        if self.format is not None:
            return self.format.value
        return "json" if self.type in (ColumnType.ARRAY, ColumnType.OBJECT) else self.type.value

    @property
    def former_names(self) -> tuple[str, ...]:
        """The names under which older releases wrote it, newest first."""
        if self.renamed_from is None:
            return ()
        return (self.renamed_from,) if isinstance(self.renamed_from, str) else self.renamed_from

    @property
    def default_value(self) -> Value:
        """The default as a typed value; None when there is none."""
        return None if self.default is None else decode_value(self, self.default)


def check_columns(columns: Sequence[Column]) -> None:
    """Check that the columns can be in one table.

    Raises:
        InvalidInputError: Two have the same name, ignoring case, or rename from the same one.
    """
    seen: dict[str, int] = {}
    for position, column in enumerate(columns):
        for name in (column.name, *column.former_names):
            if (other := seen.setdefault(name.lower(), position)) != position:
                first = columns[other].name
                raise InvalidInputError(
                    f"columns {first!r} and {column.name!r} both use the name {name!r}"
                )


def columns_header(columns: Sequence[Column]) -> bytes:
    """Return canonical JSON of the columns' name, type and format, in order."""
    return canonical_json_bytes(
        [
            [column.name, column.type.value, column.format.value if column.format else None]
            for column in columns
        ]
    )


def row_encoder(columns: Sequence[Column]) -> RowEncoder:
    """Return the canonical encoder for rows of these columns."""
    return RowEncoder(columns_header(columns), [column.kind for column in columns])


def decode_row(
    columns: Sequence[Column],
    row: dict[str, object],
    keys: Sequence[Sequence[str]] | None = None,
) -> tuple[Value, ...]:
    """Return one feature as a tuple of typed values in the order of `columns`.

    The value of a column is that of the first of its keys that is present; if none is, the column
    takes its default. A null stays NULL. Keys that are not declared stay in the raw output only.

    Args:
        columns: The declared columns.
        row: The feature.
        keys: For each column its keys, in order; its name and former names if None.

    Raises:
        InvalidInputError: A value violates its column's declaration; the message names the column.
    """
    values: list[Value] = []
    value: Value
    for position, column in enumerate(columns):
        name: str | None = column.name
        if keys is not None or name not in row:
            others = column.former_names if keys is None else keys[position]
            name = next((key for key in others if key in row), None)
        if name is None:
            value = column.default_value
        elif (raw := row[name]) is None:
            value = None
        else:
            try:
                value = decode_value(column, raw)
            except InvalidInputError as error:
                raise InvalidInputError(f"column {name!r}: {error}") from error
        if value is None and column.required:
            subject = f"{column.name!r}: is absent" if name is None else f"{name!r}: is null"
            raise InvalidInputError(f"column {subject}, but is required")
        values.append(value)
    return tuple(values)


def decode_value(column: Column, raw: object) -> Value:
    """Return the typed value of a JSON value that is not null.

    Raises:
        InvalidInputError: It is not of the column's type or format, or PostgreSQL or float64 cannot
            represent it.
    """
    return _DECODERS[column.format or column.type](raw)


# repr itself gives up on values that are nested deeply
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def _expected(wanted: str, raw: object) -> InvalidInputError:
    shown = _SHORT.repr(raw)
    return InvalidInputError(
        f"expected {wanted}, found {shown if len(shown) <= 80 else shown[:77] + '...'}"
    )


def _decode_string(raw: object) -> str:
    if not isinstance(raw, str):
        raise _expected("a string", raw)
    check_text(raw)
    return raw


def _decode_number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float | Number):
        raise _expected("a number", raw)
    return nearest_float(raw)


def _decode_integer(raw: object) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int | float | Number):
        raise _expected("an integer", raw)
    value = exact_integer(raw)
    if value is None:
        raise _expected("an integer within 64 bits" if is_integral(raw) else "an integer", raw)
    return value


def _decode_boolean(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise _expected("true or false", raw)
    return raw


def _decode_array(raw: object) -> str:
    if not isinstance(raw, list):
        raise _expected("an array", raw)
    return _checked_json(raw)


def _decode_object(raw: object) -> str:
    if not isinstance(raw, dict):
        raise _expected("an object", raw)
    return _checked_json(raw)


def _checked_json(raw: object) -> str:
    if (text := plain_json(raw)) is not None:
        return text
    _check_json(raw)
    return canonical_json(raw)


def _check_json(raw: object) -> None:
    """Refuse numbers that are not JSON's, or that neither 64 bits nor a float64 can represent.

    `canonical_json` itself rounds what is not a 64-bit integer, as it must for read-back.
    """
    stack = [raw]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise _expected("numbers that JSON has", item)
        elif isinstance(item, int | float | Number) and exact_integer(item) is None:
            nearest_float(item)


_DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})", re.ASCII)
_INSTANT = re.compile(
    # Python 3.13 and later take 24:00:00 for the next day, earlier ones do not.
    r"\d{4}-\d{2}-\d{2}[Tt ](?:[01]\d|2[0-3]):\d{2}:\d{2}(?:\.(\d+))?([Zz]|[+-]\d{2}:[0-5]\d)",
    re.ASCII,
)


def _decode_date(raw: object) -> date:
    if not isinstance(raw, str) or not _DATE.fullmatch(raw):
        raise _expected("a date such as 2026-01-31", raw)
    try:
        return date.fromisoformat(raw)
    except ValueError as error:
        raise InvalidInputError(
            f"{raw!r} is not a date of the years 0001 to 9999: {error}"
        ) from error


def _decode_instant(raw: object) -> datetime:
    match = _INSTANT.fullmatch(raw) if isinstance(raw, str) else None
    if match is None or not isinstance(raw, str):
        raise _expected("a time with its offset, such as 2026-01-31T12:00:00Z", raw)
    fraction = match[1] or ""
    if fraction[6:].strip("0"):
        raise InvalidInputError(f"{raw!r} is finer than microseconds")
    text = raw.upper().replace("Z", "+00:00")
    if len(fraction) > 6:
        text = text.replace("." + fraction, "." + fraction[:6])
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"{raw!r} is not a time of the years 0001 to 9999 in UTC: {error}"
        ) from error


def _decode_uuid(raw: object) -> str:
    if not isinstance(raw, str) or len(raw) != 36:
        raise _expected("a UUID of 36 characters", raw)
    try:
        parsed = str(uuid.UUID(raw))
    except ValueError:
        raise _expected("a UUID of 36 characters", raw) from None
    if parsed != raw.lower():
        raise _expected("a UUID of 36 characters", raw)
    return parsed


_DECODERS: Final[dict[str, Callable[[object], Value]]] = {
    "string": _decode_string,
    "number": _decode_number,
    "integer": _decode_integer,
    "boolean": _decode_boolean,
    "array": _decode_array,
    "object": _decode_object,
    "date": _decode_date,
    "date-time": _decode_instant,
    "uuid": _decode_uuid,
}
