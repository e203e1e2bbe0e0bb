"""`feature-pipeline rollback`: switch a table back to its previous generation, or unpin it."""

from contextlib import ExitStack
from typing import Any

from feature_pipeline import settings
from feature_pipeline.cli.instance import known_instance
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import find_hook
from feature_pipeline.projections import rollback as library
from feature_pipeline.projections.catalog.database import Database


def rollback(hook: str, dataset: str | None, unpin: bool, as_json: bool) -> None:
    """Carry out `feature-pipeline rollback`."""
    from feature_pipeline.orchestration.assets.tables import report_shown, table_spec

    Project.find().load_environment()
    output = Output(as_json)
    store, database = open_archive(is_changed=False), Database(settings.database_url())
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
            output.say("The table stays pinned to it until `feature-pipeline rollback --unpin`.")
            result = {"table": done.table, "live": done.live, "left": done.left}
            result["behind"] = list(done.behind)
        if instance is not None:
            uri = settings.S3Settings.from_environment().uri
            report_shown(instance, definition, database, uri)
    output.result(result)
