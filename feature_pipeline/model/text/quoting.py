"""Quote text from outside, shortened with its full length."""

from collections.abc import Iterable
from typing import Final

from pydantic import ValidationError

from feature_pipeline.model.text.first_few import first_few

MOST_CHARACTERS: Final = 200
"""Maximum length of a text that is quoted completely."""
MOST_ITEMS: Final = 20
MOST_REASON: Final = 2_000
"""Maximum length of a reason that is stored or shown completely."""
_MOST_PROBLEMS: Final = 3
_MOST_MESSAGE: Final = 500


def quoted(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return `text`, storable; a long one as its beginning and length.

    Args:
        text: Of any length.
        most: Number of its characters that are quoted.
    """
    if len(text) <= most:
        return storable(text)
    return f"{storable(text[:most])}... ({len(text):,} characters)"


def quoted_list(texts: Iterable[str], most: int = MOST_ITEMS) -> str:
    """Return the texts with commas, each shortened; the first of them and the number of the rest.

    Args:
        texts: Of any number and length.
        most: Number of them that are quoted.
    """
    return first_few(map(quoted, texts), most)


def storable(text: str) -> str:
    """Return `text` with lone surrogates and NUL characters as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def problems(error: ValidationError) -> str:
    """Return the first problems of a document, each with its place, shortened."""
    lines = (
        f"{quoted('.'.join(map(str, one['loc'])) or 'the document')}:"
        f" {quoted(one['msg'], _MOST_MESSAGE)}"
        for one in error.errors(include_url=False, include_context=False, include_input=False)
    )
    return first_few(lines, _MOST_PROBLEMS, separator="; ")
