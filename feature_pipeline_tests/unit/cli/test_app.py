"""Every command in the list has a module, and every module is in the list."""

from pathlib import Path

from feature_pipeline.cli import commands
from feature_pipeline.cli.app import COMMANDS


def test_commands_and_modules_are_the_same() -> None:
    """They are imported by name when they are used, so a name without a module shows only then."""
    folder = Path(commands.__file__).parent
    modules = {file.stem.replace("_", "-") for file in folder.glob("[!_]*.py")}
    assert modules == set(COMMANDS)
