"""The folders of hook runs on this machine, and whose worker is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks import work_folders
from feature_pipeline.hooks.work_folders import Question, WorkFolders

QUESTION = Question("run-1", "letters", "counts", "b1", 0, "subprocess")


@pytest.fixture
def work(tmp_path: Path) -> WorkFolders:
    return WorkFolders(tmp_path, "s3://bucket/one")


def test_a_folder_is_removed_with_its_worker(work: WorkFolders):
    folder = work.open("counts", QUESTION)
    assert folder.path.is_dir()
    assert work.living() == ["run-1"]
    assert work.left_runs() == []
    folder.cleanup()
    assert not folder.path.exists()
    assert work.living() == []
    assert work.left_runs() == []


def test_a_folder_named_in_a_message_stays(work: WorkFolders):
    path = work.open("counts", QUESTION).detach()
    (left,) = work.left_runs()
    assert (left.path, left.question, left.is_left) == (path, QUESTION, True)


def test_a_worker_that_is_killed_leaves_its_folder(work: WorkFolders, tmp_path: Path):
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from feature_pipeline.hooks.work_folders import Question, WorkFolders\n"
        "work = WorkFolders(Path(sys.argv[1]), 's3://bucket/one')\n"
        "question = Question('run-1', 'letters', 'counts', 'b1', 0, 'subprocess')\n"
        "print(work.open('counts', question).path, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    ) as worker:
        assert worker.stdout is not None
        path = Path(worker.stdout.readline().strip())
        assert work.living() == ["run-1"]
        assert work.left_runs() == work.left_attempts() == []
        worker.kill()
        worker.wait()
    assert work.living() == []
    assert [(left.path, left.question) for left in work.left_runs()] == [(path, QUESTION)]
    assert [left.path.name for left in work.left_attempts()] == ["run-1"]


def test_a_folder_without_a_lock_yet_is_its_workers(work: WorkFolders):
    folder = work.open("counts")
    begun = folder.path.parent / "counts-begun"
    begun.mkdir()
    assert work.left_runs() == []
    os.utime(begun, (0, 0))
    assert [left.path for left in work.left_runs()] == [begun]
    folder.cleanup()


def test_archives_keep_apart(work: WorkFolders, tmp_path: Path):
    work.open("counts", QUESTION).detach()
    assert WorkFolders(tmp_path, "s3://bucket/other").left_runs() == []


def test_attempts_are_forgotten_by_the_last_worker_at_a_run(work: WorkFolders):
    one, other = work.open("counts", QUESTION), work.open("counts", QUESTION)
    one.forget_attempts()
    assert (work.attempts / "run-1").is_dir()
    one.cleanup()
    other.forget_attempts()
    assert not (work.attempts / "run-1").exists()
    other.cleanup()


def test_the_systems_temporary_folder_may_contain_another_users(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(work_folders.tempfile, "gettempdir", lambda: str(tmp_path))
    work = WorkFolders(None, "s3://bucket/one")
    folder = work.open("counts")
    root = tmp_path / f"feature-pipeline-{os.geteuid()}"
    assert root.stat().st_mode & 0o777 == 0o700
    folder.cleanup()
    monkeypatch.setattr(work_folders.os, "geteuid", lambda: 4711)
    (tmp_path / "feature-pipeline-4711").mkdir()
    with pytest.raises(
        InvalidInputError, match="feature-pipeline-4711 is not a folder of this user"
    ):
        WorkFolders(None, "s3://bucket/one").open("counts")
