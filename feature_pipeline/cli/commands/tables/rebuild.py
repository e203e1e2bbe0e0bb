"""`feature-pipeline rebuild`: rebuild tables from S3, beside those that are read."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, TypeAlias

import click

from feature_pipeline import settings
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.instance import known_instance
from feature_pipeline.cli.instants import parse_instant
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import find_hook, project_hooks
from feature_pipeline.compute.redecode import decode_batch_again
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    ProjectionError,
)
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.text.counted import counted
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import LoadReport, load_batches
from feature_pipeline.projections.rebuild import begin_rebuild, fill, past_spec
from feature_pipeline.projections.switch.finalize import table_report

_Reporter: TypeAlias = Callable[[Iterator[LoadReport]], Generator[LoadReport]]
"""Passes load reports through, and has reported them to Dagster when it ends or is closed."""


def rebuild(
    hooks: tuple[str, ...],
    dataset: str | None,
    batches: tuple[str, ...],
    workers: int,
    from_raw: bool,
    time: str | None,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline rebuild`."""
    from feature_pipeline.orchestration.assets.tables import report_loads, table_spec

    as_of = None if time is None else parse_instant(time)
    if batches and (len(hooks) != 1 or as_of is not None):
        raise InvalidInputError("--batch needs exactly one hook, and no --as-of")
    if from_raw and as_of is not None:
        raise InvalidInputError(
            "--from-raw makes current artifacts: it cannot be combined with --as-of"
        )
    Project.find().load_environment()
    output = Output(as_json)
    store, database = open_archive(is_changed=from_raw), Database(settings.database_url())
    results = []
    with ExitStack() as stack:
        # A table of the past has no asset, so there is nothing to report.
        instance = None if as_of is not None else known_instance(stack, output)
        definitions, wrong = _definitions(hooks, dataset)
        for definition in definitions:
            if from_raw:
                wrong += _decode_again(store, definition, batches, output)
            spec = table_spec(definition)
            if as_of is not None:
                spec = past_spec(spec, as_of)
            report_to_dagster: _Reporter | None = None
            if instance is not None:
                uri = settings.S3Settings.from_environment().uri
                report_to_dagster = partial(
                    report_loads, instance, definition, archive_uri=uri, database=database
                )
            results.append(
                _rebuild(store, database, spec, batches, workers, output, report_to_dagster)
            )
    output.table(
        "rebuilt",
        ["table", "batches", "rows", "rows/s", "seconds", "state"],
        [
            [r["table"], r["batches"], r["rows"], r["rows_per_second"], r["seconds"], r["state"]]
            for r in results
        ],
    )
    output.result({"tables": results, "is_dagster_told": instance is not None})
    problems = [result["problem"] for result in results if result["problem"]] + wrong
    if problems:
        raise click.ClickException("\n".join(problems))


def _definitions(
    hooks: tuple[str, ...], dataset: str | None
) -> tuple[list[HookDefinition], list[str]]:
    """Return the hooks to rebuild, and the unusable definitions if all hooks are requested."""
    if hooks:
        definitions = [find_hook(name, dataset).definition for name in hooks]
        for definition in definitions:
            if not definition.has_table:
                raise InvalidInputError(f"hook {definition.name!r} declares no columns: no table")
        return definitions, []
    defined = project_hooks()
    chosen = [
        hook.definition
        for hook in defined.usable
        if hook.definition.has_table and dataset in (None, hook.definition.dataset)
    ]
    return chosen, defined.wrong_lines()


def _decode_again(
    store: BlobStore, definition: HookDefinition, batches: tuple[str, ...], output: Output
) -> list[str]:
    """Decode the raw output batch by batch; return the problems of batches left unchanged.

    Raises:
        NotFoundError: A batch named has no current artifact.
    """
    name, dataset = definition.name, definition.dataset
    readable = log.readable_heads(store, dataset, name, batches or None)
    problems = {batch: str(damage.error) for batch, damage in readable.damage.items()}
    if absent := sorted(set(batches) - readable.intact.keys() - problems.keys()):
        raise NotFoundError(
            f"hook {name!r} has no current artifact for batch {absent[0]!r} of dataset {dataset!r}"
        )
    with output.progress(f"{name}: raw output", len(readable.intact)) as steps:
        for batch, head in readable.intact.items():
            try:
                done = decode_batch_again(store, head)
            except (NotFoundError, CorruptDataError, InvalidInputError) as error:
                problems[batch] = str(error)
                continue
            finally:
                steps.advance()
            if done.is_new or done.damage:
                changes = f"{counted(len(done.changed), 'record')} decoded differently"
                output.say(f"{name}: batch {done.batch}: {done.damage or changes}")
    return [
        f"{name}: the raw output of batch {batch!r} cannot be read again: {why}"
        for batch, why in problems.items()
    ]


def _rebuild(
    store: BlobStore,
    database: Database,
    spec: TableSpec,
    batches: tuple[str, ...],
    workers: int,
    output: Output,
    report_to_dagster: _Reporter | None,
) -> dict[str, Any]:
    started = time.monotonic()
    rows = loaded = 0
    problem = None
    try:
        for report in _loads(store, database, spec, batches, workers, output, report_to_dagster):
            loaded += 1
            rows += report.rows
    except (ProjectionError, ConflictError, CorruptDataError) as error:
        problem = str(error)
    seconds = time.monotonic() - started
    return {
        "table": spec.name,
        "batches": loaded,
        "rows": rows,
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds),
        "state": "not as it should be" if problem else _state(store, database, spec),
        "problem": problem,
    }


def _state(store: BlobStore, database: Database, spec: TableSpec) -> str:
    table = table_report(store, database, spec)
    return "dropped meanwhile" if table is None else table.summary()


def _loads(
    store: BlobStore,
    database: Database,
    spec: TableSpec,
    batches: tuple[str, ...],
    workers: int,
    output: Output,
    report_to_dagster: _Reporter | None,
) -> Iterator[LoadReport]:
    """Rebuild the table, or only these batches of it, with a progress bar."""
    started = time.monotonic()
    rows = 0
    if batches:
        count = len(batches)
        reports: Iterator[LoadReport] = load_batches(
            store, database, spec, batches, workers=workers, is_forced=True
        )
    else:
        begun = begin_rebuild(store, database, spec)
        if begun.is_resumed:
            output.say(f"{spec.name}: continuing generation {begun.generation}")
        count, reports = len(begun.batches), fill(store, database, begun, workers=workers)
    with ExitStack() as stack:
        steps = stack.enter_context(output.progress(spec.name, count))
        if report_to_dagster is not None:
            reports = stack.enter_context(closing(report_to_dagster(reports)))
        for done, report in enumerate(reports, 1):
            rows += report.rows
            elapsed = time.monotonic() - started
            left = elapsed / done * max(0, count - done)
            steps.describe(f"{spec.name}: {rows / elapsed:,.0f} rows/s, {left:,.0f} s left")
            steps.advance()
            yield report
        steps.describe(f"{spec.name}: {counted(rows, 'row')} loaded")
