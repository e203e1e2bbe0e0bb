"""`feature-pipeline submit`: everything is taken, or refused by its name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from feature_pipeline.archive.blobs import read_blob
from feature_pipeline.archive.logs import inbox
from feature_pipeline.archive.logs.inbox import Submission
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.cli.commands.runs import submit as submit_module
from feature_pipeline.cli.local_records import read_records, record_id_of
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.records import RecordBatch
from feature_pipeline_tests.fixtures.commands import CommandLine


class Submit:
    """The command over an archive in memory."""

    def __init__(self, store: MemoryStore, command_line: CommandLine) -> None:
        self.store, self._command_line = store, command_line

    def __call__(self, path: Path, *options: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        return self._command_line(*self._arguments(path), *options)

    def refused(self, path: Path, *options: str) -> str:
        """The one sentence of a submission that is refused and stores nothing."""
        error = self._command_line.refused(*self._arguments(path), *options)
        assert list(self.store.list_objects("")) == []
        return error

    def batches(self) -> list[RecordBatch]:
        """What waits in the inbox."""
        submissions = [entry.content for entry in inbox.waiting(self.store)]
        return [
            RecordBatch.decode(read_blob(self.store, content.digest))
            for content in submissions
            if isinstance(content, Submission)
        ]

    def _arguments(self, path: Path) -> list[str]:
        return ["submit", str(path), "--dataset", "letters", "--source", "import", "--json"]


@pytest.fixture
def submit(monkeypatch, memory_store, command_line) -> Submit:
    monkeypatch.setattr(submit_module, "open_archive", lambda: memory_store)
    return Submit(memory_store, command_line)


@pytest.fixture
def folder(tmp_path) -> Path:
    made = tmp_path / "records"
    made.mkdir()
    return made


def lines(folder: Path, *items: object) -> Path:
    path = folder / "records.jsonl"
    text = [item if isinstance(item, str) else json.dumps(item) for item in items]
    path.write_bytes("".join(f"{line}\n" for line in text).encode())
    return path


class TestFolders:
    @pytest.mark.parametrize(
        ("name", "record_id"),
        [
            ("x.pdb", "x"), ("x.pdb.gz", "x"), ("x.tar.GZ", "x"), ("x.gz", "x"), ("x", "x"),
            ("1.2.pdb", "1.2"), ("1.2.pdb.xz", "1.2"), ("é.cif.zst", "é"),
        ],
    )  # fmt: skip
    def test_the_id_of_a_file(self, name, record_id):
        assert record_id_of(name) == record_id

    def test_what_is_taken(self, submit, folder):
        (folder / "a.pdb.gz").write_bytes(b"1")
        (folder / "b").mkdir()
        (folder / "b" / "y.cif").write_bytes(b"2")
        (folder / "b" / "x.pdb").write_bytes(b"3")
        (folder / "c").mkdir()
        (folder / "d.pdb").symlink_to(folder / "a.pdb.gz")
        status, out, _ = submit(folder)
        assert status == 0
        assert json.loads(out)["left_out"] == []
        (batch,) = submit.batches()
        assert [(r.id, [f.name for f in r.files]) for r in batch.records] == [
            ("a", ["a.pdb.gz"]), ("b", ["x.pdb", "y.cif"]), ("c", []), ("d", ["d.pdb"]),
        ]  # fmt: skip

    def test_what_is_not_is_named_and_nothing_is_submitted(self, submit, folder):
        (folder / "good.pdb").write_bytes(b"1")
        (folder / "broken.pdb").symlink_to(folder / "nowhere")
        (folder / "loop.pdb").symlink_to(folder / "loop.pdb")
        (folder / ".hidden").write_bytes(b"")
        os.mkfifo(folder / "pipe.pdb")
        (folder / "r").mkdir()
        assert "'pipe.pdb' is not a regular file (p" in submit.refused(folder)
        error = submit.refused(folder)
        for words in ("'broken.pdb' is a broken link", "'loop.pdb' is a broken link",
                      "'.hidden' is hidden"):  # fmt: skip
            assert words in error
        assert "good.pdb" not in error

    def test_within_a_record_as_well(self, submit, folder):
        (folder / "r" / "sub").mkdir(parents=True)
        (folder / "r" / "sub" / "x").write_bytes(b"")
        (folder / "r" / ".hidden").write_bytes(b"")
        (folder / "r" / "gone").symlink_to("nowhere")
        error = submit.refused(folder)
        for words in ("'r/sub' is a folder", "'r/.hidden' is hidden", "'r/gone' is a broken link"):
            assert words in error

    def test_what_cannot_be_read(self, submit, folder):
        """Root reads every file of a disk; this process's own memory it cannot read at 0."""
        (folder / "a.pdb").symlink_to("/proc/self/mem")
        (folder / "r").mkdir()
        (folder / "r" / "b.pdb").symlink_to("/proc/self/mem")
        error = submit.refused(folder)
        assert "'a.pdb' cannot be read" in error
        assert "'r/b.pdb' cannot be read" in error

    def test_two_entries_of_one_id_are_both_named(self, submit, folder):
        (folder / "x.pdb").write_bytes(b"1")
        (folder / "x.cif").write_bytes(b"2")
        error = submit.refused(folder)
        assert "record 'x' is given twice: 'x.cif' in" in error
        assert "and 'x.pdb' in" in error

    def test_many_problems_are_counted(self, submit, folder):
        for number in range(9):
            (folder / f".{number}").write_bytes(b"")
        error = submit.refused(folder)
        assert "'.4' is hidden; and 4 more" in error
        assert "'.5'" not in error

    def test_records_left_out_by_request_are_reported(self, submit, folder):
        (folder / "r").mkdir()
        for path in (folder / ".DS_Store", folder / "x.pdb", folder / "x.cif",
                     folder / "r" / ".DS_Store", folder / "r" / "y"):  # fmt: skip
            path.write_bytes(b"")
        status, out, _ = submit(folder, "--exclude", ".*", "--exclude", "*.cif")
        assert status == 0
        assert json.loads(out)["left_out"] == [".DS_Store", "r/.DS_Store", "x.cif"]
        (batch,) = submit.batches()
        assert [(r.id, len(r.files)) for r in batch.records] == [("r", 1), ("x", 1)]

    def test_names_that_are_not_utf8_are_refused(self, submit, folder):
        (folder / os.fsdecode(b"\xe9.pdb")).write_bytes(b"")
        assert r"'\\xe9.pdb': the name is not UTF-8" in submit.refused(folder)

    @pytest.mark.parametrize("locale", ["C.UTF-8", "en_US.ISO-8859-1", "C"])
    def test_ids_do_not_depend_on_the_locale(self, folder, locale):
        (folder / "é.pdb").write_bytes(b"")
        program = (
            "import sys; from pathlib import Path\n"
            "from feature_pipeline.cli.local_records import read_records\n"
            "print(ascii([r.id for r in read_records(Path(sys.argv[1])).records]))"
        )
        # without its UTF-8 mode Python takes the encoding of file names from the locale
        environment = {
            **os.environ,
            "LC_ALL": locale,
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        }
        printed = subprocess.run(
            [sys.executable, "-c", program, str(folder)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert printed.stdout.strip() == r"['\xe9']"

    def test_an_empty_one(self, submit, folder):
        assert "has no records" in submit.refused(folder)

    @pytest.mark.parametrize("option", [("--batch", "B"), ("--dataset", "1")])
    def test_wrong_names_are_one_sentence(self, submit, folder, option):
        (folder / "a").write_bytes(b"")
        submit.refused(folder, *option)


class TestLines:
    def test_metadata_arrives_as_it_was_written(self, submit, folder):
        written = (
            '{"resolution":1.10,"e":1e-400,"long":0.1234567890123456789,"id":12345678901234567891,'
            '"big":1E5,"two":2.0,"minus":-0}'
        )
        path = lines(folder, '{"id": "a", "metadata": ' + written + "}")
        assert submit(path)[0] == 0
        (batch,) = submit.batches()
        assert (
            b'"metadata":{"big":1E5,"e":1e-400,"id":12345678901234567891,'
            b'"long":0.1234567890123456789,"minus":-0,"resolution":1.10,"two":2.0}'
            in batch.encode()
        )
        assert RecordBatch.decode(batch.encode()) == batch

    def test_files_are_relative_to_the_list(self, submit, folder):
        (folder / "data").mkdir()
        (folder / "data" / "é.pdb").write_bytes(b"1")
        path = lines(
            folder,
            {"id": "10.5281/zenodo.1/é", "files": {".hidden": "data/é.pdb"}, "metadata": None},
            "",
            {"id": "10.5281/zenodo.10", "files": None},
        )
        assert submit(path)[0] == 0
        (batch,) = submit.batches()
        assert [(r.id, [f.name for f in r.files]) for r in batch.records] == [
            ("10.5281/zenodo.1/é", [".hidden"]), ("10.5281/zenodo.10", []),
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ('{"id":"x","metadata":{},"id":"y"}', "column 25: key 'id' is in one object twice"),
            ('{"id":"x","metadata":{"a":NaN}}', "column 27: NaN is not a JSON number"),
            ('{"id":"x","metadata":{"a":1e400}}', "column 27: 1e400 is beyond float64"),
            ('{"id":"x"', "column 10: not JSON"),
            ('["x"]', 'a record is {"id": text'),
            ('{"id":5}', 'a record is {"id": text'),
            ('{"id":"x","meta":{}}', "unknown keys 'meta'"),
            ('{"id":"x","metadata":[]}', "metadata: expected an object, found a list"),
            ('{"id":"x","metadata":"y"}', "metadata: expected an object, found text"),
            ('{"id":"x","metadata":""}', "metadata: expected an object, found text"),
            ('{"id":"x","files":["y"]}', "files: expected an object, found a list"),
            ('{"id":"x","files":{"a":1}}', "file 'a': expected a path as text"),
            ('{"id":"x","files":{"a":"none"}}', "No such file"),
            ('{"id":"x","files":{"a":"."}}', "is a folder"),
            ('{"id":"x","files":{"a/b":"records.jsonl"}}', "file name 'a/b'"),
            ('{"id":""}', "has no character"),
            ('{"id":"a//b"}', "has an empty part"),
            ('{"id":"/a"}', "has an empty part"),
            ('{"id":"a/"}', "has an empty part"),
            ('{"id":"a/../b"}', "has a part '..'"),
            ('{"id":"."}', "has a part '.'"),
            ('{"id":"a\\u0007"}', "control character"),
            ('{"id":"' + "a" * 513 + '"}', "longer than 512 bytes"),
            ('{"id":"' + "a" * 300 + '","files":{"a":"records.jsonl"}}', "a part of 300 bytes"),
        ],
    )  # fmt: skip
    def test_a_mistake_is_one_sentence_with_its_line(self, submit, folder, line, words):
        path = lines(folder, {"id": "first"}, line)
        error = submit.refused(path)
        assert f"{path}, line 2" in error
        assert words in error

    def test_latin_1_is_one(self, submit, folder):
        path = folder / "records.jsonl"
        path.write_bytes('{"id": "a"}\n{"id": "é"}\n'.encode("latin-1"))
        assert f"{path}, line 2, column 9: byte 0xe9 is not UTF-8" in submit.refused(path)

    def test_carriage_returns_alone_are_one(self, submit, folder):
        path = folder / "records.jsonl"
        path.write_bytes(b'{"id": "a"}\r{"id": "b"}\r')
        assert "end each with a line feed" in submit.refused(path)

    def test_line_ends_of_windows_and_a_byte_order_mark_are_none(self, submit, folder):
        path = folder / "records.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"id": "a"}\r\n\r\n{"id": "b"}')
        assert submit(path)[0] == 0
        assert [r.id for r in submit.batches()[0].records] == ["a", "b"]

    def test_an_id_that_is_there_twice(self, submit, folder):
        path = lines(folder, {"id": "a"}, {"id": "b"}, {"id": "a"})
        error = submit.refused(path, "--batch-size", "1")
        assert f"record 'a' is given twice: {path}, line 1 and {path}, line 3" in error

    def test_folders_within_folders(self, submit, folder):
        path = lines(folder, {"id": "10.1/a"}, {"id": "10.1/a.b"}, {"id": "10.1/a/b"})
        assert "records '10.1/a' and '10.1/a/b' are in one batch" in submit.refused(path)
        assert submit(path, "--batch-size", "2")[0] == 0

    def test_a_long_id_without_files_needs_no_folder(self, submit, folder):
        assert submit(lines(folder, {"id": "a" * 300}))[0] == 0

    def test_exclude_is_for_folders(self, submit, folder):
        assert "--exclude is for folders" in submit.refused(
            lines(folder, {"id": "a"}), "--exclude", "x"
        )


def test_another_file_is_none(tmp_path):
    path = tmp_path / "records.json"
    path.write_text("[]")
    with pytest.raises(InvalidInputError, match=r"a folder or a \.jsonl file is needed"):
        read_records(path)
