"""Options and help of `feature-pipeline hook`."""

from pathlib import Path
from typing import Any

import click

from feature_pipeline.cli.option_values import DEFS


@click.group()
def hook() -> None:
    """Write a new hook, or define existing hooks."""


@hook.command()
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the definitions are; the folder that FEATURE_PIPELINE_DEFS names when absent.",
)
def new(**arguments: Any) -> None:
    """Write a working hook to start from: <folder>/NAME/defs.yaml and its program."""
    from feature_pipeline.cli.commands.hook import new as carry_out

    carry_out(**arguments)


@hook.command("import")
@click.argument("manifest", type=click.File("rb"))
@click.option("--dataset", required=True, help="The dataset whose records they are run over.")
@click.option("--image", help="Their image, by digest; without it, each hook's bound release.")
@click.option("--version", help="Their release's version; without it, the convention's.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where the definitions go: <folder>/<hook>/defs.yaml; the folder that"
    f" FEATURE_PIPELINE_DEFS names when absent, else {DEFS}.",
)
@click.option("--overwrite", is_flag=True, help="Replace definitions that are there.")
def import_(**arguments: Any) -> None:
    """Define the hooks of a manifest of the Open Science Archive's SDK.

    MANIFEST is the output of `osa manifest`, or - for standard input. Unless every hook in it can
    be defined, nothing is written.
    """
    from feature_pipeline.cli.commands.hook import import_ as carry_out

    carry_out(**arguments)
