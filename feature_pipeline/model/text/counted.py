"""Numbers with their nouns, as a sentence has them."""

import re

_SIBILANTS = ("s", "x", "ch", "sh")


def counted(number: int, noun: str) -> str:
    """Return the number with its noun: `1 batch`, `2 entries`, `1,000 rows`."""
    if number == 1:
        return f"1 {noun}"
    if noun.endswith(_SIBILANTS):
        plural = f"{noun}es"
    else:
        plural = re.sub(r"([^aeiou])y$", r"\1ie", noun) + "s"
    return f"{number:,} {plural}"
