"""Every value of every kind arrives in PostgreSQL bit for bit, wherever in a buffer it lies."""

import json

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.archive.format.encode import rows_schema, rows_table
from feature_pipeline.model.columns import row_encoder
from feature_pipeline.model.digest import canonical_json
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.projections.catalog.ddl import column_kinds, create_table
from feature_pipeline.projections.rows import copy_format
from feature_pipeline_tests.fixtures.strategies import COLUMNS, ROW

pytestmark = pytest.mark.postgres


@pytest.mark.parametrize("small_bytes", [0, 1 << 29])
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(rows=st.lists(ROW, min_size=1, max_size=6), skipped=st.integers(0, 3))
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
