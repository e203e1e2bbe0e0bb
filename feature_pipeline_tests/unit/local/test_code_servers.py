"""What code servers are started for a workspace, and the workspace that names them."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.workspace.load import location_origins_from_yaml_paths

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.local.code_servers import Workspace, without_proxy

ENTRIES = [
    {"python_module": "one.definitions"},
    {"python_module": {"module_name": "two.definitions", "attribute": "defs"}},
    {"python_module": {"module_name": "three", "location_name": "3", "working_directory": "/srv"}},
    {"python_package": "four"},
    {"python_file": "five.py"},
    {"python_file": {"relative_path": "six.py", "attribute": "defs", "executable_path": "/p3"}},
    {"python_file": {"relative_path": "seven.py", "working_directory": "there"}},
    {"grpc_server": {"host": "10.0.0.1", "port": 4000, "location_name": "8"}},
    {"autoload_defs_module": {"module_name": "nine"}},
]


def by_name(path: Path) -> dict[str, Any]:
    """Read a workspace as Dagster does."""
    return {each.location_name: each for each in location_origins_from_yaml_paths([str(path)])}


def test_locations_are_those_that_dagster_reads(tmp_path: Path) -> None:
    path = tmp_path / "workspace.yaml"
    path.write_text(yaml.safe_dump({"load_from": ENTRIES}))
    workspace = Workspace.read(path)
    expected = by_name(path)
    assert [location.name for location in workspace.locations] == list(expected)[:7]
    assert list(workspace.others) == ENTRIES[7:]
    for location in workspace.locations:
        origin = expected[location.name].loadable_target_origin
        options = dict(zip(location.options[::2], location.options[1::2], strict=True))
        assert options.pop("--module-name", None) == origin.module_name
        assert options.pop("--package-name", None) == origin.package_name
        assert options.pop("--python-file", None) == origin.python_file
        assert options.pop("--attribute", None) == origin.attribute
        folder = options.pop("--working-directory", None)
        assert (folder and Path(folder)) == (
            origin.working_directory and Path(origin.working_directory)
        )
        assert options == {}
        assert location.python == (origin.executable_path or sys.executable)


def test_the_written_workspace_names_the_servers(tmp_path: Path) -> None:
    path = tmp_path / "workspace.yaml"
    path.write_text(yaml.safe_dump({"load_from": ENTRIES}))
    workspace = Workspace.read(path)
    ports = {location.name: 5000 + n for n, location in enumerate(workspace.locations)}
    served = tmp_path / "served.yaml"
    workspace.write(served, ports)
    origins = by_name(served)
    assert {name: origins[name].port for name in ports} == ports
    assert origins["8"].port == 4000
    assert "nine" in origins


@pytest.mark.parametrize(
    "text", ["", "load_from:", "load_from: [one]", "load_from: [{python_module: {}}]", "a: ["]
)
def test_a_file_that_is_no_workspace_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "workspace.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInputError, match=r"workspace.yaml is not a workspace of Dagster"):
        Workspace.read(path)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "127.0.0.1"),
        ({"no_proxy": "a,b"}, "a,b,127.0.0.1"),
        ({"no_proxy": "a", "no_grpc_proxy": "c"}, "c,127.0.0.1"),
    ],
)
def test_loopback_is_reached_without_a_proxy(variables: dict[str, str], expected: str) -> None:
    environment = {"https_proxy": "http://proxy:3128", **variables}
    assert without_proxy(environment) == {**environment, "no_grpc_proxy": expected}
