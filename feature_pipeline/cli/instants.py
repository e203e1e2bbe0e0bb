"""Instants on the command line."""

import re
from datetime import UTC, datetime
from typing import Final

from feature_pipeline.errors import InvalidInputError

_TOO_FINE: Final = re.compile(r"[.,]\d{7}", re.ASCII)


def parse_instant(text: str, more: str = "") -> datetime:
    """Return the instant, in UTC, of an ISO 8601 text with a UTC offset.

    Args:
        text: The argument.
        more: What else the argument may be, for the message.

    Raises:
        InvalidInputError: It is not a time, has no offset, or is finer than microseconds.
    """
    try:
        instant = datetime.fromisoformat(text)
        if instant.tzinfo is not None and _TOO_FINE.search(text) is None:
            return instant.astimezone(UTC)
    except (ValueError, OverflowError):
        problem = "that is not a time"
    else:
        problem = (
            "a time without a UTC offset is ambiguous"
            if instant.tzinfo is None
            else "a time has at most microseconds"
        )
    raise InvalidInputError(
        f"as of {text!r}: {problem}; write a time such as 2026-01-31T12:00Z{more}"
    )
