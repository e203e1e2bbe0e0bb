"""Batches run in parts, by real processes."""

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from feature_pipeline.digest import Digest
from feature_pipeline.hooks.definition import Cardinality, Limits
from feature_pipeline.hooks.failure import Abort, FailureKind, FailurePolicy, GiveUp
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.hooks.parts import PartLimits, run_in_parts
from feature_pipeline.hooks.run import HookRun
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult, Workspace
from feature_pipeline.hooks.runners.subprocess import SubprocessRunner
from feature_pipeline.outcomes import Status
from feature_pipeline.records import RecordFile
from feature_pipeline.release import HookRelease, ReleaseDocument
from feature_pipeline_tests.contract.hook_runner import Monitor

PASS = (
    "import json, os, pathlib\n"
    "e = os.environ\n"
    "ids = [json.loads(l)['id'] for l in open(e['OSA_IN'] + '/records.jsonl')]\n"
    "inputs = [json.loads(l)['id'] for l in open(e['OSA_IN'] + '/features/other.jsonl')]\n"
    "assert ids == inputs and sorted(os.listdir(e['OSA_FILES'])) == sorted(ids)\n"
    "assert json.load(open(e['OSA_IN'] + '/config.json')) == {'k': 1}\n"
    "print('records', *ids, flush=True)\n"
)
WRITE = (
    "lines = [json.dumps({'id': i, 'features': []}) for i in ids]\n"
    # no end of the last line
    "open(e['OSA_OUT'] + '/features.jsonl', 'w').write('\\n'.join(lines))\n"
)
IDS = [f"r{n}" for n in range(7)]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    workspace = Workspace(tmp_path / "run")
    workspace.create()
    lines = "".join(json.dumps({"id": i, "metadata": {}}) + "\n" for i in IDS)
    (workspace.inputs / "records.jsonl").write_text(lines)
    (workspace.inputs / "config.json").write_text('{"k": 1}')
    (workspace.inputs / "features").mkdir()
    (workspace.inputs / "features" / "other.jsonl").write_text(lines)
    for n, record_id in enumerate(IDS):
        (workspace.files / record_id).mkdir()
        (workspace.files / record_id / "a").write_bytes(bytes(1000 * n))
    return workspace


@pytest.fixture
def run(workspace: Workspace, tmp_path: Path) -> Any:
    def run(
        source: str, limits: PartLimits, monitor: Monitor | None = None, **of_run: str
    ) -> HookRun:
        (workspace.code / "hook.py").write_text(source)
        code = RecordFile(
            name="hook.py", digest=str(Digest.of(source.encode())), size=len(source.encode())
        )
        document = ReleaseDocument(
            dataset="d", hook="h", version="1", command=("python", "hook.py"), code=(code,)
        )
        run_limits = Limits.model_validate({"memory": "1Gi", "timeout": "60s"} | of_run)
        request = RunRequest("run-1", HookRelease.of(document), run_limits, workspace)
        runner = SubprocessRunner(tmp_path / "work", grace_seconds=0.1)
        policy = FailurePolicy(retries=0, memory_ceiling_bytes=run_limits.memory_bytes)
        return run_in_parts(runner, request, policy, monitor or Monitor(), limits)

    return run


def passed(workspace: Workspace) -> list[str]:
    decoded = decode_output(workspace.output, IDS, (), Cardinality.MANY, {})
    assert decoded.unknown_ids == ()
    return [o.record_id for o in decoded.outcomes if o.status is Status.PASSED]


def parts_in(result: HookRun) -> list[list[str]]:
    lines = result.last.log.read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith("records ")]


def test_what_fits_is_one_run(run, workspace):
    result = run(PASS + WRITE, PartLimits())
    assert result.failure is None
    assert len(result.attempts) == 1
    assert parts_in(result) == [IDS]
    assert not (workspace.root / "parts").exists()


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (PartLimits(records=3), [IDS[:3], IDS[3:6], IDS[6:]]),
        (PartLimits(input_bytes=7000), [IDS[:4], [IDS[4]], [IDS[5]], [IDS[6]]]),
        (PartLimits(input_bytes=1), [[i] for i in IDS]),
    ],
)
def test_parts_by_number_and_size(run, workspace, limits, expected):
    result = run(PASS + WRITE, limits)
    assert result.failure is None, result.failure
    assert parts_in(result) == expected
    assert passed(workspace) == IDS
    assert len(result.attempts) == len(expected)
    assert result.last.started_at <= result.last.finished_at


def test_they_run_side_by_side(run, workspace):
    """Each waits for the other."""
    meet = (
        "import time\nhere = pathlib.Path(e['OSA_FILES']).parents[1]\n"
        "(here / (ids[0] + '.here')).touch()\n"
        "while len(list(here.glob('*.here'))) < 2: time.sleep(0.02)\n"
    )
    result = run(PASS + meet + WRITE, PartLimits(records=4, at_once=2), timeout="30s")
    assert result.failure is None


def test_a_batch_that_is_too_slow_is_halved(run, workspace):
    slow = "import time\ntime.sleep(0 if len(ids) <= 2 else 60)\n"
    result = run(PASS + slow + WRITE, PartLimits(), timeout="2s")
    assert result.failure is None
    assert passed(workspace) == IDS


def test_what_a_crash_loses_is_named(run, workspace):
    """Halved down to the one record that needs more time than there is."""
    slow = "import time\nif 'r5' in ids: time.sleep(60)\n"
    result = run(PASS + slow + WRITE, PartLimits(), timeout="2s")
    assert result.failure is not None
    assert result.failure.kind is FailureKind.DEADLINE
    assert "1 of the batch's records: 'r5'" in result.failure.reason
    assert isinstance(result.decision, GiveUp)
    assert result.last.failure == result.failure
    # what the others left is kept
    assert [i for i in IDS if i != "r5"] == passed(workspace)


def test_a_hook_that_always_hangs_is_not_waited_for_once_per_record(run, workspace):
    result = run("import time\ntime.sleep(60)\n", PartLimits(halvings=1), timeout="1s")
    assert result.failure is not None
    assert "7 of the batch's records: 'r0', 'r1', 'r2', 'r3', 'r4', ..." in result.failure.reason
    assert len(result.attempts) == 2


def test_a_failing_part_fails_the_run(run, workspace):
    result = run(PASS + "assert 'r6' not in ids\n" + WRITE, PartLimits(records=3))
    assert result.failure is not None
    assert result.failure.kind is FailureKind.NON_ZERO_EXIT
    assert "'r6'" in result.failure.reason
    assert passed(workspace) == IDS[:6]


def test_a_single_document_cannot_be_joined(run, workspace):
    source = PASS + "open(e['OSA_OUT'] + '/features.json', 'w').write('[]')\n"
    result = run(source, PartLimits(records=1))
    assert result.failure is not None
    assert result.failure.kind is FailureKind.INVALID_OUTPUT
    assert "features.json" in result.failure.reason


def test_cancellation_reaches_every_part(run, workspace):
    monitor = Monitor(cancel_at="records")
    result = run(PASS + "import time\ntime.sleep(60)\n", PartLimits(records=3), monitor)
    assert result.failure is not None
    assert result.failure.kind is FailureKind.CANCELLED
    assert isinstance(result.decision, Abort)


def test_an_interrupt_reaches_every_part(run, workspace):
    """No thread and no process is left."""

    class Broken(Monitor):
        def log(self, line: str) -> None:
            raise KeyboardInterrupt(line)

    source = PASS + "open(e['OSA_OUT'] + '/pid', 'w').write(str(os.getpid()))\n"
    with pytest.raises(KeyboardInterrupt):
        run(source + "import time\ntime.sleep(60)\n", PartLimits(records=3), Broken())
    # Other threads of this process (connection pools, servers' readers) come and go by themselves.
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("part")]
    for path in workspace.root.rglob("pid"):
        if pid := path.read_text():  # empty: stopped between opening and writing
            with pytest.raises(ProcessLookupError):
                os.kill(int(pid), 0)


def test_lines_say_which_part_they_are_of(run, workspace):
    monitor = Monitor()
    run(PASS + WRITE, PartLimits(records=4), monitor)
    assert sorted(monitor.lines) == [
        "[r0 to r3] records r0 r1 r2 r3",
        "[r4 to r6] records r4 r5 r6",
    ]


def test_an_interrupted_part_learns_whether_the_run_is_cancelled(workspace, tmp_path):
    """Only then its runner ends what would otherwise be attached to later."""
    answers = []
    is_waiting = threading.Barrier(2)

    class Asking:
        name = "asking"

        def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
            try:
                is_waiting.wait()
                if "r0" in (request.workspace.inputs / "records.jsonl").read_text():
                    monitor.log("first")
                while not monitor.is_cancelled():
                    time.sleep(0.01)
                raise AssertionError("it was not interrupted")
            except BaseException:
                answers.append(monitor.is_cancelled(now=True))
                raise

    class Interrupted(Monitor):
        def log(self, line: str) -> None:
            raise KeyboardInterrupt(line)

        def is_cancelled(self, *, now: bool = False) -> bool:
            return now

    document = ReleaseDocument(dataset="d", hook="h", version="1", command=("true",))
    request = RunRequest("run-1", HookRelease.of(document), Limits(), workspace)
    with pytest.raises(KeyboardInterrupt):
        run_in_parts(Asking(), request, FailurePolicy(), Interrupted(), PartLimits(records=4))
    assert answers == [True, True]


def test_records_with_nested_folders_are_cut_like_others(run, workspace):
    ids = ["10.1/a", "10.1/b/c", "10.1/b/d"]
    lines = "".join(json.dumps({"id": i, "metadata": {}}) + "\n" for i in ids)
    (workspace.inputs / "records.jsonl").write_text(lines)
    for record_id in ids:
        folder = workspace.files_of(record_id)
        folder.mkdir(parents=True)
        (folder / "x").write_bytes(record_id.encode())
    source = (
        "import json, os\n"
        "e = os.environ\n"
        "out = open(e['OSA_OUT'] + '/features.jsonl', 'w')\n"
        "for line in open(e['OSA_IN'] + '/records.jsonl'):\n"
        "    i = json.loads(line)['id']\n"
        "    assert open(e['OSA_FILES'] + '/' + i + '/x').read() == i\n"
        "    out.write(json.dumps({'id': i, 'features': []}) + '\\n')\n"
    )
    assert run(source, PartLimits(records=1)).failure is None
    decoded = decode_output(workspace.output, ids, (), Cardinality.MANY, {})
    assert {outcome.status for outcome in decoded.outcomes} == {Status.PASSED}
