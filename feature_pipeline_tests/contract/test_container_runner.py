"""The container runner: the common suite, and what a container adds to it."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feature_pipeline.hooks.ended_attempts import EndedAttempts
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.runner import RunRequest, RunResult, Workspace
from feature_pipeline.hooks.runners.container import spec
from feature_pipeline.hooks.runners.container.cgroup_watch import _cgroups
from feature_pipeline.hooks.runners.container.log import whole_lines
from feature_pipeline.hooks.runners.container.runner import ContainerRunner
from feature_pipeline.model.definition import Limits
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline_tests.contract.hook_runner import (
    HANG,
    HookRunnerTests,
    Monitor,
    Run,
    RunnerFixtures,
)
from feature_pipeline_tests.contract.hostile_hooks import HostileHookTests
from feature_pipeline_tests.fixtures.container import PROXY_SECRET, Engine

pytestmark = pytest.mark.container


class ContainerTests(RunnerFixtures):
    """A runner on the test engine."""

    @pytest.fixture(autouse=True)
    def _image(self, container_engine: Engine) -> None:
        self.image = container_engine.image

    @pytest.fixture
    def attempts(self, tmp_path: Path) -> EndedAttempts:
        return EndedAttempts(tmp_path / "attempts")

    @pytest.fixture
    def runner(self, container_engine: Engine, attempts: EndedAttempts) -> ContainerRunner:
        return ContainerRunner(
            container_engine.url, attempts=attempts, archive="test", grace_seconds=1
        )

    @pytest.fixture
    def engine(self, container_engine: Engine) -> Iterator[Any]:
        client = container_engine.client()
        yield client
        client.close()


class TestContainerRunner(ContainerTests, HookRunnerTests, HostileHookTests):
    pass


class TestConfinement(ContainerTests):
    """What the hook cannot do, as it finds out itself."""

    def test_who_it_is(self, run: Run):
        result = run(
            "import json, os\n"
            "status = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines()"
            " if ':\\t' in l)\n"
            "print(json.dumps([os.getuid(), os.getgid(), os.getgroups(), status]))\n"
        )
        uid, gid, groups, status = json.loads(result.log.read_text())
        if os.geteuid() == 0:
            assert (uid, gid) == (spec.NOBODY, spec.NOBODY)
        assert 0 not in [uid, gid, *groups]
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, name
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"  # a filter

    def test_it_has_no_network(self, run: Run):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            result = run(
                "import os, socket\n"
                "print(sorted(n for _, n in socket.if_nameindex()))\n"
                f"for host in ('127.0.0.1', '10.0.2.2', '169.254.169.254', '8.8.8.8'):\n"
                "    try:\n"
                f"        socket.create_connection((host, {port}), timeout=2)\n"
                "        print('REACHED', host)\n"
                "    except OSError as error:\n"
                "        print(host, error)\n"
                "try:\n"
                "    print('RESOLVED', socket.getaddrinfo('example.org', 80))\n"
                "except OSError as error:\n"
                "    print(error)\n"
            )
        assert result.failure is None
        text = result.log.read_text()
        assert text.startswith("['lo']\n")
        assert "REACHED" not in text
        assert "RESOLVED" not in text

    def test_it_writes_nowhere_but_in_its_output_and_scratch(self, run: Run, workspace: Workspace):
        result = run(
            "import json, os\n"
            "found = []\n"
            "for folder, folders, _ in os.walk('/'):\n"
            "    if folder == '/': folders[:] = set(folders) - {'proc', 'sys'}\n"
            "    path = os.path.join(folder, '.probe')\n"
            "    try:\n"
            "        with open(path, 'w'): pass\n"
            "        os.remove(path)\n"
            "        found.append(folder)\n"
            "    except OSError: pass\n"
            "for path in ('/osa/in/records.jsonl', '/osa/files/r 1/a.txt', '/etc/passwd',"
            " '/proc/sys/kernel/hostname'):\n"
            "    try:\n"
            "        open(path, 'r+').close()\n"
            "        found.append('FILE ' + path)\n"
            "    except OSError: pass\n"
            "lines = [line.split() for line in open('/proc/mounts')]\n"
            "mounts = {line[1]: line[2] for line in lines}\n"
            "print(json.dumps([found, mounts]))\n"
        )
        assert result.failure is None, result.log.read_text()
        document, mounts = json.loads(result.log.read_text())
        for folder in document:
            if folder.startswith(("/osa/out", "/osa/work", "/tmp")):
                continue
            mounted = max(
                (m for m in mounts if (folder + "/").startswith(m.rstrip("/") + "/")), key=len
            )
            # memory that goes with the container, as scratch does
            assert mounts[mounted] in ("tmpfs", "mqueue"), (folder, mounts[mounted])
        assert {"/osa/out", "/osa/work", "/tmp"} <= set(document)
        assert list(workspace.output.iterdir()) == []

    def test_it_has_no_credential(
        self, run: Run, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ):
        """Not in its environment, nor in a file it can find: not even the engine's own proxy."""
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret-4711")
        result = run(
            "import os\n"
            "print(dict(os.environ))\n"
            "for folder, folders, names in os.walk('/'):\n"
            "    folders[:] = [d for d in folders if os.path.join(folder, d) not in"
            " ('/proc', '/sys', '/usr', '/dev')]\n"
            "    for name in names: print(os.path.join(folder, name))\n"
        )
        text = result.log.read_text()
        assert "s3cret-4711" not in text
        assert PROXY_SECRET not in text
        assert str(workspace.root) not in text
        for word in ("docker.sock", "engine.sock", "serviceaccount", ".aws", "credentials"):
            assert word not in text

    def test_its_scratch_is_bounded(self, run: Run):
        result = run(
            "open('/tmp/x', 'wb').write(bytes(3_000_000))\n",
            scratch="1Mi",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.OUT_OF_SPACE
        assert "limits.scratch is 1Mi" in result.failure.reason
        assert "No space left on device" in result.log.read_text()

    def test_its_processes_are_bounded(self, container_engine: Engine, run_with: Any):
        runner = ContainerRunner(container_engine.url, grace_seconds=1, pids=20)
        result = run_with(
            runner,
            "import subprocess, sys\n"
            "held = []\n"
            "try:\n"
            "    for n in range(40): held.append(subprocess.Popen(['python', '-c', 'input()'],"
            " stdin=subprocess.PIPE))\n"
            "except OSError as error:\n"
            "    print(len(held) < 20, error)\n"
            "for process in held: process.kill()\n",
        )
        assert result.log.read_text().splitlines()[-1].startswith("True ")

    def test_a_hook_at_its_limit_of_processes_ends_at_its_deadline(
        self, container_engine: Engine, run_with: Any
    ):
        runner = ContainerRunner(container_engine.url, grace_seconds=1, pids=20)
        result = run_with(
            runner,
            "import os, time\n"
            "while True:\n"
            "    try:\n"
            "        os.fork()\n"
            "    except OSError: time.sleep(0.1)\n",
            timeout="4s",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.DEADLINE
        if next(_cgroups(os.getpid(), "pids"), None) is not None:
            assert "it reached its limit of 20 processes" in result.failure.reason

    @pytest.fixture
    def run_with(self, workspace: Workspace) -> Any:
        def run(runner: ContainerRunner, source: str, **limits: str) -> RunResult:
            return runner.run(self.request_of(workspace, source, **limits), Monitor())

        return run


class TestOutOfMemory(ContainerTests):
    def test_a_killed_child_does_not_leave_the_hook_waiting(self, run: Run):
        """The kernel kills the child alone; a pool would wait for its answer for ever."""
        result = run(
            "import os, subprocess, time\n"
            "subprocess.Popen(['python', '-c', 'held = bytearray(300_000_000)']).wait()\n"
            "print('child gone', flush=True)\n" + HANG,
            memory="100Mi",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.OUT_OF_MEMORY
        assert "100Mi" in result.failure.reason

    def test_a_hook_that_ends_by_itself_after_its_child_was_killed(self, run: Run):
        """It ends before the container is inspected, with a status of its own."""
        result = run(
            "import subprocess, sys\n"
            "child = subprocess.run(['python', '-c', 'held = bytearray(300_000_000)'])\n"
            "sys.exit(child.returncode and 3)\n",
            memory="100Mi",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.OUT_OF_MEMORY
        assert result.exit_code in (3, 137)  # unless a look came between

    def test_not_every_137_is_for_memory(self, run: Run):
        result = run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", memory="100Mi")
        assert result.failure is not None
        assert result.exit_code == 137
        assert result.failure.kind is FailureKind.NON_ZERO_EXIT
        assert "SIGKILL" in result.failure.reason


class TestImages(ContainerTests):
    def refused(
        self, runner: ContainerRunner, workspace: Workspace, image: str | None
    ) -> RunResult:
        document = ReleaseDocument(
            dataset="d", hook="h", version="1", image=image, command=("python", "-V")
        )
        return runner.run(RunRequest("r", HookRelease.of(document), Limits(), workspace), Monitor())

    def test_an_image_runs_where_it_wants_to(
        self, container_engine: Engine, workspace: Workspace, runner: ContainerRunner
    ):
        result = self.refused(runner, workspace, container_engine.image)
        assert result.failure is None
        assert result.log.read_text().startswith("Python 3.")

    def test_a_registry_that_does_not_answer(self, runner, workspace):
        image = f"localhost:1/nothing@sha256:{'0' * 64}"
        result = self.refused(runner, workspace, image)
        assert result.failure is not None
        assert result.failure.kind is FailureKind.IMAGE_PULL
        assert image in result.failure.reason

    def test_a_local_image_that_is_not_here(self, runner, workspace):
        result = self.refused(runner, workspace, f"sha256:{'0' * 64}")
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANNOT_START
        assert "no image" in result.failure.reason

    def test_code_files_need_an_image(self, runner, workspace):
        result = self.refused(runner, workspace, None)
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANNOT_START
        assert "code_image" in result.failure.reason

    def test_no_engine(self, workspace: Workspace, tmp_path: Path):
        runner = ContainerRunner(f"unix://{tmp_path}/none.sock")
        result = self.refused(runner, workspace, self.image)
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANNOT_START
        assert "no container engine answers" in result.failure.reason


class LetEnd(Monitor):
    """Ends the hook that waits in a workspace, once a line says so."""

    def __init__(self, words: str, workspace: Workspace) -> None:
        super().__init__()
        self._words = words
        self._file = workspace.output / "may-end"

    def log(self, line: str) -> None:
        super().log(line)
        if self._words in line:
            self._file.touch()


class TestReattachment(ContainerTests):
    """The worker dies, the container does not."""

    SOURCE = (
        "import os, time\n"
        "print('begun', flush=True)\n"
        "with open(os.environ['OSA_OUT'] + '/progress.jsonl', 'a') as file: file.write('x')\n"
        "while not os.path.exists(os.environ['OSA_OUT'] + '/may-end'): time.sleep(0.02)\n"
        "open(os.environ['OSA_OUT'] + '/features.jsonl', 'w').write('{}')\n"
        "print('done')\n"
    )

    @pytest.fixture
    def orphan(self, container_engine: Engine, tmp_path: Path, engine: Any) -> Any:
        """A running container whose worker was killed; its name."""
        workspace = Workspace(tmp_path / "first")
        workspace.create()
        request = self.request_of(workspace, self.SOURCE)
        worker = multiprocessing.get_context("fork").Process(
            target=ContainerRunner(container_engine.url).run, args=(request, Monitor())
        )
        worker.start()
        name = spec.container_name(request, spec.identity(request, self.image))
        end = time.monotonic() + 30
        while not (workspace.output / "progress.jsonl").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        worker.join()
        yield name
        for container in engine.containers.list(all=True, filters={"name": name}):
            container.remove(force=True)

    @pytest.fixture
    def again(self, tmp_path: Path) -> Workspace:
        workspace = Workspace(tmp_path / "second")
        workspace.create()
        return workspace

    def test_it_is_waited_for_and_not_started_twice(
        self,
        runner: ContainerRunner,
        orphan: str,
        again: Workspace,
        engine: Any,
        tmp_path: Path,
    ):
        monitor = LetEnd("attached to container", Workspace(tmp_path / "first"))
        result = runner.run(self.request_of(again, self.SOURCE), monitor)
        assert result.failure is None
        assert (again.output / "progress.jsonl").read_text() == "x"
        assert (again.output / "features.jsonl").read_text() == "{}"
        log = result.log.read_text()
        assert f"attached to container {orphan}" in log
        assert log.endswith("begun\ndone\n")
        assert engine.containers.list(all=True, filters={"name": orphan}) == []

    def test_what_it_did_meanwhile_is_taken(
        self,
        runner: ContainerRunner,
        orphan: str,
        again: Workspace,
        engine: Any,
        tmp_path: Path,
    ):
        (Workspace(tmp_path / "first").output / "may-end").touch()
        engine.api.wait(orphan)
        result = runner.run(self.request_of(again, self.SOURCE), Monitor())
        assert result.failure is None
        assert (again.output / "features.jsonl").read_text() == "{}"
        assert result.log.read_text().endswith("begun\ndone\n")

    def test_another_attempt_is_another_container(
        self, runner: ContainerRunner, orphan: str, again: Workspace, engine: Any
    ):
        request = self.request_of(again, self.SOURCE, memory="2Gi")
        result = runner.run(request, LetEnd("begun", again))
        assert result.failure is None
        assert "attached" not in result.log.read_text()
        assert engine.containers.get(orphan)

    def test_a_container_of_that_name_that_is_not_ours(
        self, runner: ContainerRunner, again: Workspace, engine: Any
    ):
        request = self.request_of(again, self.SOURCE)
        name = spec.container_name(request, spec.identity(request, self.image))
        other = engine.containers.create(self.image, ["python", "-V"], name=name)
        try:
            result = runner.run(request, Monitor())
            assert result.failure is not None
            assert result.failure.kind is FailureKind.CANNOT_START
            assert name in result.failure.reason
            other.reload()
        finally:
            other.remove(force=True)

    def test_a_container_that_is_removed_while_it_runs(
        self, runner: ContainerRunner, again: Workspace, engine: Any
    ):
        request = self.request_of(again, "print('remove me', flush=True)\n" + HANG)
        name = spec.container_name(request, spec.identity(request, self.image))

        class Remover(Monitor):
            def log(self, line: str) -> None:
                super().log(line)
                if line == "remove me":
                    engine.api.remove_container(name, force=True)

        result = runner.run(request, Remover())
        assert result.failure is not None
        assert result.failure.kind is FailureKind.EVICTED
        assert result.failure.log_tail[-1] == "remove me"


def test_lines_of_two_streams_are_not_cut_into_each_other():
    frames = [(1, b"a\nbe"), (2, b"error\n"), (1, b"gun\n"), (2, b"rest"), (1, b"x" * 70_000)]
    assert list(whole_lines(frames)) == [b"a\n", b"error\n", b"begun\n", b"x" * 70_000, b"rest"]
