"""Options and help of the commands in `commands/runs`."""

from pathlib import Path
from typing import Any

import click

from feature_pipeline.cli.option_values import SELECTIONS
from feature_pipeline.cli.shared_options import json_option
from feature_pipeline.model.batch_source import Source


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", required=True, help="Dataset of the records.")
@click.option(
    "--source",
    type=click.Choice([s.value for s in Source]),
    required=True,
    help="Origin of the records.",
)
@click.option("--batch", help="Key of the first batch; by default derived from the records.")
@click.option("--batch-size", default=1000, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out entries of a folder with such a name: --exclude '.*'; repeatable.",
)
@json_option
def submit(**arguments: Any) -> None:
    """Submit the records of PATH.

    PATH is a folder or a .jsonl file. In a folder, each file is one record, named after the file
    without its suffixes (1ubi for 1ubi.pdb.gz), and each subfolder is one record with its files.
    Each line of a .jsonl file is {"id", "metadata", "files": {name: path}}, with paths relative to
    the file. If an entry is not a record, the command names it and submits nothing. Submitting the
    same records again changes nothing.
    """
    from feature_pipeline.cli.commands.runs.submit import submit as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--hook", required=True, help="The hook that wrote it.")
@click.option(
    "--batch",
    required=True,
    help="The batch over which it ran; the output must be about the whole batch.",
)
@click.option("--dataset", help="The hook's dataset, if hooks of two datasets have this name.")
@click.option(
    "--log", "log_file", type=click.Path(exists=True, path_type=Path), help="The hook's log."
)
@click.option("--force", is_flag=True, help="Accept errors for records that have an answer.")
@json_option
def publish(**arguments: Any) -> None:
    """Publish FOLDER, the OSA_OUT of a hook that exited with status 0.

    The output is attributed to the hook's currently declared release. No Dagster process needs to
    run: the result is durable when the command ends, and is accepted when the daemon runs. A folder
    without features.jsonl, features.json, rejections.jsonl or errors.jsonl is refused. Output with
    errors for records that already have an answer is refused unless --force is given.
    """
    from feature_pipeline.cli.commands.runs.publish import publish as carry_out

    carry_out(**arguments)


@click.command()
@click.option(
    "--deep",
    is_flag=True,
    help="Also read every current manifest: counts of records and of retryable errors.",
)
@json_option
def status(**arguments: Any) -> None:
    """Show the state of each hook's batches, then what is waiting and quarantined.

    \b
    archived     have a current artifact        missing  have none
    failed       the last hook run failed and was not cancelled, or the last Dagster
                 run failed; with --deep also batches with retryable errors
    stale        made from a release, batch, input or columns that are not current
    old          made by a release other than the declared one
    damaged, lost         batches that cannot be read in the archive, and batches of which
                 a table or Dagster knows an artifact that the archive no longer has
    waiting, quarantined  completions in the inbox, and those that could not be accepted
    loaded, to load       current artifacts that the table has unchanged, and the others

    `feature-pipeline backfill --select` runs these batches. The command names failed batches,
    records that a table cannot store, and runs that wait to be repeated after an outage, with the
    reasons; with --deep, also the first errored records. Tables that no definition declares are
    named; `feature-pipeline retire` drops them. The command lists the logs and reads the tables'
    bookkeeping. It reads manifests with --deep, for hooks with inputs, and for failed runs. If
    something is damaged or lost, names it, shows the rest and exits with 2.
    """  # noqa: D301 - \b is click's mark of a paragraph that is not folded
    from feature_pipeline.cli.commands.runs.status import status as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("names", metavar="[HOOK|TABLE]...", nargs=-1)
@click.option("--select", type=click.Choice(SELECTIONS), help="State of the partitions; see above.")
@click.option("--batch", "batches", multiple=True, help="Only this batch; repeatable.")
@click.option(
    "--tables/--no-tables",
    default=None,
    help="Include tables materialized on request, or no tables. Default: only `always` tables.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be run, and launch nothing.")
@click.option("--cancel", metavar="ID", help="Cancel the backfill of this id instead.")
@json_option
def backfill(**arguments: Any) -> None:
    """Launch one Dagster backfill of the selected partitions.

    HOOK selects the hook's features and its table. TABLE or an asset's key
    (structures/tables/pockets) selects that asset only. Without names, all hooks of the project
    are selected.

    \b
    --select     features                         tables
    missing      batches without an artifact      artifacts that are not loaded
    failed       the last hook run or the last    the last Dagster run failed
                 Dagster run failed, or records
                 have retryable errors
    stale        stale in Dagster, or made from   stale in Dagster, or loaded from
                 a batch, input or release that   content other than the current
                 is not current                   artifact's
    old-release  made by a release other than     loaded from an artifact of a release
                 the declared one                 other than the current one's
    all          every batch                      every batch

    If the features of a partition are selected, so is its table. Runs carry over outcomes that
    the archive has, and compute only the others.
    """  # noqa: D301 - \b is click's mark of a paragraph that is not folded
    from feature_pipeline.cli.commands.runs.backfill import backfill as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("ids", nargs=-1)
@click.option("--requeue", is_flag=True, help="Return these entries to the inbox unchanged.")
@click.option(
    "--discard",
    "is_discarded",
    is_flag=True,
    help="Delete these entries; gc then deletes what only they name.",
)
@click.option("--all", "is_all", is_flag=True, help="All quarantined entries.")
@json_option
def quarantine(**arguments: Any) -> None:
    """List quarantined entries with their reasons; with --requeue, retry IDS.

    Correct the cause first: submit the batch, register the release, or lift the withdrawal. If an
    entry cannot be read, shows the others and exits with 2.
    """
    from feature_pipeline.cli.commands.runs.quarantine import quarantine as carry_out

    carry_out(**arguments)
