"""PostgreSQL's limits on a table, checked against the declared columns.

Source: PostgreSQL's manual, appendix K (limits) and section 66.6 (database page layout).
"""

from collections.abc import Sequence
from typing import Final

from feature_pipeline.errors import InvalidInputError

MAX_COLUMNS: Final = 1_600
"""Of a table, those that every table has included."""
MAX_INDEX_COLUMNS: Final = 32
MAX_ROW_BYTES: Final = 8_160
"""Of a row in its page: 8,192 without the page's header and the pointer to the row."""

_HEADER_BYTES: Final = 24
_FIXED: Final = ("text", "integer4", "text")
"""record_id, ordinal and batch, which every table has, in this order."""
# Bytes and alignment of the shortest value. Longer texts and JSON are moved out of the page, but
# for those of fewer bytes than the pointer to them.
_SHORTEST: Final = {
    "number": (8, 8),
    "integer": (8, 8),
    "date-time": (8, 8),
    "date": (4, 4),
    "integer4": (4, 4),
    "uuid": (16, 1),
    "boolean": (1, 1),
    "string": (1, 1),
    "json": (1, 1),
    "text": (2, 1),
}


def check_table_limits(kinds: Sequence[str]) -> None:
    """Check that a table can have columns of these kinds, and that a row fits into a page.

    Args:
        kinds: Of the declared columns, in their order (`Column.kind`).

    Raises:
        InvalidInputError: There are more than a table can have, or a row with the shortest value in
            each is longer than a page.
    """
    if len(kinds) > MAX_COLUMNS - len(_FIXED):
        raise InvalidInputError(
            f"{len(kinds):,} columns are more than the {MAX_COLUMNS - len(_FIXED):,} that a table"
            " in PostgreSQL can have: declare arrays or objects, or fewer in `table.columns`"
        )
    size = 0
    for kind in (*_FIXED, *kinds):
        length, alignment = _SHORTEST[kind]
        size = -(-size // alignment) * alignment + length
    if _HEADER_BYTES + size > MAX_ROW_BYTES:
        raise InvalidInputError(
            f"{len(kinds):,} columns: a row with a value in each has at least"
            f" {_HEADER_BYTES + size:,} bytes, but PostgreSQL holds {MAX_ROW_BYTES:,}: declare"
            " arrays or objects, or fewer in `table.columns`"
        )
