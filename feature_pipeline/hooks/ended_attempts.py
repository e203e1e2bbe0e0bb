"""Ended attempts, stored on this machine for the next worker that makes the same ones.

An attempt is stored, completely or not at all, before anything of it is removed. Its output is
compared with its digests when it is used; a damaged attempt counts as never made.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from feature_pipeline.hooks.failure import FailureKind, RuntimeFacts
from feature_pipeline.hooks.output_folder import OutputFiles
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult
from feature_pipeline.model.digest import Digest, digest_stream
from feature_pipeline.regular_files import open_regular

_WAIT_SECONDS: Final = 0.2
_END: Final = "end.json"
_STOP: Final = "stop.json"
_STARTS: Final = "starts"
_OUTPUT: Final = "out"
_LOG: Final = "log"
# Nothing is known about the records: the next worker repeats the attempt.
_NOT_STORED: Final = frozenset(
    {
        FailureKind.CANCELLED,
        FailureKind.CANNOT_START,
        FailureKind.CLUSTER_REFUSED,
        FailureKind.IMAGE_PULL,
        FailureKind.STAGE_FAILED,
        FailureKind.UNKNOWN,
        FailureKind.UNSCHEDULABLE,
    }
)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Failure(_Document):
    kind: FailureKind
    reason: str
    exit_code: int | None
    log_tail: tuple[str, ...]
    memory_limit_bytes: int | None


class _Ended(_Document):
    """The end of an attempt, and the files it left."""

    identity: str
    exit_code: int | None
    failure: _Failure | None
    started_at: datetime
    finished_at: datetime
    peak_memory_bytes: int | None
    node: str
    files: Mapping[str, str]
    """Digests of the regular output files that are stored."""
    irregular: tuple[str, ...]
    """Names of the contract's files that are not regular files."""
    too_large: Mapping[str, int]
    """Lengths of the contract's files that are beyond the limit."""
    others: tuple[str, ...]
    """Names in the output that are not stored."""
    log: str


class EndedAttempts:
    """The ended attempts of one archive's hook runs, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def alone(self, request: RunRequest, identity: Digest, monitor: RunMonitor) -> Iterator[None]:
        """Prevent other workers of this machine from making the same attempt meanwhile.

        Waits for a worker that is making it, as long as the run is not cancelled.
        """
        run = self._run(request)
        run.mkdir(parents=True, exist_ok=True)
        with (run / f"{_name(identity)}.lock").open("wb") as file:
            while not _locked(file.fileno()) and not monitor.is_cancelled():
                time.sleep(_WAIT_SECONDS)
            yield

    def restore(self, request: RunRequest, identity: Digest) -> RunResult | None:
        """Use the attempt if it has ended: put its output and log into the request's workspace.

        Args:
            request: The attempt.
            identity: Properties that must be equal for an attempt to be this one.
        """
        folder = self._run(request) / _name(identity)
        try:
            ended = _Ended.model_validate_json((folder / _END).read_bytes())
            if ended.identity != str(identity) or not _is_whole(folder, ended):
                raise ValueError(f"{folder} contains another attempt, or is damaged")
        except FileNotFoundError:
            return None
        except (OSError, ValidationError, ValueError):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        workspace = request.workspace
        workspace.create()
        workspace.clear_output()
        files = {name: folder / _OUTPUT / name for name in ended.files}
        stored = OutputFiles(files, ended.too_large, ended.irregular, ended.others)
        stored.copy_to(workspace.output)
        log = workspace.log(request.attempt)
        # it may be the same file
        log.unlink(missing_ok=True)
        shutil.copyfile(folder / _LOG, log)
        failure = None
        if ended.failure is not None:
            failure = RuntimeFacts(**ended.failure.model_dump())
        return RunResult(
            exit_code=ended.exit_code,
            failure=failure,
            started_at=ended.started_at,
            finished_at=ended.finished_at,
            log=log,
            peak_memory_bytes=ended.peak_memory_bytes,
            node=ended.node,
        )

    def store(self, request: RunRequest, identity: Digest, result: RunResult) -> None:
        """Store the attempt, whose output and log are in the request's workspace.

        Raises:
            OSError: It could not be stored.
        """
        if result.failure is not None and result.failure.kind in _NOT_STORED:
            return
        run = self._run(request)
        run.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=".", dir=run))
        try:
            _write(part, request, identity, result)
            part.replace(run / _name(identity))
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            # another worker has kept the same attempt
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def note_start(self, request: RunRequest, identity: Digest) -> None:
        """Record that the hook is started for the attempt now: this worker may not see its end.

        Raises:
            OSError: It could not be recorded.
        """
        with self._starts(request, identity).open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat()}\n")

    def lost_starts(self, request: RunRequest, identity: Digest) -> tuple[datetime, ...]:
        """Return the times at which the hook was started for the attempt, except the last."""
        try:
            lines = self._starts(request, identity).read_text(encoding="utf-8").splitlines()
            return tuple(datetime.fromisoformat(line) for line in lines[:-1])
        except (OSError, ValueError):
            return ()

    def _starts(self, request: RunRequest, identity: Digest) -> Path:
        return self._run(request) / f"{_name(identity)}.{_STARTS}"

    def note_stop(
        self, request: RunRequest, identity: Digest, kind: FailureKind, reason: str
    ) -> None:
        """Record why an attempt is being stopped, for a worker that finds it stopped.

        Raises:
            OSError: It could not be recorded.
        """
        run = self._run(request)
        run.mkdir(parents=True, exist_ok=True)
        document = {"kind": kind.value, "reason": reason}
        _write_whole(run / f"{_name(identity)}.{_STOP}", document)

    def stop_of(self, request: RunRequest, identity: Digest) -> tuple[FailureKind, str] | None:
        """Return why an earlier worker stopped the attempt; None if none did."""
        try:
            data = (self._run(request) / f"{_name(identity)}.{_STOP}").read_bytes()
            document = json.loads(data)
            return FailureKind(document["kind"]), str(document["reason"])
        except (OSError, ValueError, KeyError):
            return None

    def _run(self, request: RunRequest) -> Path:
        return self._folder / request.run_id


def _name(identity: Digest) -> str:
    return identity.hex[:32]


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # a file system without locks: two workers may make the same attempt there
        return error.errno in (errno.ENOLCK, errno.ENOTSUP)
    return True


def _write(folder: Path, request: RunRequest, identity: Digest, result: RunResult) -> None:
    (folder / _OUTPUT).mkdir()
    output = OutputFiles.of(request.workspace.output, request.limits.scratch_bytes)
    files = {
        name: _link_or_copy(path, folder / _OUTPUT / name) for name, path in output.files.items()
    }
    failure = result.failure
    ended = _Ended(
        identity=str(identity),
        exit_code=result.exit_code,
        failure=None
        if failure is None
        else _Failure(
            kind=failure.kind,
            reason=failure.reason,
            exit_code=failure.exit_code,
            log_tail=failure.log_tail,
            memory_limit_bytes=failure.memory_limit_bytes,
        ),
        started_at=result.started_at,
        finished_at=result.finished_at,
        peak_memory_bytes=result.peak_memory_bytes,
        node=result.node,
        files=files,
        irregular=output.irregular,
        too_large=output.too_large,
        others=output.others,
        log=_link_or_copy(result.log, folder / _LOG),
    )
    _write_whole(folder / _END, ended.model_dump(mode="json"))


def _link_or_copy(source: Path, target: Path) -> str:
    """Link the file under another name; return its digest."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
    return _digest(target)


def _digest(path: Path) -> str:
    with open_regular(path, follow_links=False) as stream:
        return str(digest_stream(stream)[0])


def _is_whole(folder: Path, ended: _Ended) -> bool:
    paths = {folder / _OUTPUT / name: digest for name, digest in ended.files.items()}
    paths[folder / _LOG] = ended.log
    return all(_digest(path) == digest for path, digest in paths.items())


def _write_whole(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document completely or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    with part.open("w", encoding="utf-8") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def run_once(
    attempts: EndedAttempts | None,
    request: RunRequest,
    identity: Digest,
    monitor: RunMonitor,
    run_attempt: Callable[[RunRequest, RunMonitor], AbstractContextManager[RunResult]],
) -> RunResult:
    """Use the attempt if it has already ended; otherwise make and store it.

    Args:
        attempts: Store of ended attempts; with None, none are stored.
        request: The attempt.
        identity: Properties that must be equal for an attempt to be this one.
        monitor: Watches it.
        run_attempt: Makes the attempt. Its resources are released when the context is left, after
            storing.

    Raises:
        BaseException: As from `run_attempt`; the attempt is not stored then.
    """
    if attempts is None:
        with run_attempt(request, monitor) as result:
            return result
    with attempts.alone(request, identity, monitor):
        ended = attempts.restore(request, identity)
        if ended is not None:
            monitor.log(f"[feature_pipeline] attempt {request.attempt} had ended before")
            return replace(ended, lost_starts=attempts.lost_starts(request, identity))
        with run_attempt(request, monitor) as result:
            try:
                attempts.store(request, identity, result)
            except OSError as error:
                # it costs another start if this worker dies, and no more
                monitor.log(f"[feature_pipeline] the attempt's result could not be stored: {error}")
            return replace(result, lost_starts=attempts.lost_starts(request, identity))
