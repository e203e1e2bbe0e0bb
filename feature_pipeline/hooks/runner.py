"""The protocol of hook runners."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from feature_pipeline.hooks.failure import RuntimeFacts
from feature_pipeline.model.definition import Limits
from feature_pipeline.model.release import HookRelease

LONGEST_NAME_BYTES: Final = 255
"""Maximum length of a file or folder name, on every file system that hooks run on."""


def name_on_disk(name: str) -> str:
    """Return `name` for use in paths, so that it is UTF-8 on disk in any locale."""
    return os.fsdecode(name.encode())


def too_long_for_a_name(record_id: str) -> str | None:
    """Return the part of the id that is too long to name a folder; None if none is."""
    parts = (part for part in record_id.split("/") if len(part.encode()) > LONGEST_NAME_BYTES)
    return next(parts, None)


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folders of one hook run, below `root`."""

    root: Path

    @property
    def inputs(self) -> Path:
        """`OSA_IN`: records.jsonl, config.json, features/<hook>.jsonl. Read only for the hook."""
        return self.root / "in"

    @property
    def files(self) -> Path:
        """`OSA_FILES`: `<record id>/<file>`. Read only for the hook."""
        return self.root / "files"

    def files_of(self, record_id: str) -> Path | None:
        """Return the record's folder in `files`, nested for an id with `/`.

        None if the name is too long for a folder.
        """
        if too_long_for_a_name(record_id) is not None:
            return None
        return self.files / name_on_disk(record_id)

    @property
    def output(self) -> Path:
        """`OSA_OUT`: the folder that the hook writes."""
        return self.root / "out"

    @property
    def code(self) -> Path:
        """The folder with the release's code files, without subfolders."""
        return self.root / "code"

    def log(self, attempt: int) -> Path:
        """The log of one attempt: the hook's standard output and error, unchanged.

        The runner's own lines begin with `[feature_pipeline]`.
        """
        return self.root / "logs" / f"attempt-{attempt}.log"

    @property
    def whole_log(self) -> Path:
        """The logs of all attempts, if there were several."""
        return self.root / "logs" / "whole.log"

    def create(self) -> None:
        """Make the folders that do not exist yet."""
        for folder in (self.inputs, self.files, self.output, self.code, self.root / "logs"):
            folder.mkdir(parents=True, exist_ok=True)

    def clear_output(self) -> None:
        """Empty `output`, so that an attempt does not inherit an earlier one's files."""
        if os.path.lexists(self.output):
            try:
                if self.output.is_symlink() or not self.output.is_dir():
                    self.output.unlink()
                else:
                    shutil.rmtree(self.output)
            except OSError:
                # Another user's, or made unreadable: it goes with the workspace.
                aside = tempfile.mkdtemp(prefix="left-", dir=self.root)
                self.output.rename(Path(aside) / "out")
        self.output.mkdir(parents=True)


@dataclass(frozen=True, slots=True)
class RunRequest:
    """One attempt at running a release over the records laid out in `workspace`.

    `run_id` is the hook run's, the same for all its parts and attempts. `part` names the part's
    records; it is empty for the whole batch. `attempt` counts from 1.
    """

    run_id: str
    release: HookRelease
    limits: Limits
    workspace: Workspace
    attempt: int = 1
    part: str = ""

    @property
    def question(self) -> str:
        """The properties that all attempts at the same records of the same hook run share."""
        return f"{self.run_id}-{self.part}" if self.part else self.run_id


class RunMonitor(Protocol):
    """Observes a run in progress."""

    def log(self, line: str) -> None:
        """Take one line of the hook's log, without its end. Long lines are shortened."""
        ...

    def is_cancelled(self, *, now: bool = False) -> bool:
        """Return whether the run must be stopped. Called about twice a second.

        Args:
            now: Do not use an answer from some seconds ago: the worker is being interrupted, and
                must know whether to end the hook.
        """
        ...


class SilentMonitor:
    """A monitor that shows nothing and never cancels."""

    def log(self, line: str) -> None:
        """Ignore the line."""

    def is_cancelled(self, *, now: bool = False) -> bool:
        """Return False."""
        return False


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of one attempt.

    `failure` is None if and only if the program exited with status 0: the output may be
    read. Times are UTC. `peak_memory_bytes` is None if it could not be measured; `node` names the
    machine. `lost_starts` are the times of earlier starts of the same attempt whose worker died,
    and which could not be attached to.
    """

    exit_code: int | None
    failure: RuntimeFacts | None
    started_at: datetime
    finished_at: datetime
    log: Path
    peak_memory_bytes: int | None
    node: str
    lost_starts: tuple[datetime, ...] = ()

    @property
    def seconds(self) -> float:
        """Duration of the attempt in seconds."""
        return (self.finished_at - self.started_at).total_seconds()


class HookRunner(Protocol):
    """Runs hooks. `feature_pipeline_tests.contract.hook_runner` specifies the behaviour."""

    @property
    def name(self) -> str:
        """subprocess, container or kubernetes."""
        ...

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        """Make one attempt and wait for its end; nothing of it continues afterwards.

        The workspace's inputs, files and code are read; its output has exactly what this attempt
        wrote; its log is complete.

        Returns:
            The facts, also of an attempt that failed or was cancelled.

        Raises:
            BaseException: Any interruption of the caller (KeyboardInterrupt, an error of the
                monitor) passes through after the hook was stopped.
        """
        ...


@runtime_checkable
class LastingRunner(HookRunner, Protocol):
    """A runner whose hooks continue when the worker dies; any worker can take their results."""

    def image_of(self, release: HookRelease) -> str | None:
        """Return the image of the release's hooks, which is part of their attempts' names."""
        ...


@runtime_checkable
class RunsContainers(HookRunner, Protocol):
    """A runner on this machine whose containers stay when the worker dies."""

    def runs_left(self) -> dict[str, datetime]:
        """List the archive's hook runs that have containers, with the newest one's creation time.

        Raises:
            RuntimeFailure: The engine does not answer.
        """
        ...

    def remove_run(self, run_id: str) -> None:
        """Remove the containers of a hook run, running or not.

        Raises:
            RuntimeFailure: The engine does not answer.
        """
        ...
