"""`feature-pipeline rollback`: read the generation that was read before, or follow again."""

import click

from feature_pipeline import settings
from feature_pipeline.cli.hooks import find_hook
from feature_pipeline.cli.output import Output, json_option
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.projections import rollback as library
from feature_pipeline.projections.database import Database


@click.command()
@click.argument("hook")
@click.option("--dataset", help="Needed when several datasets have a hook of this name.")
@click.option("--unpin", is_flag=True, help="Follow the definition again.")
@json_option
def rollback(hook: str, dataset: str | None, unpin: bool, as_json: bool) -> None:
    """Let HOOK's table show the generation that it showed before its last switch.

    The table stays with it until --unpin; meanwhile both generations are kept up to date.
    """
    from feature_pipeline.orchestration.tables import table_spec

    Project.find().load_environment()
    output = Output(as_json)
    store, database = open_archive(), Database(settings.database_url())
    spec = table_spec(find_hook(hook, dataset).definition)
    if unpin:
        table = library.unpin(store, database, spec)
        output.say(table.summary())
        output.result({"table": table.table, "live": table.live, "building": table.building})
        return
    done = library.rollback(store, database, spec)
    output.say(done.summary())
    output.say("Stays so until `feature-pipeline rollback --unpin`.")
    output.result(
        {"table": done.table, "live": done.live, "left": done.left, "behind": list(done.behind)}
    )
