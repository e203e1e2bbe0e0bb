"""The proof's fast encoding is the archive's, bit for bit, and reads back what PostgreSQL wrote."""

import gc
import json
from contextlib import closing
from decimal import Decimal

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg import sql

from feature_pipeline.archive.format.encode import rows_table
from feature_pipeline.model.columns import row_encoder
from feature_pipeline.model.digest import canonical_json
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.projections.catalog.ddl import column_kinds, create_table
from feature_pipeline.projections.proof import read_back
from feature_pipeline.projections.proof.canonical import (
    RecordDigests,
    line_digests,
    sum_by_label,
    sum_digests,
)
from feature_pipeline.projections.proof.json_texts import canonical_texts
from feature_pipeline.projections.rows.prepare import encode_chunks, one_array
from feature_pipeline.projections.rows.write import copy_rows
from feature_pipeline_tests.fixtures.strategies import COLUMNS, ROW, TEXT, VALUES

IDS = TEXT.filter(bool)
RECORDS = st.dictionaries(IDS, st.lists(ROW, min_size=1, max_size=3), min_size=1, max_size=4)


def table_of(records: dict) -> pa.Table:
    outcomes = [
        Outcome(record_id, Status.PASSED, rows=tuple(rows)) for record_id, rows in records.items()
    ]
    return rows_table(COLUMNS, outcomes)


def digests_of(table: pa.Table) -> dict[str, bytes]:
    digests = RecordDigests(row_encoder(COLUMNS), [column.kind for column in COLUMNS])
    columns = [one_array(table[column.name]) for column in COLUMNS]
    ids = one_array(table["record_id"])
    computed = digests.of([ids], one_array(table["ordinal"]), columns)
    assert computed.row_counts.sum() == len(table)
    return dict(zip(ids.take(pa.array(computed.starts)).to_pylist(), computed.digests, strict=True))


def expected(records: dict) -> dict[str, bytes]:
    encoder = row_encoder(COLUMNS)
    return {
        record_id: encoder.rows_digest(record_id, encoder.rows(rows))
        for record_id, rows in records.items()
    }


@given(RECORDS, st.integers(0, 2))
def test_record_digests_are_those_of_the_archive(records: dict, skipped: int) -> None:
    chosen = dict(list(records.items())[skipped:]) or records
    # a slice: values need not begin where their buffers do
    table = table_of(records)
    table = table.slice(len(table) - sum(map(len, chosen.values())))
    assert digests_of(table) == expected(chosen)


@given(RECORDS)
def test_a_missing_row_gives_a_digest_that_no_artifact_has(records: dict) -> None:
    table = table_of({**records, "last": [(None,) * 8] * 2})
    without_first = table.slice(0, len(table) - 2).slice(0)
    gapped = pa.concat_tables([without_first, table.slice(len(table) - 1)])
    shorter = expected({"last": [(None,) * 8]})
    assert digests_of(gapped)["last"] not in (
        shorter["last"],
        expected({"last": [(None,) * 8] * 2})["last"],
    )


def jsonb_text(value: object) -> str:
    """Write a value as `jsonb` does: a space after each comma and colon, keys by length first."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        members = (
            f"{json.dumps(key, ensure_ascii=False)}: {jsonb_text(value[key])}" for key in keys
        )
        return f"{{{', '.join(members)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(jsonb_text, value))}]"
    if isinstance(value, float):
        return f"{Decimal(repr(value)):f}"
    return json.dumps(value, ensure_ascii=False)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.binary(min_size=32, max_size=32)), max_size=9))
@example([("a", b"\xff" * 32)] * 3)
def test_digests_add_up_by_label(labelled: list) -> None:
    labels = pa.array([label for label, _ in labelled], pa.string())
    digests = [digest for _, digest in labelled]
    totals = {
        label: (total, count)
        for label, total, count in sum_by_label(labels, digests, np.arange(len(digests)))
    }
    assert totals == {
        label: (
            sum(int.from_bytes(digest) for one, digest in labelled if one == label),
            sum(at for at, (one, _) in enumerate(labelled) if one == label),
        )
        for label in {label for label, _ in labelled}
    }
    assert sum_digests(digests) == sum(map(int.from_bytes, digests))


DEEP = "[" * 500 + "]" * 500
ODD = (
    {"a": [2**63, -(2**63) - 1, 10**300, 1.0, -0.0, 1e16, 5e-324, 9223372036854775807.0]},
    {"\u2028": '\x7f\\"/', "é": "😀", "": [[]], "a": {}, "\uffff": 1, "😀b": 2},
    [0.0001, 0.00001, 1e-7, 1e22, 123456789012345.6, 2**64 - 1, 2**64, 10**18, 10**19],
    ['", "', ", ", 'a", ', "\\", "1.0", "3e5", " ", "é, ü", "\n\x01\x1f"],
    [[1, [2.5, "a, b"]], True, False, None],
    "x",
    "",
    0,
    -1,
    1.5,
    [],
    {},
    [[[[[[[[1]]]]]]]],
)


@given(st.lists(st.none() | VALUES, max_size=6))
@example([None, *ODD, None])
def test_texts_of_jsonb_are_written_canonically(values: list) -> None:
    texts = [None if value is None else jsonb_text(value) for value in values]
    expected = [None if value is None else canonical_json(value) for value in values]
    half = len(texts) // 2
    chunks = pa.chunked_array([texts[:half], texts[half:]], pa.string())
    assert canonical_texts(chunks).to_pylist() == expected


SPACED = st.lists(
    st.sampled_from(["", "a", "b", "a b", " ", ", ", ",", '", "', "{", "\\"]), max_size=3
)


@given(st.lists(st.none() | SPACED | st.lists(st.integers(0, 9) | SPACED, max_size=2), max_size=4))
@example([[", "]])
@example([[", "], []])
@example([["a", "b"], ["b"], None])
@example([["a", "b c"]])
@example([["a b"], ["c"], [1]])
@example([["a", "b"], [["c"], []]])
@example([["a", 1], ["b"]])
@example([["{"], ["\\"]])
def test_spaces_in_strings_stay(values: list) -> None:
    texts = [None if value is None else jsonb_text(value) for value in values]
    expected = [None if value is None else canonical_json(value) for value in values]
    assert canonical_texts(pa.chunked_array([texts], pa.string())).to_pylist() == expected


def test_parsing_leaves_garbage_collection_as_it_was() -> None:
    texts = pa.chunked_array([["[0.12345678901234567]", "[1e400"]], pa.string())
    assert gc.isenabled()
    with pytest.raises(json.JSONDecodeError):
        canonical_texts(texts)
    assert gc.isenabled()
    gc.disable()
    try:
        canonical_texts(texts.slice(0, 1))
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("1.50", "1.5"),
        ("2.0", "2"),
        ("9007199254740993.0", "9007199254740993"),
        ("9007199254740993.5", "9007199254740994"),
        ("999999999999999.99", "1000000000000000"),
        ("0.10000000000000000000000001", "0.1"),
        ("123456789012345678901234567890", "1.2345678901234568e+29"),
        ("-0", "0"),
        (
            '{"b": ' + "[" * 500 + "]" * 500 + ', "a": 0}',
            '{"a":0,"b":' + "[" * 500 + "]" * 500 + "}",
        ),
    ],
)
def test_values_that_others_have_written_are_compared_by_value(text: str, written: str) -> None:
    # beside a plain one, which takes the fastest way
    texts = pa.chunked_array([["[1, 2]", text, None]], pa.string())
    assert canonical_texts(texts).to_pylist() == ["[1,2]", written, None]


@given(st.lists(st.tuples(TEXT, st.none() | TEXT), min_size=2, max_size=5, unique=True))
def test_different_lines_have_different_digests(lines: list) -> None:
    columns = [pa.array(column, pa.string()) for column in zip(*lines, strict=True)]
    assert len(set(line_digests(columns))) == len(lines)


@pytest.mark.postgres
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(RECORDS, st.sampled_from([1, 100, 1 << 20]))
def test_what_is_read_back_is_what_was_loaded(
    database_url: str, records: dict, chunk_bytes: int
) -> None:
    table = table_of(records)
    kinds = column_kinds(COLUMNS)
    with psycopg.connect(database_url, options="-c timezone=UTC") as connection:
        connection.execute("create schema feature_pipeline")
        connection.execute(create_table("t", COLUMNS))
        relation = sql.Identifier("feature_pipeline", "t")
        copy_rows(connection, relation, kinds, encode_chunks(table, "b", kinds))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(read_back, "CHUNK_BYTES", chunk_bytes)
            fields = read_back.column_fields(COLUMNS)
            order = sql.SQL("order by record_id, ordinal")
            chunks = [
                read_back.parse(text, fields)
                for text in read_back.read_texts(connection, relation, fields, order)
            ]
        connection.rollback()
    back = pa.concat_tables(chunks)
    json_at = back.schema.get_field_index("json")
    back = back.set_column(json_at, "json", canonical_texts(back["json"]))
    assert digests_of(back) == expected(records)


@pytest.mark.postgres
def test_a_reading_that_ends_early_leaves_the_connection_usable(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_back, "CHUNK_BYTES", 1)
    rows = sql.SQL("(select 10 / (3 - at) as x from generate_series(1, 5) at) t")
    with psycopg.connect(database_url) as connection:
        read: list[bytes] = []
        with pytest.raises(psycopg.errors.DivisionByZero):
            read.extend(read_back.read_texts(connection, rows, ["x"], sql.SQL("")))
        assert read == [b"5\n", b"10\n"]
        connection.rollback()
        many = sql.SQL("generate_series(1, 1000000) x")
        with closing(read_back.read_texts(connection, many, ["x"], sql.SQL(""))) as texts:
            assert next(texts) == b"1\n"
        connection.rollback()
        assert connection.execute("select 1").fetchone() == (1,)
