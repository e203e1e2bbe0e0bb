"""`feature-pipeline status`: what is archived, loaded, waiting and quarantined."""

from typing import Any

import click

from feature_pipeline import settings
from feature_pipeline.archive import accept, log, read
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.cli.hooks import project_hooks
from feature_pipeline.cli.output import Output, json_option
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.hooks.definition import HookDefinition
from feature_pipeline.projections.database import Database
from feature_pipeline.projections.progress import check_progress


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show, per hook, what the archive holds and what its table lacks."""
    from feature_pipeline.orchestration.tables import table_spec

    Project.find().load_environment()
    output = Output(as_json)
    store = open_archive()
    database = Database(settings.database_url())
    hooks = []
    for hook in project_hooks():
        row = archive_counts(store, hook.definition)
        if hook.definition.has_table:
            progress = check_progress(store, database, table_spec(hook.definition))
            row["to_load"] = len(progress.batches_to_load())
        hooks.append(row)
    waiting = [entry.id for entry in accept.waiting(store)]
    quarantined = accept.quarantined(store)
    output.table(
        "hooks",
        [
            "hook",
            "batches",
            "archived",
            "records",
            "passed",
            "rejected",
            "errored",
            "rows",
            "to load",
        ],
        [
            [
                f"{row['dataset']}/{row['hook']}",
                row["batches"],
                row["archived"],
                row["records"],
                row["passed"],
                row["rejected"],
                row["errored"],
                row["rows"],
                row.get("to_load", "no table"),
            ]
            for row in hooks
        ],
    )
    output.say(f"inbox: {len(waiting)} waiting")
    output.say(f"quarantine: {len(quarantined)}")
    for item in quarantined:
        output.say(f"  {item.id}: {item.reason}")
    output.result(
        {
            "hooks": hooks,
            "waiting": waiting,
            "quarantined": [{"id": item.id, "reason": item.reason} for item in quarantined],
        }
    )


def archive_counts(store: BlobStore, hook: HookDefinition) -> dict[str, Any]:
    """Batches of the hook's dataset, how many it has an artifact for, and what these say."""
    heads = log.heads(store, hook.dataset, hook.name)
    totals = dict.fromkeys(("records", "passed", "rejected", "errored", "rows"), 0)
    for head in heads.values():
        counts = read.read_manifest(store, head.manifest).counts
        for name in totals:
            totals[name] += getattr(counts, name)
    return {
        "dataset": hook.dataset,
        "hook": hook.name,
        "batches": len(log.batches(store, hook.dataset)),
        "archived": len(heads),
        **totals,
    }
