"""`feature-pipeline init`: create a project folder for an installed package."""

import shutil
from pathlib import Path

import click

from feature_pipeline import settings
from feature_pipeline.cli.project import DAGSTER, TEMPLATES, WORKSPACE
from feature_pipeline.errors import ConflictError
from feature_pipeline.local.environment import write_dotenv

DEFS = "defs"


def init(folder: Path) -> None:
    """Carry out `feature-pipeline init`."""
    root = folder.absolute()
    for name in (WORKSPACE, DAGSTER):
        if (root / name).exists():
            raise ConflictError(f"{root / name} exists: {root} is a project already")
    (root / DEFS).mkdir(parents=True, exist_ok=True)
    write_dotenv(root / ".env", {settings.DEFS_FOLDER: str(root / DEFS)}, as_defaults=True)
    for name in (DAGSTER, WORKSPACE):
        shutil.copyfile(TEMPLATES / name, root / name)
    click.echo(f"{root} is a project. In it, `feature-pipeline hook new NAME` writes a hook.")
