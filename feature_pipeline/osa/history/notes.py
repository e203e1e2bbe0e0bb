"""What a reconstructed artifact states about its rows for users."""

from collections.abc import Mapping
from typing import Final

from feature_pipeline.hooks.output import FEATURES
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.osa.history.table_rows import TableColumns
from feature_pipeline.osa.server.database import PASSED, HookRun, Release
from feature_pipeline.osa.server.notes import release_note, run_note

_KINDS: Final[Mapping[str, str]] = {
    "number": "the table has float64, so whether the hook wrote 1 or 1.0 is not known, and digits"
    " beyond float64 are lost",
    "integer": "the server truncates numbers in integer columns: 1.5 became 1",
    "json": "the table has arrays and objects as JSON strings, which were parsed; a string that is"
    " JSON cannot be told from these",
}
"""By kind of column, what the server's table lost."""


def notes_of(
    table: TableColumns,
    row: HookRun,
    release: Release,
    *,
    with_rows: int,
    unknown: int,
    refused: int,
) -> list[str]:
    """Return what a reader must know of the rows; no id of a record, which may be erased.

    Args:
        table: The hook's table.
        row: The hook run.
        release: Its release.
        with_rows: Number of records with rows.
        unknown: Number of records without.
        refused: Number of records with rows that no outcome can have.
    """
    notes = [
        f"reconstructed from PostgreSQL: the rows of the server's table features.\""
        f'{table.name}" with this run_id; the output of the hook run was not found',
        f"outcomes are known of {counted(with_rows, 'record')} with rows; those of"
        f" {counted(unknown, 'other')} are not",
    ]
    if refused:
        notes.append(
            f"{counted(refused, 'record')} with rows that no outcome can have: they are in"
            f" {FEATURES} alone"
        )
    columns = {kind: [c.name for c in table.columns if c.kind == kind] for kind in _KINDS}
    notes += [
        f"{text}: {first_few(columns[kind])}" for kind, text in _KINDS.items() if columns[kind]
    ]
    if table.undeclared:
        notes.append(
            f"columns that the server's hook does not declare were left out:"
            f" {first_few(table.undeclared)}"
        )
    if row.status != PASSED:
        notes.append(run_note(row))
    return [*notes, release_note(release)]
