"""Shorten lists of names in messages."""

from collections.abc import Iterable


def first_few(names: Iterable[object], limit: int = 5, separator: str = ", ") -> str:
    """Return the first names, joined, and the number of the rest: `a, b, c, d, e and 3 more`.

    Args:
        names: In display order.
        limit: Number of names shown.
        separator: Text between two of them.
    """
    listed = [str(name) for name in names]
    more = len(listed) - limit
    joint = " " if separator == ", " else separator
    return separator.join(listed[:limit]) + (f"{joint}and {more:,} more" if more > 0 else "")
