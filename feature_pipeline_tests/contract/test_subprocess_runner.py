"""The subprocess runner: the common suite, and what only it can do or does differently."""

import fcntl
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import psutil
import pytest

import feature_pipeline
from feature_pipeline.hooks.failure import FailureKind, FailurePolicy
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.hooks.run import run_hook
from feature_pipeline.hooks.runner import RunRequest, Workspace
from feature_pipeline.hooks.runners import hook_process, process_tree
from feature_pipeline.hooks.runners import subprocess as subprocess_runner
from feature_pipeline.hooks.runners.hook_process import Ended, HookProcess
from feature_pipeline.hooks.runners.subprocess import SubprocessRunner
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.model.definition import Cardinality, HookDefinition, Limits
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Status
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline_tests.contract.hook_runner import (
    HANG,
    HookRunnerTests,
    Monitor,
    Run,
    is_growing,
)
from feature_pipeline_tests.contract.hostile_hooks import HostileHookTests


class TestSubprocessRunner(HookRunnerTests, HostileHookTests):
    @pytest.fixture
    def runner(self, tmp_path: Path) -> SubprocessRunner:
        return SubprocessRunner(WorkFolders(tmp_path / "work", "here"), grace_seconds=1)

    def test_nothing_is_left_of_its_scratch(self, run: Run, tmp_path: Path):
        result = run(
            "import os, pathlib, tempfile\n"
            "pathlib.Path.home().joinpath('x').write_text('')\n"
            "tempfile.mkstemp()\n"
            "os.mkdir('d', 0o500)\n"
            "print(os.getcwd(), pathlib.Path.home(), tempfile.gettempdir())\n"
        )
        assert result.failure is None
        assert all(path.startswith(str(tmp_path)) for path in result.log.read_text().split())
        assert WorkFolders(tmp_path / "work", "here").left_runs() == []
        assert not list(tmp_path.glob("work/*/runs/*"))

    def test_its_environment_is_no_more_than_this(self, run: Run):
        result = run("import os\nprint(*sorted(os.environ))\n")
        names = set(result.log.read_text().split()) - {"LC_CTYPE"}
        assert names == {
            "HOME", "LANG", "OSA_FILES", "OSA_HOOK_NAME", "OSA_IN", "OSA_OUT", "PATH",
            "PYTHONUNBUFFERED", "TMPDIR",
        }  # fmt: skip

    def test_it_inherits_no_open_file_and_no_input(self, run: Run, tmp_path: Path):
        with (tmp_path / "secret").open("w") as file:
            os.set_inheritable(file.fileno(), True)
            result = run(
                "import os, sys\n"
                "links = [os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1, 2)]\n"
                "print(len(sys.stdin.read()), links[0], links[1] == links[2])\n"
                f"print(os.path.exists('/proc/self/fd/{file.fileno()}'))\n"
            )
        assert result.log.read_text().splitlines() == ["0 /dev/null True", "False"]

    def test_python_is_this_interpreter_and_code_files_are_programs(self, run: Run, workspace):
        assert run("import sys\nprint(sys.executable)\n").log.read_text().strip() == sys.executable
        (workspace.code / "tool").write_bytes(b'#!/bin/sh\necho "tool $1"\n')
        (workspace.code / "tool").chmod(0o755)
        result = run("", command=("tool", "x"), modules={})
        # not among the release's files, so not there
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANNOT_START

    def test_a_script_of_the_release_can_be_the_program(self, run: Run):
        script = b'#!/bin/sh\necho "tool $1"\n'
        for command in (("./tool", "x"), ("tool", "x")):
            result = run("", command=command, modules={"tool": script})
            assert result.failure is None, result.failure
            assert result.log.read_text() == "tool x\n"

    def test_a_file_that_is_no_program(self, run: Run):
        result = run("", command=("./data.bin",), modules={"data.bin": b"\x00\x01\x02"})
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANNOT_START
        assert "'./data.bin' cannot be started" in result.failure.reason

    def test_code_that_is_not_the_releases_does_not_run(self, runner, workspace):
        (workspace.code / "hook.py").write_text("print('changed')\n")
        release = self.release_of({"hook.py": b"print('as released')\n"}, ("python", "hook.py"))
        result = runner.run(RunRequest("r", release, Limits(), workspace), Monitor())
        assert result.failure is not None
        assert result.failure.kind is FailureKind.STAGE_FAILED
        assert str(Digest.of(b"print('changed')\n")) in result.failure.reason
        assert result.log.read_bytes() == b""

    def test_missing_code(self, runner, workspace):
        release = self.release_of({"hook.py": b""}, ("python", "hook.py"))
        result = runner.run(RunRequest("r", release, Limits(), workspace), Monitor())
        assert result.failure is not None
        assert result.failure.kind is FailureKind.STAGE_FAILED

    def test_images_are_for_other_runners(self, runner, workspace):
        document = ReleaseDocument(
            dataset="d", hook="h", version="1", image="sha256:" + "0" * 64, command=("x",)
        )
        request = RunRequest("r", HookRelease.of(document), Limits(), workspace)
        result = runner.run(request, Monitor())
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANNOT_START
        assert "use the container runner" in result.failure.reason

    def test_the_memory_of_children_counts(self, run: Run):
        hold = "import time; b = bytearray(80_000_000); time.sleep(60)"
        result = run(
            "import subprocess, sys\n"
            f"children = [subprocess.Popen([sys.executable, '-c', {hold!r}]) for _ in 'ab']\n"
            "print([child.wait() for child in children])\n",
            memory="120Mi",
            timeout="30s",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.OUT_OF_MEMORY

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells shared pages apart")
    def test_pages_that_forked_workers_share_count_once(self, run: Run):
        result = run(
            "import os, time\n"
            "held = bytearray(b'x') * 150_000_000\n"
            "for _ in range(3):\n"
            "    if os.fork() == 0:\n"
            "        time.sleep(2)\n"
            "        os._exit(0)\n"
            "time.sleep(2)\n",
            memory="400Mi",
        )
        assert result.failure is None
        assert result.peak_memory_bytes is not None
        assert 150_000_000 < result.peak_memory_bytes < 400 * 2**20

    @pytest.mark.skipif(sys.platform != "linux", reason="the kernel keeps a high-water mark")
    def test_a_peak_between_samples_is_seen(self, run: Run):
        result = run("import time\nb = bytearray(b'x') * 150_000_000\ndel b\ntime.sleep(2)\n")
        assert (result.peak_memory_bytes or 0) > 150_000_000

    def test_without_psutil_it_runs_and_reports_what_is_missing(self, run: Run, monkeypatch):
        def missing(name: str) -> None:
            raise ImportError(name)

        monkeypatch.setattr(process_tree, "import_module", missing)
        result = run("held = bytearray(50_000_000)\n", memory="20Mi")
        assert result.failure is None
        assert result.peak_memory_bytes is None
        assert "memory is not measured or limited here" in result.log.read_text()

    def test_a_hook_that_kills_its_reaper(self, run: Run, workspace: Workspace):
        """Its processes lose the parent that would end them; they are found otherwise."""
        result = run(
            "import os, signal, subprocess, sys, time\n"
            "late = 'import os, time\\nwhile True:\\n'\n"
            'late += \'    with open(os.environ["OSA_OUT"] + "/errors.jsonl", "a") as file:\\n\'\n'
            "late += '        file.write(\"x\")\\n    time.sleep(0.01)\\n'\n"
            "subprocess.Popen([sys.executable, '-c', late], start_new_session=True)\n"
            "while not os.path.exists(os.environ['OSA_OUT'] + '/errors.jsonl'): time.sleep(0.01)\n"
            "os.kill(os.getppid(), signal.SIGKILL)\n" + HANG
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.NON_ZERO_EXIT
        assert result.exit_code == 137
        assert not is_growing(workspace.output / "errors.jsonl")

    def test_a_hook_that_stops_its_reaper(
        self, run: Run, mark: str, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(subprocess_runner, "REAPER_SECONDS", 0.5)
        result = run(
            "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\n" + HANG,
            command=("python", "hook.py", mark),
            timeout="2s",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.DEADLINE
        self.wait_until_none_runs(mark)

    def test_a_kill_from_outside_is_reported(self, run: Run):
        result = run("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
        assert result.failure is not None
        assert result.failure.kind is FailureKind.NON_ZERO_EXIT
        assert result.exit_code == 137
        assert "from outside" in result.failure.reason

    def test_progress_bars_show_their_last_state(self, run: Run):
        monitor = Monitor()
        run("for n in range(101):\n    print(f'\\r{n}%', end='', flush=True)\nprint()\n", monitor)
        assert monitor.lines == ["100%"]

    def test_ctrl_c_stops_the_hook_and_is_passed_on(self, tmp_path: Path):
        """In a process of its own: the interrupt arrives between two looks at the hook."""
        hook = f"import os\nprint(os.getpid(), flush=True)\n{HANG}".encode()
        program = (
            "import signal, sys\n"
            # ignored signals are inherited: a background job's children get SIGINT ignored
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "from pathlib import Path\n"
            "from feature_pipeline.model.definition import Limits\n"
            "from feature_pipeline.hooks.runner import RunRequest, Workspace\n"
            "from feature_pipeline.hooks.runners.subprocess import SubprocessRunner\n"
            "from feature_pipeline.hooks.work_folders import WorkFolders\n"
            "from feature_pipeline_tests.contract.hook_runner import HookRunnerTests\n"
            "root = Path(sys.argv[1])\n"
            "workspace = Workspace(root / 'run')\n"
            "workspace.create()\n"
            f"(workspace.code / 'hook.py').write_bytes({hook!r})\n"
            f"code = {{'hook.py': {hook!r}}}\n"
            "release = HookRunnerTests().release_of(code, ('python', 'hook.py'))\n"
            "request = RunRequest('r', release, Limits(), workspace)\n"
            "class Show:\n"
            "    def log(self, line): print(line, flush=True)\n"
            "    def is_cancelled(self, *, now=False): return False\n"
            "try:\n"
            "    SubprocessRunner(WorkFolders(root / 'work', 'here')).run(request, Show())\n"
            "except KeyboardInterrupt:\n"
            "    print('passed on', list(root.glob('work/*/runs/*')), flush=True)\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as child:
            assert child.stdout is not None
            process = psutil.Process(int(child.stdout.readline()))
            child.send_signal(signal.SIGINT)
            assert child.stdout.readline() == "passed on []\n"
            assert child.wait(30) == 0
        assert not process.is_running()

    def test_memory_is_doubled_until_it_suffices(self, runner, workspace: Workspace):
        source = b"import time\nheld = bytearray(b'x') * 150_000_000\ntime.sleep(2)\n"
        (workspace.code / "hook.py").write_bytes(source)
        release = self.release_of({"hook.py": source}, ("python", "hook.py"))
        request = RunRequest("r", release, Limits(memory="100Mi"), workspace)
        run = run_hook(runner, request, FailurePolicy(retries=0), Monitor())
        results = [start.result for start in run.starts]
        kinds = [result.failure and result.failure.kind for result in results]
        assert kinds == [FailureKind.OUT_OF_MEMORY, None]
        assert run.memory_bytes == 200 * 2**20
        assert results[0].log != results[1].log

    def test_an_example_hook_over_a_real_structure(self, runner, workspace: Workspace):
        examples = Path(feature_pipeline.__file__).parent / "examples"
        definition = HookDefinition.model_validate(
            {
                "name": "has_protein",
                "dataset": "structures",
                "release": {
                    "version": "1",
                    "command": ["python", "has_protein.py"],
                    "code": ["has_protein.py", "contract.py", "structure.py"],
                    "config": {"min_residues": 20},
                },
            }
        )
        for name, path in definition.code_files(examples / "hooks").items():
            (workspace.code / name).write_bytes(path.read_bytes())
        lines = [json.dumps({"id": name}) + "\n" for name in ("1ubi.pdb", "1lcd.cif", "none")]
        (workspace.inputs / "records.jsonl").write_text("".join(lines))
        (workspace.inputs / "config.json").write_text(json.dumps({"min_residues": 60}))
        for name in ("1ubi.pdb", "1lcd.cif"):
            (workspace.files / name).mkdir()
            data = (examples / "structures" / name).read_bytes()
            (workspace.files / name / name).write_bytes(data)
        release = definition.hook_release(examples / "hooks")
        request = RunRequest("r", release, definition.release.limits, workspace)
        assert runner.run(request, Monitor()).failure is None
        ids = ("1ubi.pdb", "1lcd.cif", "none")
        decoded = decode_output(workspace.output, ids, (), Cardinality.MANY, {})
        assert [outcome.status for outcome in decoded.outcomes] == [
            Status.PASSED,
            Status.REJECTED,
            Status.REJECTED,
        ]
        assert decoded.notes == ()

    def test_it_can_be_used_in_any_thread(self, run: Run):
        results = []
        thread = threading.Thread(target=lambda: results.append(run("print('x')\n")))
        thread.start()
        thread.join()
        assert results[0].failure is None


def test_a_hook_that_ends_before_its_start_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a busy machine it has, and both lines of the reaper's report are there."""
    read_line = hook_process._read_line

    def read_late(descriptor: int) -> str:
        waiting = 0
        while waiting < len("started\nended 0 0\n"):
            waiting = struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"\0" * 4))[0]
        return read_line(descriptor)

    monkeypatch.setattr(hook_process, "_read_line", read_late)
    program = shutil.which("true")
    assert program is not None
    with HookProcess.start([program], folder=tmp_path, environment={}, levels=0) as hook:
        assert hook.reaper_code() == 0
        assert hook.ended() == Ended(0, outlived=False)
