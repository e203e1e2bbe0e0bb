"""Attempts that have ended are found again whole, or not at all."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from feature_pipeline.hooks.ended_attempts import EndedAttempts, run_once
from feature_pipeline.hooks.failure import FailureKind, RuntimeFacts
from feature_pipeline.hooks.runner import (
    RunMonitor,
    RunRequest,
    RunResult,
    SilentMonitor,
    Workspace,
)
from feature_pipeline.model.definition import Limits
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.release import HookRelease, ReleaseDocument

RELEASE = HookRelease.of(ReleaseDocument(dataset="d", hook="h", version="1", command=("x",)))
NOW = datetime(2026, 1, 1, 12, 0, 0, 5, tzinfo=UTC)
IDENTITY = Digest.of(b"this attempt")


@pytest.fixture
def attempts(tmp_path: Path) -> EndedAttempts:
    return EndedAttempts(tmp_path / "attempts")


def request_in(folder: Path) -> RunRequest:
    return RunRequest("run-1", RELEASE, Limits(), Workspace(folder))


@pytest.fixture
def first(tmp_path: Path) -> RunRequest:
    request = request_in(tmp_path / "first")
    request.workspace.create()
    (request.workspace.output / "features.jsonl").write_text("{}")
    return request


@pytest.fixture
def second(tmp_path: Path) -> RunRequest:
    return request_in(tmp_path / "second")


def ended(request: RunRequest, kind: FailureKind | None = None) -> RunResult:
    log = request.workspace.log(request.attempt)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"printed\xff\n")
    facts = kind and RuntimeFacts(kind, "why", 3, ("printed",), memory_limit_bytes=2**30)
    later = NOW + timedelta(seconds=2)
    return RunResult(0 if kind is None else 3, facts, NOW, later, log, 17, "here")


@pytest.mark.parametrize(
    "kind",
    [None, FailureKind.OUT_OF_MEMORY, FailureKind.DEADLINE, FailureKind.NON_ZERO_EXIT],
)
def test_it_is_restored_with_its_facts_output_and_log(attempts, first, second, kind):
    result = ended(first, kind)
    attempts.store(first, IDENTITY, result)
    restored = attempts.restore(second, IDENTITY)
    assert restored is not None
    assert replace(restored, log=result.log) == result
    assert restored.log == second.workspace.log(1)
    assert restored.log.read_bytes() == b"printed\xff\n"
    assert [path.name for path in second.workspace.output.iterdir()] == ["features.jsonl"]
    assert (second.workspace.output / "features.jsonl").read_text() == "{}"


def test_it_is_restored_by_the_worker_that_made_it(attempts, first):
    attempts.store(first, IDENTITY, ended(first))
    restored = attempts.restore(first, IDENTITY)
    assert restored is not None
    assert restored.log.read_bytes() == b"printed\xff\n"
    assert attempts.restore(first, IDENTITY) is not None


@pytest.mark.parametrize(
    "kind", [FailureKind.CANCELLED, FailureKind.CANNOT_START, FailureKind.UNKNOWN]
)
def test_an_attempt_without_a_verdict_is_repeated(attempts, first, second, kind):
    attempts.store(first, IDENTITY, ended(first, kind))
    assert attempts.restore(second, IDENTITY) is None


def test_another_attempt_is_another(attempts, first, second):
    attempts.store(first, IDENTITY, ended(first))
    assert attempts.restore(second, Digest.of(b"another")) is None


@pytest.mark.parametrize("name", ["out/features.jsonl", "log", "end.json"])
def test_one_that_is_damaged_counts_as_none(attempts, first, second, tmp_path, name):
    attempts.store(first, IDENTITY, ended(first))
    (path,) = (tmp_path / "attempts").rglob(name)
    # a process that the hook left behind may write on; the file has two names
    path.write_bytes(path.read_bytes() + b"?")
    assert attempts.restore(second, IDENTITY) is None
    second.workspace.create()
    attempts.store(second, IDENTITY, ended(second))
    assert attempts.restore(first, IDENTITY) is not None


def test_an_output_folder_that_was_replaced_is_not_followed(attempts, first, second, tmp_path):
    first.workspace.clear_output()
    first.workspace.output.rmdir()
    first.workspace.output.symlink_to(tmp_path)
    with pytest.raises(OSError, match="replaced"):
        attempts.store(first, IDENTITY, ended(first))
    assert attempts.restore(second, IDENTITY) is None


def test_what_is_no_regular_file_stays_none(attempts, first, second, tmp_path):
    output = first.workspace.output
    (output / "errors.jsonl").symlink_to("/etc/passwd")
    (output / "progress.jsonl").mkdir()
    (output / "notes.txt").write_text("not kept")
    attempts.store(first, IDENTITY, ended(first))
    assert attempts.restore(second, IDENTITY) is not None
    output = second.workspace.output
    assert (output / "errors.jsonl").is_symlink()
    assert not (output / "errors.jsonl").exists()
    assert not (output / "progress.jsonl").is_file()
    assert (output / "notes.txt").read_text() == ""


def test_an_attempt_that_another_worker_has_kept_stays(attempts, first, second):
    attempts.store(first, IDENTITY, ended(first))
    second.workspace.create()
    attempts.store(second, IDENTITY, ended(second))
    restored = attempts.restore(second, IDENTITY)
    assert restored is not None
    assert (second.workspace.output / "features.jsonl").exists()


def test_the_attempt_can_be_given_the_reason_of_its_stop(attempts, first):
    assert attempts.stop_of(first, IDENTITY) is None
    attempts.note_stop(first, IDENTITY, FailureKind.DEADLINE, "not done after 1h")
    assert attempts.stop_of(first, IDENTITY) == (FailureKind.DEADLINE, "not done after 1h")


def test_two_workers_make_it_once(attempts, first, second):
    """The second waits for the first, and takes what it has made."""
    is_begun, go_on = threading.Event(), threading.Event()
    made: list[str] = []

    @contextmanager
    def make(request: RunRequest, monitor: RunMonitor) -> Iterator[RunResult]:
        made.append("begun")
        is_begun.set()
        assert go_on.wait(10)
        yield ended(request)
        made.append("gone")

    results: list[RunResult] = []

    def work(request: RunRequest) -> None:
        results.append(run_once(attempts, request, IDENTITY, SilentMonitor(), make))

    threads = [threading.Thread(target=work, args=(request,)) for request in (first, second)]
    threads[0].start()
    assert is_begun.wait(10)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert made == ["begun", "gone"]
    assert len(results) == 2


def test_its_resources_are_released_after_it_is_stored(attempts, first, second):
    kept_before = []

    @contextmanager
    def make(request: RunRequest, monitor: RunMonitor) -> Iterator[RunResult]:
        yield ended(request)
        kept_before.append(attempts.restore(second, IDENTITY) is not None)

    run_once(attempts, first, IDENTITY, SilentMonitor(), make)
    assert kept_before == [True]


def test_an_attempt_that_cannot_be_stored_is_reported_and_used(attempts, first, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EndedAttempts, "store", full)
    lines: list[str] = []

    class Monitor(SilentMonitor):
        def log(self, line: str) -> None:
            lines.append(line)

    @contextmanager
    def make(request: RunRequest, monitor: RunMonitor) -> Iterator[RunResult]:
        yield ended(request)

    assert run_once(attempts, first, IDENTITY, Monitor(), make).failure is None
    assert "No space left" in lines[0]
