"""Where commands find the project: a checkout, a folder that `init` made, or any other."""

import tomllib
from pathlib import Path

import pytest
import yaml
from dagster._core.secrets.env_file import get_env_var_dict

import feature_pipeline
from feature_pipeline.cli import project as module
from feature_pipeline.cli.project import TEMPLATES, Project
from feature_pipeline.local.environment import load_dotenv
from feature_pipeline_tests.fixtures.commands import CommandLine

ROOT = Path(feature_pipeline.__file__).parent.parent


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's, and a package that is not in a checkout."""
    monkeypatch.chdir(tmp_path)
    for name in ("FEATURE_PIPELINE_DEFS", "FEATURE_PIPELINE_S3_BUCKET"):
        monkeypatch.setenv(name, "")  # so that what commands set is taken back
        monkeypatch.delenv(name)
    installed = tmp_path / "lib" / "feature_pipeline" / "__init__.py"
    monkeypatch.setattr(module.feature_pipeline, "__file__", str(installed))
    return tmp_path


def test_one_name_for_the_code_location():
    """A run names it: beside `dev`, `dagster job launch` and `dg launch` must name the same."""
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text("utf-8"))
    [location] = [entry["python_module"] for entry in workspace["load_from"]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["dg"]["project"]
    assert project["code_location_name"] == location["location_name"]
    assert project["code_location_target_module"] == location["module_name"]


def test_a_checkout_has_the_files_of_the_package():
    for name in ("workspace.yaml", "dagster.yaml"):
        assert (ROOT / name).read_text("utf-8") == (TEMPLATES / name).read_text("utf-8")


def test_any_folder_is_a_project(elsewhere: Path):
    project = Project.find()
    assert project.root == elsewhere
    assert project.workspace_file == TEMPLATES / "workspace.yaml"
    project.prepare_dagster_home(elsewhere / "home", 3)
    written = yaml.safe_load((elsewhere / "home" / "dagster.yaml").read_text("utf-8"))
    runs = written["concurrency"]["runs"]
    assert [limit["limit"] for limit in runs["tag_concurrency_limits"]] == [3]
    assert runs["max_concurrent_runs"] == 5  # loads have slots that hooks do not take


def test_dagsters_commands_prefer_the_folder_that_the_shell_names(
    elsewhere: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
):
    """They prefer `.env` to the shell, and `feature-pipeline` does not: both must agree."""
    assert command_line("init")[0] == 0
    read = get_env_var_dict(str(elsewhere))
    assert read == {"FEATURE_PIPELINE_DEFS": str(elsewhere / "defs")}
    monkeypatch.setenv("FEATURE_PIPELINE_DEFS", "/others")
    assert get_env_var_dict(str(elsewhere)) == {"FEATURE_PIPELINE_DEFS": "/others"}


def test_init_makes_a_project_and_hook_new_a_hook(elsewhere: Path, command_line: CommandLine):
    (elsewhere / ".env").write_text("FEATURE_PIPELINE_S3_BUCKET=mine\n")
    assert command_line("init")[0] == 0
    below = elsewhere / "defs"
    assert Project.find().workspace_file == elsewhere / "workspace.yaml"
    assert load_dotenv(elsewhere / ".env") == {
        "FEATURE_PIPELINE_DEFS": str(below),
        "FEATURE_PIPELINE_S3_BUCKET": "mine",
    }
    status, printed, _ = command_line("hook", "new", "sizes")
    assert status == 0
    names = ["contract.py", "defs.yaml", "sizes.py"]
    assert printed.split() == [str(below / "sizes" / name) for name in names]
    attributes = yaml.safe_load((below / "sizes" / "defs.yaml").read_text("utf-8"))["attributes"]
    assert attributes["release"]["code"] == ["sizes.py", "contract.py"]
    assert "exists: choose another name" in command_line.refused("hook", "new", "sizes")
    assert "is a project already" in command_line.refused("init")
    assert "starting with a letter" in command_line.refused("hook", "new", "9")


def test_a_new_hook_needs_a_folder(elsewhere: Path, command_line: CommandLine):
    assert "`feature-pipeline init`" in command_line.refused("hook", "new", "sizes")
