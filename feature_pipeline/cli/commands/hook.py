"""`feature-pipeline hook`: write a new hook, or definitions of existing hooks."""

from pathlib import Path
from typing import BinaryIO

import click

from feature_pipeline import settings
from feature_pipeline.cli.project import Project
from feature_pipeline.errors import ConflictError, NotFoundError
from feature_pipeline.hooks.osa_manifest import definition_yaml, import_hooks

DEFS = "feature_pipeline/defs"
"""Folder of the definitions in a checkout."""


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
def new(name: str, folder: Path | None) -> None:
    """Write a working hook to start from: <folder>/NAME/defs.yaml and its program."""
    from feature_pipeline.orchestration.scaffold import write_hook

    written = (_definitions() if folder is None else folder) / name
    if written.exists():
        raise ConflictError(f"{written} exists: choose another name")
    write_hook(written)
    for path in sorted(written.iterdir()):
        click.echo(path)


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
def import_(
    manifest: BinaryIO,
    dataset: str,
    image: str | None,
    version: str | None,
    folder: Path | None,
    overwrite: bool,
) -> None:
    """Define the hooks of a manifest of the Open Science Archive's SDK.

    MANIFEST is the output of `osa manifest`, or - for standard input. Unless every hook in it can
    be defined, nothing is written.
    """
    folder = _definitions() if folder is None else folder
    hooks = import_hooks(manifest.read(), dataset=dataset, image=image, version=version)
    paths = {imported.definition.name: imported for imported in hooks}
    if not overwrite:
        for name in paths:
            if (folder / name / "defs.yaml").exists():
                raise ConflictError(
                    f"{folder / name / 'defs.yaml'} exists; --overwrite replaces it"
                )
    for name, imported in paths.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "defs.yaml").write_text(definition_yaml(imported.definition), "utf-8")
        click.echo(f"{folder / name / 'defs.yaml'}")
        for note in imported.notes:
            click.echo(f"  look at {note}", err=True)
    click.echo("`dg check defs` says whether the project takes them.")


def _definitions() -> Path:
    """Return the folder of definitions from the settings, or else a checkout's.

    Raises:
        NotFoundError: No setting names one, and the working directory is not a checkout.
    """
    Project.find().load_environment()
    folder = settings.defs_folder(Path(DEFS))
    if not folder.is_dir():
        raise NotFoundError(
            f"there is no folder {folder} here, and {settings.DEFS_FOLDER} is not set:"
            " `feature-pipeline init` makes a project with a folder for hooks"
        )
    return folder
