"""`feature-pipeline hook`: write a new hook, or definitions of existing hooks."""

from pathlib import Path
from typing import BinaryIO

import click

from feature_pipeline.cli.project import Project, definitions_folder
from feature_pipeline.errors import ConflictError
from feature_pipeline.hooks.osa_manifest import definition_yaml, import_hooks


def new(name: str, folder: Path | None) -> None:
    """Carry out `feature-pipeline hook new`."""
    from feature_pipeline.orchestration.scaffold import write_hook

    Project.find().load_environment()
    written = (definitions_folder() if folder is None else folder) / name
    if written.exists():
        raise ConflictError(f"{written} exists: choose another name")
    write_hook(written)
    for path in sorted(written.iterdir()):
        click.echo(path)


def import_(
    manifest: BinaryIO,
    dataset: str,
    image: str | None,
    version: str | None,
    folder: Path | None,
    overwrite: bool,
) -> None:
    """Carry out `feature-pipeline hook import`."""
    Project.find().load_environment()
    folder = definitions_folder() if folder is None else folder
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
            click.echo(f"  check {note}", err=True)
    click.echo("`dagster definitions validate` checks them within the project.")
