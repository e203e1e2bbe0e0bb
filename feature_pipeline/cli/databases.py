"""Evidence from the configured databases, for commands that compare it with the archive."""

from collections.abc import Collection

import click

from feature_pipeline import settings
from feature_pipeline.archive.maintenance.compare_databases import Knowledge
from feature_pipeline.cli.instance import dagster_instance
from feature_pipeline.cli.output import Output
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.loaded_entries import query_tables


def query_databases(output: Output, dataset: str | None) -> Knowledge:
    """Ask the tables' database and Dagster, if they are configured.

    If one does not answer, it is named on standard error, and the command continues without it.
    """
    known = _tables(dataset, None, None)
    if settings.optional(settings.DAGSTER_HOME):
        from feature_pipeline.orchestration.events.reported_entries import query_dagster

        try:
            with dagster_instance() as instance:
                known = known.joined(query_dagster(instance, dataset))
        except click.ClickException as error:
            note = f"Dagster is not compared with the archive: {error.message}"
            known = known.joined(Knowledge(notes=(note,)))
    return _with_notes(output, known)


def query_configured_tables(
    output: Output, dataset: str, hook: str, batches: Collection[str] | None
) -> Knowledge:
    """Ask the tables' database about a hook, if it is configured; otherwise as `query_databases`.

    Args:
        output: Names the database if it does not answer.
        dataset: The hook's dataset.
        hook: The hook's name.
        batches: Only these batches; all if None.
    """
    return _with_notes(output, _tables(dataset, hook, batches))


def _tables(dataset: str | None, hook: str | None, batches: Collection[str] | None) -> Knowledge:
    if not settings.optional(settings.DATABASE_URL):
        return Knowledge()
    try:
        return query_tables(Database(settings.database_url()), dataset, hook, batches)
    except InvalidInputError as error:
        return Knowledge(notes=(f"the tables are not compared with the archive: {error}",))


def _with_notes(output: Output, known: Knowledge) -> Knowledge:
    for note in known.notes:
        output.warn(note)
    return known
