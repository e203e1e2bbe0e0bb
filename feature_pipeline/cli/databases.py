"""What the databases that the environment names know of the archive, for commands that compare."""

import os

import click

from feature_pipeline import settings
from feature_pipeline.archive.maintenance.known import Knowledge
from feature_pipeline.cli.instance import dagster_instance
from feature_pipeline.cli.output import Output
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.known import ask_tables


def ask_databases(output: Output, dataset: str | None) -> Knowledge:
    """Ask the tables' database and Dagster, where they are configured.

    One that does not answer is named on standard error: the archive can be looked at without it.
    """
    known = Knowledge()
    if os.environ.get(settings.DATABASE_URL):
        try:
            known = ask_tables(Database(settings.database_url()), dataset)
        except InvalidInputError as error:
            known = Knowledge(notes=(f"what the tables know is not compared: {error}",))
    if os.environ.get("DAGSTER_HOME"):
        from feature_pipeline.orchestration.events.known import ask_dagster

        try:
            with dagster_instance() as instance:
                known = known.joined(ask_dagster(instance, dataset))
        except click.ClickException as error:
            note = f"what Dagster knows is not compared: {error.message}"
            known = known.joined(Knowledge(notes=(note,)))
    for note in known.notes:
        output.warn(note)
    return known
