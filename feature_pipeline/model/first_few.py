"""The first of many names in a sentence, and how many more there are."""

from collections.abc import Iterable


def first_few(names: Iterable[object], limit: int = 5, separator: str = ", ") -> str:
    """Return the first names, joined, and the number of the rest: `a, b, c, d, e and 3 more`.

    Args:
        names: In the order in which they are shown.
        limit: How many are shown.
        separator: What stands between two of them.
    """
    listed = [str(name) for name in names]
    more = len(listed) - limit
    joint = " " if separator == ", " else separator
    return separator.join(listed[:limit]) + (f"{joint}and {more} more" if more > 0 else "")
