"""What every runner of hooks promises of hooks that mean harm: `class TestX(HostileHookTests)`.

A subclass gives `runner`, as for `contract.hook_runner`. Processes are found by a mark among their
arguments, which those of containers on this machine show as well.
"""

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.failure import FailureKind, FailurePolicy
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.hooks.output_folder import storable_files
from feature_pipeline.hooks.run import run_hook
from feature_pipeline.hooks.runner import HookRunner, Workspace
from feature_pipeline.hooks.runners.shared import log_file
from feature_pipeline.model.definition import Cardinality
from feature_pipeline_tests.contract.hook_runner import (
    HANG,
    Monitor,
    Run,
    RunnerFixtures,
    is_growing,
)

PASS = '{"id": "r 1", "features": []}\n'
_LEFT_SECONDS = 30.0
_FLOOD_BYTES = 256 << 20
_FLOOD_MEMORY_BYTES = 160 << 20


def running(mark: str) -> list[psutil.Process]:
    """The running processes of this machine with `mark` among their arguments."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if mark in (process.info["cmdline"] or ())
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@contextmanager
def memory_of_this_process() -> Iterator[list[int]]:
    """Collect how many bytes of memory it uses, from before the block to its end."""
    process, ends = psutil.Process(), threading.Event()
    sizes = [process.memory_info().rss]

    def sample() -> None:
        while not ends.wait(0.02):
            sizes.append(process.memory_info().rss)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sizes
    finally:
        ends.set()
        thread.join()


REPLACEMENTS = {
    "link to a file": "os.symlink('/etc/passwd', path)",
    "link to itself": "os.symlink('features.jsonl', path)",
    "link to a folder": "os.symlink('/', path)",
    "folder": "os.mkdir(path)",
    "pipe": "os.mkfifo(path)",
    "socket": "import socket; socket.socket(socket.AF_UNIX).bind('s'); os.rename('s', path)",
    "device without an end": "os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5))",
}
"""What a hook puts in the place of its output as its last act."""


class HostileHookTests(RunnerFixtures):
    @pytest.fixture
    def mark(self) -> Iterator[str]:
        mark = f"mark-{uuid.uuid4()}"
        yield mark
        for process in running(mark):  # a failed test must not leave them
            process.kill()

    def wait_until_none_runs(self, mark: str) -> None:
        end = time.monotonic() + _LEFT_SECONDS
        while left := running(mark):
            assert time.monotonic() < end, [process.cmdline() for process in left]
            time.sleep(0.05)

    def test_a_daemon_ends_with_the_hook(self, run: Run, workspace: Workspace, mark: str):
        """It has left its parent, session, environment and open files, and writes on and on."""
        daemon = (
            "import os, sys, time\n"
            "os.closerange(0, 64)\n"
            "while True:\n"
            "    with open(sys.argv[1] + '/errors.jsonl', 'a') as file: file.write('x')\n"
            "    time.sleep(0.01)\n"
        )
        result = run(
            "import os, sys, time\n"
            "output = os.environ['OSA_OUT']\n"
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    if os.fork() == 0:\n"
            "        arguments = [sys.executable, 'daemon.py', output, sys.argv[1]]\n"
            "        kept = {n: v for n, v in os.environ.items() if n == 'LD_LIBRARY_PATH'}\n"
            "        os.execve(sys.executable, arguments, kept)\n"
            "    os._exit(0)\n"
            "os.wait()\n"
            "while not os.path.exists(output + '/errors.jsonl'): time.sleep(0.01)\n"
            f"open(output + '/features.jsonl', 'w').write({PASS!r})\n",
            command=("python", "hook.py", mark),
            modules={"daemon.py": daemon.encode()},
        )
        assert result.failure is None, result.failure
        assert not is_growing(workspace.output / "errors.jsonl")
        self.wait_until_none_runs(mark)
        assert (workspace.output / "features.jsonl").read_text() == PASS

    def test_children_that_do_not_listen_are_killed_too(self, run: Run, mark: str):
        """One in the hook's group, one in a session of its own, one without its parent."""
        result = run(
            "import os, signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "for kind in range(3):\n"
            "    if os.fork() == 0:\n"
            "        if kind: os.setsid()\n"
            "        if kind < 2 or os.fork() == 0: time.sleep(3600)\n"
            "        os._exit(0)\n"
            "print('begun', flush=True)\n" + HANG,
            command=("python", "hook.py", mark),
            timeout="4s",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.DEADLINE
        assert result.exit_code == 137
        assert "begun" in result.failure.log_tail
        self.wait_until_none_runs(mark)

    def test_a_hook_of_hundreds_of_processes(self, run: Run, mark: str):
        """They fork on for a while, each in a session of its own, and none listens."""
        result = run(
            "import os, signal, time\n"
            "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "print('begun', flush=True)\n"
            "for _ in range(8):\n"
            "    if os.fork() == 0: os.setsid()\n"
            "time.sleep(3600)\n",
            command=("python", "hook.py", mark),
            timeout="6s",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.DEADLINE
        assert "not done after 6s" in result.failure.reason
        self.wait_until_none_runs(mark)
        assert run("print('next')\n", attempt=2).failure is None

    def test_a_chain_of_short_lived_processes(self, run: Run, mark: str):
        """Each starts the next one and ends, so that none is there for long enough to be found."""
        result = run(
            "import os\n"
            "if os.fork() == 0:\n"
            "    os.setsid()\n"
            "    for _ in range(100_000):\n"
            "        if os.fork(): os._exit(0)\n",
            command=("python", "hook.py", mark),
        )
        assert result.failure is None
        self.wait_until_none_runs(mark)

    def test_orphans_that_end_do_not_stay_in_the_process_table(self, run: Run):
        result = run(
            "import os, time\n"
            "receiver, sender = os.pipe()\n"
            "for _ in range(50):\n"
            "    if os.fork() == 0:\n"
            "        if os.fork() == 0: os.write(sender, b'%d ' % os.getpid())\n"
            "        os._exit(0)\n"
            "    os.wait()\n"
            "os.close(sender)\n"
            "numbers = open(receiver).read().split()\n"
            "assert len(numbers) == 50\n"
            "end = time.monotonic() + 20\n"
            "while left := [n for n in numbers if os.path.exists(f'/proc/{n}')]:\n"
            "    assert time.monotonic() < end, left\n"
            "    time.sleep(0.05)\n"
        )
        assert result.failure is None, result.failure

    def test_closing_its_output_does_not_end_a_hook(self, run: Run, workspace: Workspace):
        result = run(
            "import os, time\n"
            "os.close(1); os.close(2)\n"
            "time.sleep(0.5)\n"
            "open(os.environ['OSA_OUT'] + '/features.jsonl', 'w').write('x')\n"
        )
        assert result.failure is None
        assert (workspace.output / "features.jsonl").exists()

    def test_closing_its_output_does_not_postpone_the_deadline(self, run: Run, mark: str):
        result = run(
            "import os\nos.close(1); os.close(2)\n" + HANG,
            command=("python", "hook.py", mark),
            timeout="4s",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.DEADLINE
        self.wait_until_none_runs(mark)

    def test_a_flood_of_output_does_not_postpone_the_deadline(self, run: Run):
        result = run("while True: print('x' * 200)\n", timeout="4s")
        assert result.failure is not None
        assert result.failure.kind is FailureKind.DEADLINE

    def test_a_flood_of_output_takes_little_memory_and_little_disk(self, run: Run):
        with memory_of_this_process() as sizes:
            result = run(
                "import os\n"
                "os.write(1, b'first\\n')\n"
                "lines = (b'x' * 1023 + b'\\n') * 64\n"
                f"for _ in range({_FLOOD_BYTES} // len(lines)):\n"
                "    rest = lines\n"
                "    while rest: rest = rest[os.write(1, rest):]\n"
                "os.write(1, b'last\\n')\n",
                timeout="300s",
            )
        assert result.failure is None, result.failure
        kept = log_file.LOG_HEAD_BYTES + log_file.LOG_TAIL_BYTES
        assert kept - 2048 < result.log.stat().st_size < kept + 1024
        with result.log.open("rb") as log:
            assert log.readline() == b"first\n"
            log.seek(-1029, 2)
            assert log.read() == b"x" * 1023 + b"\nlast\n"
        assert max(sizes) - sizes[0] < _FLOOD_MEMORY_BYTES

    @pytest.mark.parametrize("kind", REPLACEMENTS)
    def test_output_that_is_something_else_in_the_end(
        self, runner: HookRunner, workspace: Workspace, tmp_path: Path, kind: str
    ):
        source = (
            "import os, stat\n"
            "os.chdir(os.environ['OSA_OUT'])\n"
            "path = 'features.jsonl'\n"
            f"with open(path, 'w') as file: file.write({PASS!r})\n"
            "os.remove(path)\n"
            "try:\n"
            f"    {REPLACEMENTS[kind]}\n"
            "except PermissionError:\n"
            "    print('not permitted')\n"
        )
        request = self.request_of(workspace, source)
        for where in (workspace, self.copied(workspace, tmp_path / "again")):
            ended = run_hook(
                runner, replace(request, workspace=where), FailurePolicy(retries=0), Monitor()
            )
            if "not permitted" in ended.log.read_text():
                pytest.skip("its hooks are not permitted to make one")
            if ended.failure is None:
                with pytest.raises(InvalidInputError, match=r"features\.jsonl"):
                    decode_output(where.output, ("r 1",), (), Cardinality.MANY, {})
            else:
                assert ended.failure.kind is FailureKind.INVALID_OUTPUT
                assert "features.jsonl" in ended.failure.reason
            assert storable_files(where.output)[0] == {}

    def test_output_that_is_larger_than_the_disk_in_the_end(
        self, runner: HookRunner, workspace: Workspace, tmp_path: Path
    ):
        """A sparse file: it takes no room, and reading it takes hours."""
        source = (
            "import os\n"
            "with open(os.environ['OSA_OUT'] + '/features.jsonl', 'w') as file:\n"
            f"    file.write({PASS!r})\n"
            "    file.truncate(4 << 40)\n"
        )
        request = self.request_of(workspace, source)
        for where in (workspace, self.copied(workspace, tmp_path / "again")):
            ended = run_hook(
                runner, replace(request, workspace=where), FailurePolicy(retries=0), Monitor()
            )
            assert ended.failure is not None
            assert ended.failure.kind in (FailureKind.OUT_OF_SPACE, FailureKind.OUTPUT_TOO_LARGE)
            assert storable_files(where.output, request.limits.scratch_bytes)[0] == {}

    def copied(self, workspace: Workspace, root: Path) -> Workspace:
        """The workspace of another worker that makes the same attempt."""
        again = Workspace(root)
        again.create()
        for code in workspace.code.iterdir():
            (again.code / code.name).write_bytes(code.read_bytes())
        return again
