"""`feature-pipeline recover`: recover Dagster's storage and the tables from S3 and the code."""

from collections.abc import Collection

import click
import dagster as dg

from feature_pipeline import settings
from feature_pipeline.archive.logs import log
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import project_hooks
from feature_pipeline.cli.servers import local_servers
from feature_pipeline.errors import ConflictError, CorruptDataError, ProjectionError
from feature_pipeline.orchestration.operations.recover import (
    prove_tables,
    recover_dagster,
    recover_table,
    tables_to_recover,
)
from feature_pipeline.projections.catalog.database import Database


def recover(tables: tuple[str, ...], workers: int, local: bool, as_json: bool) -> None:
    """Carry out `feature-pipeline recover`."""
    project = Project.find()
    output = Output(as_json)
    if not local:
        project.load_environment()
        recover_all(output, tables, workers)
        return
    with local_servers(project, project.data_folder, output):
        recover_all(output, tables, workers)


def recover_all(output: Output, tables: Collection[str], workers: int) -> None:
    """Recover everything that the environment names, with progress; end with the proof."""
    store = open_archive()
    uri = settings.S3Settings.from_environment().uri
    database = Database(settings.database_url())
    defined = project_hooks()
    hooks = [hook.definition for hook in defined.usable]
    wanted = tables_to_recover(hooks, tables)
    with dg.DagsterInstance.get() as instance:
        output.say("Registering partitions and materializations ...")
        drift = recover_dagster(store, uri, instance, hooks)
        output.say(drift.summary())
        loaded: dict[str, dict[str, int]] = {}
        problems = defined.wrong_lines()
        for hook in wanted:
            batches = len(log.readable_heads(store, hook.dataset, hook.name).intact)
            counts = loaded[hook.table_name] = {"batches": 0, "rows": 0}
            with output.progress(f"table {hook.table_name}", batches) as steps:
                try:
                    for report in recover_table(store, instance, database, hook, workers=workers):
                        counts["batches"] += 1
                        counts["rows"] += report.rows
                        steps.advance()
                except (ProjectionError, ConflictError, CorruptDataError) as error:
                    # The other tables, and the other batches of this one, are brought back.
                    problems.append(str(error))
    for where, batches_of in [*drift.damaged.items(), *drift.lost.items()]:
        problems += [f"{where}, batch {key!r}: {why}" for key, why in batches_of.items()]
    proofs = prove_tables(store, database, wanted)
    problems += [f"table {t}: {p.summary()}" for t, p in proofs.items() if p.unreadable]
    output.table(
        "proof: rows read back from PostgreSQL against the archive in S3",
        ["table", "batches", "rows", "digest of the table", "digest of the archive", "equal"],
        [
            [
                name,
                loaded[name]["batches"],
                proof.rows,
                str(proof.table_digest)[:16],
                str(proof.archive_digest)[:16],
                proof.is_equal,
            ]
            for name, proof in proofs.items()
        ],
    )
    output.say("Grants and views that users created are not in S3 and were not restored.")
    output.result(
        {
            "drift": drift.summary(),
            "problems": problems,
            "tables": {
                name: {
                    **loaded[name],
                    "table_digest": str(proof.table_digest),
                    "archive_digest": str(proof.archive_digest),
                    "equal": proof.is_equal,
                }
                for name, proof in proofs.items()
            },
        }
    )
    for problem in problems:
        output.say(problem)
    if problems:
        raise click.ClickException(
            f"{len(problems)} problems, named above; everything else was recovered;"
            " `feature-pipeline repair` shows what else can be restored"
        )
    if not all(proof.is_equal for proof in proofs.values()):
        raise click.ClickException("a table differs from the archive")
