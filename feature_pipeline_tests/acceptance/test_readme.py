"""The README's commands do what the README says, in its order."""

import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import psycopg
import pytest
import yaml

from feature_pipeline.cli.app import COMMANDS
from feature_pipeline.local.environment import load_dotenv
from feature_pipeline_tests.acceptance.own_project import ROOT, OwnProject, wait_for

README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order; those in lists are indented."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", README, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for _, text in found]


def one_block(language: str, holding: str) -> str:
    (block,) = [block for block in blocks(language) if holding in block]
    return block


class TestPages:
    def test_the_two_set_up_commands_are_those_of_ci_and_the_package(self):
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

    def test_every_command_named_exists(self):
        named = set(re.findall(r"(?:/|`)feature-pipeline ([a-z][a-z-]*)\b", README))
        assert {"demo", "dev", "submit", "status", "sql", "read", "publish"} <= named
        assert named <= COMMANDS.keys()

    def test_every_setting_named_is_read(self):
        named = set(re.findall(r"`((?:FEATURE_PIPELINE|DAGSTER)_[A-Z0-9_]+)`", README))
        sources = [*(ROOT / "feature_pipeline").rglob("*.py"), ROOT / "dagster.yaml"]
        text = "".join(path.read_text("utf-8") for path in sources)
        assert len(named) >= 7
        assert {name for name in named if name not in text} == set()

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links_lead_somewhere(self, page):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"

    def test_the_path_names_files_that_exist(self):
        table = README.split("## The path as file names")[1].split("\n## ")[0]
        names = re.findall(r"`([a-z_/]+(?:\.py|/))`", table)
        assert len(names) > 15
        assert [n for n in names if not (ROOT / "feature_pipeline" / n).exists()] == [
            "feature_pipeline/"
        ]


class ReadersProject(OwnProject):
    """A checkout as a reader has it, but for the example hooks."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, hooks=[])
        (root / ".venv").symlink_to(sys.prefix)

    def shell(self, commands: str) -> str:
        """What the commands print, each of which must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write_hook(self) -> None:
        """Save the ten-line hook and its definition where the README says."""
        code, definition = one_block("python", "import Reject"), one_block("yaml", "FeatureHook")
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
        for path, text in (("file_sizes.py", code), ("defs.yaml", definition)):
            saved = f"feature_pipeline/defs/file_sizes/{path}"
            assert f"`{saved}`" in README
            (self.root / saved).parent.mkdir(exist_ok=True)
            (self.root / saved).write_text(text, "utf-8")
        assert yaml.safe_load(definition)["attributes"]["release"]["code"][0] == "file_sizes.py"

    def loaded(self) -> list[str]:
        """The records in the README's table; none while there is no table."""
        url = load_dotenv(self.root / ".env")["FEATURE_PIPELINE_DATABASE_URL"]
        with psycopg.connect(url) as connection:
            try:
                found = connection.execute("select record_id from features.file_sizes order by 1")
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                return []
            return [row[0] for row in found.fetchall()]


@pytest.mark.dagster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readme_from_submission_to_results(tmp_path: Path) -> None:
    project = ReadersProject(tmp_path)
    project.write_hook()
    assert one_block("sh", "feature-pipeline dev") == ".venv/bin/feature-pipeline dev\n"
    with project.dev():
        project.shell(one_block("sh", "feature-pipeline submit"))
        project.shell(one_block("sh", "dg scaffold"))
        project.shell(one_block("sh", "dg check defs"))
        wait_for(lambda: project.loaded() == ["1ubi", "5pti"], 240)

        shown = project.shell(one_block("sh", "feature-pipeline sql"))
        assert shown.count("1ubi.pdb") == 2  # by `sql` and by `read`
        assert re.search(r'"5pti","passed"', shown)

        (project.root / "results.py").write_text(one_block("python", "Archive.open"), "utf-8")
        printed = project.shell(".venv/bin/python results.py")
        assert re.search(r"^first +\d+$", printed, re.MULTILINE)
        assert re.search(r"^passed +2$", printed, re.MULTILINE)
        assert '{"id": "1ubi", "features": [{"name": "1ubi.pdb", "bytes": 77355}]}' in printed

        project.shell(one_block("sh", "feature-pipeline verify"))
        project.shell(one_block("sh", "dg launch"))
        launched = project.graphql(one_block("graphql", "launchPartitionBackfill"))
        assert launched["launchPartitionBackfill"]["backfillId"]
