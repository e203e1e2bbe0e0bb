"""A code server is started while Dagster's database is away."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import ListRepositoriesResponse
from dagster._serdes import deserialize_value
from sqlalchemy.exc import OperationalError

from feature_pipeline.orchestration.storage import EnvironmentStorage
from feature_pipeline_tests.fixtures import server_folder
from feature_pipeline_tests.fixtures.own_postgres import OwnServer

pytestmark = [pytest.mark.postgres, pytest.mark.dagster, pytest.mark.faults]

LONGEST = 300
DEFINITIONS = "import dagster as dg\n\ndefs = dg.Definitions()\n"


def psycopg2_url(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg2://")


@pytest.fixture
def server() -> Iterator[OwnServer]:
    with server_folder() as folder:
        server = OwnServer(folder / "own")
        try:
            yield server
        finally:
            server.kill()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + LONGEST
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def loaded(client: DagsterGrpcClient) -> Any:
    """What the code server serves; None while it does not answer."""
    try:
        return deserialize_value(client.list_repositories())
    except DagsterUserCodeUnreachableError:
        return None


def test_it_waits_for_the_database_instead_of_serving_the_error(
    server: OwnServer, tmp_path: Path
) -> None:
    """Otherwise it serves the error until a user reloads it, and no sensor ticks."""
    (tmp_path / "defs.py").write_text(DEFINITIONS)
    storage = {
        "module": "feature_pipeline.orchestration.storage",
        "class": "EnvironmentStorage",
        "config": {},
    }
    settings = {"storage": {"custom": storage}, "telemetry": {"enabled": False}}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(settings))
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(tmp_path),
        "DAGSTER_DATABASE_URL": psycopg2_url(server.server.url("tables")),
    }
    socket, log = tmp_path / "socket", tmp_path / "log"
    command = [sys.executable, "-m", "dagster", "api", "grpc", "--lazy-load-user-code"]
    command += ["--socket", str(socket), "--python-file", str(tmp_path / "defs.py")]
    server.kill()
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        wait_for(lambda: "waiting for Dagster's database" in log.read_text(), process, log)
        server.start()
        client = DagsterGrpcClient(socket=str(socket))
        wait_for(lambda: loaded(client) is not None, process, log)
        assert isinstance(loaded(client), ListRepositoriesResponse), log.read_text()
    finally:
        process.kill()
        process.wait()


def test_it_does_not_wait_for_a_database_that_refuses_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dagster", "api", "grpc"])
    monkeypatch.setenv("DAGSTER_DATABASE_URL", psycopg2_url(database_url) + "_of_nobody")
    with pytest.raises(OperationalError, match="does not exist"):
        EnvironmentStorage.from_config_value(None, {})
