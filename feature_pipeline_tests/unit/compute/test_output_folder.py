"""What a hook does to its output folder is a failure of the hook: log and what can be, are kept."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.output_folder import folder_problem, problem_of, storable_files
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult, Workspace
from feature_pipeline.hooks.runners.shared.disk_watch import DiskWatch
from feature_pipeline.model.outcomes import OutcomeKind
from feature_pipeline_tests.fixtures.scripted import (
    DATASET,
    HOOK,
    Computing,
    ScriptedRunner,
    fails_over,
)

SCRATCH = 1 << 20


class Leaves(ScriptedRunner):
    """A runner whose hook does something to its output folder at its end."""

    def __init__(self, act: Callable[[Path], object]) -> None:
        super().__init__(fails_over("none"))
        self.act = act

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        result = super().run(request, monitor)
        self.act(request.workspace.output)
        return result


def replace_by_file(output: Path) -> None:
    (output / "features.jsonl").unlink()
    output.rmdir()
    output.write_text("a file")


def replace_by_link(output: Path) -> None:
    aside = output.with_name("aside")
    output.rename(aside)
    output.symlink_to(aside)


def make_sparse(output: Path) -> None:
    with (output / "features.jsonl").open("r+b") as file:
        file.truncate(SCRATCH + 1)


@pytest.fixture
def computing(memory_store: MemoryStore, tmp_path: Path) -> Computing:
    computing = Computing.of(memory_store, tmp_path, limits={"memory": "1Gi", "scratch": "1Mi"})
    computing.submit(["r1", "r2"])
    return computing


@pytest.mark.parametrize(
    ("act", "kind", "reason"),
    [
        (replace_by_file, FailureKind.INVALID_OUTPUT, "output folder was replaced by a file"),
        (replace_by_link, FailureKind.INVALID_OUTPUT, "output folder was replaced by a link"),
        (make_sparse, FailureKind.OUT_OF_SPACE, "its output has 1Mi, and limits.scratch is 1Mi"),
    ],
)
def test_of_a_whole_batch(computing: Computing, act, kind, reason):
    entry = computing.run(Leaves(act))
    assert entry.verdict is Verdict.FAILED
    manifest = read.read_manifest(computing.store, entry.manifest)
    assert manifest.failure is not None
    assert manifest.failure.kind == kind
    assert reason in manifest.failure.reason
    assert "looked at r1" in read.read_log_text(computing.store, manifest)
    # what was too long, or is not the hook's own, is not stored
    assert manifest.bytes_stored < SCRATCH
    assert read.raw_names(manifest) in ([], ["features.jsonl"])
    assert len(log.read_log(computing.store, DATASET, HOOK, "b1")) == 1
    # the next attempt has a folder again
    assert computing.run(ScriptedRunner(fails_over("none"))).verdict is Verdict.CURRENT


@pytest.mark.parametrize("act", [replace_by_file, replace_by_link, make_sparse])
def test_of_one_record(computing: Computing, act):
    """It alone is errored."""

    class LeavesOverOne(Leaves):
        def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
            result = ScriptedRunner.run(self, request, monitor)
            if "r2" in (request.workspace.inputs / "records.jsonl").read_text():
                self.act(request.workspace.output)
            return result

    computing.run(LeavesOverOne(act))
    outcomes = computing.outcomes()
    assert outcomes["r1"].kind is None
    assert outcomes["r2"].kind in (OutcomeKind.INVALID_OUTPUT, OutcomeKind.OUT_OF_SPACE)


def refuse(monkeypatch: pytest.MonkeyPatch, refused: Path) -> None:
    """Behave as a folder or file of another user, which root does not meet."""
    scandir, opened = os.scandir, os.open

    def denied(path: Path) -> None:
        if Path(path) == refused:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", lambda path: (denied(path), scandir(path))[1])
    monkeypatch.setattr(os, "open", lambda path, *a, **k: (denied(path), opened(path, *a, **k))[1])


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch):
    (tmp_path / "features.jsonl").write_text("x")
    refuse(monkeypatch, tmp_path)
    wrong = "the output folder cannot be read: Permission denied"
    assert folder_problem(tmp_path) == wrong
    assert problem_of(tmp_path, 10) == (FailureKind.INVALID_OUTPUT, wrong)
    assert storable_files(tmp_path) == ({}, [])


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch):
    for name in ("features.jsonl", "errors.jsonl"):
        (tmp_path / name).write_text("x")
    refuse(monkeypatch, tmp_path / "features.jsonl")
    wrong = "features.jsonl: cannot be read: Permission denied"
    assert problem_of(tmp_path, 10) == (FailureKind.INVALID_OUTPUT, wrong)
    kept, left_out = storable_files(tmp_path)
    assert list(kept) == ["errors.jsonl"]
    assert left_out == ["features.jsonl (Permission denied)"]


def test_an_unreadable_folder_does_not_keep_the_next_attempt_from_one(tmp_path: Path, monkeypatch):
    workspace = Workspace(tmp_path)
    workspace.create()
    (workspace.output / "features.jsonl").write_text("x")

    def denied(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", denied)
    workspace.clear_output()
    assert list(workspace.output.iterdir()) == []


def test_files_are_as_large_as_they_are_long(tmp_path: Path):
    with (tmp_path / "features.jsonl").open("wb") as file:
        file.truncate(10 << 20)
    watch = DiskWatch({"output": tmp_path}, 1 << 20)
    assert watch.excess() == "its output has 10Mi, and limits.scratch is 1Mi"
    assert problem_of(tmp_path, 10 << 20) is None
    kept, left_out = storable_files(tmp_path, SCRATCH)
    assert (kept, left_out) == ({}, ["features.jsonl (10Mi)"])
