"""The folders that a hook is given."""

import errno
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from feature_pipeline.archive import accept, blobs, publish
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.cli.commands.runs.submit import submit_records
from feature_pipeline.cli.local_records import LocalRecord
from feature_pipeline.compute.plan import ComputePlan, plan_run
from feature_pipeline.compute.stage_input import outline_inputs, stage_inputs
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.runner import Workspace, name_on_disk
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import HookDefinition, Scope
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.model.records import Record, RecordBatch, RecordFile, Source
from feature_pipeline.model.text.json_text import Number
from feature_pipeline_tests.fixtures.scripted import DATASET as SCRIPTED
from feature_pipeline_tests.fixtures.scripted import Computing, ScriptedRunner, fails_over

DOIS = ("10.5281/zenodo.1", "10.5281/zenodo.1.2", "10.5281/a/b/c", "plain", "é")


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    made = Workspace(tmp_path / "run")
    made.create()
    return made


@pytest.fixture
def plan(memory_store: MemoryStore, tmp_path) -> ComputePlan:
    path = tmp_path / "x.pdb"
    path.write_bytes(b"atoms")
    metadata = {"resolution": Number("1.10"), "two": 2.0}
    records = [LocalRecord(each, metadata, {"é.pdb": path}) for each in DOIS]
    submit_records(memory_store, "letters", Source.IMPORT, records, "b1")
    accept.accept_entries(memory_store, inbox.waiting(memory_store))
    (tmp_path / "words.py").write_text("")
    definition = HookDefinition.model_validate(
        {
            "name": "words",
            "dataset": "letters",
            "release": {
                "version": "1",
                "command": ["python", "words.py"],
                "code": ["words.py"],
                "config": {"limit": 2.0, "name": "é"},
            },
        }
    )
    release = log.register_release(
        memory_store, definition.hook_release(tmp_path), definition.code_files(tmp_path)
    )
    batch = log.read_batch(memory_store, "letters", "b1")
    return plan_run(memory_store, definition, release, batch)


def files_in(workspace: Workspace) -> dict[str, int]:
    return {
        os.fsencode(path.relative_to(workspace.files)).decode(): path.stat().st_size
        for path in workspace.files.rglob("*")
        if path.is_file()
    }


def test_an_id_with_slashes_is_a_nested_folder(memory_store, plan, workspace):
    stage_inputs(memory_store, plan, workspace)
    assert files_in(workspace) == {f"{each}/é.pdb": 5 for each in DOIS}
    lines = (workspace.inputs / "records.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(DOIS)


def test_an_outline_has_the_same_folders(plan, workspace):
    outline_inputs(plan, workspace)
    assert files_in(workspace) == {f"{each}/é.pdb": 5 for each in DOIS}


def test_numbers_reach_the_hook_as_they_were_written(memory_store, plan, workspace):
    stage_inputs(memory_store, plan, workspace)
    line = (workspace.inputs / "records.jsonl").read_text("utf-8").splitlines()[0]
    assert '"metadata":{"resolution":1.10,"two":2.0}' in line
    assert (workspace.inputs / "config.json").read_text("utf-8") == '{"limit":2.0,"name":"é"}'


def test_a_part_too_long_for_a_folder_is_named(workspace):
    assert workspace.files_of("a/" + "b" * 255) == workspace.files / "a" / ("b" * 255)
    assert workspace.files_of("a/" + "b" * 256) is None


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_names_on_disk_do_not_depend_on_the_locale(tmp_path, locale):
    program = (
        "import sys; from pathlib import Path\n"
        "from feature_pipeline.hooks.runner import Workspace\n"
        r"Workspace(Path(sys.argv[1])).files_of('10.1/\xe9').mkdir(parents=True)"
    )
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=True)
    (folder,) = (tmp_path / "files" / "10.1").iterdir()
    assert os.fsencode(folder.name) == "é".encode()
    assert name_on_disk("é") == folder.name


class TestRecordsThatCannotBeStaged:
    """They cost themselves: all others of the batch are asked about."""

    @pytest.fixture
    def computing(self, memory_store, tmp_path) -> Computing:
        path = tmp_path / "x.pdb"
        path.write_bytes(b"atoms")
        file = RecordFile(name="x.pdb", digest=str(Digest.of(b"atoms")), size=5)
        ids = ("good", "a/" + "é" * 150, "l" * 300, "better")
        records = [Record(id=each, files=(file,)) for each in ids]
        records.append(Record(id="m" * 300))  # without files it needs no folder
        batch = RecordBatch.create(SCRIPTED, "b1", Source.IMPORT, tuple(records))
        publish.submit_batch(memory_store, batch, {Digest.of(b"atoms"): path})
        accept.accept_entries(memory_store, inbox.waiting(memory_store))
        return Computing.of(memory_store, tmp_path)

    def test_ids_that_no_file_system_can_store(self, computing):
        runner = ScriptedRunner(fails_over("none"))
        computing.run(runner)
        assert [ids for ids, _ in runner.asked] == [["good", "better", "m" * 300]]
        outcomes = computing.outcomes()
        odd = [outcome for outcome in outcomes.values() if outcome.status is Status.ERRORED]
        assert {(o.kind, o.is_retryable) for o in odd} == {(OutcomeKind.NOT_STAGED, False)}
        assert [len(o.record_id) for o in odd] == [152, 300]
        assert "has 300 bytes where 255 can be" in odd[0].reason
        assert computing.plan().is_unchanged

    def test_whatever_the_hook_is_asked_as_a_whole(self, computing):
        computing.definition = computing.definition.model_copy(update={"scope": Scope.BATCH})
        runner = ScriptedRunner(fails_over("none"))
        computing.run(runner)
        assert [len(ids) for ids, _ in runner.asked] == [3]

    @pytest.mark.parametrize("code", [errno.EILSEQ, errno.ENAMETOOLONG])
    def test_names_that_this_file_system_cannot_store(self, computing, monkeypatch, code):
        download = blobs.download_blob

        def refuses(store, digest, path, size=None):
            if path.parent.name == "good":
                raise OSError(code, os.strerror(code), str(path))
            download(store, digest, path, size=size)

        with monkeypatch.context() as patched:
            patched.setattr(blobs, "download_blob", refuses)
            computing.run(runner := ScriptedRunner(fails_over("none")))
        assert [ids for ids, _ in runner.asked] == [["better", "m" * 300]]
        good = computing.outcomes()["good"]
        assert (good.kind, good.is_retryable) == (OutcomeKind.NOT_STAGED, True)
        assert os.strerror(code) in good.reason
        # elsewhere it may be held: it alone is asked about
        computing.run(runner := ScriptedRunner(fails_over("none")))
        assert [ids for ids, _ in runner.asked] == [["good"]]
        assert computing.outcomes()["good"].status is Status.PASSED

    def test_a_disk_that_is_full_is_no_fault_of_a_record(self, computing, monkeypatch):
        def fails(*_, **__):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(blobs, "download_blob", fails)
        with pytest.raises(OSError, match="No space left"):
            computing.execute(ScriptedRunner(fails_over("none")))

    def test_two_records_of_one_folder(self, memory_store, plan, workspace):
        """As on a file system that folds letter case."""
        (workspace.files / "10.5281" / "zenodo.1").mkdir(parents=True)
        staged = stage_inputs(memory_store, plan, workspace)
        assert {record.id for record in staged.compute} == set(DOIS) - {"10.5281/zenodo.1"}
        [outcome] = staged.skipped.values()
        assert "names the same folder as another" in outcome.reason
        lines = (workspace.inputs / "records.jsonl").read_text("utf-8").splitlines()
        assert len(lines) == len(DOIS) - 1

    def test_two_files_of_one_name(self, memory_store, plan, workspace, monkeypatch):
        lexists = os.path.lexists
        monkeypatch.setattr(os.path, "lexists", lambda p: "plain" in str(p) or lexists(p))
        staged = stage_inputs(memory_store, plan, workspace)
        assert list(staged.skipped) == ["plain"]
        assert not (workspace.files / "plain").exists()

    def test_a_batch_that_is_asked_about_as_a_whole(self, memory_store, plan, workspace):
        whole = plan.definition.model_copy(update={"scope": Scope.BATCH})
        (workspace.files / "plain").mkdir(parents=True)
        with pytest.raises(InvalidInputError, match="names the same folder as another"):
            stage_inputs(memory_store, replace(plan, definition=whole), workspace)


COLUMNS = (
    Column(name="score", type="number"),
    Column(name="parts", type="array"),
    Column(name="day", type="string", format="date"),
    Column(name="at", type="string", format="date-time"),
)


def test_input_features_are_json_that_every_language_reads(tmp_path: Path) -> None:
    rows = (
        (math.nan, None, None, None),
        (math.inf, "[1]", date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC)),
        (-math.inf, None, None, None),
        (-0.0, None, None, None),
    )
    source = SimpleNamespace(
        hook="upstream",
        manifest=SimpleNamespace(columns=COLUMNS),
        outcomes={"r1": Outcome("r1", Status.PASSED, rows=rows)},
    )
    release = SimpleNamespace(document=SimpleNamespace(config={}, code=()))
    plan = SimpleNamespace(
        compute=(Record(id="r1"),), inputs=(source,), release=SimpleNamespace(release=release)
    )
    workspace = Workspace(tmp_path)
    workspace.create()

    stage_inputs(MemoryStore(), plan, workspace)

    def refuse(token: str) -> None:
        raise AssertionError(token)

    [line] = (workspace.inputs / "features" / "upstream.jsonl").read_text().splitlines()
    features = json.loads(line, parse_constant=refuse)["features"]
    assert [feature["score"] for feature in features] == ["NaN", "Infinity", "-Infinity", 0.0]
    assert math.copysign(1, features[3]["score"]) == -1
    assert features[1] == {
        "score": "Infinity",
        "parts": [1],
        "day": "2026-01-02",
        "at": "2026-01-02T00:00:00Z",
    }
