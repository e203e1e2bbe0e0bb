import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import (
    Record,
    RecordBatch,
    RecordFile,
    Source,
    check_batch_key,
    check_dataset,
    check_file_name,
    check_record_id,
)
from feature_pipeline.model.text.json_text import Number

FILE = RecordFile(name="a.cif", digest=str(Digest.of(b"a")), size=1)


def batch(*records: Record, key: str = "b-1") -> RecordBatch:
    return RecordBatch.create("structures", key, Source.HARVEST, records)


@pytest.mark.parametrize(
    "record_id",
    [
        "1abc",
        "urn:osa:x:rec:1@1",
        "é 😀",
        "..a",
        "-",
        "a" * 512,
        "é" * 256,
        "\u2028",
        "a/b",
        "10.1107/S0907444994003112",
        "a/.../b",
        "/".join("a" * 200),
    ],
)
def test_ids_that_can_name_a_record(record_id):
    assert check_record_id(record_id) == record_id


@pytest.mark.parametrize(
    "record_id",
    [
        "",
        ".",
        "..",
        "a\n",
        "\x7f",
        "\x85",
        "\x00",
        "\ud800",
        "a" * 513,
        "é" * 257,
        "/",
        "/a",
        "a/",
        "a//b",
        "a/.",
        "../a",
        "a/../b",
    ],
)
def test_ids_that_cannot(record_id):
    with pytest.raises(InvalidInputError):
        check_record_id(record_id)
    with pytest.raises(ValidationError):
        Record(id=record_id)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "\x00", "a" * 256, "é" * 128])
def test_names_that_cannot_name_a_file(name):
    with pytest.raises(InvalidInputError):
        check_file_name(name)


@pytest.mark.parametrize("key", ["0", "2026-01-31", "a_b-c", "a" * 63])
def test_batch_keys(key):
    assert check_batch_key(key) == key


@pytest.mark.parametrize("key", ["", "-a", "_a", "A", "a.b", "a/b", "a" * 64, "a\n", "é", "a b"])
def test_what_is_no_batch_key(key):
    with pytest.raises(InvalidInputError, match="batch key"):
        check_batch_key(key)


@pytest.mark.parametrize("name", ["", "1a", "_a", "a-b", "A", "a" * 41, "a\n"])
def test_what_is_no_dataset(name):
    with pytest.raises(InvalidInputError, match="starting with a letter"):
        check_dataset(name)


@pytest.mark.parametrize(
    "changes", [{"digest": "abc"}, {"digest": "0" * 64}, {"size": -1}, {"name": "../x"}, {"x": 1}]
)
def test_files_have_a_name_a_digest_and_a_size(changes):
    with pytest.raises(ValidationError):
        RecordFile.model_validate(FILE.model_dump() | changes)


class TestBatch:
    def test_its_digest_names_its_bytes_and_it_comes_back(self):
        one = batch(Record(id="a", metadata={"x": [2.0, 2, None]}, files=(FILE,)), Record(id="b"))
        assert Digest.of(one.encode()) == one.digest
        assert RecordBatch.decode(one.encode()) == one
        assert b'"x":[2.0,2,null]' in one.encode()
        assert (one.dataset, one.key, len(one.records)) == ("structures", "b-1", 2)

    def test_known_digest(self):
        """The form is stored: a change of it needs another spec_version."""
        assert batch(Record(id="a", files=(FILE,))).encode() == (
            b'{"batch":"b-1","dataset":"structures","records":[{"files":[{"digest":"'
            + str(Digest.of(b"a")).encode()
            + b'","name":"a.cif","size":1}],"id":"a","metadata":{}}],"source":"harvest",'
            b'"spec_version":1}'
        )

    @pytest.mark.parametrize(
        ("records", "words"),
        [
            ((), "at least 1 item"),
            ((Record(id="a"), Record(id="a")), "record 'a' occurs twice"),
            ((Record(id="a", files=(FILE, FILE)),), "two files with the same name"),
            ((Record(id="a", metadata={"x": float("nan")}),), "not a JSON document"),
            ((Record(id="a/b/c"), Record(id="a")), "'a' and 'a/b/c' are in one batch"),
        ],
    )
    def test_what_cannot_be_one(self, records, words):
        with pytest.raises(InvalidInputError, match=words):
            batch(*records)

    def test_folders_side_by_side_are_no_trouble(self):
        assert (
            len(batch(*(Record(id=i) for i in ("a", "a.b", "ab/c", "b/a", "b/a.b"))).records) == 5
        )

    def test_numbers_of_metadata_are_as_they_were_written(self):
        written = Record(
            id="a", metadata={"x": [Number("1.10"), {"y": Number("1e-400")}], "z": 2.0}
        )
        one = batch(written)
        assert b'"metadata":{"x":[1.10,{"y":1e-400}],"z":2.0}' in one.encode()
        assert RecordBatch.decode(one.encode()) == one

    @pytest.mark.parametrize("metadata", [[], "x", {1: 2}, {"x": object()}, None])
    def test_metadata_is_a_json_object(self, metadata):
        with pytest.raises(ValidationError):
            Record(id="a", metadata=metadata)

    def test_names_are_checked(self):
        with pytest.raises(InvalidInputError, match="batch key 'B'"):
            batch(Record(id="a"), key="B")

    @pytest.mark.parametrize(
        "data", [b"", b"{", b"[]", b"\xff", b"null", b'{"spec_version":1}', b'{"dataset":"x"}']
    )
    def test_bytes_that_are_none(self, data):
        with pytest.raises(InvalidInputError, match="not a batch document"):
            RecordBatch.decode(data)

    def test_a_newer_version_is_named_as_newer(self):
        document = json.loads(batch(Record(id="a")).encode()) | {"spec_version": 2, "new": 1}
        with pytest.raises(InvalidInputError, match="has spec_version 2"):
            RecordBatch.decode(json.dumps(document).encode())

    @given(
        st.lists(
            st.builds(
                Record,
                id=st.text("abé😀 -", min_size=1, max_size=5),
                metadata=st.dictionaries(
                    st.text("abé", max_size=3),
                    st.none()
                    | st.booleans()
                    | st.integers()
                    | st.floats(allow_nan=False, allow_infinity=False),
                    max_size=3,
                ),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda record: record.id,
        )
    )
    def test_every_batch_comes_back(self, records):
        one = batch(*records)
        again = RecordBatch.decode(one.encode())
        assert again == one
        assert again.encode() == one.encode()

    def test_bytes_of_another_writer_stay_as_they_are(self):
        """What is stored again must have the digest that entries name."""
        data = json.dumps(json.loads(batch(Record(id="a")).encode()), indent=1).encode()
        again = RecordBatch.decode(data)
        assert (again.encode(), again.digest) == (data, Digest.of(data))

    def test_order_is_part_of_it(self):
        a, b = Record(id="a"), Record(id="b")
        assert batch(a, b).digest != batch(b, a).digest
