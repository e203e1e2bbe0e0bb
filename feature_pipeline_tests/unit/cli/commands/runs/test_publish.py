"""`feature-pipeline publish`: the wrong folder replaces nothing."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from feature_pipeline.archive import accept, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.cli.commands.runs import publish as publish_module
from feature_pipeline.cli.commands.runs.submit import submit_records
from feature_pipeline.cli.local_records import LocalRecord
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.outcomes import OutcomeCounts
from feature_pipeline.model.records import Source
from feature_pipeline_tests.fixtures.commands import CommandLine


class Publish:
    """The command over an archive in memory, with a batch of three records."""

    def __init__(self, store: MemoryStore, command_line: CommandLine, folder: Path) -> None:
        self.store, self.command_line, self.folder = store, command_line, folder
        records = [LocalRecord(record_id, {}, {}) for record_id in ("a", "b", "10.1/c")]
        submit_records(store, "letters", Source.IMPORT, records, "b1")
        self.accept()

    def accept(self) -> None:
        accept.accept_entries(self.store, inbox.waiting(self.store))

    def write(self, name: str, *lines: object, below: str = "") -> Path:
        path = self.folder / below / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    def passed(self, *ids: str) -> None:
        self.write("features.jsonl", *({"id": i, "features": [{"n": 1}]} for i in ids))

    def __call__(self, *options: str) -> dict:
        status, out, error = self.command_line(*self._arguments(), *options)
        assert status == 0, error
        self.accept()
        return json.loads(out)

    def refused(self) -> str:
        before = {info.key for info in self.store.list_objects("")}
        error = self.command_line.refused(*self._arguments())
        assert {info.key for info in self.store.list_objects("")} == before
        return error

    def current(self) -> OutcomeCounts:
        head = log.head(self.store, "letters", "words", "b1")
        assert head is not None
        return read.read_manifest(self.store, head.manifest).counts

    def _arguments(self) -> list[str]:
        return ["publish", str(self.folder), "--hook", "words", "--batch", "b1", "--json"]


@pytest.fixture
def publish(monkeypatch, memory_store, command_line, tmp_path) -> Publish:
    (tmp_path / "words.py").write_text("")
    definition = HookDefinition.model_validate(
        {
            "name": "words",
            "dataset": "letters",
            "release": {"version": "1", "command": ["python", "words.py"], "code": ["words.py"]},
            "feature": {"columns": [{"name": "n", "type": "integer"}]},
        }
    )
    hook = SimpleNamespace(definition=definition, folder=tmp_path)
    monkeypatch.setattr(publish_module, "find_hook", lambda name, dataset: hook)
    monkeypatch.setattr(publish_module, "open_archive", lambda: memory_store)
    folder = tmp_path / "work"
    folder.mkdir()
    return Publish(memory_store, command_line, folder)


def test_good_output_is_published_with_its_notes(publish):
    publish.write("features.jsonl", *({"id": i, "features": [{"n": 1, "x": 2}]} for i in "ab"))
    publish.write("rejections.jsonl", {"id": "10.1/c", "reason": "no"}, {"id": "z", "reason": "no"})
    (publish.folder / "plot.png").write_bytes(b"")
    done = publish()
    assert (publish.current().passed, publish.current().rejected) == (2, 1)
    assert done["notes"] == [
        "not stored from the output: plot.png",
        "the hook wrote about ids that it did not get: z",
        "feature keys that no column declares: x",
    ]


@pytest.mark.parametrize("has_answers", [True, False])
@pytest.mark.parametrize(
    ("name", "below", "words"),
    [
        ("features.jsonl", "out", "it has out: publish {}/out instead"),
        ("features.jsonl.gz", "", "it has features.jsonl.gz: publish the folder of OSA_OUT"),
        ("progress.jsonl", "", "it has progress.jsonl: publish the folder of OSA_OUT"),
        (None, "", "it has nothing: publish the folder of OSA_OUT"),
    ],
)
def test_a_folder_that_is_no_output_is_refused(publish, name, below, words, has_answers):
    if has_answers:
        publish.passed("a", "b", "10.1/c")
        publish()
        (publish.folder / "features.jsonl").unlink()
    if name:
        publish.write(name, below=below)
    error = publish.refused()
    assert "has none of features.jsonl, features.json, rejections.jsonl, errors.jsonl" in error
    assert words.format(publish.folder) in error


def test_errors_in_the_place_of_answers_want_to_be_forced(publish):
    publish.passed("a", "b")
    publish.write("rejections.jsonl", {"id": "10.1/c", "reason": "no"})
    publish()
    (publish.folder / "rejections.jsonl").unlink()
    publish.passed("b")
    error = publish.refused()
    assert "batch 'b1': 2 of 3 records with an outcome of 'words' would have an error" in error
    assert "a, 10.1/c (no outcome: it is in none of features.jsonl" in error
    publish("--force")
    assert (publish.current().passed, publish.current().errored) == (1, 2)


def test_answers_in_the_place_of_errors_and_of_answers_do_not(publish):
    publish.passed("a")
    publish()
    publish.passed("a", "b", "10.1/c")
    publish()
    publish()
    assert publish.current().passed == 3


def test_answers_that_cannot_be_read_are_not_replaced_unseen(publish):
    publish.passed("a", "b", "10.1/c")
    publish()
    head = log.head(publish.store, "letters", "words", "b1")
    outcomes = read.read_manifest(publish.store, head.manifest).blobs["outcomes"].digest
    publish.store.delete(layout.blob(outcomes))
    publish.passed("a")
    assert "cannot be read" in publish.refused()
    publish("--force")


def test_the_output_of_another_batch_is_refused(publish):
    publish.passed("x", "y")
    assert f"{publish.folder} names no record of batch 'b1', but x, y" in publish.refused()


def test_output_that_is_cut_off_is_refused(publish):
    path = publish.write("features.jsonl", {"id": "a", "features": []}, {"id": "b"})
    path.write_bytes(path.read_bytes()[:-5])
    assert "features.jsonl line 2, column 8: truncated" in publish.refused()
