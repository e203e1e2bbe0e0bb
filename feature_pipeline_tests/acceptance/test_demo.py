"""The main job: the demo's result, and that running it again computes nothing."""

import shutil
from pathlib import Path

import pytest

from feature_pipeline_tests.acceptance.own_project import OwnProject
from feature_pipeline_tests.fixtures.shell import HOSTILE


@pytest.mark.slow
@pytest.mark.dagster
@pytest.mark.timeout(1200)
def test_demo_proves_its_tables_and_computes_nothing_twice(
    tmp_path: Path, installed_minima: Path
) -> None:
    """From the wheel, in an empty folder, in a shell with settings of other places.

    Every dependency is the oldest that pyproject.toml allows.
    """
    project = OwnProject(tmp_path, shell=HOSTILE, python=installed_minima)
    first = project.json("demo")
    assert first["computed"] == 48
    hooks = {row["hook"]: row for row in first["hooks"]}
    assert {name: row["records"] for name, row in hooks.items()} == dict.fromkeys(
        ("alignments", "has_protein", "pockets", "structure_qc"), 12
    )
    assert hooks["structure_qc"]["errored"] == 1
    assert hooks["pockets"]["rejected"] == 3
    assert all(proof["equal"] and proof["rows"] for proof in first["proofs"])
    assert all(row["sql_rows"] in (None, row["rows"]) for row in hooks.values())

    again = project.run("demo")
    assert again.returncode == 0, again.stderr
    assert "Nothing was computed" in again.stdout
    digests = {proof["table"]: proof["table_digest"][:16] for proof in first["proofs"]}
    assert all(digest in again.stdout for digest in digests.values())

    # the whole PostgreSQL data folder is lost: tables and all that Dagster knew
    shutil.rmtree(project.data / "postgres")
    recovered = project.json("recover", "--local")
    proofs = {proof["table"]: proof for proof in first["proofs"]}
    for name, table in recovered["tables"].items():
        assert table["equal"]
        assert table["table_digest"] == proofs[f"features.{name}"]["table_digest"]
    assert len(recovered["tables"]) == len(proofs)
