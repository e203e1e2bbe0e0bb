"""Instants as people write them on the command line."""

import re
from datetime import UTC, datetime
from typing import Final

from feature_pipeline.errors import InvalidInputError

_TOO_FINE: Final = re.compile(r"[.,]\d{7}", re.ASCII)


def parse_instant(text: str, more: str = "") -> datetime:
    """The instant that an ISO 8601 text with its offset from UTC says, in UTC.

    Args:
        text: What was written.
        more: What else may be written, for the message.

    Raises:
        InvalidInputError: It is no time, has no offset, or is finer than microseconds.
    """
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not None and _TOO_FINE.search(text) is None:
            return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        what = "that is no time"
    else:
        what = (
            "without an offset, two places mean two times"
            if instant.tzinfo is None
            else "no time is finer than microseconds"
        )
    raise InvalidInputError(f"as of {text!r}: {what}; write a time such as 2026-01-31T12:00Z{more}")
