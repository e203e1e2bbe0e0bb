"""Parquet of artifacts and censuses, of any writer: refused before it takes memory."""

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_pipeline.archive import accept, publish, read
from feature_pipeline.archive.accept import Quarantined
from feature_pipeline.archive.blobs import put_blob
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.format.encode import (
    OUTCOMES_SCHEMA,
    decode_outcomes,
    encode_outcomes,
    encode_rows,
    read_bounded,
    rows_schema,
)
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.known_lengths import Line, census_schema, decode_census
from feature_pipeline.errors import CorruptDataError, FeaturePipelineError
from feature_pipeline.model.digest import Digest
from feature_pipeline_tests.fixtures.stores import COLUMNS, DATASET, HOOK, make_batch, make_outcomes

BATCH = make_batch()
OUTCOMES = make_outcomes(BATCH)
ROWS = encode_rows(COLUMNS, OUTCOMES)
SCHEMA = rows_schema(COLUMNS)
TABLE = pq.read_table(pa.BufferReader(ROWS)).cast(SCHEMA)


def parquet(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, **{"compression": "zstd", **options})
    return sink.getvalue()


def column(name: str, array: object, nullable: bool = True) -> bytes:
    """The rows with another array in the place of one column."""
    place = SCHEMA.get_field_index(name)
    field = pa.field(name, array.type, nullable=nullable)
    return parquet(TABLE.set_column(place, field, array))


def varint(number: int) -> bytes:
    """A zigzag number of Thrift's compact protocol."""
    number, out = number << 1, bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def with_footer(data: bytes, old: int, new: int) -> bytes:
    """The file whose footer states another number in the place of one, in as many bytes."""
    size = int.from_bytes(data[-8:-4], "little")
    body, footer, end = data[: -8 - size], data[-8 - size : -8], data[-8:]
    written = bytearray(varint(new))
    while len(written) < len(varint(old)):
        written[-1] |= 0x80
        written.append(0)
    assert varint(old) in footer
    assert len(written) == len(varint(old))
    return body + footer.replace(varint(old), bytes(written)) + end


def bomb(megabytes: int, **options: object) -> bytes:
    """One row whose label is a text of that length, in a few kilobytes."""
    values = [["r1"], [0], [1.5], [1], ["x" * (megabytes << 20)]]
    arrays = [pa.array(v, f.type) for v, f in zip(values, SCHEMA, strict=True)]
    return parquet(pa.Table.from_arrays(arrays, schema=SCHEMA), write_statistics=False, **options)


def lying_bomb(megabytes: int) -> bytes:
    """The same, whose footer states a hundred bytes."""
    data = bomb(megabytes, use_dictionary=False)
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    for size in {group.total_byte_size, group.column(4).total_uncompressed_size}:
        data = with_footer(data, size, 100)
    return data


def not_utf8() -> bytes:
    texts = pa.Array.from_buffers(
        pa.string(), 2, [None, *pa.array([b"\xff\xfe", b"x"], pa.binary()).buffers()[1:]]
    )
    return column("label", texts)


N = TABLE.num_rows
TABLES = [
    ("nothing", b"", "is not Parquet"),
    ("another file", b"{}", "is not Parquet"),
    ("its marks alone", b"PAR1PAR1", "is not Parquet"),
    ("cut off at its end", ROWS[:-1], "is not Parquet"),
    ("cut off in its middle", ROWS[: len(ROWS) // 2], "is not Parquet"),
    ("without its beginning", ROWS[4:], "is not Parquet"),
    ("a footer longer than the file", ROWS[:-8] + b"\xff\xff\xff\x7fPAR1", "is not Parquet"),
    ("a footer of no bytes", ROWS[:-8] + b"\x00\x00\x00\x00PAR1", "is not Parquet"),
    ("zeros for pages", ROWS[:4] + b"\x00" * 200 + ROWS[204:], "is not Parquet"),
    ("an encrypted file", ROWS[:-4] + b"PARE", "is not Parquet"),
    ("a text that is not UTF-8", not_utf8(), "rows: "),
    ("no rows", parquet(TABLE.slice(0, 0)), f"0 rows; its manifest has {N}"),
    ("a row too many", parquet(pa.concat_tables([TABLE, TABLE.slice(0, 1)])), f"its manifest has {N}"),
    ("no columns", parquet(TABLE.select([])), "rows; "),
    ("a column less", parquet(TABLE.drop_columns(["label"])), "expected record_id string"),
    ("a column more", parquet(TABLE.append_column("x", pa.nulls(N, pa.int8()))), "its columns are"),
    ("columns in another order", parquet(TABLE.select(SCHEMA.names[::-1])), "its columns are"),
    ("two columns of one name", parquet(TABLE.rename_columns(["record_id", "ordinal", "score", "label", "label"])), "two of its columns have the same name"),
    ("an id that may be null", column("record_id", TABLE["record_id"].combine_chunks()), "its columns are"),
    ("ids of bytes", column("record_id", pa.array([b"r"] * N, pa.binary()), nullable=False), "record_id binary"),
    ("ordinals of 64 bits", column("ordinal", pa.array([0] * N, pa.int64()), nullable=False), "ordinal int64"),
    ("numbers of 32 bits", column("score", pa.array([1] * N, pa.float32())), "score float"),
    ("decimals", column("score", pa.array([1] * N, pa.decimal128(5, 2))), "score decimal128"),
    ("integers without signs", column("rank", pa.array([1] * N, pa.uint64())), "rank uint64"),
    ("large texts", column("label", pa.array(["x"] * N, pa.large_string())), "label large_string"),
    ("lists", column("label", pa.array([["x"]] * N)), "label list"),
    ("a structure", column("label", pa.array([{"a": 1}] * N)), "is not Parquet|label struct"),
    ("a map", column("label", pa.array([[("a", 1)]] * N, pa.map_(pa.string(), pa.int8()))), "label map"),
    ("dictionaries", column("label", pa.array(["x"] * N).dictionary_encode()), "label dictionary"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "words"), [t[1:] for t in TABLES], ids=[t[0] for t in TABLES])
def test_rows_that_are_none(data, words):
    with pytest.raises(FeaturePipelineError) as raised:
        read_bounded(data, "rows", SCHEMA, N)
    assert any(each in str(raised.value) for each in words.split("|"))
    assert str(raised.value).startswith("rows")


def test_sizes_are_those_of_the_pages_and_not_those_that_the_footer_states(monkeypatch):
    """Arrow would decompress the page, whatever it takes, and find the size of no interest."""
    data = lying_bomb(8)
    assert len(data) < 10_000
    group = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0)
    assert group.total_byte_size == 100
    monkeypatch.setattr(
        "feature_pipeline.archive.format.parquet_bounds.MOST_DECODED_BYTES", 1_000_000
    )
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        with pytest.raises(FeaturePipelineError, match=r"8,388,6.. bytes once decoded"):
            read_bounded(data, "rows", SCHEMA, 1)
    finally:
        pa.set_memory_pool(default)
    assert pool.max_memory() < 1_000_000


def test_values_are_as_many_as_the_rows():
    """A chunk of a few bytes can stand for a billion equal values."""
    data = parquet(pa.table({"x": pa.array([7] * 1_000_000)}), write_statistics=False)
    assert len(data) < 4_000
    lie = with_footer(data, 1_000_000, 999_999)
    for schema in (pa.schema({"x": pa.int64()}), SCHEMA):
        with pytest.raises(FeaturePipelineError):
            read_bounded(lie, "rows", schema, 10)


def outcome_table(**changes: object) -> pa.Table:
    table = pq.read_table(pa.BufferReader(encode_outcomes(OUTCOMES))).cast(OUTCOMES_SCHEMA)
    for name, values in changes.items():
        place = OUTCOMES_SCHEMA.get_field_index(name)
        field = OUTCOMES_SCHEMA.field(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


DISAGREEMENTS = [
    ("a record twice", {"record_id": ["r1", "r1", "r3", "r4"]}, "occurs twice"),
    ("rows of no record", {"record_id": ["x1", "r2", "r3", "r4"]}, "2 rows by its outcome, but 0 in rows"),
    ("a status that is none", {"status": ["done", "rejected", "errored", "passed"]}, "'done'"),
    ("another number of rows", {"row_count": [1, 0, 0, 0]}, "1 row by its outcome, but 2 in rows"),
    ("a negative number of rows", {"row_count": [2, -1, 0, 0]}, "by its outcome, but 0 in rows"),
    ("a rejection without reason", {"reason": [None, None, "boom", None]}, "record 'r2'"),
    ("an error without kind", {"kind": [None] * 4}, "record 'r3'"),
    ("an action that is no digest", {"action": ["x", None, None, None]}, "record 'r1'"),
    ("carried from nowhere", {"carried_from": ["sha256:0", None, None, None]}, "record 'r1'"),
    ("rows of a rejected record", {"status": ["rejected", "rejected", "errored", "passed"]}, "record 'r1'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"), [d[1:] for d in DISAGREEMENTS], ids=[d[0] for d in DISAGREEMENTS]
)
def test_tables_that_disagree(changes, words):
    with pytest.raises(CorruptDataError) as raised:
        decode_outcomes(COLUMNS, TABLE, outcome_table(**changes))
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ["rows", "outcomes"])
@pytest.mark.parametrize(
    "data",
    [b"", ROWS[: len(ROWS) // 2], not_utf8(), lying_bomb(2)],
    ids=["nothing", "cut off", "not UTF-8", "a footer that lies"],
)
def test_an_artifact_of_such_tables_is_quarantined_at_once(scene, name, data):
    """They will not change, so nothing is waited for; the log stays as it was."""
    batch, release = scene.submit(BATCH), scene.release()
    completion = scene.completion(scene.artifact(batch, release))
    document = json.loads(read.read_manifest(scene.store, completion.manifest).encode())
    ref = put_blob(scene.store, data)
    document["blobs"][name] |= {"digest": str(ref.digest), "size": ref.size}
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    publish.enqueue_completion(
        scene.store, completion.model_copy(update={"manifest": put_blob(scene.store, text).digest})
    )
    [result] = accept.accept_entries(scene.store, accept.waiting(scene.store))
    assert isinstance(result, Quarantined)
    assert f"of run run-1: {name}" in result.reason
    assert log.read_log(scene.store, DATASET, HOOK, "b1") == []


def census(**changes: Any) -> bytes:
    log_name = "log/batches/structures/b1/"
    line = Line(1, Digest.of(b"x"), "etag")
    values: dict[str, Any] = {
        "log": [log_name],
        "entries": [line.entries],
        "digest": [bytes.fromhex(line.digest.hex)],
        "etag": [line.etag],
    }
    schema = census_schema().with_metadata({"spec_version": "1"})
    return parquet(pa.table({**values, **changes}, schema=schema))


def census_of(version: str) -> bytes:
    schema = census_schema().with_metadata({"spec_version": version})
    return parquet(schema.empty_table())


CENSUSES = [
    ("nothing", b"", "is not Parquet"),
    ("cut off", census()[:-9], "is not Parquet"),
    ("rows of an artifact", ROWS, "is not a census"),
    ("JSON", b"{}", "is not Parquet"),
    ("no version", parquet(census_schema().empty_table()), "is not a census"),
    ("version 0", census_of("0"), "is not a census"),
    ("a version in words", census_of("one"), "is not a census"),
    ("a version of 9,999 digits", census_of("9" * 9_999), "is not a census"),
    ("a version in other digits", census_of("١"), "is not a census"),
    ("a version that is not UTF-8", parquet(census_schema().with_metadata({b"spec_version": b"\xff"}).empty_table()), "is not a census"),
    ("a newer version", census_of("2"), "has spec_version 2"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "words"), [c[1:] for c in CENSUSES], ids=[c[0] for c in CENSUSES])
def test_a_census_that_is_none(data, words):
    key = layout.census(utc_now(), Digest.of(data))
    with pytest.raises(FeaturePipelineError, match=f"census {key} in memory") as raised:
        decode_census(key, data, "memory")
    assert words in str(raised.value)


def test_a_census_of_other_bytes_than_its_name():
    key = layout.census(utc_now(), Digest.of(b"x"))
    with pytest.raises(CorruptDataError, match="has bytes whose digest is"):
        decode_census(key, census(), "memory")


def test_a_census_with_a_log_that_is_not_utf8():
    texts = pa.Array.from_buffers(
        pa.string(), 1, [None, *pa.array([b"log/\xff"], pa.binary()).buffers()[1:]]
    )
    data = census(log=texts)
    key = layout.census(utc_now(), Digest.of(data))
    with pytest.raises(CorruptDataError, match=f"census {key}"):
        decode_census(key, data, "memory")
