"""Dagster's webserver and daemon as child processes, on loopback."""

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from feature_pipeline.local.process import (
    TERMINATE_THEN_KILL,
    NotReadyError,
    ServerCommand,
    ServerProcess,
    choose_ports,
    end_all,
    reap,
)
from feature_pipeline.projections.libpq import VARIABLES

READY_SECONDS = 120.0
PATIENCE_SECONDS = 8.0
"""For what Dagster's processes started, once these have ended."""
HOST = "127.0.0.1"
# Whatever proxies the environment has: none of them reaches this machine's loopback.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DagsterProcesses:
    """The webserver and the daemon of one DAGSTER_HOME, over one workspace file.

    Both load the code location in a process of their own. A run started by the daemon goes on when
    the daemon is stopped; `stop` ends both processes and waits for them.

    Args:
        folder: Where ports, logs and pid records are kept.
        environment: What both processes are started with, DAGSTER_HOME included.
    """

    def __init__(
        self, folder: Path, root: Path, workspace: Path, environment: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._root = root
        self._workspace = workspace
        self._environment = {**_without_libpq(os.environ), **environment}
        self._servers: list[ServerProcess] = []
        self._port = 0

    @property
    def url(self) -> str:
        """Where the UI is."""
        return f"http://{HOST}:{self._port}"

    def start(self) -> None:
        """Both run and the UI answers.

        Raises:
            StoreUnavailableError: One does not start; with its log's last lines.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("webserver", "daemon"):
            (self.folder / name).mkdir(exist_ok=True)
            reap(f"dagster-{name}", self.folder / name, TERMINATE_THEN_KILL)
        self._port = choose_ports(self.folder / "ports.json", ["webserver"])["webserver"]
        workspace = ("-w", str(self._workspace))
        webserver = self._server(
            "webserver", "dagster_webserver", "-h", HOST, "-p", str(self._port), *workspace
        )
        daemon = self._server("daemon", "dagster._daemon", "run", *workspace)
        try:
            for server in (webserver, daemon):
                self._servers.append(server)
                server.start()
            webserver.wait_ready(self._probe, READY_SECONDS)
            daemon.check()
        except BaseException:
            self.stop()
            raise

    def check(self) -> None:
        """Raise StoreUnavailableError, with its log's last lines, if one has died."""
        for server in self._servers:
            server.check()

    def stop(self) -> None:
        """Both have ended, and so have the runs and code servers that they started.

        What a run was doing is found and failed at the next start.
        """
        servers, self._servers = self._servers, []
        # Asked before: what a process that ended had started is nobody's child.
        started = [process for server in servers for process in server.descendants()]
        for server in servers:
            server.request_stop()
        for server in servers:
            server.stop()
        end_all(started, PATIENCE_SECONDS)

    def _server(self, name: str, module: str, *arguments: str) -> ServerProcess:
        # `python -m` runs from the project's folder: the module path then finds the project even
        # where it is not installed.
        return ServerProcess(
            f"dagster-{name}",
            ServerCommand(
                argv=(sys.executable, "-m", module, *arguments),
                folder=self.folder / name,
                environment={**self._environment, "PYTHONPATH": str(self._root)},
            ),
        )

    def _probe(self) -> None:
        try:
            with _DIRECT.open(f"{self.url}/server_info", timeout=2):
                return
        except (urllib.error.URLError, OSError) as error:
            raise NotReadyError(str(error)) from error


def _without_libpq(environment: Mapping[str, str]) -> dict[str, str]:
    """What the processes are started with: libpq's variables are of other servers."""
    return {name: value for name, value in environment.items() if name not in VARIABLES}
