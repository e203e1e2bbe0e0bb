"""`feature-pipeline rollback`: switch a table back to its previous generation, or unpin it."""

from contextlib import ExitStack
from typing import Any

import click

from feature_pipeline import settings
from feature_pipeline.cli.instance import known_instance
from feature_pipeline.cli.output import Output, json_option
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import find_hook
from feature_pipeline.projections import rollback as library
from feature_pipeline.projections.catalog.database import Database


@click.command()
@click.argument("hook")
@click.option("--dataset", help="Needed when several datasets have a hook of this name.")
@click.option("--unpin", is_flag=True, help="Follow the definition again.")
@json_option
def rollback(hook: str, dataset: str | None, unpin: bool, as_json: bool) -> None:
    """Switch HOOK's table back to the generation before its last switch.

    The table stays pinned to that generation until --unpin; both generations are kept up to date
    meanwhile. Reports the columns that are read now to the Dagster instance of DAGSTER_HOME.
    """
    from feature_pipeline.orchestration.assets.tables import report_shown, table_spec

    Project.find().load_environment()
    output = Output(as_json)
    store, database = open_archive(), Database(settings.database_url())
    definition = find_hook(hook, dataset).definition
    spec = table_spec(definition)
    result: dict[str, Any]
    with ExitStack() as stack:
        instance = known_instance(stack, output)
        if unpin:
            table = library.unpin(store, database, spec)
            output.say(table.summary())
            result = {"table": table.table, "live": table.live, "building": table.building}
        else:
            done = library.rollback(store, database, spec)
            output.say(done.summary())
            output.say("Stays so until `feature-pipeline rollback --unpin`.")
            result = {"table": done.table, "live": done.live, "left": done.left}
            result["behind"] = list(done.behind)
        if instance is not None:
            uri = settings.S3Settings.from_environment().uri
            report_shown(instance, definition, database, uri)
    output.result(result)
