"""Measure and end a process, its group and its descendants."""

import os
import signal
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

_PROC = Path("/proc")


class ProcessTree:
    """The process `pid`, which leads a group and session of its own, and its descendants.

    Descendants that leave the group are known from the moment a sample saw them. Their start time
    distinguishes them from later processes of the same number. Of a confined program, `pid` and its
    only child are bubblewrap's, and all end with either.
    """

    def __init__(self, pid: int, *, is_confined: bool = False) -> None:
        self.is_confined = is_confined
        self._pid = pid
        self._peak_bytes = 0
        self._escaped: set[Any] = set()
        self._psutil: Any = None
        self._leader: Any = None
        # an extra of the package: the archive must be usable without it
        with suppress(ImportError):
            self._psutil = import_module("psutil")
        if self._psutil is not None:
            with suppress(self._psutil.Error):
                self._leader = self._psutil.Process(pid)

    @property
    def is_measured(self) -> bool:
        """Whether memory is measured."""
        return self._psutil is not None

    @property
    def peak_bytes(self) -> int | None:
        """The most memory seen so far, in bytes; None if it is not measured."""
        return self._peak_bytes or None

    def sample(self, limit_bytes: int) -> int:
        """Return the bytes of memory in use by all processes together, shared pages counted once.

        Shared pages are only identified when the plain sum is above `limit_bytes`, because that is
        costly.
        """
        if self._leader is None:
            return 0
        members = self._members()
        used = sum(map(self._resident, members))
        if used > limit_bytes and len(members) > 1:
            # forked workers share most of their pages with their parent
            used = min(used, sum(map(self._proportional, members)))
        highest = max((_high_water(member.pid) for member in members), default=0)
        self._peak_bytes = max(self._peak_bytes, used, highest)
        return used

    def terminate(self) -> None:
        """Send SIGTERM to all processes of the program."""
        if self.is_confined and self._leader is not None:
            # Bubblewrap would end at once, and the program with it.
            with suppress(self._psutil.Error):
                for reaper in self._leader.children():
                    for process in reaper.children(recursive=True):
                        with suppress(self._psutil.Error):
                            process.terminate()
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGTERM)

    def kill(self) -> bool:
        """Kill all processes; return whether there were any that had not already ended."""
        had_processes = bool(self._alive())
        # macOS says EPERM for a group of which only dead processes are left
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, signal.SIGKILL)
        for process in self._escaped:
            with suppress(self._psutil.Error):
                process.kill()
        return had_processes

    def _members(self) -> list[Any]:
        members = [self._leader]
        with suppress(self._psutil.Error):
            members += self._leader.children(recursive=True)
        self._escaped.update(members[1:])
        return members

    def _alive(self) -> list[Any]:
        """Return running descendants, including those that no sample saw, if they can be found."""
        if self._psutil is None:
            return []
        alive = []
        for process in self._escaped | set(self._group()):
            with suppress(self._psutil.Error):
                if process.is_running() and process.status() != self._psutil.STATUS_ZOMBIE:
                    alive.append(process)
        return alive

    def _group(self) -> list[Any]:
        """Return members of the group. Its leader has ended, and their parent has changed."""
        members = []
        for process in self._psutil.process_iter():
            with suppress(OSError, self._psutil.Error):
                if process.pid != self._pid and os.getpgid(process.pid) == self._pid:
                    members.append(process)
        return members

    def _resident(self, process: Any) -> int:
        with suppress(self._psutil.Error):
            return int(process.memory_info().rss)
        return 0

    def _proportional(self, process: Any) -> int:
        with suppress(self._psutil.Error):
            info = process.memory_full_info()
            return int(getattr(info, "pss", info.uss))
        return 0


def end_processes_of(folder: Path) -> int:
    """End the hook processes in a folder whose worker is gone; return their number.

    They are found by their environment: their output is in that folder.
    """
    psutil = import_module("psutil")
    ended, prefix = 0, f"{folder.resolve()}{os.sep}"
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.environ().get("OSA_OUT", "").startswith(prefix):
                process.kill()
                ended += 1
    return ended


def _high_water(pid: int) -> int:
    """Return the process's peak memory, if the kernel records it."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
