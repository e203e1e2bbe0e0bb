"""What was compared and restored of one table of the server, and how it is told to an operator."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from feature_pipeline.model.text.counted import counted
from feature_pipeline.osa.restore.rows import WantedRows
from feature_pipeline.osa.restore.shape import quoted_name

EXAMPLES: Final = 10
"""How many examples of a difference are named."""


class State(StrEnum):
    """What became of a table."""

    EQUAL = "equal"
    """It was equal to the archive: nothing was changed."""
    DIFFERS = "differs"
    """It would be restored (a dry run)."""
    RESTORED = "restored"


@dataclass
class Named:
    """A number of rows or records, and examples of them."""

    number: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, example: str, number: int = 1) -> None:
        """Count some."""
        self.number += number
        if len(self.examples) < EXAMPLES:
            self.examples.append(example)

    def to_json(self) -> dict[str, object]:
        """Return both as JSON."""
        return {"count": self.number, "examples": self.examples}


@dataclass
class Restored:
    """What was compared and restored of one table."""

    hook: str
    table: str
    state: State = State.EQUAL
    rows: int = 0
    """Rows that the archive has for it."""
    new_ids: int = 0
    """Those of them whose id neither history nor the server's table knows."""
    left_out: Named = field(default_factory=Named)
    """Rows whose record the server no longer has."""
    reasons: list[str] = field(default_factory=list)
    """How the server's table differs, apart from its rows."""
    differing: Named = field(default_factory=Named)
    """Records whose rows on the server differ from those of the archive, or are missing there."""
    only_there: Named = field(default_factory=Named)
    """The server's rows that the archive does not have."""
    runs_added: int = 0
    releases_added: int = 0
    carried: int = 0
    """Rows that the server wrote while the table was restored."""
    replaced: str | None = None
    """The name of the table that was replaced."""

    def count(self, wanted: WantedRows) -> None:
        """Count the rows of a batch, and those that are left out."""
        self.rows += len(wanted.rows)
        if wanted.left_out:
            self.left_out.number += wanted.left_out
            self.left_out.examples += wanted.examples
            del self.left_out.examples[EXAMPLES:]

    @property
    def is_equal(self) -> bool:
        """Whether the server's table is that of the archive."""
        return not (self.reasons or self.differing.number or self.only_there.number)

    def to_json(self) -> dict[str, object]:
        """Return the result as JSON."""
        return {
            "hook": self.hook,
            "table": quoted_name(self.table),
            "state": self.state.value,
            "rows": self.rows,
            "new_ids": self.new_ids,
            "left_out": self.left_out.to_json(),
            "reasons": self.reasons,
            "differing": self.differing.to_json(),
            "only_there": self.only_there.to_json(),
            "hook_runs_added": self.runs_added,
            "releases_added": self.releases_added,
            "carried": self.carried,
            "replaced": None if self.replaced is None else quoted_name(self.replaced),
        }

    def lines(self) -> list[str]:
        """Return what to tell an operator."""
        name = quoted_name(self.table)
        rows = counted(self.rows, "row")
        first = {
            State.EQUAL: f"{name} already equals the archive: {rows}; nothing was changed",
            State.DIFFERS: f"{name} would be restored: {rows}",
            State.RESTORED: f"{name} is restored: {rows}, read back and equal to the archive",
        }[self.state]
        lines = [first, *(f"  {reason}" for reason in self.reasons)]
        for what, named in (
            ("records whose rows on the server differ or are missing", self.differing),
            ("rows left out, because the server no longer has their record", self.left_out),
            ("rows that only the server has", self.only_there),
        ):
            if named.number:
                lines.append(f"  {what}: {named.number:,}, such as {named.examples[0]}")
        if self.new_ids:
            lines.append(f"  rows with a new id: {self.new_ids:,}")
        if self.runs_added:
            releases = counted(self.releases_added, "release")
            lines.append(f"  {counted(self.runs_added, 'hook run')} and {releases} added")
        if self.carried:
            lines.append(f"  rows that the server wrote meanwhile, carried over: {self.carried:,}")
        if self.replaced is not None:
            lines.append(
                f"  the old table is {quoted_name(self.replaced)}:"
                f" `feature-pipeline osa restore --drop-old {self.hook}` drops it"
            )
        return lines
