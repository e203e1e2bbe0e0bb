"""One server as a child process: start, wait until it answers, watch, stop, reap.

A server runs in its own session, so that Ctrl-C in a terminal reaches only its owner, which then
stops it in order. It therefore outlives an owner that was killed with SIGKILL. Its pid and its
start time are in a file, by which the next start finds and stops it.
"""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from feature_pipeline.errors import CorruptDataError, StoreUnavailableError
from feature_pipeline.model.text.exit_status import exit_reason

LOG_TAIL_LINES = 20
POLL_SECONDS = 0.03
# Two readings of one process's start time differ by rounding only.
SAME_START_SECONDS = 0.5
# Below the range from which kernels take ports of outgoing connections (Linux 32768, macOS 49152):
# a port there could be in use by a passing connection when the server comes back.
PORT_RANGE = (20000, 32000)

StopSteps = Sequence[tuple[signal.Signals, float]]
TERMINATE_THEN_KILL: StopSteps = ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0))


class NotReadyError(Exception):
    """A probe's server does not answer yet; anything else a probe raises ends the wait."""


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """The command of a server, and its user.

    Attributes:
        argv: Program and arguments; the program is an absolute path.
        folder: Working directory; also contains `server.log` and `server.json`.
        environment: The whole environment of the process.
        user: (uid, gid) to run as; None is the caller's own.
        stop_steps: Signals in order, each with the seconds until the next.
    """

    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    user: tuple[int, int] | None = None
    stop_steps: StopSteps = TERMINATE_THEN_KILL


class ServerProcess:
    """A named server, started at most once; `stop` may be called from another thread."""

    def __init__(self, name: str, command: ServerCommand) -> None:
        self.name = name
        self.command = command
        self.log = command.folder / "server.log"
        self._popen: subprocess.Popen[bytes] | None = None
        self._is_stopping = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        if self._popen is None:
            raise StoreUnavailableError(f"{self.name} has not been started")
        return self._popen.pid

    def start(self) -> None:
        """Start the process and record it for `reap`; it need not answer yet."""
        with self._lock:
            if self._is_stopping:
                raise StoreUnavailableError(f"{self.name} was stopped before it had started")
            if self.log.exists():
                self.log.replace(self.log.with_suffix(".log.1"))
            uid, gid = self.command.user or (None, None)
            self.log.touch(mode=0o600)
            with self.log.open("wb") as log:
                self._popen = subprocess.Popen(
                    self.command.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.command.folder,
                    env=dict(self.command.environment),
                    user=uid,
                    group=gid,
                    extra_groups=None if gid is None else [],
                    umask=0o077,
                    start_new_session=True,
                )
            _write_record(self.command.folder, self._popen.pid, self.command.argv)

    def wait_ready(self, probe: Callable[[], None], timeout_seconds: float) -> None:
        """Wait until `probe` succeeds.

        Args:
            probe: Queries the server once; raises `NotReadyError` to be called again.
            timeout_seconds: How long to continue.

        Raises:
            StoreUnavailableError: The process ended, or time is up; with the log's last lines.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            self.check()
            try:
                probe()
            except NotReadyError as error:
                if time.monotonic() > deadline:
                    self.check()
                    raise StoreUnavailableError(
                        f"{self.name} did not answer within {timeout_seconds:g} s ({error}). "
                        f"{self.describe_log()}"
                    ) from error
                time.sleep(POLL_SECONDS)
            else:
                # If our server has ended meanwhile, another one answered.
                self.check()
                return

    def check(self) -> None:
        """Raise StoreUnavailableError, with the log's last lines, unless the process is running."""
        if self._popen is None:
            raise StoreUnavailableError(f"{self.name} has not been started")
        status = self._popen.poll()
        if status is not None:
            raise StoreUnavailableError(f"{exit_reason(status, self.name)}. {self.describe_log()}")

    def describe_log(self) -> str:
        """Return the log's path and its last lines."""
        tail = "\n".join(f"  {line}" for line in self.read_log().splitlines()[-LOG_TAIL_LINES:])
        return f"The last lines of {self.log}:\n{tail or '  (empty)'}"

    def read_log(self) -> str:
        """Return everything that was logged since this start."""
        try:
            return self.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def request_stop(self) -> None:
        """Send the first stop signal and return at once. Nothing can be started any more."""
        with self._lock:
            self._is_stopping = True
            if self._popen is not None and self._popen.poll() is None:
                self._popen.send_signal(self.command.stop_steps[0][0])

    def stop(self) -> None:
        """Stop the process and remove its record. Does nothing the second time."""
        with self._lock:
            self._is_stopping = True
            popen = self._popen
        if popen is not None:
            self._stop_child(popen)
        _remove_record(self.command.folder)

    def descendants(self) -> list[psutil.Process]:
        """Return the running descendants of the process."""
        if self._popen is None:
            return []
        try:
            return psutil.Process(self._popen.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """Kill the process without a chance to clean up; for data that is thrown away."""
        with self._lock:
            self._is_stopping = True
            if self._popen is not None:
                self._popen.kill()
                self._popen.wait()
        _remove_record(self.command.folder)

    def _stop_child(self, popen: subprocess.Popen[bytes]) -> None:
        try:
            for step, seconds in self.command.stop_steps:
                if popen.poll() is not None:
                    return
                popen.send_signal(step)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    popen.wait(seconds)
                    return
        except KeyboardInterrupt:
            # A second Ctrl-C: the person does not want to wait. Both servers survive a kill.
            popen.kill()
            popen.wait()
            raise
        raise StoreUnavailableError(f"{self.name} (pid {popen.pid}) does not end, even when killed")


def end_all(processes: Sequence[psutil.Process], patience_seconds: float) -> None:
    """End all of them: wait, then terminate, then kill, `patience_seconds` each."""
    left = left_after(processes, patience_seconds)
    for step in (psutil.Process.terminate, psutil.Process.kill):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                step(process)
        left = left_after(left, patience_seconds)


def left_after(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until the processes have ended; return those that have not after these seconds.

    Not by `psutil.wait_procs`: of a process that ends at this moment, Linux 6.18 has an answer that
    psutil does not know.
    """
    end = time.monotonic() + seconds
    while (left := [each for each in processes if is_running(each)]) and time.monotonic() < end:
        time.sleep(POLL_SECONDS)
    return left


def is_running(process: psutil.Process) -> bool:
    """Return whether the process has not ended; one that was not waited for has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class ManagedServer:
    """A server that may be stopped from another thread, also before its process exists."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process: ServerProcess | None = None
        self._is_stopping = False

    @property
    def process(self) -> ServerProcess:
        """The running server."""
        if self._process is None:
            raise StoreUnavailableError(f"{self.name} has not been started")
        return self._process

    def start_process(self, command: ServerCommand) -> ServerProcess:
        """Start the server's process, unless a stop was requested; it need not answer yet."""
        process = self._process = ServerProcess(self.name, command)
        if self._is_stopping:
            process.request_stop()
        process.start()
        return process

    def check(self) -> None:
        """Raise StoreUnavailableError unless the server is running."""
        self.process.check()

    def request_stop(self) -> None:
        """Request a stop, or prevent a start; return at once."""
        self._is_stopping = True
        if self._process is not None:
            self._process.request_stop()

    def stop(self) -> None:
        """Stop the server in order; everything that it has acknowledged is on disk."""
        self.request_stop()
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """Kill the server at once; for data that is thrown away."""
        self._is_stopping = True
        if self._process is not None:
            self._process.kill()


def reap(name: str, folder: Path, stop_steps: StopSteps) -> bool:
    """Stop a server left by an earlier owner of `folder`; return whether there was one.

    A process counts as that server only if it has the recorded pid and, besides, the recorded start
    time or command line, so an unrelated process with the same pid is left alone. The start time
    alone would not do: it moves when the machine's clock is set. The caller holds the folder's
    lock, so the server's owner is dead.

    Raises:
        CorruptDataError: The record cannot be read.
        StoreUnavailableError: The process does not end, or belongs to another user.
    """
    process = _recorded_process(folder)
    if process is None:
        _remove_record(folder)
        return False
    stop_process(name, process, stop_steps)
    _remove_record(folder)
    return True


def stop_process(name: str, process: psutil.Process, stop_steps: StopSteps) -> None:
    """Stop `process`, which need not be a child."""
    try:
        for step, seconds in stop_steps:
            process.send_signal(step)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(seconds)
                return
    except psutil.NoSuchProcess:
        return
    except psutil.AccessDenied as error:
        raise StoreUnavailableError(
            f"{name} of an earlier run (pid {process.pid}) belongs to user {process.username()}: "
            "stop it as that user"
        ) from error
    raise StoreUnavailableError(
        f"{name} of an earlier run (pid {process.pid}) does not end, even when killed"
    )


def _recorded_process(folder: Path) -> psutil.Process | None:
    path = folder / "server.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        pid, create_time, argv = record["pid"], record["create_time"], record["argv"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptDataError(
            f"{path} does not name the server that was started. Check that no server uses"
            f" {folder}, "
            "then delete the file."
        ) from error
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if abs(process.create_time() - create_time) < SAME_START_SECONDS:
            return process
        return process if process.cmdline() == argv else None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        # Whose command line may not be read is another user's process, with another start time.
        return None


def _write_record(folder: Path, pid: int, argv: Sequence[str]) -> None:
    try:
        create_time = psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return
    record = {"pid": pid, "create_time": create_time, "argv": list(argv)}
    write_private(folder / "server.json", json.dumps(record))


def _remove_record(folder: Path) -> None:
    (folder / "server.json").unlink(missing_ok=True)


def read_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return a copy of the environment, from which other threads may remove variables meanwhile."""
    names = list(environment)
    return {name: text for name in names if (text := environment.get(name)) is not None}


def write_private(path: Path, text: str) -> None:
    """Write `text` to `path`, completely or not at all, readable by its owner only."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def choose_ports(path: Path, names: Sequence[str], *, anew: bool = False) -> dict[str, int]:
    """Return a free loopback port per name: those in the file `path` if still free, else new ones.

    The file stores the choice, so that addresses stay the same between starts. A port may be taken
    by another process before the server binds it: the caller then starts again with `anew`.
    """
    known: dict[str, int] = {}
    if not anew:
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            known = {str(name): int(port) for name, port in stored.items()}
        except FileNotFoundError:
            pass
        except (ValueError, AttributeError, TypeError) as error:
            raise CorruptDataError(f"{path} is not a list of ports; delete the file") from error
    chosen: dict[str, int] = {}
    for name in names:
        port = known.get(name)
        while port is None or port in chosen.values() or not is_port_free(port):
            port = random.randrange(*PORT_RANGE)  # noqa: S311 - nothing secret about a port
        chosen[name] = port
    if chosen != known:
        write_private(path, json.dumps(chosen, indent=1))
    return chosen


def is_port_free(port: int) -> bool:
    """Return whether a server could listen on 127.0.0.1:`port` now."""
    with socket.socket() as listener:
        # Connections of the last run in TIME_WAIT do not hinder a server, so they must not here.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    # macOS lets a second socket bind beside a listener on all addresses.
    with socket.socket() as client:
        client.settimeout(0.5)
        return client.connect_ex(("127.0.0.1", port)) != 0
