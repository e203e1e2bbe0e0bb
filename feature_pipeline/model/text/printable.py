"""Text for a terminal, or for a line of a log that is read there, without control sequences."""

import re
from typing import Final

# The order of what follows them in a line would be another one: U+202A to U+202E, U+2066 to U+2069.
_CONTROLS: Final = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str, *, is_cell: bool = False) -> str:
    """Return the text with control characters as escapes, so that data cannot control a terminal.

    Lines stay lines. A tab stays one, except in a cell, where it would become spaces.
    """
    return _CONTROLS.sub(
        lambda match: match[0] if match[0] == "\t" and not is_cell else repr(match[0])[1:-1], text
    )
