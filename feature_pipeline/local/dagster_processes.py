"""Dagster's code servers, webserver and daemon as child processes, on loopback."""

import contextlib
import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import psutil

from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline.local.code_servers import HOST, Workspace, without_proxy
from feature_pipeline.local.process import (
    TERMINATE_THEN_KILL,
    NotReadyError,
    ServerCommand,
    ServerProcess,
    choose_ports,
    end_all,
    read_environment,
    reap,
)
from feature_pipeline.local.supervisor import Server
from feature_pipeline.projections.catalog.libpq import PREFIX

READY_SECONDS = 120.0
LOAD_SECONDS = 600.0
"""Time for a code server to load definitions, on a machine that is busy."""
PATIENCE_SECONDS = 8.0
"""Time for child processes of Dagster's processes, after these have ended."""
ANSWER_SECONDS = 10.0
WEBSERVER: Final = "webserver"
DAEMON: Final = "daemon"
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
# What the program `dagster-daemon` does, which may be in no folder of PATH.
_RUN_DAEMON: Final = (
    "from importlib.metadata import entry_points\n"
    "next(iter(entry_points(group='console_scripts', name='dagster-daemon'))).load()()"
)
# Whatever proxies the environment has: none of them reaches this machine's loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# On a machine that is busy a code server takes minutes to start a run's process. Dagster's queue
# gives up after one, starts the run again, and reports the first process as failed when the second
# one ends. As long as run monitoring waits for a run to start.
_DEFAULTS = {"DAGSTER_GRPC_TIMEOUT_SECONDS": "600"}


class DagsterProcesses:
    """The code servers, the webserver and the daemon of one DAGSTER_HOME, over one workspace file.

    Webserver and daemon share the code server of each code location, in which runs start. A run
    continues when the daemon is stopped; `stop` ends all processes and waits for them.

    Args:
        folder: Folder for ports, logs and pid records.
        workspace: The workspace file.
        environment: Variables that all processes get in addition to those of this process,
            DAGSTER_HOME included.

    Raises:
        InvalidInputError: The file is not a workspace.
    """

    def __init__(
        self, folder: Path, root: Path, workspace: Path, environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._root = root
        self._workspace = Workspace.read(workspace)
        self.environment: Mapping[str, str] = without_proxy(
            {**_DEFAULTS, **_without_libpq(read_environment()), **environment}
        )
        self._locations = {
            f"code-server-{number}": location
            for number, location in enumerate(self._workspace.locations)
        }
        self._processes: dict[str, ServerProcess] = {}
        self._ports: dict[str, int] = {}
        self._loaded: set[psutil.Process] = set()

    @property
    def url(self) -> str:
        """Address of the UI."""
        return f"http://{HOST}:{self._ports[WEBSERVER]}"

    def start(self) -> None:
        """Start all processes and wait until the UI answers.

        Raises:
            StoreUnavailableError: One does not start; with its log's last lines.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (*self._locations, WEBSERVER, DAEMON):
            (self.folder / name).mkdir(exist_ok=True)
            reap(self._title(name), self.folder / name, TERMINATE_THEN_KILL)
        self._ports = choose_ports(self.folder / "ports.json", [WEBSERVER, *self._locations])
        self._workspace.write(
            self._workspace_file,
            {location.name: self._ports[name] for name, location in self._locations.items()},
        )
        try:
            for name in self._locations:
                self._launch(name)
            for name in self._locations:
                self._wait_until_ready(name)
            self._launch(WEBSERVER)
            self._launch(DAEMON)
            self._wait_until_ready(WEBSERVER)
            self._processes[DAEMON].check()
        except BaseException:
            self.stop()
            raise

    def servers(self) -> dict[str, Server]:
        """Return the processes for a supervisor."""
        return {
            **{self._title(name): _CodeServer(self, name) for name in self._locations},
            self._title(WEBSERVER): _Process(self, WEBSERVER),
            self._title(DAEMON): _Process(self, DAEMON),
        }

    def check(self, name: str) -> None:
        """Raise StoreUnavailableError, with its log's last lines, if the process has died."""
        self._processes[name].check()

    def restart(self, name: str) -> None:
        """Start a process again at its port, and wait until it answers.

        Raises:
            StoreUnavailableError: It does not start; with its log's last lines.
        """
        # Runs that it started continue: only this process is killed.
        self._processes[name].kill()
        self._launch(name)
        self._wait_until_ready(name)

    def check_code_server(self, name: str) -> None:
        """Raise StoreUnavailableError if one of a code server's two processes has died.

        The one that has loaded the code is remembered for `stop`: it outlives the other.
        """
        self.check(name)
        loaded = []
        for process in self._processes[name].descendants():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                is_living = process.status() != psutil.STATUS_ZOMBIE
                if is_living and {"api", "grpc"} <= set(process.cmdline()):
                    loaded.append(process)
        self._loaded.update(loaded)
        if not loaded:
            raise StoreUnavailableError("Dagster's code server has ended")

    def reload(self) -> None:
        """Load the code locations again, as *Reload* in the UI does; the daemon follows.

        Raises:
            StoreUnavailableError: The webserver does not answer.
        """
        self._ask("mutation { reloadWorkspace { __typename } }", LOAD_SECONDS)

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
        """Stop all processes, and the runs that they started.

        The next start detects interrupted runs and fails them.
        """
        servers, self._processes = list(self._processes.values()), {}
        # Asked before: the children of a process that ended have no parent that we know.
        started = [process for server in servers for process in server.descendants()]
        # What a code server that was killed had loaded runs on until its runs have ended.
        for process in self._loaded:
            with contextlib.suppress(psutil.NoSuchProcess):
                started += [*process.children(recursive=True), process]
        for server in servers:
            server.request_stop()
        for server in servers:
            server.stop()
        end_all(started, PATIENCE_SECONDS)

    def _title(self, name: str) -> str:
        """Return the name of the process for messages."""
        if name in self._locations:
            return f"Dagster's code server of {self._locations[name].name}"
        return f"Dagster's {name}"

    @property
    def _workspace_file(self) -> Path:
        return self.folder / "workspace.yaml"

    def _launch(self, name: str) -> None:
        """Start the process; it need not answer yet."""
        # `python -m` runs from the project's folder: the module path then finds the project even
        # where it is not installed.
        server = ServerProcess(
            self._title(name),
            ServerCommand(
                argv=self._command(name),
                folder=self.folder / name,
                environment={**self.environment, "PYTHONPATH": str(self._root)},
            ),
        )
        self._processes[name] = server
        server.start()

    def _command(self, name: str) -> tuple[str, ...]:
        if name in self._locations:
            return self._locations[name].command(self._ports[name])
        workspace = ("-w", str(self._workspace_file))
        if name == DAEMON:
            return (sys.executable, "-c", _RUN_DAEMON, "run", *workspace)
        address = ("-h", HOST, "-p", str(self._ports[WEBSERVER]))
        return (sys.executable, "-m", "dagster_webserver", *address, *workspace)

    def _wait_until_ready(self, name: str) -> None:
        """Wait until a server answers; the daemon answers nothing."""
        process = self._processes[name]
        if name in self._locations:
            # It listens once it has loaded its code, or knows why it cannot.
            process.wait_ready(lambda: _connect(self._ports[name]), LOAD_SECONDS)
        elif name == WEBSERVER:
            process.wait_ready(self._probe, READY_SECONDS)

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

    def _probe(self) -> None:
        try:
            with _DIRECT.open(f"{self.url}/server_info", timeout=2):
                return
        except (urllib.error.URLError, OSError) as error:
            raise NotReadyError(str(error)) from error


class _Process:
    """The webserver or the daemon."""

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
    """A code server: one process that stays, and one that it starts, which has loaded the code."""

    def __init__(self, dagster: DagsterProcesses, name: str) -> None:
        self._dagster = dagster
        self._name = name

    def check(self) -> None:
        """Raise StoreUnavailableError if one of its two processes has died."""
        self._dagster.check_code_server(self._name)

    def start(self) -> None:
        """Start it again."""
        self._dagster.restart(self._name)


def _connect(port: int) -> None:
    try:
        socket.create_connection((HOST, port), timeout=2).close()
    except OSError as error:
        raise NotReadyError(str(error)) from error


def _without_libpq(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the processes without libpq's variables."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIX)}
