"""Writing a hook with Dagster's own tools: scaffold, check, list; and what wrong fields say."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from feature_pipeline_tests.acceptance.own_project import ROOT, copy_package
from feature_pipeline_tests.acceptance.readme import one_block

pytestmark = [pytest.mark.dagster, pytest.mark.slow]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the project, so that files can be written into its `defs` folder."""
    copy_package(tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


IN_PYTHON = """
from feature_pipeline import FeatureHook

hooks = FeatureHook(
    name="in_python",
    dataset="structures",
    release={"version": "1", "command": ["python", "hook.py"], "code": ["../../hook.py"]},
    feature={"columns": [{"name": "size", "type": "integer"}]},
).definitions()
"""


def dg(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {
        "PYTHONPATH": str(checkout),
        "FEATURE_PIPELINE_S3_BUCKET": "none",
        "FEATURE_PIPELINE_DATABASE_URL": "postgresql://reader@127.0.0.1/none",
        "NO_COLOR": "1",
        "COLUMNS": "300",
    }
    return subprocess.run(
        [str(Path(sys.executable).parent / "dg"), *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def readme(command: str, name: str = "my_hook") -> list[str]:
    """The arguments of the README's command, with this name for its hook."""
    program, *arguments = shlex.split(one_block("sh", command))
    assert program == ".venv/bin/dg"
    return [name if word == "my_hook" else word for word in arguments]


def test_a_scaffolded_hook_loads_and_runs(checkout: Path, tmp_path: Path) -> None:
    done = dg(checkout, *readme("dg scaffold", name="file_counts"))
    assert done.returncode == 0, done.stdout + done.stderr
    own = checkout / "feature_pipeline" / "defs" / "in_python"
    own.mkdir()
    (own / "declared.py").write_text(IN_PYTHON)
    (checkout / "feature_pipeline" / "hook.py").write_text("raise SystemExit('not a module')")
    done = dg(checkout, *readme("dg check defs"))
    assert done.returncode == 0, done.stdout + done.stderr
    listed = json.loads(dg(checkout, "list", "defs", "--json").stdout)
    keys = {asset["asset_key"] for asset in listed["assets"]}
    assert {"structures/features/file_counts", "structures/tables/file_counts"} <= keys
    assert {"structures/features/in_python", "structures/tables/in_python"} <= keys
    assert "structures/plots/pocket_volumes" in keys

    folders = {name: tmp_path / name for name in ("in", "out", "files")}
    for folder in folders.values():
        folder.mkdir()
    (folders["in"] / "records.jsonl").write_text('{"id": "a", "metadata": {}}\n')
    (folders["files"] / "a").mkdir()
    (folders["files"] / "a" / "x.txt").write_text("12345")
    written = checkout / "feature_pipeline" / "defs" / "file_counts"
    shutil.copy(checkout / "feature_pipeline" / "examples" / "hooks" / "contract.py", written)
    subprocess.run(
        [sys.executable, str(written / "file_counts.py")],
        env={
            "OSA_IN": str(folders["in"]),
            "OSA_OUT": str(folders["out"]),
            "OSA_FILES": str(folders["files"]),
            "OSA_HOOK_NAME": "file_counts",
        },
        check=True,
    )
    (line,) = (folders["out"] / "features.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": "a", "features": [{"file_count": 1, "bytes": 5}]}


def test_the_component_is_listed(checkout: Path) -> None:
    listed = json.loads(dg(checkout, "list", "components", "--json").stdout)
    assert "feature_pipeline.FeatureHook" in {component["key"] for component in listed["items"]}


@pytest.mark.parametrize(
    ("options", "either", "maximum"),
    [
        ([], "'one', 'many'", "maximum of 1"),
        (["--no-check-yaml"], "'one' or 'many'", "less than or equal to 1"),
    ],
    ids=["by the schema", "by loading"],
)
def test_wrong_fields_are_named_with_file_and_line(
    checkout: Path, options: list[str], either: str, maximum: str
) -> None:
    defs = checkout / "feature_pipeline" / "defs"
    # dg validates one file of each component type, whichever the file system lists last
    for other in defs.glob("*/defs.yaml"):
        if other.parent.name != "pockets":
            shutil.rmtree(other.parent)
    path = defs / "pockets" / "defs.yaml"
    text = path.read_text()
    path.write_text(
        text.replace("cardinality: many", "cardinality: lots").replace(
            "name: rank, type: integer", "name: rank, type: float"
        )
        + "  checks:\n    error_rate: {warn: 0.1, fail: 10}\n"
    )
    lines = path.read_text().splitlines()
    done = dg(checkout, "check", "defs", *options)
    assert done.returncode != 0
    output = done.stdout + done.stderr
    for text, allowed in (
        ("cardinality: lots", either),
        ("type: float", "'number'"),
        ("fail: 10", maximum),
    ):
        number = next(i for i, line in enumerate(lines, 1) if text in line)
        assert f"defs.yaml:{number}" in output
        assert allowed in output


def test_hooks_that_clash_are_named_with_file_and_line(checkout: Path) -> None:
    defs = checkout / "feature_pipeline" / "defs"
    shutil.copytree(defs / "pockets", defs / "pockets_again")
    done = dg(checkout, "check", "defs")
    assert done.returncode != 0
    output = done.stdout + done.stderr
    assert "two hooks named 'pockets'" in output
    assert "pockets/defs.yaml:" in output
    assert "pockets_again/defs.yaml:" in output
