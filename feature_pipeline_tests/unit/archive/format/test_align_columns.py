"""Old rows under new columns, as a reader wants them."""

import pyarrow as pa
import pytest

from feature_pipeline.archive.format.align_columns import align_rows
from feature_pipeline.archive.format.encode import rows_schema, rows_table
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.outcomes import Outcome, Status

WRITTEN = (Column(name="a", type="integer"), Column(name="b", type="string", format="date"))


def rows(*values):
    return rows_table(WRITTEN, [Outcome("r", Status.PASSED, values)])


def test_columns_change_places_and_are_dropped():
    wanted = (WRITTEN[1],)
    aligned = align_rows(rows((1, None)), WRITTEN, wanted, "here")
    assert aligned.schema.names == ["record_id", "ordinal", "b"]
    assert align_rows(rows(), WRITTEN, WRITTEN[::-1], "here").schema == rows_schema(WRITTEN[::-1])


def test_absent_columns_are_their_default_of_their_own_type():
    wanted = (
        Column(name="d", type="object", default={"b": 1.0, "a": None}),
        Column(name="e", type="string", format="date-time", default="2026-01-02T03:04:05Z"),
        Column(name="f", type="boolean", required=True),
    )
    aligned = align_rows(rows((1, None), (2, None)), WRITTEN, wanted, "here")
    assert aligned.column("d").to_pylist() == ['{"a":null,"b":1}'] * 2
    assert aligned.column("e").type == pa.timestamp("us", tz="UTC")
    assert aligned.column("f").to_pylist() == [None, None]


@pytest.mark.parametrize("exact", [0, -1, 2**53, 2**60, -(2**63)])
def test_exact_integers_become_numbers(exact):
    aligned = align_rows(
        rows((exact, None), (None, None)), WRITTEN, (Column(name="a", type="number"),), "here"
    )
    assert aligned.column("a").to_pylist() == [float(exact), None]


@pytest.mark.parametrize("inexact", [2**53 + 1, 2**63 - 1, -(2**53) - 1])
def test_inexact_integers_are_refused(inexact):
    with pytest.raises(InvalidInputError, match=rf"batch 'b': column 'a'.*{inexact}"):
        align_rows(rows((inexact, None)), WRITTEN, (Column(name="a", type="number"),), "batch 'b'")


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Column(name="b", type="string"), r"was string \(date\), is now string;"),
        (Column(name="a", type="string"), "was integer, is now string"),
        (Column(name="x", type="boolean", renamed_from="a"), "was integer, is now boolean"),
    ],
)
def test_other_types_are_refused(column, message):
    with pytest.raises(InvalidInputError, match=message):
        align_rows(rows((1, None)), WRITTEN, (column,), "here")
