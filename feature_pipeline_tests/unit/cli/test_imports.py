"""What the help of a command imports: nothing that only carrying the command out needs."""

import json
import subprocess
import sys

import pytest

from feature_pipeline.cli.app import FOLDERS

HELP = ["--help", *FOLDERS, "hook new", "hook import"]

NEEDED = ("click", "feature_pipeline")
"""Everything else that is imported comes with Python."""

_CODE = """
import contextlib, io, json, sys
before = set(sys.modules)
from feature_pipeline.cli.app import main
imported = {}
for place in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main([*place.removesuffix("--help").split(), "--help"], standalone_mode=False)
    assert printed.getvalue().startswith("Usage: ")
    imported[place] = sorted(set(sys.modules) - before)
    before = set(sys.modules)
print(json.dumps(imported))
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, list[str]]:
    """For each help, the modules that a process imports for it beyond those of the help before."""
    ended = subprocess.run(
        [sys.executable, "-c", _CODE, *HELP], capture_output=True, text=True, check=True
    )
    document: dict[str, list[str]] = json.loads(ended.stdout)
    return document


@pytest.mark.parametrize("place", HELP)
def test_help_imports_click_alone(place: str, imported: dict[str, list[str]]) -> None:
    packages = {module.partition(".")[0] for module in imported[place]}
    assert sorted(packages - {*NEEDED, *sys.stdlib_module_names}) == []


@pytest.mark.parametrize("place", HELP)
def test_help_imports_nothing_that_carries_a_command_out(
    place: str, imported: dict[str, list[str]]
) -> None:
    work = "feature_pipeline.cli.commands"
    assert [module for module in imported[place] if module.startswith(work)] == []


def test_helps_are_of_the_modules_of_options(imported: dict[str, list[str]]) -> None:
    own = {module for modules in imported.values() for module in modules}
    assert own >= {f"feature_pipeline.cli.options.{folder}" for folder in FOLDERS.values()}
