"""Numbers of things, as sentences have them."""

_SIBILANTS = ("s", "x", "ch", "sh")


def counted(number: int, noun: str) -> str:
    """Return the number with its noun: `1 batch`, `2 batches`, `0 rows`."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun}{'es' if noun.endswith(_SIBILANTS) else 's'}"
