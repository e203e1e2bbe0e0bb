"""Options and help of `feature-pipeline repair`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


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
    help="Give up log entries that nothing brings back: their logs go on without them.",
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
    from feature_pipeline.cli.commands.repair import repair as carry_out

    carry_out(**arguments)
