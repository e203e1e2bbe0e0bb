"""A number of differences with some examples, for people and for programs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

EXAMPLES: Final = 10
"""How many examples are named."""


@dataclass(slots=True)
class Tally:
    """A number of rows or records, and the first examples of them."""

    number: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str, number: int = 1) -> None:
        """Count some."""
        self.add_all(number, [example])

    def add_all(self, number: int, examples: Iterable[str]) -> None:
        """Count some with several examples."""
        self.number += number
        self.examples += islice(examples, EXAMPLES - len(self.examples))

    def to_json(self) -> dict[str, object]:
        """Return both as JSON."""
        return {"count": self.number, "examples": self.examples}
