"""Results as text for users or JSON for programs.

Output is data: markup, emoji codes and terminal control sequences in it have no effect, and in a
pipe nothing is folded or cut.
"""

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.json_values import json_instant, json_number, json_text
from feature_pipeline.model.text.printable import printable as printable

SHOWN_PROBLEMS: Final = 20
_INDENT: Final = "\n  "

_UNFOLDED_COLUMNS: Final = 1_000_000
"""Width of a non-terminal: longer than any line."""


class Output:
    """Print results on standard output and progress on standard error."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        # Descriptors of its own: `muted` silences the process's, not these.
        self.console = _console(sys.stdout)
        self._errors = _console(sys.stderr)

    def say(self, text: str) -> None:
        """Print lines for users; nothing with --json."""
        if not self.as_json:
            self.console.print(Text(printable(text)), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print lines on standard error, also with --json."""
        self._errors.print(Text(printable(text)), soft_wrap=True)

    def problems(self, title: str, problems: Mapping[str, str]) -> None:
        """Print what is wrong with each of some batches on standard error; nothing if none is.

        Args:
            title: Describes them; their number is put before it.
            problems: By batch.
        """
        for line in _named(title, problems):
            self.warn(line)

    def reasons(self, title: str, reasons: Mapping[str, str]) -> None:
        """Print reasons as `problems` does, on standard output: the archive is not at fault.

        Only the first line of each reason is shown: the others are the end of a hook's log.
        """
        first = {name: reason.partition("\n")[0] for name, reason in reasons.items()}
        for line in _named(title, first):
            self.say(line)

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[object]],
        right: Collection[int] = (),
    ) -> None:
        """Print a table for users; nothing with --json.

        Args:
            title: Printed above it.
            columns: Headings.
            rows: Cells. Texts are unchanged, other values are formatted by `show`. A column of
                numbers is right-aligned.
            right: Positions of further columns that are right-aligned.
        """
        if self.as_json:
            return
        if title:
            # Not the table's own: that is folded to the table's width.
            self.console.print(Text(printable(title), style="bold"), soft_wrap=True)
        table = Table()
        for position, column in enumerate(columns):
            is_number = all(isinstance(row[position], int | float) for row in rows) and rows
            table.add_column(
                Text(printable(column)),
                justify="right" if is_number or position in right else "left",
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(printable(show(cell), is_cell=True)) for cell in row))
        self.console.print(table)

    def result(self, document: Mapping[str, Any]) -> None:
        """Print the result as JSON; nothing without --json."""
        if self.as_json:
            sys.stdout.write(json_text(document, indent=2, is_ascii=True) + "\n")

    @contextmanager
    def progress(self, description: str, total: int | None) -> Iterator["Steps"]:
        """Show a progress bar on standard error during the block."""
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._errors,
            disable=self.as_json,
        ) as progress:
            yield Steps(progress, progress.add_task(description, total=total))


def _named(title: str, reasons: Mapping[str, str]) -> Iterator[str]:
    if not reasons:
        return
    yield f"{len(reasons)} {title}:"
    lines = (f"{name}: {reason}" for name, reason in reasons.items())
    yield f"  {first_few(lines, SHOWN_PROBLEMS, separator=_INDENT)}"


def _console(stream: TextIO) -> Console:
    own = os.fdopen(
        os.dup(stream.fileno()), "w", encoding="utf-8", errors="backslashreplace", buffering=1
    )
    return Console(
        file=own,
        highlight=False,
        markup=False,
        emoji=False,
        width=None if own.isatty() else _UNFOLDED_COLUMNS,
    )


@contextmanager
def muted() -> Iterator[None]:
    """Discard what this process and its children write to their standard streams meanwhile.

    Dagster copies a run's output to the console besides storing it for the UI.
    """
    saved = {number: os.dup(number) for number in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in saved:
            os.dup2(nowhere, number)
        yield
    finally:
        sys.stdout.flush()
        for number, copy in saved.items():
            os.dup2(copy, number)
            os.close(copy)
        os.close(nowhere)


class Steps:
    """A running progress bar."""

    def __init__(self, progress: Progress, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, steps: int = 1) -> None:
        """Record that this many more steps are done."""
        self._progress.advance(self._task, steps)

    def set_total(self, total: int) -> None:
        """Set the total number of steps."""
        self._progress.update(self._task, total=total)

    def describe(self, text: str) -> None:
        """Set the text beside the bar."""
        self._progress.update(self._task, description=printable(text))


def exact(cell: object) -> str:
    """Return a value of a hook's output unchanged: no digit is rounded away, none is grouped."""
    if isinstance(cell, bool) or cell is None:
        return show(cell)
    if isinstance(cell, float):
        return str(json_number(cell))
    return json_instant(cell) if isinstance(cell, datetime) else str(cell)


def show(cell: object) -> str:
    """Return a cell for display: numbers grouped, and rounded to six digits."""
    if cell is None:
        return "NULL"
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.6g}"
    return str(cell)
