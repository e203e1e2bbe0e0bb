"""Dagster's own tools without `feature-pipeline dev`: one code location, by one name."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from dagster_dg_core.utils.telemetry import get_telemetry_enabled_for_cli
from dagster_shared.utils.config import get_dg_config_path

from feature_pipeline.local.process import choose_ports
from feature_pipeline_tests.acceptance.own_project import OwnProject, wait_for
from feature_pipeline_tests.acceptance.readme import README, one_block

LOCATIONS = """
{ workspaceOrError { __typename
  ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }
"""

pytestmark = [pytest.mark.dagster, pytest.mark.postgres, pytest.mark.slow]


@contextmanager
def running(project: OwnProject, tool: str, port: int) -> Iterator[None]:
    """`dagster dev` or `dg dev` runs, in the project's folder."""
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / tool), "dev", "--port", str(port)],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def locations(port: int) -> list[tuple[str, str]] | None:
    """Names of the code locations and what became of them; None while nothing answers."""
    try:
        answer = requests.post(
            f"http://127.0.0.1:{port}/graphql", json={"query": LOCATIONS}, timeout=60
        ).json()
    except (requests.ConnectionError, requests.Timeout):
        return None
    return [
        (entry["name"], entry["locationOrLoadError"]["__typename"])
        for entry in answer["data"]["workspaceOrError"]["locationEntries"]
        if entry["locationOrLoadError"] is not None
    ] or None


@pytest.mark.parametrize("tool", ["dagster", "dg"])
def test_one_name_without_our_dev(tmp_path: Path, database_url: str, tool: str) -> None:
    project = OwnProject(
        tmp_path,
        hooks=["has_protein"],
        shell={
            "DAGSTER_HOME": str(tmp_path),
            "DAGSTER_DATABASE_URL": database_url.replace("://", "+psycopg2://"),
            "FEATURE_PIPELINE_S3_BUCKET": "none",
            "FEATURE_PIPELINE_DATABASE_URL": database_url,
        },
    )
    port = choose_ports(tmp_path / "ports.json", ["webserver"])["webserver"]
    with running(project, tool, port):
        found = wait_for(lambda: locations(port), 500)
    assert found == [("feature_pipeline", "RepositoryLocation")]


def test_telemetry_of_dg_is_off_where_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dg` reads no `.env`: without its own file it announces what `dagster.yaml` turns off."""
    for name in ("DG_CLI_CONFIG", "XDG_CONFIG_HOME", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get_telemetry_enabled_for_cli()
    path = tmp_path / ".config" / "dg.toml"
    path.parent.mkdir()
    path.write_text(one_block("toml", "telemetry"))
    assert get_dg_config_path() == path
    assert "`~/.config/dg.toml`" in README
    assert not get_telemetry_enabled_for_cli()
