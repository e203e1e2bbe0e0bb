import math
from datetime import UTC, date, datetime

import pyarrow as pa
import pytest

from feature_pipeline.archive.format.content_digests import Content
from feature_pipeline.archive.format.encode import (
    decode_outcomes,
    encode_outcomes,
    encode_rows,
    iter_record_rows,
    outcomes_table,
    read_parquet,
    rows_schema,
    rows_table,
)
from feature_pipeline.archive.format.outcome_columns import OutcomeColumns
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status

COLUMNS = (
    Column(name="number", type="number", unit="Å", description="a number"),
    Column(name="integer", type="integer"),
    Column(name="text", type="string"),
    Column(name="flag", type="boolean"),
    Column(name="list", type="array"),
    Column(name="object", type="object"),
    Column(name="day", type="string", format="date"),
    Column(name="instant", type="string", format="date-time"),
    Column(name="id", type="string", format="uuid"),
)
ROWS = (
    (1.5, 2**60 + 1, "é\n\t😀", True, "[1,null]", '{"a":1}', date(1, 1, 1),
     datetime(1, 1, 1, tzinfo=UTC), "12345678-1234-1234-1234-123456789abc"),
    (math.nan, -(2**63), "", False, "[]", "{}", date(9999, 12, 31),
     datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC), None),
    (-0.0, None, None, None, None, None, None, None, None),
    (math.inf, 2**63 - 1, " ", None, None, None, None, None, None),
    (None, 0, "null", None, None, None, None, None, None),
)  # fmt: skip
OUTCOMES = (
    Outcome("r2", Status.PASSED, ROWS, action=Digest.of(b"q"), carried_from=Digest.of(b"m")),
    Outcome("r1", Status.REJECTED, reason="two\nlines"),
    Outcome("r3", Status.ERRORED, reason="x", kind=OutcomeKind.INVALID_OUTPUT, is_retryable=True),
    Outcome("r4", Status.PASSED),
    Outcome("r5", Status.PASSED, ROWS[:1]),
)


def decode(columns, outcomes):
    rows = read_parquet(encode_rows(columns, outcomes), "rows")
    return decode_outcomes(columns, rows, read_parquet(encode_outcomes(outcomes), "outcomes"))


def bits(outcomes):
    """NaN is equal to nothing and -0.0 to 0.0, so values are compared by their text."""
    return [(o.record_id, o.status, repr(o.rows), o.reason, o.kind, o.action) for o in outcomes]


def test_every_value_survives():
    decoded = decode(COLUMNS, OUTCOMES)
    assert bits(decoded) == bits(OUTCOMES)
    assert [o.carried_from for o in decoded] == [o.carried_from for o in OUTCOMES]
    assert [o.is_retryable for o in decoded] == [o.is_retryable for o in OUTCOMES]
    assert Content.of(COLUMNS, decoded) == Content.of(COLUMNS, OUTCOMES)


def test_null_is_not_nan():
    rows = rows_table(COLUMNS, OUTCOMES)
    assert rows["number"].null_count == 1
    assert math.isnan(rows["number"][1].as_py())


def test_field_metadata_has_what_arrow_types_lack():
    schema = read_parquet(encode_rows(COLUMNS, OUTCOMES), "rows").schema
    assert schema.field("number").metadata == {
        b"type": b"number", b"unit": "Å".encode(), b"description": b"a number",
    }  # fmt: skip
    assert schema.field("list").metadata == {b"type": b"array", b"encoding": b"json"}
    assert schema.field("id").metadata == {b"type": b"string", b"format": b"uuid"}
    assert schema.field("instant").type == pa.timestamp("us", tz="UTC")
    assert [f.name for f in schema][:2] == ["record_id", "ordinal"]


def test_nothing_at_all():
    assert decode((), ()) == []
    assert decode(COLUMNS, ()) == []
    assert decode(COLUMNS, OUTCOMES[1:4]) == list(OUTCOMES[1:4])


def test_rows_of_a_hook_without_columns():
    outcomes = (Outcome("r", Status.PASSED, ((), ())),)
    assert decode((), outcomes) == list(outcomes)


def test_content_does_not_depend_on_the_order_of_records():
    assert Content.of(COLUMNS, OUTCOMES) == Content.of(COLUMNS, OUTCOMES[::-1])


def test_content_does_not_depend_on_who_and_when():
    other = tuple(
        Outcome(o.record_id, o.status, o.rows, o.reason, o.kind, not o.is_retryable)
        for o in OUTCOMES
    )
    digests = [Content.of(COLUMNS, outcomes).content_digest for outcomes in (OUTCOMES, other)]
    assert digests[0] == digests[1]


@pytest.mark.parametrize(
    "changed",
    [
        (Outcome("r1", Status.REJECTED, reason="two lines"), *OUTCOMES[2:]),
        (Outcome("r1", Status.PASSED), *OUTCOMES[2:]),
        (Outcome("r0", Status.REJECTED, reason="two\nlines"), *OUTCOMES[2:]),
        OUTCOMES[2:],
        (*OUTCOMES[1:4], Outcome("r5", Status.PASSED, (ROWS[0], ROWS[0]))),
        (*OUTCOMES[1:4], Outcome("r5", Status.PASSED, (ROWS[1],))),
    ],
)
def test_content_depends_on_the_outcomes_alone(changed):
    content = Content.of(COLUMNS, OUTCOMES[1:])
    assert Content.of(COLUMNS, changed).content_digest != content.content_digest


def test_content_depends_on_columns_and_rows_digest_on_rows_alone():
    one, other = (Column(name=n, type="integer") for n in ("a", "b"))
    rejected, passed = OUTCOMES[1], Outcome("r", Status.PASSED, ((1,),))
    assert Content.of((one,), [passed]) != Content.of((other,), [passed])
    with_rejected = Content.of((one,), [passed, rejected])
    alone = Content.of((one,), [passed])
    assert with_rejected.rows_digest == alone.rows_digest
    assert with_rejected.content_digest != alone.content_digest


def test_rows_digests_add_up():
    a, b = Content.of(COLUMNS, OUTCOMES[:1]), Content.of(COLUMNS, OUTCOMES[1:])
    assert a.rows_digest + b.rows_digest == Content.of(COLUMNS, OUTCOMES).rows_digest


class TestTablesThatDisagree:
    """Anyone may upload a table: what does not hold together is never read as data."""

    column = (Column(name="n", type="integer"),)
    passed = Outcome("a", Status.PASSED, ((1,), (2,)))
    rejected = Outcome("b", Status.REJECTED, reason="no")

    def tables(self):
        outcomes = (self.passed, self.rejected)
        return (
            rows_table(self.column, outcomes),
            read_parquet(encode_outcomes(outcomes), "outcomes"),
        )

    @pytest.mark.parametrize(
        "rows",
        [
            {"record_id": ["a", "a"], "ordinal": [0, 2], "n": [1, 2]},
            {"record_id": ["a", "a"], "ordinal": [1, 0], "n": [1, 2]},
            {"record_id": ["a"], "ordinal": [0], "n": [1]},
            {"record_id": ["a", "a", "b"], "ordinal": [0, 1, 0], "n": [1, 2, 3]},
            {"record_id": ["a", "a", "c"], "ordinal": [0, 1, 0], "n": [1, 2, 3]},
            {"record_id": ["a", "b", "a"], "ordinal": [0, 0, 1], "n": [1, 2, 3]},
            {"record_id": ["a", "b", "a"], "ordinal": [0, 0, 0], "n": [1, 2, 3]},
            {"record_id": ["a", "b"], "ordinal": [0, 1], "n": [1, 2]},
        ],
    )
    def test_wrong_rows(self, rows):
        table, outcomes = self.tables()
        wrong = pa.table(rows, schema=table.schema)
        with pytest.raises(CorruptDataError):
            decode_outcomes(self.column, wrong, outcomes)
        assert not OutcomeColumns(self.column, wrong, outcomes).is_sound()

    def test_a_record_with_two_outcomes(self):
        table, outcomes = self.tables()
        twice = pa.concat_tables([outcomes, outcomes.slice(1, 1)])
        with pytest.raises(CorruptDataError, match="twice"):
            decode_outcomes(self.column, table, twice)
        assert not OutcomeColumns(self.column, table, twice).is_sound()

    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("status", ["passed", "unheard of"]),
            ("status", ["rejected", "rejected"]),
            ("status", ["passed", "passed"]),
            ("status", ["passed", "errored"]),
            ("reason", [None, ""]),
            ("reason", [None, None]),
            ("reason", ["well", "no"]),
            ("kind", [None, "hook"]),
            ("kind", ["hook", None]),
            ("row_count", [3, -1]),
            ("action", [None, "sha256:1"]),
            ("carried_from", [f"md5:{'0' * 64}", None]),
        ],
    )
    def test_an_outcome_that_cannot_be(self, name, values):
        table, outcomes = self.tables()
        at = outcomes.schema.get_field_index(name)
        field = outcomes.schema.field(at)
        odd = outcomes.set_column(at, field, pa.array(values, field.type))
        with pytest.raises(CorruptDataError):
            decode_outcomes(self.column, table, odd)
        assert not OutcomeColumns(self.column, table, odd).is_sound()

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            (Column(name="d", type="string", format="date"), pa.scalar(2_932_897, pa.int32())),
            (Column(name="d", type="string", format="date"), pa.scalar(-719_163, pa.int32())),
            (Column(name="t", type="string", format="date-time"), pa.scalar(2**60, pa.int64())),
            (Column(name="t", type="string", format="date-time"), pa.scalar(-(2**60), pa.int64())),
        ],
    )
    def test_a_time_that_python_does_not_have(self, column, value):
        passed = Outcome("a", Status.PASSED, ((None,),))
        _, outcomes = OutcomeColumns.of((column,), [passed]).rows, outcomes_table([passed])
        schema = rows_schema((column,))
        values = pa.array([value.as_py()], value.type).cast(schema.field(2).type)
        table = pa.table([pa.array(["a"]), pa.array([0], pa.int32()), values], schema=schema)
        with pytest.raises((ValueError, OverflowError)):
            decode_outcomes((column,), table, outcomes)
        assert not OutcomeColumns((column,), table, outcomes).is_sound()

    def test_text_that_is_not_utf_8(self):
        column = (Column(name="s", type="string"),)
        passed = Outcome("a", Status.PASSED, (("x",),))
        table = rows_table(column, [passed])
        octets = pa.array([b"\xff"], pa.binary()).view(pa.string())
        table = table.set_column(2, table.schema.field(2), octets)
        with pytest.raises(ValueError, match="utf-8"):
            decode_outcomes(column, table, outcomes_table([passed]))
        assert not OutcomeColumns(column, table, outcomes_table([passed])).is_sound()

    def test_other_columns(self):
        table, _ = self.tables()
        with pytest.raises(CorruptDataError, match="its columns are"):
            list(iter_record_rows(table, (Column(name="m", type="integer"),)))
        with pytest.raises(CorruptDataError, match="its columns are"):
            list(iter_record_rows(table, (Column(name="n", type="number"),)))

    def test_bytes_that_are_not_parquet(self):
        with pytest.raises(CorruptDataError, match="rows is not Parquet"):
            read_parquet(b"PAR1 not really", "rows")


def test_the_encoding_is_the_one_that_archives_were_written_with():
    """These digests are stored in every manifest: code that computes others is a new format."""
    content = Content.of(COLUMNS, OUTCOMES)
    assert (
        content.content_digest.hex
        == "4d0d06ec84c6f0993e8325477fd11f0e6178411e2992ad3cb3b9e461b238a1e4"
    )
    assert (
        str(content.rows_digest)
        == "3bcab7df4c282be274237e78657bee1da0b880b1b4d0fd9407a76933cd598697"
    )


def test_a_kind_that_only_later_code_knows_is_shown_as_it_is():
    later = Outcome("r1", Status.ERRORED, reason="x", kind="eaten_by_a_bear")
    (outcomes,) = decode_outcomes((), read_parquet(encode_rows((), [later]), "rows"),
                               read_parquet(encode_outcomes([later]), "outcomes"))  # fmt: skip
    assert outcomes == later


def test_a_uuid_in_another_form_has_the_same_digest() -> None:
    column = Column(name="run", type="string", format="uuid")
    first, second = (
        [Outcome("r1", Status.PASSED, ((text,), (None,)))]
        for text in ("85B187A2-4970-5f04-952c-7dd62f2a0cb9", "85b187a2-4970-5f04-952c-7dd62f2a0cb9")
    )
    assert Content.of((column,), first) == Content.of((column,), second)


def test_a_text_that_is_no_uuid_has_no_digest() -> None:
    column = Column(name="run", type="string", format="uuid")
    with pytest.raises(ValueError, match="UUID"):
        Content.of((column,), [Outcome("r1", Status.PASSED, (("85b187a2",),))])
