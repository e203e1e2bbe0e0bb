"""A hook's process on this machine, started below a reaper."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from feature_pipeline.hooks.runners import reaper as reaper_program
from feature_pipeline.hooks.runners.process_tree import ProcessTree

_REPORT_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Ended:
    """How the hook ended.

    `code` is its exit status, or the negative number of the signal that ended it. `outlived` is set
    if processes of it were still running.
    """

    code: int
    outlived: bool


def _read_line(descriptor: int) -> str:
    """Return the next line without its end, and leave the rest: the hook may have ended already."""
    line = b""
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()


class HookProcess:
    """A started hook. As a context manager it ends every process of the hook that is left."""

    def __init__(self, process: "subprocess.Popen[bytes]", report: int) -> None:
        self.tree = ProcessTree(process)
        self._process = process
        self._report = report

    @classmethod
    def start(
        cls, command: Sequence[str], *, folder: Path, environment: Mapping[str, str], levels: int
    ) -> Self:
        """Start the hook's command, its first word as a path.

        Args:
            command: The program and its arguments.
            folder: The working folder.
            environment: The hook's environment.
            levels: Number of programs that the command starts above the hook.

        Raises:
            OSError: It cannot be started.
            ValueError: An argument cannot be passed to a program.
        """
        receiver, sender = os.pipe()
        try:
            try:
                numbers = (str(number) for number in (os.getpid(), sender, levels))
                process = subprocess.Popen(
                    # isolated: neither its folder nor variables add code to it
                    [sys.executable, "-I", "-S", reaper_program.__file__, *numbers, *command],
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    pass_fds=(sender,),
                    start_new_session=True,
                )
            finally:
                os.close(sender)
            word, _, number = _read_line(receiver).partition(" ")
            if word == "started":
                return cls(process, receiver)
            with process:
                process.kill()
            if word != "error":
                raise OSError("the process above it ended")
            raise OSError(int(number), os.strerror(int(number)), command[0])
        except BaseException:
            os.close(receiver)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_running():
            self.tree.end()
        assert self._process.stdout is not None  # noqa: S101  (opened with PIPE)
        self._process.stdout.close()
        os.close(self._report)

    @property
    def log_descriptor(self) -> int:
        """The pipe of the hook's standard output and error; reading it does not block."""
        assert self._process.stdout is not None  # noqa: S101  (opened with PIPE)
        descriptor = self._process.stdout.fileno()
        os.set_blocking(descriptor, False)
        return descriptor

    def is_running(self) -> bool:
        """Return whether the hook or a process that it left is running."""
        return self._process.poll() is None

    def ended(self) -> Ended | None:
        """Return how the hook ended; None if the reaper was killed. Call it after the end."""
        words = os.read(self._report, _REPORT_BYTES).split()
        if not words:
            return None
        return Ended(os.waitstatus_to_exitcode(int(words[1])), words[2] == b"1")

    def reaper_code(self) -> int:
        """Return the exit status of the reaper, or the negative number of its signal."""
        return self._process.wait()
