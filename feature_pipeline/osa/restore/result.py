"""The result of comparing and restoring one table of the server, and its lines for an operator."""

from dataclasses import dataclass, field
from enum import StrEnum

from feature_pipeline.model.text.counted import counted
from feature_pipeline.osa.restore.rows import WantedRows
from feature_pipeline.osa.restore.shape import quoted_name
from feature_pipeline.osa.tally import Tally


class State(StrEnum):
    """The result for a table."""

    EQUAL = "equal"
    """It was equal to the archive: nothing was changed."""
    DIFFERS = "differs"
    """It would be restored (a dry run)."""
    RESTORED = "restored"


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
    left_out: Tally = field(default_factory=Tally)
    """Rows whose record the server no longer has."""
    reasons: list[str] = field(default_factory=list)
    """How the server's table differs, apart from its rows."""
    differing: Tally = field(default_factory=Tally)
    """Records whose rows on the server differ from those of the archive, or are missing there."""
    only_there: Tally = field(default_factory=Tally)
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
        self.left_out.add_all(wanted.left_out.number, wanted.left_out.examples)

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
        """Return the lines for an operator."""
        name = quoted_name(self.table)
        rows = counted(self.rows, "row")
        first = {
            State.EQUAL: f"{name} already equals the archive: {rows}; nothing was changed",
            State.DIFFERS: f"{name} would be restored: {rows}",
            State.RESTORED: f"{name} is restored: {rows}, read back and equal to the archive",
        }[self.state]
        lines = [first, *(f"  {reason}" for reason in self.reasons)]
        for what, tally in (
            ("records whose rows on the server differ or are missing", self.differing),
            ("rows left out, because the server no longer has their record", self.left_out),
            ("rows that only the server has", self.only_there),
        ):
            if tally.number:
                lines.append(f"  {what}: {tally.number:,}, such as {tally.examples[0]}")
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
