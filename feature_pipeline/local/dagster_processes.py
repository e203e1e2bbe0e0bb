"""Dagster's webserver and daemon as child processes, on loopback."""

import contextlib
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline.local.process import (
    TERMINATE_THEN_KILL,
    NotReadyError,
    ServerCommand,
    ServerProcess,
    choose_ports,
    end_all,
    reap,
)
from feature_pipeline.local.supervisor import Server
from feature_pipeline.projections.catalog.libpq import PREFIX

READY_SECONDS = 120.0
PATIENCE_SECONDS = 8.0
"""Time for child processes of Dagster's processes, after these have ended."""
ANSWER_SECONDS = 10.0
HOST = "127.0.0.1"
NAMES: Final = ("webserver", "daemon")
_LOCATIONS: Final = """
{
  workspaceOrError {
    __typename
    ... on Workspace {
      locationEntries {
        locationOrLoadError {
          __typename
          ... on PythonError { message errorChain { error { message } } }
        }
      }
    }
    ... on PythonError { message errorChain { error { message } } }
  }
}
"""
# Whatever proxies the environment has: none of them reaches this machine's loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# On a machine that is busy a code server takes minutes to start a run's process. Dagster's queue
# gives up after one, starts the run again, and reports the first process as failed when the second
# one ends. As long as run monitoring waits for a run to start.
_DEFAULTS = {"DAGSTER_GRPC_TIMEOUT_SECONDS": "600"}


class DagsterProcesses:
    """The webserver and the daemon of one DAGSTER_HOME, over one workspace file.

    Both load the code location in a process of their own. A run started by the daemon continues
    when the daemon is stopped; `stop` ends both processes and waits for them.

    Args:
        folder: Folder for ports, logs and pid records.
        environment: What both processes get beside the environment of this one; DAGSTER_HOME
            included.
    """

    def __init__(
        self, folder: Path, root: Path, workspace: Path, environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._root = root
        self._workspace = workspace
        self.environment: Mapping[str, str] = {
            **_DEFAULTS,
            **_without_libpq(os.environ),
            **environment,
        }
        self._processes: dict[str, ServerProcess] = {}
        self._port = 0

    @property
    def url(self) -> str:
        """Address of the UI."""
        return f"http://{HOST}:{self._port}"

    def start(self) -> None:
        """Start both processes and wait until the UI answers.

        Raises:
            StoreUnavailableError: One does not start; with its log's last lines.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (self.folder / name).mkdir(exist_ok=True)
            reap(f"dagster-{name}", self.folder / name, TERMINATE_THEN_KILL)
        self._port = choose_ports(self.folder / "ports.json", ["webserver"])["webserver"]
        try:
            for name in NAMES:
                self._launch(name)
            self._processes["webserver"].wait_ready(self._probe, READY_SECONDS)
            self._processes["daemon"].check()
        except BaseException:
            self.stop()
            raise

    def servers(self) -> dict[str, Server]:
        """Return the processes for a supervisor: both, and the UI's code server."""
        return {
            "Dagster's webserver": _Process(self, "webserver"),
            "Dagster's daemon": _Process(self, "daemon"),
            "Dagster's code server": _CodeServer(self),
        }

    def check(self, name: str) -> None:
        """Raise StoreUnavailableError, with its log's last lines, if the process has died."""
        self._processes[name].check()

    def restart(self, name: str) -> None:
        """Start a dead process again at its port; the webserver answers.

        Raises:
            StoreUnavailableError: It does not start; with its log's last lines.
        """
        self._launch(name)
        if name == "webserver":
            self._processes[name].wait_ready(self._probe, READY_SECONDS)

    def code_servers(self) -> list[psutil.Process]:
        """Return the living processes in which the webserver has loaded the code location."""
        servers = []
        for process in self._processes["webserver"].descendants():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                is_living = process.status() != psutil.STATUS_ZOMBIE
                if is_living and {"api", "grpc"} <= set(process.cmdline()):
                    servers.append(process)
        return servers

    def reload(self) -> None:
        """Load the code location again, as *Reload* in the UI does.

        Raises:
            StoreUnavailableError: The webserver does not answer.
        """
        self._ask("mutation { reloadWorkspace { __typename } }", READY_SECONDS)

    def load_error(self) -> str | None:
        """Return why the code location does not load; None while it is loading, or loaded.

        Raises:
            StoreUnavailableError: The webserver does not answer.
        """
        workspace = self._ask(_LOCATIONS)["workspaceOrError"]
        for entry in workspace.get("locationEntries", [{"locationOrLoadError": workspace}]):
            error = entry["locationOrLoadError"] or {}
            if error.get("__typename") == "PythonError":
                chain = [each["error"]["message"] for each in error["errorChain"]]
                return str([error["message"], *chain][-1]).strip()
        return None

    def stop(self) -> None:
        """Stop both, and the runs and code servers that they started.

        The next start detects interrupted runs and fails them.
        """
        servers, self._processes = list(self._processes.values()), {}
        # Asked before: the children of a process that ended have no parent that we know.
        started = [process for server in servers for process in server.descendants()]
        for server in servers:
            server.request_stop()
        for server in servers:
            server.stop()
        end_all(started, PATIENCE_SECONDS)

    def _launch(self, name: str) -> None:
        """Start the process; it need not answer yet."""
        workspace = ("-w", str(self._workspace))
        if name == "webserver":
            address = ("-h", HOST, "-p", str(self._port))
            server = self._server(name, "dagster_webserver", *address, *workspace)
        else:
            server = self._server(name, "dagster._daemon", "run", *workspace)
        self._processes[name] = server
        server.start()

    def _ask(self, query: str, timeout_seconds: float = ANSWER_SECONDS) -> Any:
        request = urllib.request.Request(  # noqa: S310  (of this machine's loopback)
            f"{self.url}/graphql",
            json.dumps({"query": query}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with _DIRECT.open(request, timeout=timeout_seconds) as answer:
                return json.load(answer)["data"]
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise StoreUnavailableError(f"Dagster's webserver does not answer: {error}") from error

    def _server(self, name: str, module: str, *arguments: str) -> ServerProcess:
        # `python -m` runs from the project's folder: the module path then finds the project even
        # where it is not installed.
        return ServerProcess(
            f"dagster-{name}",
            ServerCommand(
                argv=(sys.executable, "-m", module, *arguments),
                folder=self.folder / name,
                environment={**self.environment, "PYTHONPATH": str(self._root)},
            ),
        )

    def _probe(self) -> None:
        try:
            with _DIRECT.open(f"{self.url}/server_info", timeout=2):
                return
        except (urllib.error.URLError, OSError) as error:
            raise NotReadyError(str(error)) from error


class _Process:
    """The webserver or the daemon, for a supervisor."""

    def __init__(self, dagster: DagsterProcesses, name: str) -> None:
        self._dagster = dagster
        self._name = name

    def check(self) -> None:
        """Raise StoreUnavailableError, with its log's last lines, if it has died."""
        self._dagster.check(self._name)

    def start(self) -> None:
        """Start it again."""
        self._dagster.restart(self._name)


class _CodeServer:
    """The process of the code location, which the webserver starts and does not watch.

    The daemon's is not watched, because the daemon starts another one every minute.
    """

    def __init__(self, dagster: DagsterProcesses) -> None:
        self._dagster = dagster

    def check(self) -> None:
        """Raise StoreUnavailableError if the webserver is running and has none."""
        try:
            self._dagster.check("webserver")
        except StoreUnavailableError:
            return  # It is started again by itself, and starts one.
        # The webserver answers only once it has one.
        if not self._dagster.code_servers():
            raise StoreUnavailableError("Dagster's code server has ended")

    def start(self) -> None:
        """Make the webserver start another one."""
        self._dagster.reload()


def _without_libpq(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the processes without libpq's variables."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIX)}
