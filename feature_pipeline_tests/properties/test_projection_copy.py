"""Every value of every kind arrives in PostgreSQL bit for bit, wherever in a buffer it lies."""

import json
from datetime import UTC, date

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.archive.format.encode import rows_schema, rows_table
from feature_pipeline.model.columns import Column, row_encoder
from feature_pipeline.model.digest import INT64_MAX, INT64_MIN, canonical_json
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.projections.catalog.ddl import column_kinds, create_table
from feature_pipeline.projections.rows import copy_format

pytestmark = pytest.mark.postgres

COLUMNS = (
    Column(name="string", type="string"),
    Column(name="number", type="number"),
    Column(name="integer", type="integer"),
    Column(name="boolean", type="boolean"),
    Column(name="json", type="object"),
    Column(name="date", type="string", format="date"),
    Column(name="instant", type="string", format="date-time"),
    Column(name="uuid", type="string", format="uuid"),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6)
JSON = st.dictionaries(
    TEXT,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(INT64_MIN, INT64_MAX)
        | st.floats(allow_nan=False, allow_infinity=False)
        | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
).map(canonical_json)
ROWS = st.lists(
    st.tuples(
        st.none() | TEXT,
        st.none() | st.floats(),
        st.none() | st.integers(INT64_MIN, INT64_MAX),
        st.none() | st.booleans(),
        st.none() | JSON,
        st.none() | st.dates(date(1, 1, 1), date(9999, 12, 31)),
        st.none() | st.datetimes(timezones=st.just(UTC)),
        st.none() | st.uuids().map(str),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("small_bytes", [0, 1 << 29])
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=ROWS, skipped=st.integers(0, 3))
def test_rows_read_back_are_the_rows_written(
    database_url: str, monkeypatch: pytest.MonkeyPatch, small_bytes: int, rows: list, skipped: int
) -> None:
    monkeypatch.setattr(copy_format, "MAX_SMALL_BYTES", small_bytes)
    # Rows before the slice, so that no buffer begins where its values do.
    padding = [(None,) * len(COLUMNS)] * skipped
    outcome = Outcome("r", Status.PASSED, rows=(*padding, *rows))
    table = rows_table(COLUMNS, [outcome]).slice(skipped)
    kinds = column_kinds(COLUMNS)
    assert table.schema.equals(rows_schema(COLUMNS))
    columns = {name: table[name].chunk(0) for name in table.column_names}
    columns["batch"] = pa.array(["b"] * len(rows))
    encoded = copy_format.encode_copy_rows([(kind, columns[name]) for name, kind in kinds.items()])

    with psycopg.connect(database_url, options="-c timezone=UTC") as connection:
        connection.execute("create schema if not exists feature_pipeline")
        connection.execute(create_table("t", COLUMNS))
        with connection.cursor().copy("copy feature_pipeline.t from stdin (format binary)") as copy:
            copy.write(copy_format.COPY_HEADER + bytes(encoded) + copy_format.COPY_TRAILER)
        with connection.cursor(binary=True) as cursor:
            cursor.execute(
                "select string, number, integer, boolean, json::text, date, instant, uuid::text"
                " from feature_pipeline.t where record_id = 'r' and batch = 'b' order by ordinal"
            )
            read_back = [
                (*row[:4], None if row[4] is None else _canonical(row[4]), *row[5:])
                for row in cursor
            ]
        connection.rollback()
    encoder = row_encoder(COLUMNS)
    assert encoder.rows(read_back) == encoder.rows(rows)


def _canonical(text: str) -> str:
    return canonical_json(json.loads(text))
