"""`feature-pipeline hook import`: definitions of hooks that were written elsewhere."""

from pathlib import Path
from typing import BinaryIO

import click

from feature_pipeline.errors import ConflictError
from feature_pipeline.hooks.osa_manifest import definition_yaml, import_hooks


@click.group()
def hook() -> None:
    """Define hooks that were written elsewhere."""


@hook.command("import")
@click.argument("manifest", type=click.File("rb"))
@click.option("--dataset", required=True, help="The dataset whose records they are run over.")
@click.option("--image", help="Their image, by digest; without it, each hook's bound release.")
@click.option("--version", help="Their release's version; without it, the convention's.")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("feature_pipeline/defs"),
    show_default=True,
    help="Where the definitions go: <folder>/<hook>/defs.yaml.",
)
@click.option("--overwrite", is_flag=True, help="Replace definitions that are there.")
def import_(
    manifest: BinaryIO,
    dataset: str,
    image: str | None,
    version: str | None,
    folder: Path,
    overwrite: bool,
) -> None:
    """Define the hooks of a manifest of the Open Science Archive's SDK.

    MANIFEST is what `osa manifest` printed, - for standard input. Nothing is written unless every
    hook of it can be.
    """
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
