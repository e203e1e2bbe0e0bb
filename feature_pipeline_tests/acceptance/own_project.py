"""A project folder for a test: its own `.env` and data, the installed code location."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import psutil
import psycopg
import requests

from feature_pipeline.local.environment import load_dotenv
from feature_pipeline.local.process import choose_ports, left_after

ROOT = Path(__file__).parents[2]
T = TypeVar("T")

BACKFILL = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
BACKFILL_STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    __typename
    ... on PartitionBackfill { status error { message } }
  }
}
"""
RUN_STATUS = """
query Status($id: ID!) { runOrError(runId: $id) { __typename ... on Run { status } } }
"""
STALENESS = """
query Staleness($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) { assetKey { path } partitionKeys staleStatusByPartition }
}
"""


LOCATIONS = """
{ workspaceOrError { __typename
  ... on Workspace { locationEntries { name locationOrLoadError { __typename } } } } }
"""
LOCATION = ("feature_pipeline", "RepositoryLocation")
"""The code location in any of Dagster's tools, when it has loaded."""


def copy_package(root: Path) -> None:
    """A copy of the package in `root`, with what is compiled of it: else every copy compiles it.

    Files that another process is writing there meanwhile are left out.
    """
    ignored = shutil.ignore_patterns("*.pyc.*", "*.tmp.*")
    shutil.copytree(ROOT / "feature_pipeline", root / "feature_pipeline", ignore=ignored)


class OwnProject:
    """Runs the command line as a user would, in a folder of its own.

    Args:
        root: The folder.
        hooks: A copy of the package has only these of the example hooks. All of them take minutes.
            None uses the package as it is installed.
        shell: Variables that the user's shell has besides.
        python: Of an environment that the wheel is installed in; then nothing of the checkout is
            used, and the folder stays empty.
    """

    def __init__(
        self,
        root: Path,
        hooks: Collection[str] | None = None,
        shell: Mapping[str, str] = MappingProxyType({}),
        python: Path | None = None,
    ) -> None:
        self.root = root
        self.python = Path(sys.executable) if python is None else python
        self._shell = dict(shell)
        root.mkdir(exist_ok=True)
        root.chmod(0o711)  # as root, PostgreSQL is another user
        if python is None:
            for name in ("workspace.yaml", "dagster.yaml"):
                shutil.copy(ROOT / name, root / name)
        self.url = ""
        self._has_copy = hooks is not None
        if hooks is not None:
            shutil.copy(ROOT / "pyproject.toml", root)
            copy_package(root)
            for folder in (root / "feature_pipeline" / "defs").iterdir():
                if folder.is_dir() and folder.name not in hooks:
                    shutil.rmtree(folder)

    @property
    def data(self) -> Path:
        return self.root / ".feature_pipeline"

    def command(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "feature_pipeline.cli.app", *arguments]

    def environment(self) -> dict[str, str]:
        """Without the coverage of pytest's own warning filters: this is a user's process."""
        own = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")} | self._shell
        return {**own, "PYTHONPATH": str(self.root)} if self._has_copy else own

    def run(self, *arguments: str, timeout: float = 500) -> subprocess.CompletedProcess[str]:
        return self._run(self.command(*arguments), timeout)

    def tool(self, name: str, *arguments: str) -> str:
        """What a program beside the interpreter prints, which must succeed: `dagster`, `dg`."""
        done = self._run([str(self.python.parent / name), *arguments], 500)
        assert done.returncode == 0, f"{name} {arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def _run(self, command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def json(self, *arguments: str) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def dev(self) -> Iterator[list[str]]:
        """`feature-pipeline dev` runs; ended as Ctrl-C ends it. Yields the lines that it prints."""
        process = subprocess.Popen(
            self.command("dev"),
            cwd=self.root,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        lines: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
        reader.start()
        try:
            wait_for(lambda: _ready(process, lines), 180)
            (self.url,) = [line.split()[1] for line in lines if line.startswith("Dagster ")]
            yield lines
        finally:
            started = [] if process.poll() is not None else _children(process.pid)
            process.send_signal(signal.SIGINT)
            status = process.wait(60)
            reader.join(10)
            process.stdout.close()
        assert status == 0, "".join(lines)
        assert lines[-1] == "Stopped.\n"
        assert not left_after(started, 5)

    def break_code_location(self, lines: list[str]) -> None:
        """Save a mistake, reload, and correct it; `dev` tells both."""
        module = self.root / "feature_pipeline" / "definitions.py"
        text = module.read_text()
        for mistake, line in (
            ("\nraise RuntimeError('on purpose')\n", "RuntimeError: on purpose\n"),
            ("", "The code location loads again.\n"),
        ):
            module.write_text(text + mistake)
            self.graphql("mutation { reloadWorkspace { __typename } }")
            wait_for(lambda wanted=line: wanted in lines, 120)  # type: ignore[misc]

    def connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """To the tables, without a process of the command line for every question."""
        url = load_dotenv(self.root / ".env")["FEATURE_PIPELINE_DATABASE_URL"]
        return psycopg.connect(url, autocommit=True)

    def graphql(self, query: str, **variables: Any) -> Any:
        response = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=60
        )
        body = response.json()
        assert not body.get("errors"), body
        return body["data"]

    def launch_backfill(self, keys: Sequence[Sequence[str]], partitions: Sequence[str]) -> str:
        """Launch a backfill as the UI does; its id."""
        launched = self.graphql(
            BACKFILL,
            params={
                "assetSelection": [{"path": list(key)} for key in keys],
                "partitionNames": list(partitions),
            },
        )["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def wait_for_backfill(self, backfill: str) -> None:
        """Until it has ended, which must be well. Dagster looks at backfills every 30 seconds."""

        def is_done() -> bool:
            backfill_status = self.graphql(BACKFILL_STATUS, id=backfill)
            status = backfill_status["partitionBackfillOrError"]
            assert "FAIL" not in status["status"], status
            return status["status"] == "COMPLETED_SUCCESS"

        wait_for(is_done, 300)

    def run_status(self, run_id: str) -> str:
        """The status of a run, which must not have failed."""
        status = str(self.graphql(RUN_STATUS, id=run_id)["runOrError"].get("status"))
        assert status not in {"FAILURE", "CANCELED", "None"}, status
        return status

    def staleness(self, keys: Sequence[Sequence[str]]) -> dict[str, set[str]]:
        """Per asset, the statuses of its partitions."""
        nodes = self.graphql(STALENESS, keys=[{"path": list(key)} for key in keys])["assetNodes"]
        return {
            "/".join(node["assetKey"]["path"]): set(node["staleStatusByPartition"])
            for node in nodes
        }


@contextmanager
def running(project: OwnProject, tool: str) -> Iterator[int]:
    """`dagster dev` or `dg dev` runs, in the project's folder. Yields the port of its UI."""
    with tempfile.TemporaryDirectory() as folder:
        port = choose_ports(Path(folder) / "ports.json", ["webserver"])["webserver"]
    process = subprocess.Popen(
        [str(project.python.parent / tool), "dev", "--port", str(port)],
        cwd=project.root,
        env=project.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield port
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


def _ready(process: subprocess.Popen[str], lines: list[str]) -> bool:
    assert process.poll() is None, "".join(lines)
    return any(line.startswith("Ctrl-C") for line in lines)


def _children(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_for(condition: Callable[[], T], seconds: float) -> T:
    """The first true answer of `condition`."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"still false after {seconds} s"
        time.sleep(1)
    return answer
