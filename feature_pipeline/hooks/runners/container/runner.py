"""Run hooks in containers of Docker or Podman on this machine, through the Docker API.

The hook has no network, no credential, a read-only root, read-only inputs, no capability, and a
user that is not root. It writes in `OSA_OUT`, in `/tmp`, and, if its release is code files, in its
working directory.

A container is named after its attempt. If the process that started it is killed, the next one that
makes the same attempt finds it, waits for it, and uses its output. The container is removed once
its output is stored, so that an ended attempt is always found again.

What this runner does not promise:

- `limits.scratch` bounds `/tmp`, which is memory and counts as such. The output and the working
  directory are measured every second: they may grow beyond the limit in between.
- Peak memory is sampled, and known only if the container's cgroup can be read here.
- While no worker watches (this process was killed) nothing enforces the deadline; a worker that
  attaches does.
- The engine must see the workspace under the same path: it is on this machine, or shares it.
- Order between standard output and standard error is kept by line only, as the engine read them.
"""

import os
import platform
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from feature_pipeline.errors import RuntimeFailure
from feature_pipeline.hooks.ended_attempts import EndedAttempts, run_once
from feature_pipeline.hooks.failure import (
    FailureKind,
    is_memory_error,
    is_space_error,
)
from feature_pipeline.hooks.output_folder import OutputFiles
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult
from feature_pipeline.hooks.runners.container import spec
from feature_pipeline.hooks.runners.container.cgroup_watch import MemoryWatch, ProcessesWatch
from feature_pipeline.hooks.runners.container.log import ContainerLog
from feature_pipeline.hooks.runners.shared.attempt_end import End
from feature_pipeline.hooks.runners.shared.disk_watch import DiskWatch
from feature_pipeline.hooks.runners.shared.log_file import open_log
from feature_pipeline.hooks.runners.shared.log_stream import LogStream
from feature_pipeline.model.digest import Digest, digest_stream
from feature_pipeline.model.text.exit_status import exit_reason
from feature_pipeline.model.text.quantities import format_size

_TICK_SECONDS: Final = 0.05
_INSPECT_SECONDS: Final = 0.25
_CANCEL_SECONDS: Final = 0.5
_DRAIN_SECONDS: Final = 5.0
_ENGINE_SILENCE_SECONDS: Final = 30.0
_CALL_SECONDS: Final = 60
_DOCKER_SOCKET: Final = "unix:///var/run/docker.sock"
# what the engines' inits print, alone, when there is no such program to start
_INIT_WORDS: Final = ("[FATAL tini", "ERROR (catatonit")


class _CannotGoOnError(Exception):
    """Ends an attempt with a failure; caught in this module."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Settings:
    """The settings shared by all containers of a runner."""

    attempts: EndedAttempts | None
    archive: str
    grace_seconds: float
    pids: int


class ContainerRunner:
    """Runs a release's image, or its code files in `code_image`, in a container.

    Args:
        engine_url: Address of the Docker API: `unix:///run/podman/podman.sock`. None takes
            DOCKER_HOST, or Docker's own socket.
        code_image: Image, by digest or local id, for releases that are code files and name none.
        attempts: Stores ended attempts for the next worker; with None, none are stored.
        archive: The store's identity, which distinguishes its containers from those of others.
        grace_seconds: Between SIGTERM and SIGKILL, at a deadline and on cancellation.
        pids: Maximum number of processes and threads of a hook.
    """

    name = "container"

    def __init__(
        self,
        engine_url: str | None = None,
        *,
        code_image: str | None = None,
        attempts: EndedAttempts | None = None,
        archive: str = "",
        grace_seconds: float = 10.0,
        pids: int = 4096,
    ) -> None:
        self._engine_url = engine_url
        self._code_image = code_image
        self._attempts = attempts
        self._settings = _Settings(attempts, archive, grace_seconds, pids)

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        """Run the release's command over the workspace; see `HookRunner.run`.

        If an earlier process started a container for the same attempt, this waits for that one and
        copies its output. The result's `started_at` is then that container's.
        """
        image = request.release.document.image or self._code_image
        identity = spec.identity(request, image or "")
        run_attempt = partial(self._run_attempt, image=image)
        return run_once(self._attempts, request, identity, monitor, run_attempt)

    def runs_left(self) -> dict[str, datetime]:
        """List this archive's hook runs that have containers, with the newest one's creation time.

        Raises:
            RuntimeFailure: No engine answers.
        """
        with self._looking() as api:
            created: dict[str, datetime] = {}
            for container in self._containers(api):
                run = container["Labels"].get(spec.RUN_LABEL, "")
                created_at = datetime.fromtimestamp(container["Created"], UTC)
                created[run] = max(created.get(run, created_at), created_at)
            return created

    def remove_run(self, run_id: str) -> None:
        """Remove the containers of a finished hook run, running or not.

        Raises:
            RuntimeFailure: No engine answers.
        """
        import docker

        with self._looking() as api:
            for container in self._containers(api):
                if container["Labels"].get(spec.RUN_LABEL) == run_id:
                    with suppress(docker.errors.NotFound):
                        api.remove_container(container["Id"], force=True, v=True)

    def _containers(self, api: Any) -> list[dict[str, Any]]:
        label = f"{spec.ARCHIVE_LABEL}={spec.archive_label(self._settings.archive)}"
        containers: list[dict[str, Any]] = api.containers(all=True, filters={"label": [label]})
        return containers

    @contextmanager
    def _looking(self) -> Iterator[Any]:
        try:
            with _engine(self._engine_url) as api, _refusals():
                yield api
        except _CannotGoOnError as error:
            raise RuntimeFailure(str(error)) from error

    @contextmanager
    def _run_attempt(
        self, request: RunRequest, monitor: RunMonitor, image: str | None
    ) -> Iterator[RunResult]:
        """Make the attempt; its container is removed when the context is left."""
        request.workspace.create()
        request.workspace.clear_output()
        started_at = datetime.now(UTC)
        path = request.workspace.log(request.attempt)
        with ExitStack() as cleanup:
            with open_log(path) as file:
                log = LogStream(file, monitor.log)
                try:
                    if image is None:
                        raise _no_image(request)
                    api = cleanup.enter_context(_engine(self._engine_url))
                    attempt = _Attempt(api, request, monitor, log, self._settings, cleanup)
                    with _refusals():
                        end = attempt.run(image)
                    started_at = attempt.started_at or started_at
                except _CannotGoOnError as error:
                    end = End(None, (error.kind, str(error)))
                log.finish()
            yield RunResult(
                exit_code=end.exit_code,
                failure=end.facts(log, request),
                started_at=started_at,
                finished_at=datetime.now(UTC),
                log=path,
                peak_memory_bytes=end.peak_memory_bytes,
                node=platform.node(),
            )


@contextmanager
def _engine(url: str | None) -> Iterator[Any]:
    """Connect to the engine; end the attempt if it does not answer."""
    try:
        import docker
    except ImportError as error:
        reason = (
            "the container runner needs the docker extra: pip install 'feature-pipeline[docker]'"
        )
        raise _CannotGoOnError(FailureKind.CANNOT_START, reason) from error
    where = url or os.environ.get("DOCKER_HOST") or _DOCKER_SOCKET
    try:
        _knock(where)
        if url is None:
            # with DOCKER_CERT_PATH and whatever else Docker's own client heeds
            client = docker.DockerClient.from_env(timeout=_CALL_SECONDS)
        else:
            client = docker.DockerClient(base_url=url, timeout=_CALL_SECONDS)
    except (docker.errors.DockerException, OSError) as error:
        reason = f"no container engine answers at {where}: {error}"
        raise _CannotGoOnError(FailureKind.CANNOT_START, reason) from error
    try:
        with _refusals():
            client.api.ping()
        yield client.api
    finally:
        client.close()


@contextmanager
def _refusals() -> Iterator[None]:
    """End the attempt if the engine refuses a request."""
    import docker

    try:
        yield
    except docker.errors.APIError as error:
        raise _CannotGoOnError(FailureKind.CANNOT_START, _explanation(error)) from error
    except (docker.errors.DockerException, OSError) as error:
        reason = f"the container engine stopped answering: {error}"
        raise _CannotGoOnError(FailureKind.UNKNOWN, reason) from error


def _no_image(request: RunRequest) -> _CannotGoOnError:
    return _CannotGoOnError(
        FailureKind.CANNOT_START,
        f"release {request.release.document.version!r} is code files and names no image: set the"
        f" container runner's code_image, or use the subprocess runner",
    )


def _knock(url: str) -> None:
    """Connect to a local socket and hang up: docker-py leaves one open if nothing answers."""
    if url.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as knock:
            knock.settimeout(_CALL_SECONDS)
            knock.connect(url.removeprefix("unix://"))


def _explanation(error: Any) -> str:
    return str(error.explanation or error)


class _Attempt:
    """One container, from before its creation until its removal."""

    def __init__(
        self,
        api: Any,
        request: RunRequest,
        monitor: RunMonitor,
        log: LogStream,
        settings: _Settings,
        cleanup: ExitStack,
    ) -> None:
        self.started_at: datetime | None = None
        self._api = api
        self._request = request
        self._monitor = monitor
        self._log = log
        self._settings = settings
        self._cleanup = cleanup

    def run(self, image: str) -> End:
        """Start the container or attach to it, and wait for its end; `cleanup` removes it."""
        wanted = spec.identity(self._request, image)
        name = spec.container_name(self._request, wanted)
        existing = self._find(name, wanted)
        if existing is None:
            work = self._lay_out_work()
            self._pull(image)
            container = self._create(name, wanted, image, work)
            output: Path | None = self._request.workspace.output
        else:
            work, output = _mounted(existing, spec.WORK), _mounted(existing, spec.OUTPUT)
            container = existing["Id"]
        self._cleanup.callback(self._remove, container)
        written = {"output": output, "working directory": work}
        folders = {label: folder for label, folder in written.items() if folder is not None}
        disk = DiskWatch(folders, self._request.limits.scratch_bytes)
        end = self._follow(container, disk, wanted, is_new=existing is None)
        if existing is not None:
            self._move_output(existing)
        return end

    def _find(self, name: str, wanted: Digest) -> dict[str, Any] | None:
        """Return the existing container of this attempt, running or ended without its worker."""
        container = self._inspect(name)
        if container is None:
            return None
        if container["Config"]["Labels"].get(spec.IDENTITY_LABEL) != str(wanted):
            raise _CannotGoOnError(
                FailureKind.CANNOT_START,
                f"a container named {name!r} exists and was not created by the pipeline: remove it",
            )
        output = _mounted(container, spec.OUTPUT)
        if _started(container) is None or output is None or not output.is_dir():
            self._remove(container["Id"])
            return None
        self._log.note(f"attached to container {name}, which was started before")
        return container

    def _inspect(self, container: str) -> dict[str, Any] | None:
        import docker

        try:
            described: dict[str, Any] = self._api.inspect_container(container)
        except docker.errors.NotFound:
            return None
        return described

    def _lay_out_work(self) -> Path | None:
        """Make a working directory with the release's code files, if it has any."""
        request = self._request
        if not request.release.document.code:
            return None
        work = request.workspace.root / f"work-{request.attempt}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        self._cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        for code in request.release.document.code:
            try:
                shutil.copyfile(request.workspace.code / code.name, work / code.name)
                # a release names bytes, not modes, and any of the files may be the program
                (work / code.name).chmod(0o755)
                with (work / code.name).open("rb") as stream:
                    digest, _ = digest_stream(stream)
            except OSError as error:
                reason = f"code file {code.name!r}: {error}"
                raise _CannotGoOnError(FailureKind.STAGE_FAILED, reason) from error
            if digest != code.blob:
                reason = f"code file {code.name!r} is {digest}, and the release names {code.digest}"
                raise _CannotGoOnError(FailureKind.STAGE_FAILED, reason)
        return work

    def _pull(self, image: str) -> None:
        """Ensure that the image is present; pull it if it is named by a digest."""
        import docker

        with suppress(docker.errors.ImageNotFound):
            self._api.inspect_image(image)
            return
        if "@" not in image:
            reason = (
                f"there is no image {image} on this machine, and an id does not name a registry"
            )
            raise _CannotGoOnError(FailureKind.CANNOT_START, reason)
        self._log.note(f"pulling {image}")
        try:
            for line in self._api.pull(image, stream=True, decode=True):
                if "error" in line:
                    raise _CannotGoOnError(FailureKind.IMAGE_PULL, f"{image}: {line['error']}")
                if self._monitor.is_cancelled():
                    raise _CannotGoOnError(FailureKind.CANCELLED, "cancelled")
        except docker.errors.APIError as error:
            raise _CannotGoOnError(
                FailureKind.IMAGE_PULL, f"{image}: {_explanation(error)}"
            ) from error

    def _create(self, name: str, wanted: Digest, image: str, work: Path | None) -> str:
        request = self._request
        user = spec.HookUser.here(self._api.info)
        _open_to(user, request, work)
        created = self._api.create_container(
            image,
            # as the entrypoint, so that the image's own is not put before it
            entrypoint=spec.command(request),
            name=name,
            user=f"{user.uid}:{user.gid}",
            environment=spec.environment(request),
            labels=spec.labels(request, wanted, self._settings.archive),
            working_dir=spec.WORK if work is not None else None,
            host_config=self._api.create_host_config(
                **spec.host_config(request, user, work=work, pids=self._settings.pids)
            ),
        )
        return str(created["Id"])

    def _follow(self, container: str, disk: DiskWatch, wanted: Digest, *, is_new: bool) -> End:
        log = ContainerLog(self._api, container)
        try:
            if is_new:
                # before the start: what is printed at once would be missed
                log.attach()
                self._start(container)
                if self._settings.attempts is not None:
                    with suppress(OSError):
                        self._settings.attempts.note_start(self._request, wanted)
            else:
                log.replay()
            stops = _Stops(self._settings.attempts, self._request, wanted)
            watch = _Watch(
                self._api,
                container,
                self._request,
                self._monitor,
                self._log,
                log,
                disk,
                stops,
                self._settings.pids,
            )
            if not is_new:
                watch.stopped = stops.before()
            end = watch.until_end(self._settings.grace_seconds)
            self.started_at = watch.started_at
            return end
        finally:
            log.close()

    def _start(self, container: str) -> None:
        import docker

        try:
            self._api.start(container)
        except docker.errors.APIError as error:
            program = self._request.release.document.command[0]
            reason = f"{program!r} cannot be started: {_explanation(error)}"
            raise _CannotGoOnError(FailureKind.CANNOT_START, reason) from error

    def _move_output(self, container: dict[str, Any]) -> None:
        """Move an attached container's output to our workspace, and remove its working folder."""
        output, work = _mounted(container, spec.OUTPUT), _mounted(container, spec.WORK)
        if work is not None:
            self._cleanup.callback(shutil.rmtree, work, ignore_errors=True)
        here = self._request.workspace.output
        if output is not None and output.resolve() != here.resolve():
            try:
                OutputFiles.of(output, self._request.limits.scratch_bytes).copy_to(here)
            except OSError as error:
                reason = f"the output folder cannot be read: {error}"
                raise _CannotGoOnError(FailureKind.INVALID_OUTPUT, reason) from error

    def _remove(self, container: str) -> None:
        import docker

        try:
            self._api.remove_container(container, force=True, v=True)
        except docker.errors.NotFound:
            pass
        except (docker.errors.DockerException, OSError) as error:
            # must not hide what happened before
            with suppress(Exception):
                self._log.note(f"container {container[:12]} could not be removed: {error}")


@dataclass(frozen=True, slots=True)
class _Stops:
    """The reason for stopping an attempt, recorded beforehand: its end alone would not show it."""

    attempts: EndedAttempts | None
    request: RunRequest
    identity: Digest

    def before(self) -> tuple[FailureKind, str] | None:
        """Return why an earlier, dead worker stopped the attempt."""
        if self.attempts is None:
            return None
        return self.attempts.stop_of(self.request, self.identity)

    def note(self, kind: FailureKind, reason: str) -> None:
        """Record it for a worker that attaches if this one dies before it has stored the end."""
        if self.attempts is not None and kind is not FailureKind.CANCELLED:
            # without the note such a worker would see only a signal
            with suppress(OSError):
                self.attempts.note_stop(self.request, self.identity, kind, reason)


class _Watch:
    """Follows a started container to its end, and stops it if necessary."""

    def __init__(
        self,
        api: Any,
        container: str,
        request: RunRequest,
        monitor: RunMonitor,
        log: LogStream,
        source: ContainerLog,
        disk: DiskWatch,
        stops: _Stops,
        pids: int,
    ) -> None:
        self.started_at: datetime | None = None
        self._api = api
        self._container = container
        self._limits = request.limits
        self._program = request.release.document.command[0]
        self._monitor = monitor
        self._log = log
        self._source = source
        self._disk = disk
        self._stops = stops
        self._pids = pids
        self._memory: MemoryWatch | None = None
        self._processes: ProcessesWatch | None = None
        self.stopped: tuple[FailureKind, str] | None = None
        """Why this worker, or one before it, stopped the container."""
        self._kill_at: float | None = None
        self._next_question = 0.0
        self._deadline = time.monotonic() + request.limits.timeout_seconds
        self._silent_since: float | None = None

    def until_end(self, grace_seconds: float) -> End:
        """Wait for the container's end and return it.

        Raises:
            BaseException: Any interruption of the wait; the container is killed before.
        """
        try:
            state = self._state()
            if self.stopped is not None and state["Running"]:
                self._stop(*self.stopped, time.monotonic() + grace_seconds)
            while state["Running"]:
                state = self._wait_a_little(state, grace_seconds)
            self._source.drain(self._log, _DRAIN_SECONDS)
            self._log.finish()
            return self._end(state)
        except BaseException:
            self._signal("SIGKILL")
            raise
        finally:
            if self._memory is not None:
                self._memory.close()

    def _wait_a_little(self, state: dict[str, Any], grace_seconds: float) -> dict[str, Any]:
        """Check the container until it is time to ask for its state again."""
        if self._memory is None and state["Pid"]:
            self._memory = MemoryWatch.of(state["Pid"])
            self._processes = ProcessesWatch.of(state["Pid"])
        end = time.monotonic() + _INSPECT_SECONDS
        while (now := time.monotonic()) < end:
            is_open = self._source.pump(self._log, _TICK_SECONDS)
            self._poll(now, grace_seconds)
            if not is_open:
                break
        return self._state()

    def _state(self) -> dict[str, Any]:
        """Return the container's `State`, waiting for an engine that restarts."""
        import docker

        while True:
            try:
                described = self._api.inspect_container(self._container)
            except docker.errors.NotFound as error:
                reason = "its container was removed by another program"
                raise _CannotGoOnError(FailureKind.EVICTED, reason) from error
            except (docker.errors.DockerException, OSError):
                now = time.monotonic()
                self._silent_since = self._silent_since or now
                if now - self._silent_since > _ENGINE_SILENCE_SECONDS:
                    raise
                time.sleep(_INSPECT_SECONDS)
                continue
            self._silent_since = None
            started = _started(described)
            if started is not None and self.started_at is None:
                self.started_at = started
                ago = max(0.0, (datetime.now(UTC) - started).total_seconds())
                self._deadline = time.monotonic() + self._limits.timeout_seconds - ago
            state: dict[str, Any] = described["State"]
            return state

    def _poll(self, now: float, grace_seconds: float) -> None:
        if self._processes is not None:
            self._processes.sample()
        if self._memory is not None:
            self._memory.sample()
            if self.stopped is None and self._memory.kills:
                # its remaining processes may wait for the killed process for ever
                self._kill(FailureKind.OUT_OF_MEMORY, self._memory_reason())
        if self.stopped is None and (excess := self._disk.excess()) is not None:
            self._kill(FailureKind.OUT_OF_SPACE, excess)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._signal("SIGKILL")
        if self.stopped is None and now >= self._deadline:
            reason = f"not done after {self._limits.timeout}"
            self._stop(FailureKind.DEADLINE, reason, now + grace_seconds)
        if self.stopped is None and now >= self._next_question:
            self._next_question = now + _CANCEL_SECONDS
            if self._monitor.is_cancelled():
                self._stop(FailureKind.CANCELLED, "cancelled", now + grace_seconds)

    def _stop(self, kind: FailureKind, reason: str, kill_at: float) -> None:
        self.stopped = (kind, reason)
        self._stops.note(kind, reason)
        self._log.note(f"{reason}: stopping it")
        self._signal("SIGTERM")
        self._kill_at = kill_at

    def _kill(self, kind: FailureKind, reason: str) -> None:
        self.stopped = (kind, reason)
        self._stops.note(kind, reason)
        self._signal("SIGKILL")

    def _signal(self, name: str) -> None:
        import docker

        # it may be over, or gone; a container that cannot be signalled is removed by force later
        with suppress(docker.errors.DockerException, OSError):
            self._api.kill(self._container, signal=name)

    def _memory_reason(self) -> str:
        return f"it ran out of memory; its limit is {format_size(self._limits.memory_bytes)}"

    def _end(self, state: dict[str, Any]) -> End:
        code = int(state["ExitCode"])
        peak = self._memory.peak_bytes if self._memory is not None else 0
        failure = self.stopped or self._failure(code, state)
        if failure is not None and failure[0] is FailureKind.CANNOT_START:
            return End(None, failure)
        if failure is not None and self._processes is not None and self._processes.was_reached:
            kind, reason = failure
            failure = kind, f"{reason}; it reached its limit of {self._pids} processes"
        return End(code, failure, peak or None)

    def _failure(self, code: int, state: dict[str, Any]) -> tuple[FailureKind, str] | None:
        # 137 alone may be any process's SIGKILL; and a hook that lost a child ends as it likes
        if state.get("OOMKilled") or (
            code != 0 and self._memory is not None and self._memory.was_exceeded()
        ):
            return FailureKind.OUT_OF_MEMORY, self._memory_reason()
        if code == 0:
            return None
        tail = self._log.tail()
        if len(tail) == 1 and tail[0].startswith(_INIT_WORDS):
            return FailureKind.CANNOT_START, f"{self._program!r} cannot be started: {tail[0]}"
        if is_memory_error(tail):
            return FailureKind.OUT_OF_MEMORY, "its log reports that memory ran out"
        if is_space_error(tail):
            limit = format_size(self._limits.scratch_bytes)
            reason = f"its log reports a full disk; its limits.scratch is {limit}"
            return FailureKind.OUT_OF_SPACE, reason
        return FailureKind.NON_ZERO_EXIT, exit_reason(code)


def _open_to(user: spec.HookUser, request: RunRequest, work: Path | None) -> None:
    """Let the hook's user read its inputs and write its output, if that user is not ours."""
    if user.uid == os.geteuid():
        return
    for folder in (request.workspace.inputs, request.workspace.files):
        for path in (folder, *folder.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            wanted = mode | (0o555 if path.is_dir() else 0o444)
            if mode != wanted:
                path.chmod(wanted)
    for writable in (request.workspace.output, work):
        if writable is not None:
            os.chown(writable, user.uid, user.gid)


def _mounted(described: dict[str, Any], destination: str) -> Path | None:
    for mount in described.get("Mounts", ()):
        if mount["Destination"] == destination:
            return Path(mount["Source"])
    return None


def _started(described: dict[str, Any]) -> datetime | None:
    """Return when a container was started; engines write the year 1 for never."""
    text = str(described["State"].get("StartedAt") or "0001")
    return None if text.startswith("0001") else datetime.fromisoformat(text).astimezone(UTC)
