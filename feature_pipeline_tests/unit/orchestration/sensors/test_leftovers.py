"""What workers left that died: removed once nothing can come of it, and not before."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import RuntimeFailure
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult
from feature_pipeline.hooks.work_folders import Question, WorkFolder, WorkFolders
from feature_pipeline.orchestration.sensors.leftovers import remove_left
from feature_pipeline_tests.fixtures.scripted import (
    DATASET,
    HOOK,
    Computing,
    ScriptedRunner,
    fails_over,
)


@dataclass
class Engine:
    """A runner with containers, by hook run."""

    containers: dict[str, datetime] = field(default_factory=dict)
    is_down: bool = False
    name: str = "container"

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        raise NotImplementedError

    def runs_left(self) -> dict[str, datetime]:
        if self.is_down:
            raise RuntimeFailure("no container engine answers")
        return dict(self.containers)

    def remove_run(self, run_id: str) -> None:
        del self.containers[run_id]


@pytest.fixture
def computing(memory_store: MemoryStore, tmp_path: Path) -> Computing:
    computing = Computing.of(memory_store, tmp_path)
    computing.submit(["r1", "r2"])
    return computing


@pytest.fixture
def work(memory_store: MemoryStore, tmp_path: Path) -> WorkFolders:
    return WorkFolders(tmp_path / "work", memory_store.identity)


def begin(computing: Computing, work: WorkFolders, runner: str) -> tuple[Question, WorkFolder]:
    plan = computing.plan()
    question = Question(plan.hook_run_id(""), DATASET, HOOK, "b1", plan.base, runner)
    return question, work.open(HOOK, question)


def dies(folder: WorkFolder) -> Path:
    """The kernel lets go of its lock, and nothing else happens."""
    folder._release()
    return folder.path


def age(path: Path, days: int) -> None:
    then = (datetime.now(UTC) - timedelta(days=days)).timestamp()
    os.utime(path, (then, then))


def look(computing: Computing, work: WorkFolders, engine: Engine | None = None) -> list[str]:
    removed, problems = remove_left(computing.store, work, engine)
    assert problems == []
    return removed


@pytest.mark.parametrize("runner", ["subprocess", "kubernetes"])
def test_a_folder_without_an_attachable_process_is_removed_at_once(computing, work, runner):
    question, folder = begin(computing, work, runner)
    assert look(computing, work) == []
    path = dies(folder)
    assert look(computing, work) == [str(path)]
    assert not path.exists()
    # the next worker finds what had ended
    assert (work.attempts / question.run_id).is_dir()


def test_ended_attempts_go_once_the_question_is_over(computing, work):
    question, folder = begin(computing, work, "subprocess")
    dies(folder)
    look(computing, work)
    assert (work.attempts / question.run_id).is_dir()
    computing.run(ScriptedRunner(fails_over()))
    assert look(computing, work) == [str(work.attempts / question.run_id)]
    assert look(computing, work) == []


def test_a_question_is_over_when_another_was_answered(computing, work):
    """Superseded: its base is not the log's end any more, so that no worker can ask it again."""
    question, folder = begin(computing, work, "subprocess")
    dies(folder)
    computing.run(ScriptedRunner(fails_over()), force=True)
    assert str(work.attempts / question.run_id) in look(computing, work)


def test_what_may_still_be_attached_to_stays(computing, work):
    question, folder = begin(computing, work, "container")
    engine = Engine({question.run_id: datetime.now(UTC)})
    path = dies(folder)
    assert look(computing, work, engine) == []
    assert path.is_dir()
    computing.run(ScriptedRunner(fails_over()))
    removed = look(computing, work, engine)
    assert engine.containers == {}
    assert len(removed) == 3
    assert not path.exists()
    assert not (work.attempts / question.run_id).exists()


def test_the_folder_of_a_living_worker_stays_whatever_is_logged(computing, work):
    """It attached to a container whose output lies in the dead one's folder."""
    question, first = begin(computing, work, "container")
    _, second = begin(computing, work, "container")
    engine = Engine({question.run_id: datetime.now(UTC)})
    path = dies(first)
    computing.run(ScriptedRunner(fails_over()))
    assert look(computing, work, engine) == []
    assert path.is_dir()
    assert engine.containers != {}
    second.cleanup()
    assert len(look(computing, work, engine)) == 3


def test_unclaimed_attempts_are_removed_after_two_weeks(computing, work):
    question, folder = begin(computing, work, "container")
    engine = Engine({question.run_id: datetime.now(UTC) - timedelta(days=13)})
    path = dies(folder)
    for each in (path, work.attempts / question.run_id):
        age(each, 15)
    # its container is younger
    assert look(computing, work, engine) == []
    engine.containers[question.run_id] -= timedelta(days=2)
    assert len(look(computing, work, engine)) == 3
    assert engine.containers == {}


def test_a_container_without_a_folder_is_removed_after_two_weeks(computing, work):
    engine = Engine({"new": datetime.now(UTC), "old": datetime.now(UTC) - timedelta(days=15)})
    assert look(computing, work, engine) == ["containers of hook run old"]
    assert list(engine.containers) == ["new"]


def test_a_folder_named_in_a_message_stays_until_its_batch_is_answered(computing, work):
    _, folder = begin(computing, work, "subprocess")
    path = folder.detach()
    assert look(computing, work) == []
    computing.run(ScriptedRunner(fails_over()))
    assert str(path) in look(computing, work)


def test_without_an_answer_of_the_engine_nothing_is_removed(computing, work):
    _, folder = begin(computing, work, "container")
    path = dies(folder)
    removed, problems = remove_left(computing.store, work, Engine(is_down=True))
    assert removed == []
    assert "no container engine answers" in problems[0]
    assert path.is_dir()


def test_a_hook_that_runs_on_without_its_worker_is_ended(computing, work):
    _, folder = begin(computing, work, "subprocess")
    environment = {**os.environ, "OSA_OUT": str(folder.path / "out")}
    program = [sys.executable, "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(program, env=environment) as orphan:
        try:
            look(computing, work)
            assert orphan.poll() is None
            dies(folder)
            look(computing, work)
            assert orphan.wait(10) == -9
        finally:
            orphan.kill()
    assert psutil.Process().is_running()
