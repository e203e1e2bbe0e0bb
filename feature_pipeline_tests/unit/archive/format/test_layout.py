import pytest

from feature_pipeline.archive.format import layout
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest

A_DIGEST = Digest("ab" + "0" * 62)


def test_the_keys_are_those_of_the_format():
    """Other readers go by them: changing one is a new format."""
    assert layout.blob(A_DIGEST) == f"blobs/sha256/ab/{A_DIGEST.hex}"
    assert layout.entry(layout.feature_log("d", "h", "b-1"), 7) == "log/features/d/h/b-1/0000000007"
    assert layout.entry(layout.batch_log("d", "b-1"), 1) == "log/batches/d/b-1/0000000001"
    assert layout.entry(layout.release_log("d", "h"), 12) == "log/releases/d/h/0000000012"
    assert layout.entry(layout.tombstone_log("d"), 1) == "log/tombstones/d/0000000001"
    assert layout.inbox("run.x") == "inbox/run.x"
    assert layout.quarantine("run.x") == "quarantine/run.x"
    assert layout.in_flight("counts-1", "a-b") == "expected/counts-1.a-b"


def test_keys_can_be_taken_apart():
    assert layout.parse_blob(layout.blob(A_DIGEST)) == A_DIGEST
    key = layout.parse_entry("log/features/d/h/b-1/0000000007")
    assert (key.log, key.seq) == ("log/features/d/h/b-1/", 7)


@pytest.mark.parametrize(
    "key",
    ["inbox/x", "log/features/d/h/b/7", "log/features/d/h/b/00000000a7", "log/d/0000000001/x"],
)
def test_other_keys_are_no_log_entries(key):
    with pytest.raises(InvalidInputError):
        layout.parse_entry(key)


@pytest.mark.parametrize("key", ["blobs/sha256/ab/00", f"blobs/sha256/cd/{A_DIGEST.hex}", "x"])
def test_other_keys_are_no_blobs(key):
    with pytest.raises(InvalidInputError):
        layout.parse_blob(key)


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a" * 80, "a b"])
def test_names_that_would_break_a_key_are_refused(name):
    with pytest.raises(InvalidInputError):
        layout.batch_log("d", name)
    with pytest.raises(InvalidInputError):
        layout.feature_log(name, "h", "b")


@pytest.mark.parametrize("entry_id", ["", "a/b", ".hidden", "a" * 241, "a\nb"])
def test_inbox_ids_are_one_part_of_a_key(entry_id):
    with pytest.raises(InvalidInputError):
        layout.inbox(entry_id)


@pytest.mark.parametrize("seq", [0, -1, 10**10])
def test_sequence_numbers_have_ten_digits(seq):
    with pytest.raises(InvalidInputError):
        layout.entry("log/tombstones/d/", seq)
