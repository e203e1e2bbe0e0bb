"""Options and help of the commands in `commands/archive`."""

from pathlib import Path
from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option
from feature_pipeline.model.status import Status


@click.command()
@click.argument("hook")
@click.option("--dataset", help="The hook's dataset, if hooks of two datasets have this name.")
@click.option("--batch", "batches", multiple=True, help="Only this batch; repeatable.")
@click.option("--outcomes", is_flag=True, help="Print the outcome of each record instead of rows.")
@click.option(
    "--status",
    "statuses",
    type=click.Choice([status.value for status in Status]),
    multiple=True,
    help="Only outcomes of this status, with their reasons; repeatable.",
)
@click.option("--plot", is_flag=True, help="Write a picture of the numeric columns and outcomes.")
@click.option("--column", "columns", multiple=True, help="Plot only this column; repeatable.")
@click.option("--as-of", help="Read what was current then: a time with a UTC offset, or a seq.")
@click.option(
    "--every-batch", is_flag=True, help="Print a record of several batches for each of them."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "jsonl", "parquet"]),
    default="table",
    show_default=True,
)
@click.option(
    "--max-rows", type=click.IntRange(0), help="Maximum number of rows; 20 by default for a table."
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write. A plot is a .html, .png or .svg file, by default HOOK.html.",
)
def read(**arguments: Any) -> None:
    """Print the rows or outcomes of HOOK's current artifacts, straight from S3.

    Needs neither PostgreSQL nor Dagster. In jsonl, arrays and objects are JSON values, and
    non-finite numbers are the strings "NaN", "Infinity" and "-Infinity".

    If batches are damaged or lost, leaves them out, names them on standard error and exits with 2.
    """
    from feature_pipeline.cli.commands.archive.read import read as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("hook")
@click.option(
    "--from", "before", metavar="RELEASE", help="A version, or #seq; by default the one before."
)
@click.option(
    "--to", "after", metavar="RELEASE", help="A version, or #seq; by default the last one."
)
@click.option("--batch", "batches", multiple=True, help="Only this batch; repeatable.")
@click.option("--dataset", help="The hook's dataset, where several have a hook of this name.")
@json_option
def compare(**arguments: Any) -> None:
    """Compare two releases of HOOK over the batches that both have computed.

    For each batch, reads the last artifact that was current under each release, from S3 alone. Rows
    are compared by record and ordinal. Columns that only one release declares are named and not
    compared. `feature-pipeline history HOOK` lists releases and batches.
    """
    from feature_pipeline.cli.commands.archive.compare import compare as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("hook")
@click.argument("batch", required=False)
@click.option("--dataset", help="The hook's dataset, where several have a hook of this name.")
@json_option
def history(**arguments: Any) -> None:
    """List every entry of HOOK's logs, for BATCH or for all batches.

    Marks the current artifact of each batch with *. If a log or an artifact cannot be read, shows
    the rest and exits with 2.
    """
    from feature_pipeline.cli.commands.archive.history import history as carry_out

    carry_out(**arguments)


@click.command()
@click.option("--dataset", help="Only this dataset.")
@click.option("--hook", help="Only this hook: its releases and artifacts.")
@click.option("--batch", help="Only this batch.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Read this fraction of the blobs. Logs, manifests and batches are always read.",
)
@click.option("--seed", type=int, help="Read the same sample as an earlier run with this seed.")
@click.option("--workers", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option(
    "--restore-checksums",
    is_flag=True,
    help="Rewrite valid objects for which the store has no checksum.",
)
@json_option
def verify(**arguments: Any) -> None:
    """Read all stored objects again and compare them with their names.

    Also compares the logs with the tables and with Dagster, if they are configured.

    Exits with 0 if everything is right, with 2 if an object is missing, corrupt, lost, unreadable
    or not erased, with 1 if the archive could not be verified at all.
    """
    from feature_pipeline.cli.commands.archive.verify import verify as carry_out

    carry_out(**arguments)


@click.command("check-store")
@json_option
def check_store(**arguments: Any) -> None:
    """Test each S3 property that the archive needs, on the store in the settings.

    Writes small objects below `probe/` and removes them. Exits with 0 if the store has every
    required property, with 2 if it lacks one, with 1 if the test could not be run.
    """
    from feature_pipeline.cli.commands.archive.check_store import check_store as carry_out

    carry_out(**arguments)


@click.command()
@click.option("--dataset", help="Only this dataset.")
@click.option("--hook", help="Only this hook: its releases and artifacts.")
@click.option("--batch", help="Only this batch.")
@click.option(
    "--from", "second_url", help="A second archive, s3://BUCKET/PREFIX: a copy, a backup."
)
@click.option("--yes", is_flag=True, help="Carry the plan out. Without it, nothing is written.")
@click.option(
    "--accept-loss",
    is_flag=True,
    help="Give up log entries that cannot be restored: their logs continue without them.",
)
@click.option("--reason", default="", help="Why the loss is accepted; stored permanently.")
@json_option
def repair(**arguments: Any) -> None:
    """List what is damaged, missing or lost and how it can be restored; with --yes, do it.

    Restores objects from a second archive, compared by digest; rows and outcomes from raw output;
    lost log entries from what the databases know of them; code files and releases from the project.
    You can interrupt and repeat it.

    With --accept-loss and --reason, gives up log entries that cannot be restored, after naming
    them. From then on the shorter log is right and its numbers are used again; `rebuild` and the
    job `reconcile` update the tables and Dagster. Artifacts that the entries named are appended
    again if they are still stored.

    Exits with 0 if no problem is left, otherwise with 2. Lists what cannot be restored, with the
    steps that an operator can take.
    """
    from feature_pipeline.cli.commands.archive.repair import repair as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("record_ids", nargs=-1)
@click.option("--dataset", required=True, help="The records' dataset.")
@click.option(
    "--reason", help="Reason, stored permanently beside the record ids: no personal data."
)
@click.option(
    "--lift",
    is_flag=True,
    help="Allow the records to be submitted again, after completing any interrupted erasure.",
)
@click.option(
    "--lost", multiple=True, help="A manifest or batch that is given up: sha256:<digest>."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def erase(**arguments: Any) -> None:
    """Withdraw RECORD_IDS and erase their data from the archive. This cannot be undone.

    Without ids, completes an interrupted erasure. Exits with 2 if the erasure is incomplete:
    damaged artifacts could not be redacted, or blobs are kept because a damaged or missing object
    may need them. The records are withdrawn in either case.
    """
    from feature_pipeline.cli.commands.archive.erase import erase as carry_out

    carry_out(**arguments)


@click.command()
@click.option("--all", "is_all", is_flag=True, help="All blobs of the archive.")
@click.option(
    "--shard", "shards", multiple=True, help="Blobs whose digest begins with these two hex digits."
)
@click.option(
    "--delete",
    is_flag=True,
    help="Mark unneeded blobs and delete those that are due. Default: a dry run.",
)
@click.option(
    "--lost", multiple=True, help="A manifest or batch that is given up: sha256:<digest>."
)
@click.option(
    "--new-orphans",
    type=click.IntRange(0),
    default=0,
    help="Number of blobs that may have become unneeded since the last run, however many.",
)
@click.option("--workers", type=click.IntRange(1, 64), default=8, show_default=True)
@json_option
def gc(**arguments: Any) -> None:
    """Delete blobs that two runs, at least a week apart, both found unneeded.

    Without --delete, nothing is written or deleted. Run it with --delete every day or week: each
    run marks unneeded blobs, and deletes those that a run at least a week earlier had marked.

    Deletes nothing and exits with 2 while an object that may name blobs is damaged or missing, or
    if far more blobs than before are unneeded.
    """
    from feature_pipeline.cli.commands.archive.gc import gc as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("hooks", nargs=-1)
@click.option("--dataset", help="Only hooks of this dataset.")
@click.option(
    "--rebuild", is_flag=True, help="Discard the memory and derive it from the logs again."
)
@json_option
def answers(**arguments: Any) -> None:
    """Add missing answers to the memory of answers, and remove erased ones.

    The memory records which artifact answers which action, so that no record is computed twice.
    Acceptance keeps it up to date, and the job `remember_answers` compares it with the logs once a
    day; this command does so at once. It changes nothing that is archived.
    """
    from feature_pipeline.cli.commands.archive.answers import answers as carry_out

    carry_out(**arguments)
