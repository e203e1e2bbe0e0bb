"""Escape text for Dagster's pages, which render Markdown.

Ids, reasons, notes, logs and names come from hooks, or from any writer of an object.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from feature_pipeline.model.text.printable import printable

# An underscore within a word is none: names of columns stay as they are.
_MARKUP: Final = re.compile(r"[\\|`*~\[\]<>&]|(?<![^\W_])_|_(?![^\W_])")
_BACKTICKS: Final = re.compile("`+")
_BEGINS_BLOCK: Final = re.compile(r"^([#+\-=]|\d+[.)])(?=[\s#+\-=]|$)")


class Markup(str):
    """Text that is Markdown already."""

    __slots__ = ()


def plain(text: str) -> str:
    """Return one line of Markdown that renders as this text, such as a SMILES or an id."""
    if isinstance(text, Markup):
        return text
    shown = _MARKUP.sub(r"\\\g<0>", printable(" ".join(text.split()), is_cell=True))
    # At its beginning it would be a heading, a list or a line.
    return _BEGINS_BLOCK.sub(_escaped_beginning, shown)


def _escaped_beginning(match: "re.Match[str]") -> str:
    return f"{match[1][:-1]}\\{match[1][-1]}"


def code(text: str) -> str:
    """Return the text as code in a line."""
    shown = printable(" ".join(text.split()), is_cell=True)
    fence = "`" * (_longest_run(shown) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def fenced(text: str) -> str:
    """Return the text as a block of code, which no content can end."""
    shown = printable(text)
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}\n{shown}\n{fence}"


def bullets(texts: Iterable[str]) -> str:
    """Return a list of texts."""
    return "\n".join(f"- {plain(text)}" for text in texts)


def table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table whose cells cannot break out of it."""
    rows = [heads, [Markup("---")] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(plain(cell) for cell in row)} |" for row in rows)


def _longest_run(text: str) -> int:
    return max((len(run) for run in _BACKTICKS.findall(text)), default=0)
