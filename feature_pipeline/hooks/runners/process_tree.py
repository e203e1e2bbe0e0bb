"""Measure and end the processes of a hook."""

import os
import signal
import subprocess
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final

_PROC = Path("/proc")
REAPER_SECONDS: Final = 30.0
"""How long the reaper may take to kill the hook's processes."""


class ProcessTree:
    """The processes of a hook: all that are below its reaper (`runners.reaper`).

    The kernel keeps them there while the reaper lives, whatever becomes of their parents.
    """

    def __init__(self, reaper: "subprocess.Popen[bytes]") -> None:
        self._reaper = reaper
        self._peak_bytes = 0
        self._members: list[Any] = []
        self._psutil: Any = None
        self._leader: Any = None
        # an extra of the package: the archive must be usable without it
        with suppress(ImportError):
            self._psutil = import_module("psutil")
        if self._psutil is not None:
            with suppress(self._psutil.Error):
                self._leader = self._psutil.Process(reaper.pid)

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
        with suppress(self._psutil.Error):
            self._members = self._leader.children(recursive=True)
        members = self._members
        used = sum(map(self._resident, members))
        if used > limit_bytes and len(members) > 1:
            # forked workers share most of their pages with their parent
            used = min(used, sum(map(self._proportional, members)))
        highest = max((_high_water(member.pid) for member in members), default=0)
        self._peak_bytes = max(self._peak_bytes, used, highest)
        return used

    def terminate(self) -> None:
        """Send SIGTERM to all processes."""
        self._reaper.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all processes; the reaper ends once none is left."""
        self._reaper.send_signal(signal.SIGUSR1)

    def kill_with_reaper(self) -> None:
        """Kill the reaper too, and the processes of the last sample: a hook may have stopped it."""
        self._reaper.kill()
        for process in self._members:
            with suppress(self._psutil.Error):
                process.kill()

    def end(self) -> None:
        """Kill all processes and wait for their end."""
        self.kill()
        try:
            self._reaper.wait(REAPER_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill_with_reaper()
            self._reaper.wait()

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
