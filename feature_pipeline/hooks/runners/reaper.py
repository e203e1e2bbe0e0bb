"""Run a hook below this process, which ends every process that the hook leaves.

    python reaper.py WORKER REPORT LEVELS PROGRAM ARGUMENT...

Runs as a program between a worker and its hook, and imports the standard library only. On Linux
the kernel gives it each process of the hook whose parent has ended, so that a hook's process cannot
leave it by forking twice or by a session of its own. When the hook ends, or its worker dies, all
are killed, and this program ends once none is left.

- `WORKER` is the process number of the worker.
- `REPORT` is an open file for lines to the worker: `started`, or `error` and an errno; at the end
  `ended`, the hook's wait status and whether processes outlived it (0 or 1).
- `LEVELS` is the number of programs between this one and the hook. They do not get SIGTERM.

SIGTERM is passed on to the hook's processes, and SIGUSR1 kills them.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1)
_SET_PARENT_DEATH_SIGNAL, _SET_CHILD_SUBREAPER = 1, 36
_IS_LINUX = sys.platform == "linux"
_END_SECONDS = 10.0
"""How long killed processes may take to end: the kernel may be waiting for a disk."""


def main(worker: int, report: int, levels: int, command: list[str]) -> None:
    """Run the command and write the report."""
    os.set_inheritable(report, False)
    # without a handler, some kernels discard it although it is blocked
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    if _IS_LINUX:
        _prctl(_SET_CHILD_SUBREAPER, 1)
        _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGUSR1)
    if os.getppid() != worker:
        return  # it died before it could be observed
    hook, number = _start(command)
    os.write(report, b"error %d\n" % number if number else b"started\n")
    if number:
        return
    status = None
    while status is None:
        match signal.sigwait(_SIGNALS):
            case signal.SIGTERM:
                _send(signal.SIGTERM, hook, below=levels)
            case signal.SIGUSR1:
                _send(signal.SIGKILL, hook)
        status = _reap(hook)
    outlived = _end_all(hook)
    os.write(report, b"ended %d %d\n" % (status, outlived))


def _start(command: list[str]) -> tuple[int, int]:
    """Start the command in a session of its own; return its number, and the errno of a failure."""
    receiver, sender = os.pipe()
    hook = os.fork()
    if hook == 0:
        os.setsid()
        if _IS_LINUX:
            # the hook may kill this process, which then ends nothing
            _prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        # Python ignores them, and an ignored signal stays ignored in a new program
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            os.execv(command[0], command)  # noqa: S606  (this is its purpose)
        except OSError as error:
            os.write(sender, b"%d" % (error.errno or 0))
        os._exit(127)
    os.close(sender)
    with os.fdopen(receiver, "rb") as answer:
        return hook, int(answer.read() or 0)


def _send(number: int, hook: int, below: int = 0) -> bool:
    """Send a signal to the running processes more than `below` levels down; return if any was."""
    if not _IS_LINUX:
        # a group of which only ended processes are left
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(hook, number)
            return True
        return False
    is_sent = False
    for pid, level in _descendants():
        if level > below:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
                is_sent = True
    return is_sent


def _descendants() -> Iterator[tuple[int, int]]:
    """List the numbers and levels of the processes below this one that have not ended."""
    children: dict[int, list[tuple[int, bool]]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                stat = (folder / "stat").read_bytes()
                state, parent = stat.rpartition(b")")[2].split()[:2]
                children.setdefault(int(parent), []).append((int(folder.name), state not in b"ZX"))
    level, parents = 1, [os.getpid()]
    while parents:
        found = [child for parent in parents for child in children.get(parent, ())]
        yield from ((pid, level) for pid, is_running in found if is_running)
        level, parents = level + 1, [pid for pid, _ in found]


def _reap(hook: int) -> int | None:
    """Collect ended children; return the hook's wait status if it is one of them."""
    status = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == hook:
                status = ended[1]
    return status


def _end_all(hook: int) -> bool:
    """Kill what the hook has left until nothing is; return whether it had left anything."""
    outlived = _send(signal.SIGKILL, hook)
    end = time.monotonic() + _END_SECONDS
    with suppress(ChildProcessError):
        while time.monotonic() < end:
            # the children of those that end become children of this process
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.002)
                _send(signal.SIGKILL, hook)
    return outlived


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
