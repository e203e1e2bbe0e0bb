"""Records and their files, as `submit` reads them: all is refused, with line or entry by name."""

import os
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.cli import local_records
from feature_pipeline.cli.commands.runs.submit import submit_records
from feature_pipeline.cli.local_records import read_records
from feature_pipeline.errors import CorruptDataError, InvalidInputError
from feature_pipeline.hooks import json_lines
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.hooks.output_folder import problem_of, storable_files
from feature_pipeline.model.batch_source import Source
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.regular_files import open_regular
from feature_pipeline_tests.fixtures.columns import EVERY_TYPE

LINES = [
    ("no object", b"[]", 'a record is {"id": text'),
    ("text", b'"r1"', 'a record is {"id": text'),
    ("no id", b'{"metadata": {}}', 'a record is {"id": text'),
    ("an id of a number", b'{"id": 7}', 'a record is {"id": text'),
    ("an id of null", b'{"id": null}', 'a record is {"id": text'),
    ("an empty id", b'{"id": ""}', "has no character"),
    ("an absolute path of an id", b'{"id": "/etc"}', "has an empty part"),
    ("a trailing slash", b'{"id": "r/"}', "has an empty part"),
    ("two slashes", b'{"id": "a//b"}', "has an empty part"),
    ("a part above", b'{"id": "a/.."}', "has a part '..'"),
    ("a part of itself", b'{"id": "./a"}', "has a part '.'"),
    ("a line end in an id", rb'{"id": "a\nb"}', r"has the control character '\n'"),
    ("NUL in an id", rb'{"id": "a\u0000"}', "NUL character"),
    ("a control character of Latin-1", rb'{"id": "a\u009b"}', r"has the control character '\x9b'"),
    ("half a pair in an id", rb'{"id": "\ud800"}', "lone surrogate"),
    ("an id of 513 bytes", b'{"id": "%s"}' % (b"y" * 513), "is longer than 512 bytes"),
    ("an id of 1 MB", b'{"id": "%s"}' % (b"y" * 1_000_000), "is longer than 512 bytes"),
    ("an id twice", b'{"id": "r0"}', "record 'r0' is given twice"),
    ("another key", b'{"id": "r", "file": {}}', "unknown keys 'file'"),
    ("metadata of a list", b'{"id": "r", "metadata": []}', "metadata: expected an object"),
    ("metadata of text", b'{"id": "r", "metadata": "{}"}', "metadata: expected an object"),
    ("a key twice in metadata", b'{"id": "r", "metadata": {"a": 1, "a": 1}}', "key 'a' is in one"),
    ("NaN in metadata", b'{"id": "r", "metadata": {"a": NaN}}', "NaN is not a JSON number"),
    ("1e400 in metadata", b'{"id": "r", "metadata": {"a": 1e400}}', "1e400 is beyond float64"),
    ("65 levels of metadata", b'{"id": "r", "metadata": {"a": ' + b"[" * 65 + b"]" * 65 + b"}}", "deeper than 64"),
    ("100,000 levels", b'{"id": "r", "metadata": ' + b"[" * 100_000, "line 2, column "),
    ("files of a list", b'{"id": "r", "files": ["x.cif"]}', "files: expected an object"),
    ("a file of a number", b'{"id": "r", "files": {"x": 1}}', "file 'x': expected a path as text"),
    ("a file of nothing", b'{"id": "r", "files": {"x": ""}}', "file 'x': expected a path as text"),
    ("NUL in a path", rb'{"id": "r", "files": {"x": "a\u0000"}}', "file 'x': expected a path"),
    ("a path of 5,000 characters", b'{"id": "r", "files": {"x": "%s"}}' % (b"y" * 5_000), "cannot be read"),
    ("a file that is not there", b'{"id": "r", "files": {"x": "gone"}}', "cannot be read: No such"),
    ("a folder for a file", b'{"id": "r", "files": {"x": "."}}', "is a folder"),
    ("a device for a file", b'{"id": "r", "files": {"x": "/dev/zero"}}', "is not a regular file (c"),
    ("a terminal for a file", b'{"id": "r", "files": {"x": "/dev/ptmx"}}', "is not a regular file (c"),
    ("memory for a file", b'{"id": "r", "files": {"x": "/proc/self/mem"}}', "cannot be read"),
    ("a name with a slash", b'{"id": "r", "files": {"a/b": "x"}}', "one path component"),
    ("a name of dots", b'{"id": "r", "files": {"..": "x"}}', "one path component"),
    ("a name of 256 bytes", b'{"id": "r", "files": {"%s": "x"}}' % (b"y" * 256), "one path component"),
    ("a name of 1 MB", b'{"id": "r", "files": {"%s": "x"}}' % (b"y" * 1_000_000), "one path component"),
    ("NUL in a name", rb'{"id": "r", "files": {"a\u0000": "x"}}', "NUL character"),
    ("a folder's name of 256 bytes", b'{"id": "%s", "files": {"x": "here"}}' % (b"y" * 256), "at most 255"),
    ("a byte that is not UTF-8", b'{"id": "r\xff"}', "byte 0xff is not UTF-8"),
    ("an overlong NUL", b'{"id": "r\xc0\x80"}', "byte 0xc0 is not UTF-8"),
    ("UTF-16", '{"id": "r"}'.encode("utf-16"), "byte 0xff is not UTF-8"),
    ("a mark in the middle", b'\xef\xbb\xbf\xef\xbb\xbf{"id": "r"}', "line 2, column "),
    ("CR alone", b'{"id": "a"}\r{"id": "b"}', "end each with a line feed"),
    ("a line separator", '{"id": "a"}\u2028{"id": "b"}'.encode(), "not JSON: Extra data"),
    ("an array of records", b'[{"id": "a"}, {"id": "b"}]', 'a record is {"id": text'),
    ("CSV", b"id,title", "not JSON"),
    ("gzip", b"\x1f\x8b\x08\x00", "byte 0x8b is not UTF-8"),
    ("cut off", b'{"id": "r", "metadata": {', "line 2, column "),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "words"), [case[1:] for case in LINES], ids=[case[0] for case in LINES]
)
def test_a_line_that_is_no_record(tmp_path, line, words):
    (tmp_path / "here").write_bytes(b"x")
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": "r0"}\n' + line + b"\n")
    with pytest.raises(InvalidInputError) as raised:
        read_records(path)
    assert words in str(raised.value)
    assert "line 2" in str(raised.value)
    assert len(str(raised.value)) < 1_500


def test_a_long_line_is_refused_before_it_is_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MOST_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(local_records, "MOST_LINE_BYTES", 1 << 20)
    path = tmp_path / "records.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a sparse file: a terabyte of zeros
    tracemalloc.start()
    with pytest.raises(InvalidInputError, match=r"line 1: has .* bytes; at most 1,048,576 are"):
        read_records(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


class Special:
    """What can lie in a folder in the place of a file."""

    @staticmethod
    def pipe(path: Path) -> None:
        os.mkfifo(path)

    @staticmethod
    def listening_socket(path: Path) -> None:
        # the path of a socket has at most 107 bytes
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(here)

    @staticmethod
    def device(path: Path) -> None:
        path.symlink_to("/dev/zero")

    @staticmethod
    def folder(path: Path) -> None:
        path.mkdir()

    @staticmethod
    def link_to_itself(path: Path) -> None:
        path.symlink_to(path.name)

    @staticmethod
    def broken_link(path: Path) -> None:
        path.symlink_to("nowhere")

    @staticmethod
    def memory(path: Path) -> None:
        path.symlink_to("/proc/self/mem")


SPECIAL = [Special.pipe, Special.listening_socket, Special.device, Special.folder,
           Special.link_to_itself, Special.broken_link, Special.memory]  # fmt: skip
special = pytest.mark.parametrize("make", SPECIAL, ids=lambda make: make.__name__)


@special
def test_a_list_of_records_that_is_no_file(tmp_path, make):
    path = tmp_path / "records.jsonl"
    make(path)
    with pytest.raises(InvalidInputError) as raised:
        read_records(path)
    assert "records.jsonl" in str(raised.value)


@special
def test_a_file_of_a_record_that_is_none(tmp_path, make):
    (tmp_path / "records" / "r1").mkdir(parents=True)
    (tmp_path / "records" / "r0.cif").write_bytes(b"x")
    make(tmp_path / "records" / "r1" / "x.cif")
    with pytest.raises(InvalidInputError, match=r"'r1/x\.cif' .* Nothing was submitted"):
        read_records(tmp_path / "records")


@special
def test_output_that_is_no_file(tmp_path, make):
    make(tmp_path / "features.jsonl")
    with pytest.raises(InvalidInputError, match=r"features\.jsonl (is not a regular file|cannot)"):
        decode_output(tmp_path, ("a",), EVERY_TYPE, Cardinality.MANY, {})
    assert problem_of(tmp_path, 100) is None
    assert storable_files(tmp_path, 100) == ({}, [])


NAMES = [
    ("a line end", b"a\nb.cif", r"control character '\\n'"),
    ("an escape sequence", b"\x1b[31m.cif", r"control character '\\x1b'"),
    ("not UTF-8", b"\xff.cif", "the name is not UTF-8"),
    ("Latin-1", "é.cif".encode("latin-1"), "the name is not UTF-8"),
    ("hidden", b".cif", "is hidden"),
    ("only dots", b"...cif", "is hidden"),
    ("a control character of Latin-1", "a\u009b.cif".encode(), r"control character '\\x9b'"),
]


@pytest.mark.parametrize(("name", "words"), [n[1:] for n in NAMES], ids=[n[0] for n in NAMES])
def test_names_that_cannot_be_ids(tmp_path, name, words):
    (tmp_path / "good.cif").write_bytes(b"x")
    (tmp_path / os.fsdecode(name)).write_bytes(b"x")
    with pytest.raises(InvalidInputError, match=words) as raised:
        read_records(tmp_path)
    str(raised.value).encode()


MARKUP = ["<script>alert(1)</script>", "a; rm -rf ~", "$(id)", "{{ 7 * 7 }}", "%s%n", "a' or '1'='1",
          "C:\\x", "..a", "a..", "a.", "-rf", "~", "é", "a\u202eb"]  # fmt: skip


@pytest.mark.parametrize("name", MARKUP)
def test_names_that_are_only_text_are_ids(tmp_path, name):
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"id": "%s"}\n' % name.replace("\\", "\\\\").encode())
    [record] = read_records(path).records
    batch = submit_records(MemoryStore(), "letters", Source.IMPORT, [record])
    assert [each.id for each in batch.records] == [name]


@contextmanager
def swapping(path: Path, *ways: object) -> Iterator[None]:
    """Replace the file by something else and back, as fast as can be, in another thread."""
    is_over = threading.Event()
    kept = path.with_name("kept")
    os.link(path, kept)

    def swap() -> None:
        while not is_over.is_set():
            for number, way in enumerate(ways):
                beside = path.with_name(f"beside-{number}")
                way(beside)
                beside.replace(path)
                os.link(kept, beside)
                beside.replace(path)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_file_that_is_replaced_while_it_is_opened_is_itself_or_refused(tmp_path):
    """A pipe in its place would be waited for, a link would lead out of the folder."""
    (tmp_path / "secret").write_bytes(b"of another")
    path = tmp_path / "features.jsonl"
    path.write_bytes(b"mine")

    def link(beside: Path) -> None:
        beside.symlink_to(tmp_path / "secret")

    outcomes = set()
    with swapping(path, Special.pipe, link):
        while len(outcomes) < 2 or (len(outcomes) < 3 and sum(map(len, outcomes)) < 2):
            for _ in range(500):
                try:
                    with open_regular(path, follow_links=False) as file:
                        data = file.read()
                    assert data == b"mine"
                    outcomes.add("itself")
                except (InvalidInputError, OSError):
                    outcomes.add("refused")


def test_a_file_that_changes_while_it_is_submitted_is_stored_as_read_or_refused(tmp_path):
    """Its digest is in the batch: no other bytes are stored for it, and nothing else waits."""
    path = tmp_path / "r.cif"
    path.write_bytes(b"first" * 1_000)

    def other(beside: Path) -> None:
        beside.write_bytes(b"other" * 1_000)

    [record] = read_records(tmp_path).records
    ends = set()
    with swapping(path, other, Special.pipe):
        while ends != {"stored", "refused"}:
            store = MemoryStore()
            try:
                batch = submit_records(store, "letters", Source.IMPORT, [record])
            except (InvalidInputError, CorruptDataError):
                ends.add("refused")
                assert list(store.list_objects("inbox/")) == []
            else:
                ends.add("stored")
                [stored] = batch.records[0].files
                data = store.get(f"blobs/sha256/{stored.blob.hex[:2]}/{stored.blob.hex}").data
                assert data in (b"first" * 1_000, b"other" * 1_000)
