"""A container's memory and processes, read from its cgroup if this machine shows it.

The engine's report is not sufficient: on cgroup v1 Podman leaves `State.OOMKilled` false, and if
only a child of the hook was killed the container may keep running, waiting for it.
"""

import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

_CGROUPS: Final = Path("/sys/fs/cgroup")
_REMOVAL_SECONDS: Final = 0.5
"""How long the kernel may take to report that a removed cgroup is gone."""


class MemoryWatch:
    """Watches one memory cgroup; created by `of` while the container runs.

    Attributes:
        peak_bytes: Most memory found in use by a sample, without the page cache.
        kills: Processes that the kernel killed for lack of memory, as last seen.
    """

    def __init__(self, folder: Path, *, is_v2: bool) -> None:
        self.peak_bytes = 0
        self.kills = 0
        self._folder = folder
        self._events = folder / ("memory.events" if is_v2 else "memory.oom_control")
        self._counted = ("anon", "shmem") if is_v2 else ("total_rss", "total_shmem")
        self._eventfd: int | None = None
        self._signals = 0
        if not is_v2:
            self._listen()

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the watch over the cgroup of process `pid`; None if it cannot be read here."""
        for folder, is_v2 in _cgroups(pid, "memory"):
            if (folder / "memory.stat").is_file():
                return cls(folder, is_v2=is_v2)
        return None

    def _listen(self) -> None:
        """Let the kernel count out-of-memory events: the count outlives the cgroup."""
        eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            with self._events.open("rb") as control:
                (self._folder / "cgroup.event_control").write_text(f"{eventfd} {control.fileno()}")
        except OSError:
            # not permitted to us: what remains is reading the counter while it is there
            os.close(eventfd)
            return
        self._eventfd = eventfd

    def sample(self) -> None:
        """Read use and kills now; nothing changes once the cgroup is gone."""
        with contextlib.suppress(OSError, ValueError):
            self.kills = max(self.kills, _counters(self._events).get("oom_kill", 0))
            counters = _counters(self._folder / "memory.stat")
            used = sum(counters.get(name, 0) for name in self._counted)
            self.peak_bytes = max(self.peak_bytes, used)

    def was_exceeded(self) -> bool:
        """Return whether a process was killed at the limit. Call it after the end.

        If only the kernel's signals show it, this waits for the last of them.
        """
        if self.kills:
            return True
        if self._eventfd is None:
            return False
        end = time.monotonic() + _REMOVAL_SECONDS
        while True:
            self._count(self._eventfd)
            # the removal of a cgroup signals once too, some time after its folder is gone
            is_there = self._events.exists()
            left = end - time.monotonic()
            if is_there or self._signals >= 2 or left <= 0:
                return self._signals >= (1 if is_there else 2)
            select.select([self._eventfd], [], [], left)

    def _count(self, eventfd: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._signals += os.eventfd_read(eventfd)

    def close(self) -> None:
        """Stop watching."""
        if self._eventfd is not None:
            os.close(self._eventfd)
            self._eventfd = None


class ProcessesWatch:
    """Watches whether a cgroup reaches its limit of processes; created by `of` while it exists."""

    def __init__(self, folder: Path) -> None:
        self.was_reached = False
        self._events = folder / "pids.events"

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the watch over the cgroup of process `pid`; None if it cannot be read here."""
        for folder, _ in _cgroups(pid, "pids"):
            if (folder / "pids.events").is_file():
                return cls(folder)
        return None

    def sample(self) -> None:
        """Read whether a process was refused; nothing changes once the cgroup is gone."""
        with contextlib.suppress(OSError, ValueError):
            self.was_reached |= _counters(self._events).get("max", 0) > 0


def _cgroups(pid: int, controller: str) -> Iterator[tuple[Path, bool]]:
    """List the cgroups of a process for a controller, and whether they are of version 2."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            yield _CGROUPS / controller / path.lstrip("/"), False
        elif not controllers and (_CGROUPS / "cgroup.controllers").exists():
            yield _CGROUPS / path.lstrip("/"), True


def _counters(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
