"""JSON that a program in any language can read, with one rule for non-finite numbers.

NaN and the infinities are the strings "NaN", "Infinity" and "-Infinity". An instant is ISO 8601 in
UTC and ends with `Z`.
"""

import json
import math
from datetime import date, datetime

from feature_pipeline.model.digest import Value
from feature_pipeline.model.text.json_text import Number, exact_integer


def json_number(value: float) -> float | str:
    """Return the number, or the string that represents a non-finite one."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def json_instant(value: datetime) -> str:
    """Return the instant as ISO 8601; in UTC it ends with `Z`."""
    return value.isoformat().replace("+00:00", "Z")


def json_cell(value: Value, *, is_json: bool) -> object:
    """Return a typed cell as a JSON value, for `json_text`.

    Args:
        value: The cell.
        is_json: Whether its text is that of an array or object, to be returned as the value.
    """
    if value is None:
        return None
    if is_json:
        return json.loads(str(value))
    return _finite(value)


def json_text(document: object, *, indent: int | None = None, is_ascii: bool = False) -> str:
    """Return the document as JSON; values without a JSON type become text.

    Args:
        document: What to write.
        indent: Columns of indentation per level; everything on one line if None.
        is_ascii: Escape other characters, for a stream of unknown encoding.
    """
    return json.dumps(
        _finite(document), ensure_ascii=is_ascii, allow_nan=False, indent=indent, default=str
    )


def _finite(value: object) -> object:
    if isinstance(value, float):
        return json_number(value)
    if isinstance(value, Number):
        integer = exact_integer(value)
        return json_number(float(value.text)) if integer is None else integer
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, datetime):
        return json_instant(value)
    return value.isoformat() if isinstance(value, date) else value
