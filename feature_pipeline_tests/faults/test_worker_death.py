"""A worker is killed while its hook runs: what had ended is found again, and nothing is left."""

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from feature_pipeline.hooks.ended_attempts import EndedAttempts
from feature_pipeline.hooks.failure import FailureKind, FailurePolicy
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.hooks.parts import PartLimits, run_in_parts
from feature_pipeline.hooks.run import HookRun
from feature_pipeline.hooks.runner import HookRunner, RunRequest, Workspace
from feature_pipeline.hooks.runners.container.runner import ContainerRunner
from feature_pipeline.hooks.runners.subprocess import SubprocessRunner
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.model.definition import Cardinality, Limits
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordFile
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline_tests.contract.hook_runner import Monitor
from feature_pipeline_tests.fixtures.container import Engine

pytestmark = pytest.mark.faults

IDS = ["r0", "r1", "r2"]
PARTS = PartLimits(records=1, at_once=1)
READ = (
    "import json, os, sys, time\n"
    "e = os.environ\n"
    "(record,) = [json.loads(line)['id'] for line in open(e['OSA_IN'] + '/records.jsonl')]\n"
)
PASS = (
    "with open(e['OSA_OUT'] + '/features.jsonl', 'w') as out:\n"
    "    out.write(json.dumps({'id': record, 'features': []}) + '\\n')\n"
)


def check(output: Path, record_ids: Sequence[str]) -> None:
    decode_output(output, record_ids, (), Cardinality.MANY, {})


def request_in(
    folder: Path, source: str, ids: Sequence[str] = IDS, image: str | None = None
) -> RunRequest:
    workspace = Workspace(folder)
    workspace.create()
    lines = [json.dumps({"id": i, "metadata": {}}) + "\n" for i in ids]
    (workspace.inputs / "records.jsonl").write_text("".join(lines))
    (workspace.code / "hook.py").write_text(source)
    data = source.encode()
    code = RecordFile(name="hook.py", digest=str(Digest.of(data)), size=len(data))
    document = ReleaseDocument(
        dataset="d", hook="h", version="1", command=("python", "hook.py"), code=(code,), image=image
    )
    limits = Limits(memory="1Gi", timeout="60s")
    return RunRequest("run-1", HookRelease.of(document), limits, workspace)


def run(runner: HookRunner, request: RunRequest, monitor: Monitor | None = None) -> HookRun:
    policy = FailurePolicy(retries=1, delay_seconds=0)
    return run_in_parts(runner, request, policy, monitor or Monitor(), PARTS, check=check)


def kill_worker(runner: HookRunner, request: RunRequest, when: Callable[[], object]) -> None:
    """Run the batch in a process that is killed once `when` says so."""
    worker = multiprocessing.get_context("fork").Process(target=run, args=(runner, request))
    worker.start()
    try:
        end = time.monotonic() + 60
        while not when():
            assert worker.is_alive()
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        worker.kill()
        worker.join()
    assert worker.exitcode == -signal.SIGKILL


def wait_for_processes_of(request: RunRequest) -> None:
    """Return once the hooks of a dead worker have ended, which they do without being asked."""
    end, prefix = time.monotonic() + 60, f"{request.workspace.root}{os.sep}"

    def is_of_it(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return process.environ().get("OSA_OUT", "").startswith(prefix)
        return False

    while any(map(is_of_it, psutil.process_iter())):
        assert time.monotonic() < end, "a hook goes on without its worker"
        time.sleep(0.02)


def test_parts_that_had_ended_are_not_started_again(tmp_path: Path):
    """Two of three processes had ended; the third cannot be attached to, and is started anew."""
    marker, may_end = tmp_path / "marker", tmp_path / "may-end"
    source = READ + (
        f"with open({str(marker)!r}, 'a') as file: file.write(record + '\\n')\n"
        f"while record == 'r2' and not os.path.exists({str(may_end)!r}): time.sleep(0.02)\n"
    )
    runner = SubprocessRunner(WorkFolders(tmp_path / "work", "here"))
    first = request_in(tmp_path / "first", source + PASS)

    def starts() -> list[str]:
        return marker.read_text().split() if marker.exists() else []

    kill_worker(runner, first, lambda: starts() == IDS)
    wait_for_processes_of(first)
    may_end.touch()
    second = request_in(tmp_path / "second", source + PASS)
    done = run(runner, second)
    assert done.failure is None
    assert starts() == [*IDS, "r2"]
    # every start is recorded, also the one of which nothing more is known
    ended = [start.result.failure and start.result.failure.kind for start in done.starts]
    assert [start.part for start in done.starts] == ["1", "2", "3", "3"]
    assert ended == [None, None, FailureKind.WORKER_DIED, None]
    assert "worker_died" in done.log.read_text()
    lines = (second.workspace.output / "features.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == IDS


def test_an_attempt_that_had_failed_counts(tmp_path: Path):
    marker, may_end = tmp_path / "marker", tmp_path / "may-end"
    source = READ + (
        f"first = not os.path.exists({str(marker)!r})\n"
        f"with open({str(marker)!r}, 'a') as file: file.write(record + '\\n')\n"
        "if first: sys.exit(3)\n"
        f"while not os.path.exists({str(may_end)!r}): time.sleep(0.02)\n"
    )
    runner = SubprocessRunner(WorkFolders(tmp_path / "work", "here"))
    first = request_in(tmp_path / "first", source + PASS, ["r0"])
    kill_worker(runner, first, lambda: marker.exists() and len(marker.read_text().split()) == 2)
    wait_for_processes_of(first)
    may_end.touch()
    done = run(runner, request_in(tmp_path / "second", source + PASS, ["r0"]))
    assert done.failure is None
    assert [start.attempt for start in done.starts] == [1, 2, 2]
    ended = [start.result.failure and start.result.failure.kind for start in done.starts]
    assert ended == [FailureKind.NON_ZERO_EXIT, FailureKind.WORKER_DIED, None]
    assert len(marker.read_text().split()) == 3


@pytest.mark.container
class TestContainers:
    @pytest.fixture
    def runner(self, container_engine: Engine, tmp_path: Path) -> ContainerRunner:
        return ContainerRunner(
            container_engine.url,
            attempts=EndedAttempts(tmp_path / "attempts"),
            archive="here",
            grace_seconds=1,
        )

    def test_every_part_is_started_once(
        self, runner: ContainerRunner, container_engine: Engine, tmp_path: Path
    ):
        """Two containers are gone with the first worker, and the third is attached to."""
        source = READ + (
            "print('begun', flush=True)\n"
            "while record == 'r2' and not os.path.exists(e['OSA_OUT'] + '/may-end'):\n"
            "    time.sleep(0.02)\n"
        )
        image = container_engine.image
        first = request_in(tmp_path / "first", source + PASS, image=image)

        def begun() -> list[Path]:
            logs = first.workspace.root.glob("parts/*/logs/attempt-1.log")
            return [path for path in logs if "begun" in path.read_text()]

        kill_worker(runner, first, lambda: len(begun()) == 3)
        assert list(runner.runs_left()) == ["run-1"]
        second = request_in(tmp_path / "second", source + PASS, image=image)

        class Attached(Monitor):
            def log(self, line: str) -> None:
                super().log(line)
                if "attached to container" in line:
                    for output in first.workspace.root.glob("parts/*/out"):
                        (output / "may-end").touch()

        monitor = Attached()
        done = run(runner, second, monitor)
        assert done.failure is None
        assert len(done.starts) == 3
        assert sum("attempt 1 had ended before" in line for line in monitor.lines) == 2
        assert sum("attached to container" in line for line in monitor.lines) == 1
        lines = (second.workspace.output / "features.jsonl").read_text().splitlines()
        assert [json.loads(line)["id"] for line in lines] == IDS
        assert runner.runs_left() == {}

    def test_one_that_was_being_stopped_ends_as_it_was_to(
        self, runner: ContainerRunner, container_engine: Engine, tmp_path: Path, monkeypatch: Any
    ):
        """The worker dies between the signal and the end: the signal alone would be a crash."""
        source = READ + "print('begun', flush=True)\ntime.sleep(600)\n"
        first = request_in(tmp_path / "first", source, ["r0"], container_engine.image)

        def die(*_: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def late(request: RunRequest) -> RunRequest:
            limits = request.limits.model_copy(update={"timeout": "1s"})
            return RunRequest(request.run_id, request.release, limits, request.workspace)

        monkeypatch.setattr("feature_pipeline.hooks.runners.container.runner._Watch._end", die)
        worker = multiprocessing.get_context("fork").Process(target=run, args=(runner, late(first)))
        worker.start()
        worker.join(60)
        assert worker.exitcode == -signal.SIGKILL
        monkeypatch.undo()
        second = late(request_in(tmp_path / "second", source, ["r0"], container_engine.image))
        monitor = Monitor()
        done = run(runner, second, monitor)
        assert done.failure is not None
        assert done.failure.kind is FailureKind.DEADLINE
        assert len(done.starts) == 1
        assert any("attached to container" in line for line in monitor.lines)

    def test_containers_of_a_run_can_be_removed(
        self, runner: ContainerRunner, container_engine: Engine, tmp_path: Path
    ):
        source = READ + "print('begun', flush=True)\ntime.sleep(600)\n"
        first = request_in(tmp_path / "first", source, ["r0"], container_engine.image)
        log = first.workspace.log(1)
        kill_worker(runner, first, lambda: log.exists() and "begun" in log.read_text())
        other = ContainerRunner(container_engine.url, archive="elsewhere")
        assert other.runs_left() == {}
        other.remove_run("run-1")
        (made_at,) = runner.runs_left().values()
        assert abs(made_at.timestamp() - time.time()) < 3600
        runner.remove_run("run-1")
        assert runner.runs_left() == {}
