"""What a user of the built wheel does: a project of their own, a hook, a table; no checkout."""

import shutil
import uuid
from pathlib import Path

import psycopg
import pytest

from feature_pipeline.examples.records import STRUCTURES
from feature_pipeline_tests.acceptance.own_project import (
    LOCATION,
    OwnProject,
    locations,
    running,
    wait_for,
)
from feature_pipeline_tests.fixtures.shell import HOSTILE

HOOK = "file_counts"
FEATURES = f"structures/features/{HOOK}"
MODULE = ("-m", "feature_pipeline.definitions")

pytestmark = [pytest.mark.dagster, pytest.mark.slow, pytest.mark.timeout(1200)]


def done(project: OwnProject, *arguments: str) -> str:
    """What a command prints, which must succeed."""
    result = project.run(*arguments)
    assert result.returncode == 0, f"{arguments}\n{result.stdout}\n{result.stderr}"
    return result.stdout


ROWS = f"select record_id, file_count from {HOOK} order by 1"


def rows(project: OwnProject) -> list[list[object]]:
    """The table's rows; none while it does not exist."""
    with project.connect() as connection:
        try:
            loaded_rows = connection.execute(ROWS.replace(HOOK, f"features.{HOOK}").encode())
            return [list(row) for row in loaded_rows]
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return []


def test_an_own_hook_from_nothing_to_a_table(tmp_path: Path, installed: Path) -> None:
    project = OwnProject(tmp_path, shell=HOSTILE, python=installed)
    done(project, "init")
    done(project, "hook", "new", HOOK)
    definition = tmp_path / "defs" / HOOK / "defs.yaml"
    definition.write_text(definition.read_text("utf-8").replace("on_request", "automatically"))
    records = tmp_path / "records"
    records.mkdir()
    for name in ("1ubi.pdb", "1a8o.cif"):
        shutil.copy(STRUCTURES / name, records)

    with project.dev():
        done(project, "submit", "records", "--dataset", "structures", "--source", "import",
             "--batch", "first")  # fmt: skip
        # Dagster's own commands find `dev`'s settings in .env, and its name of the code location
        validated = project.tool("dagster", "definitions", "validate")
        assert "code location feature_pipeline." in validated
        run = str(uuid.uuid4())
        project.tool("dagster", "job", "launch", "-j", "reconcile", "--run-id", run)
        wait_for(lambda: project.run_status(run) == "SUCCESS", 240)
        expected = [["1a8o", 1], ["1ubi", 1]]
        wait_for(lambda: rows(project) == expected, 240)
        assert project.json("sql", ROWS)["rows"] == expected
        chosen = ("--select", FEATURES, "--partition", "first")
        project.tool("dagster", "asset", "materialize", *chosen, *MODULE)
        with running(project, "dagster") as port:
            assert wait_for(lambda: locations(port), 240) == [LOCATION]
