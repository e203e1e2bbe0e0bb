"""Batches run in parts, by real processes."""

import json
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from feature_pipeline.hooks.failure import Abort, FailureKind, FailurePolicy, GiveUp
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.hooks.parts import PartLimits, run_in_parts
from feature_pipeline.hooks.run import HookRun
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult, Workspace
from feature_pipeline.hooks.runners.subprocess import SubprocessRunner
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.model.definition import Cardinality, Limits
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import OutcomeKind, Status
from feature_pipeline.model.records import RecordFile
from feature_pipeline.model.release import HookRelease, ReleaseDocument
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


def check(output: Path, record_ids: Sequence[str]) -> None:
    decode_output(output, record_ids, (), Cardinality.MANY, {})


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
        source: str,
        limits: PartLimits,
        monitor: Monitor | None = None,
        *,
        retries: int = 0,
        ceiling: int | None = None,
        begin_with: dict[str, int] | None = None,
        **of_run: str,
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
        runner = SubprocessRunner(WorkFolders(tmp_path / "work", "here"), grace_seconds=0.1)
        memory = run_limits.memory_bytes
        policy = FailurePolicy(
            retries=retries, memory_ceiling_bytes=ceiling or memory, delay_seconds=0
        )
        return run_in_parts(
            runner,
            request,
            policy,
            monitor or Monitor(),
            limits,
            check=check,
            begin_with=begin_with,
        )

    return run


def passed(workspace: Workspace) -> list[str]:
    decoded = decode_output(workspace.output, IDS, (), Cardinality.MANY, {})
    assert decoded.unknown_ids == ()
    return [o.record_id for o in decoded.outcomes if o.status is Status.PASSED]


def parts_in(result: HookRun) -> list[list[str]]:
    lines = result.log.read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith("records ")]


def test_what_fits_is_one_run(run, workspace):
    result = run(PASS + WRITE, PartLimits())
    assert result.failure is None
    assert len(result.starts) == 1
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
    assert len(result.starts) == len(expected)
    assert result.started_at <= result.finished_at


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
    result = run(PASS + slow + WRITE, PartLimits(), timeout="4s")
    assert result.failure is None
    assert passed(workspace) == IDS


def test_a_record_that_takes_too_long_fails_alone(run, workspace):
    """Halved down to the one record that needs more time than there is."""
    slow = "import time\nif 'r5' in ids: time.sleep(60)\n"
    result = run(PASS + slow + WRITE, PartLimits(), timeout="4s")
    assert (result.failure, result.decision) == (None, None)
    (failed,) = result.failed_records
    assert (failed.record_id, failed.kind) == ("r5", OutcomeKind.DEADLINE)
    assert not failed.is_retryable
    assert failed.reason == "not done after 4s"
    assert [i for i in IDS if i != "r5"] == passed(workspace)
    # all of them; then r0-r3 and r4-r6, r4-r5 and r6, r4 and r5
    assert [(s.part, s.records) for s in result.starts] == [
        ("", 7), ("1", 4), ("2", 3), ("2.1", 2), ("2.2", 1), ("2.1.1", 1), ("2.1.2", 1),
    ]  # fmt: skip
    ended = [s.result.failure and s.result.failure.kind.value for s in result.starts]
    assert ended == ["deadline", None, "deadline", "deadline", None, None, "deadline"]
    assert result.started_at == result.starts[0].result.started_at


def test_a_record_that_ends_the_hook_fails_alone(run, workspace):
    """The whole is tried again, and so is the record alone; what lies between is only divided."""
    result = run(PASS + "assert 'r6' not in ids, 'six'\n" + WRITE, PartLimits(), retries=1)
    assert result.failure is None
    (failed,) = result.failed_records
    assert (failed.record_id, failed.kind) == ("r6", OutcomeKind.CRASH)
    assert failed.reason == "it ended with status 1: AssertionError: six"
    assert passed(workspace) == IDS[:6]
    assert [(s.part, s.attempt) for s in result.starts] == [
        ("", 1), ("", 2), ("1", 1), ("2", 1), ("2.1", 1), ("2.2", 1), ("2.2", 2),
    ]  # fmt: skip


def test_a_line_that_cannot_be_read_costs_the_record_it_is_about(run, workspace):
    """Its record would be unknown if the hook had not been run for that record alone."""
    source = (
        "def bad(line): return json.dumps(line)[:-1] if line['id'] == 'r2' else json.dumps(line)\n"
    ) + WRITE.replace("json.dumps(", "bad(")
    result = run(PASS + source, PartLimits())
    assert result.failure is None
    (failed,) = result.failed_records
    assert (failed.record_id, failed.kind) == ("r2", OutcomeKind.INVALID_OUTPUT)
    assert "features.jsonl line 1" in failed.reason
    assert passed(workspace) == [i for i in IDS if i != "r2"]
    kinds = [s.result.failure and s.result.failure.kind.value for s in result.starts]
    assert kinds[:2] == ["invalid_output", "invalid_output"]


def test_a_hook_that_fails_over_everything_fails_the_run(run, workspace):
    result = run("import sys\nprint('broken')\nsys.exit(3)\n", PartLimits())
    assert result.failure is not None
    assert result.failure.kind is FailureKind.NON_ZERO_EXIT
    assert result.exit_code == 3
    named = "7 of the batch's records: 'r0', 'r1', 'r2', 'r3', 'r4' and 2 more"
    assert named in result.failure.reason
    assert isinstance(result.decision, GiveUp)
    assert result.failed_records == ()
    # all of them, both halves, and three records alone
    assert [s.records for s in result.starts] == [7, 4, 3, 1, 1, 1]


def test_a_record_that_is_asked_alone_may_be_the_hooks_fault(run, workspace):
    """Unless it is known to have failed so before, while others were computed."""
    lines = (workspace.inputs / "records.jsonl").read_text().splitlines(keepends=True)
    (workspace.inputs / "records.jsonl").write_text(lines[0])
    result = run("raise SystemExit(3)\n", PartLimits())
    assert result.failure is not None
    assert result.failed_records == ()
    result = run("raise SystemExit(3)\n", PartLimits(), begin_with={"r0": 2**30})
    assert result.failure is None
    assert [record.record_id for record in result.failed_records] == ["r0"]
    assert list(workspace.output.iterdir()) == []


def test_what_the_hook_writes_before_it_fails_over_everything_is_kept(run, workspace):
    partial = (
        "open(e['OSA_OUT'] + '/errors.jsonl', 'w').write('half a line')\nraise SystemExit(1)\n"
    )
    assert run(PASS + partial, PartLimits()).failure is not None
    assert (workspace.output / "errors.jsonl").read_text() == "half a line"


def test_what_it_leaves_of_everything_is_kept_if_none_of_it_can_be_read(run, workspace):
    partial = "open(e['OSA_OUT'] + '/features.jsonl', 'w').write('{' + ' '.join(ids))\n"
    result = run(PASS + partial, PartLimits())
    assert result.failure is not None
    assert result.failure.kind is FailureKind.INVALID_OUTPUT
    assert (workspace.output / "features.jsonl").read_text() == "{r0 r1 r2 r3 r4 r5 r6"


HOLD = (
    "import time\n"
    "held = bytearray(b'x') * (1_000_000 * {})\n"
    "print('held', flush=True)\n"
    "time.sleep(2 if len(held) > 50_000_000 else 0)  # until its memory has been looked at\n"
)


def test_halves_and_later_parts_begin_with_the_memory_that_was_needed_before(run, workspace):
    """Four starts for the first part, one for each of the others."""
    hold = HOLD.format("150 if 'r6' not in ids else 5")
    limits = PartLimits(records=3, at_once=1)
    result = run(PASS + hold + WRITE, limits, memory="100Mi", ceiling=2**30)
    assert result.failure is None
    mebibytes = [(s.part, s.attempt, s.memory_limit_bytes >> 20) for s in result.starts]
    assert mebibytes == [("1", 1, 100), ("1", 2, 200), ("2", 1, 200), ("3", 1, 200)]
    assert passed(workspace) == IDS


def test_a_record_too_large_for_memory_fails_alone(run, workspace):
    hold = HOLD.format("300 if 'r3' in ids else 5")
    result = run(PASS + hold + WRITE, PartLimits(), memory="100Mi", ceiling=200 * 2**20)
    assert result.failure is None
    (failed,) = result.failed_records
    assert (failed.record_id, failed.kind) == ("r3", OutcomeKind.OUT_OF_MEMORY)
    assert passed(workspace) == [i for i in IDS if i != "r3"]
    # the limit that was not enough for all of them is met once
    low = [s.part for s in result.starts if s.memory_limit_bytes == 100 * 2**20]
    assert low == [""]


def test_a_record_that_ran_out_of_memory_before_begins_above_that(run, workspace):
    hold = HOLD.format("250 if 'r3' in ids else 5")
    result = run(
        PASS + hold + WRITE, PartLimits(), memory="100Mi", ceiling=2**30,
        begin_with={"r3": 400 * 2**20},
    )  # fmt: skip
    assert result.failure is None
    assert [(s.part, s.records, s.memory_limit_bytes >> 20) for s in result.starts] == [
        ("1", 6, 100),
        ("2", 1, 400),
    ]
    assert passed(workspace) == IDS


def test_the_log_tells_of_every_start(run, workspace):
    result = run(PASS + "assert 'r6' not in ids\n" + WRITE, PartLimits())
    ours = [
        line.removeprefix("[feature_pipeline] ")
        for line in result.log.read_text().splitlines()
        if line.startswith("[feature_pipeline]")
    ]
    assert len(ours) == len(result.starts) + 1
    assert ours[0].startswith("records 'r0' to 'r6' (7): attempt 1 with 1Gi of memory ended")
    assert "ended non_zero_exit after" in ours[0]
    assert ours[1].startswith("part 1, records 'r0' to 'r3' (4): attempt 1")
    assert "ended well" in ours[1]
    assert ours[-1].startswith("record 'r6': crash: it ended with status 1")
    # and of what each of them printed
    assert result.log.read_text().count("records r0 r1 r2 r3 r4 r5 r6") == 1
    assert result.log.read_text().count("records r4 r5 r6") == 1


def test_a_single_document_is_accepted_from_a_part_of_one(run, workspace):
    """Its values stay as they are spelled; what other parts write in lines is joined with it."""
    single = (
        'text = \'{\\n  "x": 1.50,\\n  "y": "a\\\\nb"\\n}\'\n'
        "if ids == ['r0']: open(e['OSA_OUT'] + '/features.json', 'w').write(text)\n"
        "else:\n"
    )
    write = "".join(f"    {line}\n" for line in WRITE.splitlines())
    result = run(PASS + single + write, PartLimits(records=1))
    assert result.failure is None
    lines = (workspace.output / "features.jsonl").read_bytes().splitlines()
    assert lines[0] == rb"""{"id": "r0", "features": [{   "x": 1.50,   "y": "a\nb" }]}"""
    assert passed(workspace) == IDS
    assert not (workspace.output / "features.json").exists()


def test_a_byte_order_mark_of_each_part_does_no_harm(run, workspace):
    write = WRITE.replace("'w')", "'w', encoding='utf-8-sig')")
    result = run(PASS + write, PartLimits(records=3))
    assert result.failure is None
    assert (workspace.output / "features.jsonl").read_bytes().count(b"\xef\xbb\xbf") == 1
    assert passed(workspace) == IDS


def test_a_single_document_about_several_records_fails_the_run(run, workspace):
    source = PASS + "open(e['OSA_OUT'] + '/features.json', 'w').write('[]')\n"
    result = run(source, PartLimits())
    assert result.failure is not None
    assert result.failure.kind is FailureKind.INVALID_OUTPUT
    assert "features.json speaks of one record" in result.failure.reason
    assert len(result.starts) == 1


@pytest.mark.parametrize("text", ["[{", '[], "id": "r1"', ""])
def test_a_single_document_that_is_none_costs_its_record(run, workspace, text):
    single = (
        f"if ids == ['r0']: open(e['OSA_OUT'] + '/features.json', 'w').write({text!r})\nelse:\n"
    )
    write = "".join(f"    {line}\n" for line in WRITE.splitlines())
    result = run(PASS + single + write, PartLimits(records=1))
    assert result.failure is None
    assert [record.record_id for record in result.failed_records] == ["r0"]
    assert passed(workspace) == IDS[1:]


def test_a_batch_that_may_not_be_divided_fails_as_a_whole(run, workspace):
    result = run(PASS + "assert 'r6' not in ids\n" + WRITE, PartLimits(is_divisible=False))
    assert result.failure is not None
    assert len(result.starts) == 1


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


def test_log_lines_name_their_part(run, workspace):
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
        run_in_parts(
            Asking(),
            request,
            FailurePolicy(),
            Interrupted(),
            PartLimits(records=4),
            check=check,
        )
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
