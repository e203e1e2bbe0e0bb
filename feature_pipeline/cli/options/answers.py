"""Options and help of `feature-pipeline answers`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("hooks", nargs=-1)
@click.option("--dataset", help="Only hooks of this dataset.")
@click.option("--rebuild", is_flag=True, help="Believe nothing of it: derive all from the logs.")
@json_option
def answers(**arguments: Any) -> None:
    """Add missing answers to the memory of answers, and remove erased ones.

    The memory records which artifact answers which action, so that no record is computed twice.
    Acceptance keeps it up to date, and the job `remember_answers` compares it with the logs once a
    day; this command does so at once. It changes nothing that is archived.
    """
    from feature_pipeline.cli.commands.answers import answers as carry_out

    carry_out(**arguments)
