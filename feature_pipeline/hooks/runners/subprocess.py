"""Run hooks as child processes of this one: for a laptop, for tests, for trusted code.

What this runner does not promise:

- Unconfined, it is not a sandbox. The hook gets no credential in its environment or by an open
  file, but it runs as the same user, with the same files and the same network.
- `limits.cpu` is not enforced. `limits.scratch` is checked every second, for the scratch folder
  and for the output.
- Memory is sampled, every 0.1 s, over the hook and its descendants (`psutil`; without it the limit
  is not enforced, and the log says so). A shorter peak may be missed. An address-space limit was
  refused: many numerical programs reserve far more than they touch.
- Every process that the hook started ends with it, also those that left its session or lost their
  parent (`runners.reaper`). Unconfined, a hook that means harm can kill the reaper or this process,
  since they have the same user; then those of its processes are found that were sampled or have
  its environment. The kernel of macOS has no such reaper: there, only the hook's group ends.
- The number of processes is not limited, except by the user's own limit.
- If this process itself is killed with SIGKILL, its hook is killed too, and the attempt is
  repeated. Ended attempts are found again.
"""

import errno
import math
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from feature_pipeline.hooks.ended_attempts import EndedAttempts, run_once
from feature_pipeline.hooks.failure import FailureKind, is_memory_error
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult
from feature_pipeline.hooks.runners import bubblewrap
from feature_pipeline.hooks.runners.bubblewrap import Confinement
from feature_pipeline.hooks.runners.hook_process import HookProcess
from feature_pipeline.hooks.runners.process_tree import REAPER_SECONDS, end_processes_of
from feature_pipeline.hooks.runners.shared.attempt_end import End
from feature_pipeline.hooks.runners.shared.disk_watch import DiskWatch
from feature_pipeline.hooks.runners.shared.log_file import open_log
from feature_pipeline.hooks.runners.shared.log_stream import LogStream
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.model.digest import Digest, digest_stream, document_bytes
from feature_pipeline.model.text.exit_status import exit_reason
from feature_pipeline.model.text.quantities import format_size

_TICK_SECONDS: Final = 0.05
_SAMPLE_SECONDS: Final = 0.1
_CANCEL_SECONDS: Final = 0.5
_DRAIN_SECONDS: Final = 2.0
_PYTHON: Final = frozenset({"python", "python3"})


class SubprocessRunner:
    """Runs a release's code files as a child process in a fresh folder.

    Args:
        work: Folder for that fresh folder and for ended attempts; if None, the system's temporary
            folder is used and ended attempts are not stored.
        grace_seconds: Between SIGTERM and SIGKILL, at a deadline and on cancellation.
        confinement: How hooks are confined; if None, they are not.
    """

    name = "subprocess"

    def __init__(
        self,
        work: WorkFolders | None = None,
        *,
        grace_seconds: float = 10.0,
        confinement: Confinement | None = None,
    ) -> None:
        self._work = work
        self._confinement = confinement
        self._attempts = None if work is None else EndedAttempts(work.attempts)
        self._grace_seconds = grace_seconds

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        """Run the release's command over the workspace; see `HookRunner.run`.

        `python` as the command's first word is the interpreter of this process.
        """
        return run_once(self._attempts, request, _identity(request), monitor, self._run_attempt)

    @contextmanager
    def _run_attempt(self, request: RunRequest, monitor: RunMonitor) -> Iterator[RunResult]:
        request.workspace.create()
        request.workspace.clear_output()
        started_at = datetime.now(UTC)
        log_path = request.workspace.log(request.attempt)
        peak: int | None = None
        with open_log(log_path) as file, self._scratch() as scratch:
            log = LogStream(file, monitor.log)
            if refusal := _lay_out_code(request, scratch / "work"):
                end = End(None, refusal)
            else:
                end, peak = self._execute(request, monitor, log, scratch)
            facts = end.facts(log, request)
        yield RunResult(
            exit_code=end.exit_code,
            failure=facts,
            started_at=started_at,
            finished_at=datetime.now(UTC),
            log=log_path,
            peak_memory_bytes=peak,
            node=platform.node(),
        )

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        # Not below the workspace: sockets are made in TMPDIR, and a socket's path is at most 107
        # bytes long.
        with ExitStack() as cleanup:
            if self._work is None:
                scratch = Path(tempfile.mkdtemp(prefix="hook-")).resolve()
                # what cannot be removed is left: it must not hide what happened before
                cleanup.callback(shutil.rmtree, scratch, ignore_errors=True)
            else:
                folder = self._work.open("s")
                cleanup.callback(folder.cleanup)
                scratch = folder.path.resolve()
            for name in ("work", "home", "tmp", "shm"):
                (scratch / name).mkdir()
            yield scratch

    def _execute(
        self, request: RunRequest, monitor: RunMonitor, log: LogStream, scratch: Path
    ) -> tuple["End", int | None]:
        command = list(request.release.document.command)
        if command[0] in _PYTHON:
            command[0] = sys.executable
        environment = _environment(request, scratch)
        # the code files come before PATH; left to Popen, our own PATH would be searched
        if os.sep not in command[0]:
            search = os.pathsep.join([str(scratch / "work"), environment["PATH"]])
            command[0] = shutil.which(command[0], path=search) or command[0]
        program = command[0]
        is_confined = self._confinement is not None
        try:
            if self._confinement is not None:
                command = _confined(self._confinement, command, request, scratch)
            hook = HookProcess.start(
                command,
                folder=scratch / "work",
                environment=environment,
                levels=bubblewrap.LEVELS if is_confined else 0,
            )
        except (OSError, ValueError) as error:
            reason = f"{program!r} cannot be started: {error}"
            log.note(reason)
            return End(None, (FailureKind.CANNOT_START, reason)), None
        with hook:
            if self._attempts is not None:
                with suppress(OSError):
                    self._attempts.note_start(request, _identity(request))
            disk = DiskWatch(
                {"scratch": scratch, "output": request.workspace.output},
                request.limits.scratch_bytes,
            )
            watch = _Watch(
                hook, request, monitor, log, disk, self._grace_seconds, is_confined=is_confined
            )
            return watch.until_end(), hook.tree.peak_bytes


def _confined(
    confinement: Confinement, command: list[str], request: RunRequest, scratch: Path
) -> list[str]:
    """Return the confined command.

    Raises:
        OSError: Its program is not there.
    """
    program = scratch / "work" / command[0]
    if not program.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    workspace = request.workspace
    return confinement.command(
        [str(program), *command[1:]],
        readable=[workspace.inputs.resolve(), workspace.files.resolve()],
        writable=[workspace.output.resolve()],
        scratch=scratch,
        folder=scratch / "work",
    )


def _identity(request: RunRequest) -> Digest:
    """Return the properties that an attempt must share with `request` to be the same one."""
    return Digest.of(
        document_bytes(
            {
                "run": request.question,
                "attempt": request.attempt,
                "release": str(request.release.digest),
                "limits": request.limits.model_dump(mode="json"),
            }
        )
    )


def _lay_out_code(request: RunRequest, folder: Path) -> tuple[FailureKind, str] | None:
    """Copy the release's code to `folder`; return the problem if that is not possible."""
    document = request.release.document
    if document.image is not None and not document.code:
        return FailureKind.CANNOT_START, (
            f"release {document.version!r} is the image {document.image}; "
            f"the subprocess runner runs code files: use the container runner"
        )
    for code in document.code:
        path = request.workspace.code / code.name
        try:
            shutil.copyfile(path, folder / code.name)
            # a release names bytes, not modes, and any of the files may be the program
            (folder / code.name).chmod(0o755)
            with (folder / code.name).open("rb") as stream:
                digest, _ = digest_stream(stream)
        except OSError as error:
            return FailureKind.STAGE_FAILED, f"code file {code.name!r}: {error}"
        if digest != code.blob:
            return FailureKind.STAGE_FAILED, (
                f"code file {code.name!r} is {digest}, and the release names {code.digest}"
            )
    return None


def _environment(request: RunRequest, scratch: Path) -> dict[str, str]:
    """Return the hook's environment: nothing is inherited but the search path."""
    workspace = request.workspace
    path = [str(Path(sys.executable).parent), *os.get_exec_path()]
    return {
        "PATH": os.pathsep.join(path),
        "HOME": str(scratch / "home"),
        "TMPDIR": str(scratch / "tmp"),
        "LANG": "C.UTF-8",
        # what a killed program had printed would otherwise be lost with its buffer
        "PYTHONUNBUFFERED": "1",
        "OSA_IN": str(workspace.inputs.resolve()),
        "OSA_FILES": str(workspace.files.resolve()),
        "OSA_OUT": str(workspace.output.resolve()),
        "OSA_HOOK_NAME": request.release.document.hook,
    }


class _Watch:
    """Follows a hook from its start until none of its processes is left."""

    def __init__(
        self,
        hook: HookProcess,
        request: RunRequest,
        monitor: RunMonitor,
        log: LogStream,
        disk: DiskWatch,
        grace_seconds: float,
        *,
        is_confined: bool,
    ) -> None:
        self._hook = hook
        self._tree = hook.tree
        self._root = request.workspace.root
        self._disk = disk
        self._monitor = monitor
        self._log = log
        self._grace_seconds = grace_seconds
        self._is_confined = is_confined
        self._limits = request.limits
        started = time.monotonic()
        self._deadline = started + request.limits.timeout_seconds
        self._next_sample = self._next_question = started
        self._stopped: tuple[FailureKind, str] | None = None
        self._kill_at = self._kill_reaper_at = math.inf

    def until_end(self) -> End:
        """Wait for the end of the hook, stopping it if necessary."""
        pipe = self._hook.log_descriptor
        if not self._tree.is_measured:
            self._log.note("memory is not measured or limited here: psutil is missing")
        while self._hook.is_running():
            self._log.pump(pipe, _TICK_SECONDS)
            self._poll()
        ended = self._hook.ended()
        if ended is None:
            # It was killed: the kernel gives its hook's processes to another parent.
            self._tree.kill_with_reaper()
            if self._tree.is_measured:
                end_processes_of(self._root)
        elif ended.outlived and not self._is_confined:
            # Bubblewrap ends before its hook's other processes, which the kernel kills.
            self._log.note("stopped processes that outlived the hook")
        self._log.drain(pipe, _DRAIN_SECONDS)
        self._log.finish()
        return self._end(self._hook.reaper_code() if ended is None else ended.code)

    def _poll(self) -> None:
        now = time.monotonic()
        if now >= self._kill_reaper_at:
            self._tree.kill_with_reaper()
        elif now >= self._kill_at:
            self._kill()
        if now >= self._next_sample:
            self._next_sample = now + _SAMPLE_SECONDS
            used = self._tree.sample(self._limits.memory_bytes)
            if self._stopped is None and used > self._limits.memory_bytes:
                limit = format_size(self._limits.memory_bytes)
                self._stopped = (
                    FailureKind.OUT_OF_MEMORY,
                    f"it used {format_size(used)} of memory, and its limit is {limit}",
                )
                # no grace: it would go on growing
                self._kill()
        if self._stopped is None and (excess := self._disk.excess()) is not None:
            self._stopped = FailureKind.OUT_OF_SPACE, excess
            self._kill()
        if self._stopped is None and now >= self._deadline:
            self._stop(FailureKind.DEADLINE, f"not done after {self._limits.timeout}")
        if self._stopped is None and now >= self._next_question:
            self._next_question = now + _CANCEL_SECONDS
            if self._monitor.is_cancelled():
                self._stop(FailureKind.CANCELLED, "cancelled")

    def _stop(self, kind: FailureKind, reason: str) -> None:
        self._stopped = (kind, reason)
        self._log.note(f"{reason}: stopping it")
        self._tree.terminate()
        self._kill_at = time.monotonic() + self._grace_seconds

    def _kill(self) -> None:
        self._tree.kill()
        self._kill_at = math.inf
        self._kill_reaper_at = time.monotonic() + REAPER_SECONDS

    def _end(self, returncode: int) -> End:
        if self._is_confined:
            if returncode == 1 and (refusal := _refusal(self._log.tail())):
                return End(None, (FailureKind.CANNOT_START, refusal))
            # As a shell does, bubblewrap says 128 + N of a process that signal N ended.
            returncode = 128 - returncode if returncode > 128 else returncode
        exit_code = 128 - returncode if returncode < 0 else returncode
        if self._stopped is not None:
            return End(exit_code, self._stopped)
        if returncode == 0:
            return End(0, None)
        if returncode > 0 and is_memory_error(self._log.tail()):
            return End(
                exit_code, (FailureKind.OUT_OF_MEMORY, "its log reports that memory ran out")
            )
        return End(exit_code, (FailureKind.NON_ZERO_EXIT, exit_reason(exit_code)))


def _refusal(tail: Sequence[str]) -> str | None:
    """Return why the confined program was not started, if its log ends with that."""
    last = tail[-1] if tail else ""
    return f"it cannot be started: {last}" if last.startswith(bubblewrap.FAILED) else None
