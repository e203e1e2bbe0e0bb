"""Options and help of the commands in `commands/projects`."""

from pathlib import Path
from typing import Any

import click

from feature_pipeline.cli.option_values import DEFS
from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the servers' data; by default .feature_pipeline in the project.",
)
@json_option
def demo(**arguments: Any) -> None:
    """Compute features of real structures, archive them and load the tables.

    Starts S3 and PostgreSQL from wheels on loopback, runs every step through Dagster, and prints
    the results and the proof that the tables equal the archive. A second run computes nothing.
    """
    from feature_pipeline.cli.commands.projects.demo import demo as carry_out

    carry_out(**arguments)


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the servers' data; by default .feature_pipeline in the project.",
)
def dev(**arguments: Any) -> None:
    """Run S3, PostgreSQL, and Dagster's webserver and daemon on loopback until Ctrl-C.

    Writes every setting to .env, so that plain `dagster` and `dg` commands work in another
    terminal. Restarts a server that exits.
    """
    from feature_pipeline.cli.commands.projects.dev import dev as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path), default=".")
def init(**arguments: Any) -> None:
    """Create a project in FOLDER (default: the working directory).

    The project has `defs/` for your hooks, `workspace.yaml` and `dagster.yaml` for Dagster, and in
    `.env` the setting that names `defs/`. Existing files are not replaced.
    """
    from feature_pipeline.cli.commands.projects.init import init as carry_out

    carry_out(**arguments)


@click.group()
def hook() -> None:
    """Write a new hook, or define existing hooks."""


@hook.command()
@click.argument("name")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the definitions; by default the one that FEATURE_PIPELINE_DEFS names.",
)
def new(**arguments: Any) -> None:
    """Write a working hook to start from.

    Writes <folder>/NAME/defs.yaml and the hook's program.
    """
    from feature_pipeline.cli.commands.projects.hook import new as carry_out

    carry_out(**arguments)


@hook.command("import")
@click.argument("manifest", type=click.File("rb"))
@click.option("--dataset", required=True, help="The dataset over whose records the hooks run.")
@click.option(
    "--image", help="The hooks' image, by digest; by default that of each hook's bound release."
)
@click.option("--version", help="Version of the hooks' release; by default the convention's.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    help="Where to write definitions, as <folder>/<hook>/defs.yaml; by default the"
    f" folder that FEATURE_PIPELINE_DEFS names, or else {DEFS}.",
)
@click.option("--overwrite", is_flag=True, help="Replace existing definitions.")
def import_(**arguments: Any) -> None:
    """Define the hooks of a manifest of the Open Science Archive's SDK.

    MANIFEST is the output of `osa manifest`, or - for standard input. Unless every hook in it can
    be defined, nothing is written.
    """
    from feature_pipeline.cli.commands.projects.hook import import_ as carry_out

    carry_out(**arguments)
