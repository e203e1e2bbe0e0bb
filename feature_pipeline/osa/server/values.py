"""Values of the server's tables: as cells here, and for messages."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column, decode_value
from feature_pipeline.model.digest import Value
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.json_text import read_json
from feature_pipeline.model.text.quoting import quoted

SHOWN: Final = 60
"""Length at which a value is cut in a message."""

Row = tuple[Value, ...]


def shown(value: Value) -> str:
    """Return a value for a message."""
    return "NULL" if value is None else quoted(str(value), SHOWN)


def typed(columns: Sequence[Column], raw: Sequence[Any]) -> Row:
    """Return a row of the server's table as cells; see `_value`."""
    return tuple(_value(column, each) for column, each in zip(columns, raw, strict=True))


def _value(column: Column, raw: Any) -> Value:
    """Return a value of the server's table as a cell; as text if it cannot be one.

    The server stores lists and objects as the text of a JSON string.
    """
    if raw is None:
        return None
    if column.kind in {"string", "number", "integer", "boolean"}:
        return raw  # type: ignore[no-any-return]
    try:
        if column.kind == "json":
            raw = read_json(raw.encode(), column.name)
            if isinstance(raw, str):
                raw = read_json(raw.encode(), column.name)
            if raw is None:
                return None
        return decode_value(column, raw)
    except InvalidInputError:
        return str(raw)


def shown_ids(ids: Sequence[tuple[int, datetime]]) -> str:
    """Return the first of a record's row ids for a message."""
    texts = (f"{row_id} of {created_at:%Y-%m-%d %H:%M:%S.%f}" for row_id, created_at in ids)
    return first_few(texts, limit=1) or "none"
