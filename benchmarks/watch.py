"""Memory, processor time, open files and connections of every process that a benchmark started."""

import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil

ROLES: Final = (
    ("PostgreSQL", "postgres"),
    ("SeaweedFS", "weed"),
    ("webserver", "dagster_webserver"),
    ("daemon", "dagster-daemon"),
    ("run worker", "spawn_main"),
    ("code server", "api grpc"),
    ("code server's parent", "code-server start"),
)
"""Name of a kind of process, and what its command line contains; the first that fits."""
BENCHMARK: Final = "benchmark"
"""The process that watches."""
OTHER: Final = "other"


@dataclass(slots=True)
class Usage:
    """What the processes of one role use together at one time."""

    processes: int = 0
    rss: int = 0
    """Bytes; pages that several processes share count once for each."""
    pss: int = 0
    """Bytes; shared pages are divided among the processes that share them."""
    files: int = 0
    """Open file descriptors, connections included."""
    connections: int = 0
    """Open TCP connections."""

    def highest(self, other: "Usage") -> None:
        """Raise each value to the other's, if that is higher."""
        for name in self.__slots__:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))


@dataclass(slots=True)
class Sample:
    """One look at all processes."""

    at: float
    """Seconds since the epoch."""
    usage: Mapping[str, Usage]
    """By role."""


@dataclass
class Watch:
    """Looks at this process and all its descendants every few seconds, in a thread.

    Processor time of a process that ends between two looks is lost from its last look on; those
    of one role are added up over all processes that it ever had.
    """

    interval_seconds: float = 2.0
    samples: list[Sample] = field(default_factory=list)
    _spent: dict[tuple[int, float], tuple[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator["Watch"]:
        thread = threading.Thread(target=self._loop, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _loop(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            self.look()
            # No more than a tenth of one core goes into looking.
            spent = time.monotonic() - began
            self._ended.wait(max(self.interval_seconds, 10 * spent))

    def look(self) -> Sample:
        """Look at all processes now."""
        usage: dict[str, Usage] = defaultdict(Usage)
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.Error, OSError):
                role = BENCHMARK if process == own else role_of(process)
                if role is not None:
                    _add(usage[role], process)
                    times = process.cpu_times()
                    with self._lock:
                        one = process.pid, process.create_time()
                        self._spent[one] = role, times.user + times.system
        sample = Sample(time.time(), dict(usage))
        with self._lock:
            self.samples.append(sample)
        return sample

    def highest(self, since: float) -> dict[str, Usage]:
        """Return each role's highest values since then."""
        highest: dict[str, Usage] = defaultdict(Usage)
        with self._lock:
            samples = [sample for sample in self.samples if sample.at >= since]
        for sample in samples:
            for role, usage in sample.usage.items():
                highest[role].highest(usage)
        return dict(highest)

    def processor_seconds(self) -> Counter[str]:
        """Return the processor time of each role so far."""
        spent: Counter[str] = Counter()
        with self._lock:
            for role, seconds in self._spent.values():
                spent[role] += seconds  # type: ignore[assignment]
        return spent


def role_of(process: psutil.Process) -> str | None:
    """Return the role of a living process; None if it has ended."""
    command = " ".join(process.cmdline()) or process.name()
    if process.status() == psutil.STATUS_ZOMBIE:
        return None
    return next((role for role, mark in ROLES if mark in command), OTHER)


def _add(usage: Usage, process: psutil.Process) -> None:
    usage.processes += 1
    usage.rss += process.memory_info().rss
    rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    usage.pss += int(rollup.partition("\nPss:")[2].split()[0]) * 1024
    usage.files += process.num_fds()
    usage.connections += sum(
        connection.status == psutil.CONN_ESTABLISHED
        for connection in process.net_connections("tcp")
    )


def describe(usage: Mapping[str, Usage]) -> str:
    """Return the memory of each role, in MB, as one line."""
    return ", ".join(
        f"{role} {usage[role].rss / 1e6:.0f} ({usage[role].pss / 1e6:.0f})"
        for role in (*(name for name, _ in ROLES), BENCHMARK, OTHER)
        if role in usage
    )


def slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the straight line that fits the points best."""
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
