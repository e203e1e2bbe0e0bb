"""Text from elsewhere, quoted: cut where it is long, with the length that it had."""

from collections.abc import Iterable
from typing import Final

from pydantic import ValidationError

from feature_pipeline.model.first_few import first_few

MOST_CHARACTERS: Final = 200
"""The longest text that is quoted whole."""
MOST_ITEMS: Final = 20
MOST_REASON: Final = 2_000
"""The longest reason that is kept or shown whole."""
_MOST_PROBLEMS: Final = 3
_MOST_MESSAGE: Final = 500


def quoted(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return `text`, storable; of a long one the beginning and the length.

    Args:
        text: Of whatever length.
        most: How many characters of it are quoted.
    """
    if len(text) <= most:
        return storable(text)
    return f"{storable(text[:most])}... ({len(text):,} characters)"


def quoted_list(texts: Iterable[str], most: int = MOST_ITEMS) -> str:
    """Return the texts with commas, each cut; the first of them and how many more there are.

    Args:
        texts: Of whatever number and length.
        most: How many of them are quoted.
    """
    return first_few(map(quoted, texts), most)


def storable(text: str) -> str:
    """Return `text` with lone surrogates and NUL characters as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def problems(error: ValidationError) -> str:
    """Return what is wrong with a document: the first problems, each with its place, cut."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [
        f"{quoted('.'.join(map(str, one['loc'])) or 'the document')}:"
        f" {quoted(one['msg'], _MOST_MESSAGE)}"
        for one in found[:_MOST_PROBLEMS]
    ]
    more = len(found) - len(lines)
    return "; ".join(lines) + (f"; and {more:,} more problems" if more else "")
