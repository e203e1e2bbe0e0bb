"""Evidence from the configured databases, for commands that compare it with the archive."""

import click

from feature_pipeline import settings
from feature_pipeline.archive.maintenance.known import Knowledge
from feature_pipeline.cli.instance import dagster_instance
from feature_pipeline.cli.output import Output
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.known import ask_tables


def ask_databases(output: Output, dataset: str | None) -> Knowledge:
    """Ask the tables' database and Dagster, if they are configured.

    If one does not answer, it is named on standard error, and the command goes on without it.
    """
    known = Knowledge()
    if settings.optional(settings.DATABASE_URL):
        try:
            known = ask_tables(Database(settings.database_url()), dataset)
        except InvalidInputError as error:
            known = Knowledge(notes=(f"the tables are not compared with the archive: {error}",))
    if settings.optional(settings.DAGSTER_HOME):
        from feature_pipeline.orchestration.events.known import ask_dagster

        try:
            with dagster_instance() as instance:
                known = known.joined(ask_dagster(instance, dataset))
        except click.ClickException as error:
            note = f"Dagster is not compared with the archive: {error.message}"
            known = known.joined(Knowledge(notes=(note,)))
    for note in known.notes:
        output.warn(note)
    return known
