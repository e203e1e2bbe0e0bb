"""A definition names files of its project as code, and no others."""

from pathlib import Path

import pytest

import feature_pipeline
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.code_files import find_code_file, project_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a hook in a project, beside which lies what is not the project's."""
    (tmp_path / "secret.py").write_text("secret")
    project = tmp_path / "project"
    folder = project / "defs" / "hook"
    folder.mkdir(parents=True)
    (project / "workspace.yaml").write_text("")
    (project / ".env").write_text("PASSWORD=x")
    (project / ".aws").mkdir()
    (project / ".aws" / "credentials").write_text("x")
    (project / "lib.py").write_text("lib")
    (folder / "hook.py").write_text("hook")
    (folder / "pyproject.toml").write_text("")
    (folder / "linked.py").symlink_to("../../lib.py")
    (folder / "out.py").symlink_to(tmp_path / "secret.py")
    (folder / "env.py").symlink_to("../../.env")
    (folder / "folder.py").mkdir()
    return folder


def test_files_of_the_project(folder: Path):
    for name in ("hook.py", "../../lib.py", "linked.py", "./../hook/hook.py"):
        assert find_code_file(folder, name).read_text() in ("hook", "lib")
    assert project_of(folder) == folder.parent.parent


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("/etc/passwd", "'/etc/passwd' is absolute: write a path relative to the definition"),
        ("../../../secret.py", "is outside of the project"),
        ("../../../../../../../../../../etc/passwd", "is outside of the project"),
        ("out.py", "is outside of the project .*, through a link to .*secret.py: copy it there"),
        ("../../.env", r"'.env' is hidden and may contain credentials"),
        ("../../.aws/credentials", r"'.aws' is hidden"),
        ("env.py", r"'.env' is hidden"),
        ("gone.py", "gone.py does not exist"),
        ("folder.py", "folder.py is a folder: list its files"),
    ],
)
def test_other_files(folder: Path, name: str, match: str):
    with pytest.raises(InvalidInputError, match=match):
        find_code_file(folder, name)


def test_files_of_this_package(folder: Path):
    """What `dg scaffold` writes into a project of its own."""
    contract = Path(feature_pipeline.__file__).parent / "examples" / "hooks" / "contract.py"
    name = "/".join([*[".."] * (len(folder.parts) - 1), *contract.parts[1:]])
    assert find_code_file(folder, name) == contract.resolve()


@pytest.mark.parametrize("mark", [".git", "pyproject.toml"])
def test_projects_without_a_workspace(tmp_path: Path, mark: str):
    folder = tmp_path / "defs" / "hook"
    folder.mkdir(parents=True)
    assert project_of(folder) == folder
    (tmp_path / mark).mkdir()
    assert project_of(folder) == tmp_path
