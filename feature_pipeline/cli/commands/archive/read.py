"""`feature-pipeline read`: print a hook's features and outcomes from the archive."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from feature_pipeline import settings
from feature_pipeline.archive.query.api import Archive, AsOf
from feature_pipeline.archive.query.features import Features
from feature_pipeline.archive.query.frames import Frame
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.instants import parse_instant
from feature_pipeline.cli.output import Output, exact, printable
from feature_pipeline.cli.project import Project
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.json_values import json_cell, json_text

SHOWN_ROWS: Final = 20


def read(
    hook: str,
    dataset: str | None,
    batches: tuple[str, ...],
    outcomes: bool,
    statuses: tuple[str, ...],
    plot: bool,
    columns: tuple[str, ...],
    as_of: str | None,
    every_batch: bool,
    form: str,
    max_rows: int | None,
    output: Path | None,
) -> None:
    """Carry out `feature-pipeline read`."""
    Project.find().load_environment()
    archive = Archive.open()
    features = archive.features(
        hook,
        dataset=dataset,
        batches=batches or None,
        as_of=parse_as_of(as_of),
        every_batch=every_batch,
        skip_damaged=True,
    )
    if columns and not plot:
        raise InvalidInputError("--column chooses the columns to plot: add --plot")
    if plot:
        if outcomes or statuses or max_rows is not None or form != "table":
            raise InvalidInputError("--plot writes a picture: it takes no option about rows")
        _plot(features, columns, output or Path(f"{hook}.html"))
    else:
        _print(features, outcomes, statuses, form, max_rows, output)
    lost = {} if as_of else _lost(archive, features, batches)
    if features.damage or lost:
        _warn(features, lost)
        raise SystemExit(FINDINGS)


def _lost(archive: Archive, features: Features, batches: Collection[str]) -> dict[str, str]:
    """Return, by batch, the entries that a table knows and the archive no longer has.

    The archive alone does not show them if an older copy of it was restored, census included.
    """
    if not settings.optional(settings.DATABASE_URL):
        return {}
    from feature_pipeline.archive.maintenance.compare_databases import find_lost
    from feature_pipeline.cli.databases import query_configured_tables

    known = query_configured_tables(Output(), features.dataset, features.hook, batches or None)
    lost = find_lost(archive.store, known.entries)
    return {one.known.batch: str(one) for one in lost if one.known.batch not in features.damage}


def _print(
    features: Features,
    is_outcomes: bool,
    statuses: Collection[str],
    form: str,
    max_rows: int | None,
    output: Path | None,
) -> None:
    frame: Frame = features.outcomes() if is_outcomes or statuses else features
    if statuses:
        frame = OfStatus(frame, statuses)
    if form == "table":
        if output is not None:
            raise InvalidInputError("--output writes a file for programs: add --format")
        _print_table(frame, SHOWN_ROWS if max_rows is None else max_rows)
        return
    if form == "parquet" and output is None and sys.stdout.isatty():
        raise InvalidInputError("Parquet is not text: give --output FILE, or pipe it somewhere")
    with _sink(output) as file:
        WRITERS[form](frame.schema, _limited(frame, max_rows), file)


def _warn(features: Features, lost: Mapping[str, str]) -> None:
    output = Output()
    output.problems(
        f"batches of {features.dataset}/{features.hook} are damaged or lost, and left out with"
        " their records in earlier batches",
        features.damage,
    )
    output.problems(
        f"batches of {features.dataset}/{features.hook} were read as they were before the archive"
        " lost entries of their logs",
        lost,
    )
    output.warn("`feature-pipeline repair` shows what can be restored")


class OfStatus(Frame):
    """Select the outcomes that have one of some statuses."""

    def __init__(self, outcomes: Frame, statuses: Collection[str]) -> None:
        self._outcomes, self._statuses = outcomes, pa.array(sorted(statuses), pa.string())

    @property
    def schema(self) -> pa.Schema:
        """Schema of the outcomes."""
        return self._outcomes.schema

    def tables(self) -> Iterator[pa.Table]:
        """Yield the matching outcomes of each batch in turn."""
        for table in self._outcomes.tables():
            yield table.filter(pc.is_in(table.column("status"), self._statuses))


def _plot(features: Features, columns: Collection[str], path: Path) -> None:
    from feature_pipeline.archive.query import plots
    from feature_pipeline.archive.query.summary import summarize

    output = Output()
    if path.suffix not in plots.MEDIA_TYPES:
        raise InvalidInputError(f"{path}: a plot's file ends in {', '.join(plots.MEDIA_TYPES)}")
    with output.progress("reading", len(features.batches)) as steps:
        summary = summarize(features, columns, lambda _: steps.advance())
    data = plots.draw(summary, path.suffix)
    with _sink(path) as file:
        file.write(data)
    heads, lines = plots.statistics(summary)
    title = f"{counted(summary.rows, 'row')} of {counted(summary.batches, 'batch')}"
    output.table(title, heads, lines)
    output.say(f"written to {path}")


def parse_as_of(text: str | None) -> AsOf | None:
    """Return a seq, or a time with its offset from UTC.

    Raises:
        InvalidInputError: `text` is neither.
    """
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    return parse_instant(text, ", or a seq")


def _limited(frame: Frame, max_rows: int | None) -> Iterator[pa.RecordBatch]:
    left = max_rows
    for piece in frame:
        if left is None:
            yield piece
            continue
        yield piece.slice(0, left)
        left -= min(left, len(piece))
        if not left:
            return


def _print_table(frame: Frame, max_rows: int) -> None:
    output = Output()
    names = frame.schema.names
    rows = [
        row
        for piece in _limited(frame, max_rows + 1)
        for row in zip(*(column.to_pylist() for column in piece.columns), strict=True)
    ]
    is_number = [pa.types.is_integer(f.type) or pa.types.is_floating(f.type) for f in frame.schema]
    output.table(
        "",
        names,
        [[exact(cell) for cell in row] for row in rows[:max_rows]],
        right=[position for position, number in enumerate(is_number) if number],
    )
    shown = min(len(rows), max_rows)
    output.say(counted(shown, "row") + ("; more are not shown" if len(rows) > max_rows else ""))


def write_csv(schema: pa.Schema, pieces: Iterator[pa.RecordBatch], file: IO[bytes]) -> None:
    """Write a header, then the rows; NULL is empty, text is quoted."""
    with pyarrow.csv.CSVWriter(file, schema) as writer:
        for piece in pieces:
            writer.write_batch(piece)


def write_parquet(schema: pa.Schema, pieces: Iterator[pa.RecordBatch], file: IO[bytes]) -> None:
    """Write a Parquet file of the same schema."""
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for piece in pieces:
            writer.write_batch(piece)


def write_jsonl(schema: pa.Schema, pieces: Iterator[pa.RecordBatch], file: IO[bytes]) -> None:
    """Write one JSON object per row."""
    kinds = [(field.metadata or {}).get(b"encoding") == b"json" for field in schema]
    for piece in pieces:
        columns = [column.to_pylist() for column in piece.columns]
        for row in zip(*columns, strict=True):
            document = {
                name: json_cell(value, is_json=is_json)
                for name, value, is_json in zip(schema.names, row, kinds, strict=True)
            }
            file.write(json_text(document).encode() + b"\n")


WRITERS: Final[dict[str, Callable[[pa.Schema, Iterator[pa.RecordBatch], IO[bytes]], None]]] = {
    "csv": write_csv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}


@contextmanager
def _sink(path: Path | None) -> Iterator[IO[bytes]]:
    if path is None and sys.stdout.isatty():
        with TemporaryFile() as temporary:
            yield temporary
            temporary.seek(0)
            for line in temporary:
                sys.stdout.write(printable(line.decode(errors="replace")))
        return
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # Under its own name only when it is whole.
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
