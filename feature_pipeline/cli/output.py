"""One result, as text for people or JSON for programs."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click
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

from feature_pipeline.errors import FeaturePipelineError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


class Output:
    """Where a command says what it found: text on standard output, progress on standard error."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        # Descriptors of its own: `muted` silences the process's, not these.
        self.console = _console(sys.stdout)
        self._errors = _console(sys.stderr)

    def say(self, text: str) -> None:
        """One line for people; nothing when JSON is wanted."""
        if not self.as_json:
            self.console.print(text, markup=False)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table for people; numbers are set right. Nothing when JSON is wanted."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", title_style="bold")
        for position, column in enumerate(columns):
            is_number = all(isinstance(row[position], int | float) for row in rows) and rows
            table.add_column(
                column, justify="right" if is_number else "left", no_wrap=len(columns) < 10
            )
        for row in rows:
            table.add_row(*(show(cell) for cell in row))
        self.console.print(table)

    def result(self, document: Mapping[str, Any]) -> None:
        """The result for programs; nothing when text is wanted."""
        if self.as_json:
            json.dump(document, sys.stdout, indent=2, default=str)
            sys.stdout.write("\n")

    @contextmanager
    def progress(self, description: str, total: int | None) -> Iterator["Steps"]:
        """A progress bar on standard error, while the block runs."""
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            console=self._errors,
            disable=self.as_json,
        ) as progress:
            yield Steps(progress, progress.add_task(description, total=total))


def _console(stream: TextIO) -> Console:
    own = os.fdopen(os.dup(stream.fileno()), "w", encoding="utf-8", buffering=1)
    # Not a terminal: wide enough that tables in a log are not folded.
    return Console(file=own, highlight=False, width=None if own.isatty() else 120)


@contextmanager
def muted() -> Iterator[None]:
    """What this process and its children write to their standard streams goes nowhere meanwhile.

    Dagster copies a run's output to the console besides keeping it for the UI.
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
        """That many more steps are done."""
        self._progress.advance(self._task, steps)

    def expect(self, total: int) -> None:
        """That many steps there are."""
        self._progress.update(self._task, total=total)

    def describe(self, text: str) -> None:
        """What is being done now."""
        self._progress.update(self._task, description=text)


def show(cell: object) -> str:
    """A cell as people read it."""
    if cell is None:
        return "NULL"
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:,.6g}"
    return str(cell)


def size(size_bytes: int) -> str:
    """A number of bytes in the unit people would choose."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


@contextmanager
def translated_errors() -> Iterator[None]:
    """Errors of this package end the command with their message, without a traceback."""
    try:
        yield
    except FeaturePipelineError as error:
        raise click.ClickException(str(error)) from error
