"""What every runner of hooks promises, as one suite: `class TestX(HookRunnerTests)`.

A subclass gives `runner`, and says what of the surroundings differs in `enforces_memory` and in
`image`. The hooks are small Python programs, run as `python hook.py`.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.runner import HookRunner, RunMonitor, RunRequest, RunResult, Workspace
from feature_pipeline.hooks.runners.shared import log_file, log_stream
from feature_pipeline.model.definition import Limits
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordFile
from feature_pipeline.model.release import HookRelease, ReleaseDocument

HANG = "import time\ntime.sleep(3600)\n"


class Monitor:
    """Keeps the lines, and cancels once told to or once a line says so."""

    def __init__(self, cancel_at: str | None = None) -> None:
        self.lines: list[str] = []
        self.first_line_at = float("inf")  # of time.time(), which hooks can tell as well
        self.cancel = threading.Event()
        self._cancel_at = cancel_at

    def log(self, line: str) -> None:
        self.first_line_at = min(self.first_line_at, time.time())
        self.lines.append(line)
        if self._cancel_at is not None and self._cancel_at in line:
            self.cancel.set()

    def is_cancelled(self, *, now: bool = False) -> bool:
        return self.cancel.is_set()


Run = Callable[..., RunResult]


def is_growing(path: Path) -> bool:
    """Return whether a process still writes to a file, if it does so a hundred times a second."""
    size = _size(path)
    time.sleep(0.5)
    return _size(path) != size


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class RunnerFixtures:
    """A workspace with one record, and requests for a runner."""

    image: str | None = None

    def release_of(self, code: dict[str, bytes], command: tuple[str, ...]) -> HookRelease:
        """The release of these code files, in the image if there is one."""
        files = tuple(
            RecordFile(name=name, digest=str(Digest.of(data)), size=len(data))
            for name, data in sorted(code.items())
        )
        return HookRelease.of(
            ReleaseDocument(
                dataset="d",
                hook="probe",
                version="1",
                command=command,
                code=files,
                image=self.image,
            )
        )

    def request_of(self, workspace: Workspace, source: str, **limits: str) -> RunRequest:
        (workspace.code / "hook.py").write_text(source)
        release = self.release_of({"hook.py": source.encode()}, ("python", "hook.py"))
        return RunRequest(
            "probe-1",
            release,
            Limits.model_validate({"memory": "1Gi", "timeout": "60s"} | limits),
            workspace,
        )

    @pytest.fixture
    def workspace(self, tmp_path: Path) -> Workspace:
        workspace = Workspace(tmp_path / "run")
        workspace.create()
        (workspace.inputs / "records.jsonl").write_text('{"id": "r 1", "metadata": {}}\n')
        (workspace.files / "r 1").mkdir()
        (workspace.files / "r 1" / "a.txt").write_text("content")
        return workspace

    @pytest.fixture
    def run(self, runner: HookRunner, workspace: Workspace) -> Run:
        def run(
            source: str,
            monitor: RunMonitor | None = None,
            *,
            attempt: int = 1,
            command: tuple[str, ...] = ("python", "hook.py"),
            modules: dict[str, bytes] | None = None,
            **limits: str,
        ) -> RunResult:
            code = {"hook.py": source.encode()} | (modules or {})
            for name, data in code.items():
                (workspace.code / name).write_bytes(data)
            request = RunRequest(
                run_id="probe-1",
                release=self.release_of(code, command),
                limits=Limits.model_validate({"memory": "1Gi", "timeout": "60s"} | limits),
                workspace=workspace,
                attempt=attempt,
            )
            return runner.run(request, monitor or Monitor())

        return run


class HookRunnerTests(RunnerFixtures):
    enforces_memory = True
    watches_disk = True

    @pytest.fixture
    def runner(self, tmp_path: Path) -> HookRunner:
        raise NotImplementedError

    def test_it_reads_and_writes_by_the_contract(self, run: Run, workspace: Workspace):
        before = datetime.now(UTC)
        result = run(
            "import os, pathlib, json, helper\n"
            "e = os.environ\n"
            "line = open(e['OSA_IN'] + '/records.jsonl').readline()\n"
            "record = json.loads(line)['id']\n"
            "text = pathlib.Path(e['OSA_FILES'], record, 'a.txt').read_text()\n"
            "row = {'text': text + helper.SUFFIX, 'hook': e['OSA_HOOK_NAME']}\n"
            "with open(e['OSA_OUT'] + '/features.jsonl', 'w') as out:\n"
            "    out.write(json.dumps({'id': record, 'features': [row]}) + '\\n')\n",
            modules={"helper.py": b"SUFFIX = '!'\n"},
        )
        assert (result.failure, result.exit_code) == (None, 0)
        assert json.loads((workspace.output / "features.jsonl").read_text()) == {
            "id": "r 1",
            "features": [{"text": "content!", "hook": "probe"}],
        }
        assert before <= result.started_at <= result.finished_at <= datetime.now(UTC)
        assert result.node

    def test_log_lines_arrive_while_it_runs_and_the_file_has_every_byte(self, run: Run):
        monitor = Monitor()
        result = run(
            "import sys, time\n"
            "print('out', flush=True)\n"
            "time.sleep(3)\n"
            "print('err', file=sys.stderr, flush=True)\n"
            "sys.stdout.write(f'{time.time()}')\n",
            monitor,
        )
        lines = [line for line in monitor.lines if not line.startswith("[")]
        assert lines[:2] == ["out", "err"]
        assert monitor.first_line_at < float(lines[2])
        log = result.log.read_bytes().replace(b"\r\n", b"\n")
        assert log == f"out\nerr\n{lines[2]}\n".encode()

    def test_bytes_that_are_no_text_and_endless_lines_do_no_harm(self, run: Run):
        monitor = Monitor()
        result = run(
            "import sys\n"
            "sys.stdout.buffer.write(b'\\xff\\xfe\\x00bad\\n' + b'x' * 3_000_000 + b'\\nend\\n')\n",
            monitor,
        )
        assert result.failure is None
        assert result.log.stat().st_size >= 3_000_000
        assert monitor.lines[0] == "\ufffd\ufffd\ufffdbad"
        assert monitor.lines[1].startswith("xxx")
        assert monitor.lines[1].endswith(" more bytes)")
        assert len(monitor.lines[1]) < 5_000
        assert monitor.lines[2] == "end"

    def test_a_status_other_than_zero(self, run: Run, workspace: Workspace):
        result = run(
            "import os, sys\n"
            "open(os.environ['OSA_OUT'] + '/features.jsonl', 'w').write('half')\n"
            "print('last words')\n"
            "sys.exit(3)\n"
        )
        assert result.failure is not None
        assert (result.exit_code, result.failure.exit_code) == (3, 3)
        assert result.failure.kind is FailureKind.NON_ZERO_EXIT
        assert result.failure.log_tail[-1] == "last words"
        assert result.failure.memory_limit_bytes == 2**30
        assert (workspace.output / "features.jsonl").read_text() == "half"

    def test_a_signal_is_reported_by_name(self, run: Run):
        result = run("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
        assert result.failure is not None
        assert result.failure.kind is FailureKind.NON_ZERO_EXIT
        assert result.exit_code == 139
        assert "SIGSEGV" in result.failure.reason

    def test_of_a_long_log_the_beginning_and_the_end_are_kept(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ):
        """A hook that prints for ever must fill neither a disk nor what is shown of it."""
        monkeypatch.setattr(log_file, "LOG_HEAD_BYTES", 150_000)
        monkeypatch.setattr(log_file, "LOG_TAIL_BYTES", 100_000)
        monkeypatch.setattr(log_stream, "SHOWN_BYTES", 50_000)
        monitor = Monitor()
        source = "for n in range(1000):\n    print(n, '-' * 2000)\nraise SystemExit(1)\n"
        result = run(source, monitor)
        assert result.failure is not None
        assert len(result.failure.log_tail) == 20
        assert result.failure.log_tail[-1].startswith("999 ")
        assert max(map(len, result.failure.log_tail)) <= 500
        text = result.log.read_text()
        assert 225_000 < len(text) < 251_000
        assert text.startswith("0 --")
        assert text.endswith("--\n")
        head, notice, tail = re.split(r"\n(\[feature_pipeline\] \d+ bytes .*left out here)\n", text)
        assert len(head) == 150_000
        kept = [int(line.split()[0]) for line in tail.splitlines()]
        assert kept == list(range(kept[0], 1000))
        assert int(notice.split()[1]) == sum(len(f"{n} ") + 2001 for n in range(kept[0])) - len(
            head
        )
        shown = [line for line in monitor.lines if not line.startswith("[")]
        assert 20 <= len(shown) <= 25
        assert any("but the rest is not shown" in line for line in monitor.lines)

    def test_a_hook_that_writes_more_than_its_scratch(self, run: Run):
        if not self.watches_disk:
            pytest.skip("the cluster's kubelet does")
        # named only when it is whole: the watch may look in the middle of a write
        result = run(
            "import os\n"
            "folder = os.environ['OSA_OUT']\n"
            "file = os.open(folder, os.O_TMPFILE | os.O_RDWR)\n"
            "for _ in range(4): assert os.write(file, bytes(1_000_000)) == 1_000_000\n"
            "os.link(f'/proc/self/fd/{file}', folder + '/features.jsonl', src_dir_fd=file)\n"
            "print('written', flush=True)\n" + HANG,
            scratch="3Mi",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.OUT_OF_SPACE
        assert "its output has 3.8" in result.failure.reason
        assert "limits.scratch is 3Mi" in result.failure.reason

    def test_a_program_that_does_not_exist(self, run: Run):
        result = run("", command=("no-such-program-anywhere", "x"))
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANNOT_START
        assert "no-such-program-anywhere" in result.failure.reason
        assert result.exit_code in (None, 127)

    def test_the_deadline(self, run: Run):
        result = run("print('here', flush=True)\n" + HANG, timeout="4s")
        assert result.failure is not None
        assert result.failure.kind is FailureKind.DEADLINE
        assert "4s" in result.failure.reason
        assert "here" in result.failure.log_tail

    def test_a_hook_may_tidy_up_when_its_time_is_over(self, run: Run, workspace: Workspace):
        result = run(
            "import os, signal, sys\n"
            "def end(*_):\n"
            "    open(os.environ['OSA_OUT'] + '/errors.jsonl', 'w').write('tidy')\n"
            "    sys.exit(0)\n"
            "signal.signal(signal.SIGTERM, end)\n" + HANG,
            timeout="4s",
        )
        assert result.failure is not None
        # ending well on request is no verdict
        assert result.failure.kind is FailureKind.DEADLINE
        assert (workspace.output / "errors.jsonl").read_text() == "tidy"

    def test_a_hook_that_does_not_listen_is_killed(self, run: Run):
        ignore = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        result = run(ignore + HANG, timeout="4s")
        assert result.failure is not None
        assert result.failure.kind is FailureKind.DEADLINE
        assert result.exit_code == 137

    def test_cancellation(self, run: Run):
        result = run("print('cancel me', flush=True)\n" + HANG, Monitor(cancel_at="cancel me"))
        assert result.failure is not None
        assert result.failure.kind is FailureKind.CANCELLED

    def test_too_much_memory(self, run: Run):
        if not self.enforces_memory:
            pytest.skip("this runner does not limit memory here")
        result = run(
            "import time\nheld = bytearray(200_000_000)\nprint('holding', flush=True)\n" + HANG,
            memory="100Mi",
            timeout="30s",
        )
        assert result.failure is not None
        assert result.failure.kind is FailureKind.OUT_OF_MEMORY
        assert result.failure.memory_limit_bytes == 100 * 2**20

    def test_a_hook_that_reports_out_of_memory_is_believed(self, run: Run):
        result = run("raise MemoryError('no room for the grid')\n")
        assert result.failure is not None
        assert result.failure.kind is FailureKind.OUT_OF_MEMORY

    def test_peak_memory_is_measured(self, run: Run):
        result = run("import time\nheld = bytearray(150_000_000)\ntime.sleep(2)\n")
        assert result.failure is None
        if result.peak_memory_bytes is not None:
            assert 150_000_000 <= result.peak_memory_bytes < 400_000_000

    def test_nothing_runs_on_after_the_hook(self, run: Run, workspace: Workspace):
        """The hook's child outlives it, holds its log open, and would write over its output."""
        result = run(
            "import os, subprocess, sys\n"
            "late = 'import os, time\\nwhile True:\\n'\n"
            'late += \'    with open(os.environ["OSA_OUT"] + "/errors.jsonl", "a") as file:\\n\'\n'
            "late += '        file.write(\"x\")\\n    time.sleep(0.01)\\n'\n"
            "subprocess.Popen([sys.executable, '-c', late])\n"
            "import time\n"
            "while not os.path.exists(os.environ['OSA_OUT'] + '/errors.jsonl'): time.sleep(0.01)\n"
        )
        assert result.failure is None
        assert not is_growing(workspace.output / "errors.jsonl")

    def test_each_attempt_begins_with_nothing(self, run: Run, workspace: Workspace):
        source = (
            "import os\n"
            "found = os.listdir(os.environ['OSA_OUT']) + sorted(os.listdir('.'))\n"
            "open(os.environ['OSA_OUT'] + '/features.jsonl', 'w').write('x')\n"
            "open('left-behind', 'w')\n"
            "print(found)\n"
        )
        first, second = run(source), run(source, attempt=2)
        assert first.log != second.log
        assert first.log.read_text() == second.log.read_text() == "['hook.py']\n"
        assert [path.name for path in workspace.output.iterdir()] == ["features.jsonl"]

    def test_a_credential_of_ours_is_not_the_hooks(self, run: Run, monkeypatch: pytest.MonkeyPatch):
        secret = "s3cret-4711"
        for name in (
            "AWS_SECRET_ACCESS_KEY",
            "FEATURE_PIPELINE_DATABASE_URL",
            "DAGSTER_X",
            "PGPASSWORD",
        ):
            monkeypatch.setenv(name, secret)
        result = run("import os\nprint(dict(os.environ))\n")
        assert result.failure is None
        text = result.log.read_text()
        assert secret not in text
        assert "OSA_IN" in text
        assert "DAGSTER" not in text
        assert "AWS_" not in text

    def test_an_error_of_the_monitor_stops_the_hook_and_passes_through(
        self, run: Run, workspace: Workspace
    ):
        class Broken(Monitor):
            def log(self, line: str) -> None:
                raise KeyboardInterrupt(line)

        with pytest.raises(KeyboardInterrupt, match="go"):
            run(
                "import os, time\n"
                "print('go', flush=True)\n"
                "while True:\n"
                "    with open(os.environ['OSA_OUT'] + '/features.jsonl', 'a') as file:\n"
                "        file.write('x')\n"
                "    time.sleep(0.01)\n",
                Broken(),
            )
        assert not is_growing(workspace.output / "features.jsonl")

    @pytest.mark.parametrize("end", ["well", "status", "deadline", "memory"])
    def test_an_attempt_that_has_ended_is_not_made_again(
        self, runner: HookRunner, run: Run, tmp_path: Path, end: str
    ):
        """Its worker died before it could say so. The next one has another workspace."""
        how = {
            "well": "",
            "status": "sys.exit(3)\n",
            "deadline": HANG,
            "memory": "raise MemoryError('no room')\n",
        }
        limits = {"timeout": "4s"} if end == "deadline" else {}
        source = (
            "import os, sys, uuid\n"
            "token = str(uuid.uuid4())\n"
            "print(token, flush=True)\n"
            "open(os.environ['OSA_OUT'] + '/features.jsonl', 'w').write(token)\n"
        )
        first = run(source + how[end], **limits)
        again = Workspace(tmp_path / "again")
        again.create()
        code = {"hook.py": (source + how[end]).encode()}
        (again.code / "hook.py").write_bytes(code["hook.py"])
        request = RunRequest(
            run_id="probe-1",
            release=self.release_of(code, ("python", "hook.py")),
            limits=Limits.model_validate({"memory": "1Gi", "timeout": "60s"} | limits),
            workspace=again,
        )
        second = runner.run(request, Monitor())
        assert second.failure == first.failure
        assert (second.exit_code, second.started_at) == (first.exit_code, first.started_at)
        token = first.log.read_text().splitlines()[0]
        assert token in second.log.read_text()
        assert (again.output / "features.jsonl").read_text() == token

    def test_several_at_once_do_not_meet(self, runner: HookRunner, tmp_path: Path):
        source = (
            b"import os, time\n"
            b"time.sleep(0.3)\n"
            b"text = open(os.environ['OSA_IN'] + '/x').read()\n"
            b"open(os.environ['OSA_OUT'] + '/features.jsonl', 'w').write(text)\n"
        )
        release = self.release_of({"hook.py": source}, ("python", "hook.py"))
        results: dict[int, RunResult] = {}

        def one(number: int) -> None:
            workspace = Workspace(tmp_path / f"run-{number}")
            workspace.create()
            (workspace.code / "hook.py").write_bytes(source)
            (workspace.inputs / "x").write_text(str(number))
            request = RunRequest(f"probe-{number}", release, Limits(), workspace)
            results[number] = runner.run(request, Monitor())

        threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(4):
            assert results[number].failure is None
            output = tmp_path / f"run-{number}" / "out" / "features.jsonl"
            assert output.read_text() == str(number)
