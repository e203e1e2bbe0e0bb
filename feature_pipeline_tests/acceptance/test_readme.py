"""What the README and the pages under docs/ name is there. `test_dev` does what the README says."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from feature_pipeline.cli.app import FOLDERS
from feature_pipeline_tests.acceptance.own_project import ROOT
from feature_pipeline_tests.acceptance.readme import README, blocks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


def test_the_two_set_up_commands_are_those_of_ci_and_the_package():
    set_up = [block.strip() for block in blocks("sh") if "pip install" in block]
    assert len(set_up) == 2
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for command in set_up:
        venv, install, program = command.split(" && ")
        assert venv == "python3 -m venv .venv"
        words = shlex.split(install)
        assert words[:4] == [".venv/bin/pip", "install", "-c", "constraints.txt"]
        extras = re.fullmatch(r"\.\[(.*)\]", words[-1])
        assert extras is not None
        assert set(extras[1].split(",")) <= project["optional-dependencies"].keys()
        name = Path(shlex.split(program)[0]).name
        assert name == "pytest" or name in project["scripts"]
    ci = (ROOT / ".ci" / "run").read_text("utf-8").replace(" -q ", " ")
    assert set_up[1] in ci
    assert (ROOT / "constraints.txt").is_file()


def test_every_command_named_exists():
    named = set(re.findall(r"(?:/|`)feature-pipeline ([a-z][a-z-]*)\b", README))
    assert {"demo", "dev", "submit", "status", "sql", "read", "publish"} <= named
    assert named <= FOLDERS.keys()


def test_every_setting_named_is_read():
    named = set(re.findall(r"`((?:FEATURE_PIPELINE|DAGSTER)_[A-Z0-9_]+)`", README))
    sources = [*(ROOT / "feature_pipeline").rglob("*.py"), ROOT / "dagster.yaml"]
    text = "".join(path.read_text("utf-8") for path in sources)
    assert len(named) >= 7
    assert {name for name in named if name not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_path_names_files_that_exist():
    table = README.split("## The path as file names")[1].split("\n## ")[0]
    names = re.findall(r"`([a-z_/]+(?:\.py|/))`", table)
    assert len(names) > 15
    assert [n for n in names if not (ROOT / "feature_pipeline" / n).exists()] == [
        "feature_pipeline/"
    ]
