"""What a declaration means, for every step that reads it."""

import json
import math
import uuid
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import (
    Column,
    ColumnFormat,
    ColumnType,
    check_columns,
    columns_header,
    decode_row,
    decode_value,
    row_encoder,
)
from feature_pipeline.model.text.json_text import Number, parse_number


def column(type_: str, format_: str | None = None, **changes: object) -> Column:
    return Column.model_validate({"name": "x", "type": type_, "format": format_} | changes)


STRING, NUMBER, INTEGER, BOOLEAN, ARRAY, OBJECT = map(column, ColumnType)
DATE, INSTANT, UUID = (column("string", format_) for format_ in ColumnFormat)


class TestDeclaration:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"name": "record_id"}, "every table has a column of that name"),
            ({"name": "Batch"}, "every table has a column of that name"),
            ({"name": "ctid"}, "PostgreSQL has a column of that name"),
            ({"name": "xmin"}, "PostgreSQL has a column of that name"),
            ({"name": "1st"}, "match pattern"),
            ({"name": "a-b"}, "match pattern"),
            ({"name": "a b"}, "match pattern"),
            ({"name": "a\n"}, "match pattern"),
            ({"name": ""}, "match pattern"),
            ({"name": "a" * 64}, "at most 63"),
            ({"name": "é" * 32}, "longer than 63 bytes"),
            ({"type": "float"}, "Input should be 'string', 'number'"),
            ({"type": "number", "format": "date"}, "format date is for type string, not number"),
            ({"format": "time"}, "'date', 'date-time' or 'uuid'"),
            ({"default": 5}, "default: expected a string, found 5"),
            ({"type": "number", "default": math.nan}, "default: not a JSON document"),
            ({"type": "number", "default": math.inf}, "default: not a JSON document"),
            ({"type": "integer", "default": 2**63}, "default: expected an integer within 64 bits"),
            ({"format": "date", "default": "today"}, "default: expected a date"),
            ({"nullable": True}, "Extra inputs are not permitted"),
            ({"renamed_from": []}, "at least 1 item"),
            ({"renamed_from": ["b", "b"]}, "renamed_from: 'b' occurs twice"),
            ({"renamed_from": ["b", "x"]}, "renamed_from: 'x' occurs twice, or is the column's"),
        ],
    )
    def test_the_error_of_a_wrong_column_gives_the_reason(self, changes, words):
        with pytest.raises(ValidationError, match=words):
            column("string", **changes)

    @pytest.mark.parametrize(
        "name", ["a", "_a", "Å_ngström2", "é" * 31, "select", "XMIN", "a" * 63]
    )
    def test_names(self, name):
        assert column("string", name=name).name == name

    def test_it_survives_json(self):
        for declared in (
            column("string", "date-time", unit="Å", description="words", required=True),
            column("object", default={"a": [1, 2.0]}, renamed_from="old"),
            column("string", renamed_from=["newer", "older"]),
        ):
            text = json.dumps(declared.model_dump(mode="json"))
            assert Column.model_validate(json.loads(text)) == declared

    def test_one_former_name_is_declared_the_same_however_it_is_written(self):
        one, listed = column("string", renamed_from="old"), column("string", renamed_from=["old"])
        assert one.model_dump(mode="json") == listed.model_dump(mode="json")
        assert one.model_dump(mode="json")["renamed_from"] == "old"

    def test_kinds(self):
        kinds = [c.kind for c in (STRING, NUMBER, INTEGER, BOOLEAN, ARRAY, OBJECT)]
        assert kinds == ["string", "number", "integer", "boolean", "json", "json"]
        assert [c.kind for c in (DATE, INSTANT, UUID)] == ["date", "date-time", "uuid"]

    @pytest.mark.parametrize(
        ("one", "other", "claimed"),
        [
            ({"name": "a"}, {"name": "a"}, "a"),
            ({"name": "a"}, {"name": "A"}, "A"),
            ({"name": "a"}, {"name": "b", "renamed_from": "a"}, "a"),
            ({"name": "a", "renamed_from": "o"}, {"name": "b", "renamed_from": "o"}, "o"),
            ({"name": "a", "renamed_from": ["n", "o"]}, {"name": "O"}, "O"),
        ],
    )
    def test_columns_that_do_not_go_together(self, one, other, claimed):
        columns = [column("string", **one), column("string", **other)]
        with pytest.raises(InvalidInputError, match=f"both use the name {claimed!r}"):
            check_columns(columns)

    def test_columns_that_do(self):
        check_columns([column("string", name="a", renamed_from="b"), column("string", name="c")])
        check_columns([])


class TestHeader:
    def test_known_text(self):
        assert columns_header([column("string", "date", name="é"), NUMBER]) == (
            '[["é","string","date"],["x","number",null]]'.encode()
        )

    def test_words_about_a_column_do_not_change_content(self):
        message = column(
            "number", unit="Å", description="d", required=True, default=1, renamed_from="o"
        )
        assert columns_header([message]) == columns_header([NUMBER])

    @pytest.mark.parametrize(
        "other", [column("integer"), column("number", name="y"), column("string", "date")]
    )
    def test_name_type_and_format_do(self, other):
        assert columns_header([other]) != columns_header([NUMBER])
        assert columns_header([NUMBER, other]) != columns_header([other, NUMBER])


class TestValues:
    @pytest.mark.parametrize(
        ("declared", "raw", "value"),
        [
            (NUMBER, 1, 1.0),
            (NUMBER, -0.0, -0.0),
            (NUMBER, math.inf, math.inf),
            (INTEGER, 1.0, 1),
            (INTEGER, -(2**63), -(2**63)),
            (INTEGER, 2**60 + 1, 2**60 + 1),
            (BOOLEAN, False, False),
            (ARRAY, [], "[]"),
            (ARRAY, [{"b": 1.0, "a": -0.0}], '[{"a":0,"b":1}]'),
            (OBJECT, {"k": [None, 2**63 - 1]}, '{"k":[null,9223372036854775807]}'),
            (DATE, "0001-01-01", date(1, 1, 1)),
            (DATE, "2024-02-29", date(2024, 2, 29)),
            (INSTANT, "2026-01-31T12:00:00Z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
            (INSTANT, "2026-01-31 12:00:00.5-05:30", datetime(2026, 1, 31, 17, 30, 0, 500000, UTC)),
            (INSTANT, "2026-01-31t12:00:00z", datetime(2026, 1, 31, 12, tzinfo=UTC)),
            (
                INSTANT,
                "2026-01-31T12:00:00.123456000Z",
                datetime(2026, 1, 31, 12, 0, 0, 123456, UTC),
            ),
            (UUID, "C0FFEE00-0000-4000-8000-00000000000A", "c0ffee00-0000-4000-8000-00000000000a"),
        ],
    )
    def test_what_is_kept(self, declared, raw, value):
        decoded = decode_value(declared, raw)
        assert (type(decoded), repr(decoded)) == (type(value), repr(value))

    @pytest.mark.parametrize(
        ("declared", "raw"),
        [
            (STRING, 1), (STRING, ["a"]), (STRING, "\x00"), (STRING, "\ud800"),
            (NUMBER, "1"), (NUMBER, True), (NUMBER, Number("1e400")), (NUMBER, 10**400),
            (INTEGER, True), (INTEGER, 1.5), (INTEGER, math.nan), (INTEGER, math.inf),
            (INTEGER, 2**63), (INTEGER, float(2**63)), (INTEGER, "1"),
            (BOOLEAN, 0), (BOOLEAN, "true"), (ARRAY, {}), (ARRAY, "[]"), (OBJECT, []),
            (ARRAY, [math.nan]), (OBJECT, {"a": [2**63 + 1]}), (ARRAY, [Number("1e400")]),
            (DATE, "2026-1-31"), (DATE, "20260131"), (DATE, "2023-02-29"), (DATE, "0000-01-01"),
            (DATE, "2026-01-31T00:00:00Z"), (DATE, "infinity"), (DATE, 20260131),
            (DATE, "٢٠٢٦-01-31"),
            (INSTANT, "2026-01-31"), (INSTANT, "2026-01-31T12:00Z"), (INSTANT, "now"),
            (INSTANT, "2026-01-31T12:00:00"), (INSTANT, "2026-01-31T12:00:60Z"),
            (INSTANT, "2026-01-31T24:00:00Z"), (INSTANT, "2026-01-31T12:00:00,5Z"),
            (INSTANT, "2026-01-31T12:00:00+05:99"),
            (INSTANT, "2026-01-31T12:00:00+24:00"), (INSTANT, "2026-01-31T12:00:00.0000001Z"),
            (INSTANT, "2026-02-30T12:00:00Z"), (INSTANT, 0),
            (UUID, "c0ffee00000040008000000000000000"), (UUID, "{c0ffee00-0000-4000-8000-0000000}"),
            (UUID, "g0ffee00-0000-4000-8000-000000000000"), (UUID, 5),
            (UUID, "urn:uuid:c0ffee00-0000-4000-8000-000"),
        ],
    )  # fmt: skip
    def test_what_is_refused(self, declared, raw):
        with pytest.raises(InvalidInputError) as caught:
            decode_value(declared, raw)
        assert len(str(caught.value)) < 200

    @pytest.mark.parametrize(
        ("declared", "text", "value"),
        [
            (INTEGER, "9007199254740993.0", 9007199254740993),
            (INTEGER, "9.007199254740993e15", 9007199254740993),
            (INTEGER, "1234567890123456800e-2", 12345678901234568),
            (INTEGER, "9223372036854775807.000", 2**63 - 1),
            (INTEGER, "-9223372036854775808", -(2**63)),
            (INTEGER, "1.2345678901234568e+18", 1234567890123456800),
            (INTEGER, "0e999999999999999999999", 0),
            (INTEGER, "-0.0", 0),
            (NUMBER, "9007199254740992", 2.0**53),
            (NUMBER, "18446744073709551616", 2.0**64),
            (NUMBER, "100000000000000000000", 1e20),
            (NUMBER, "100000000000000000000000", 1e23),
            (NUMBER, "99999999999999991611392", 1e23),
            (NUMBER, "9.9999999999999992e+22", 1e23),
            (NUMBER, "12345678901234567000", 1.2345678901234567e19),
            (NUMBER, "12345678901234567168", 1.2345678901234567e19),
            (NUMBER, "0.1234567890123456789", 0.12345678901234568),
            (NUMBER, "9007199254740993.5", 9007199254740994.0),
            (NUMBER, "1.10", 1.1),
            (NUMBER, "4.9e-324", 5e-324),
            (NUMBER, "-0", -0.0),
            (NUMBER, "-0e5", -0.0),
            (NUMBER, "0.000", 0.0),
            (ARRAY, "9007199254740993.0", "[9007199254740993]"),
            (ARRAY, "9.007199254740993e15", "[9007199254740993]"),
            (ARRAY, "1e20", "[1e+20]"),
            (ARRAY, "100000000000000000000", "[1e+20]"),
            (ARRAY, "18446744073709551616", "[1.8446744073709552e+19]"),
            (ARRAY, "0.1234567890123456789", "[0.12345678901234568]"),
            (ARRAY, "9007199254740993.5", "[9007199254740994]"),
            (ARRAY, "1.10", "[1.1]"),
            (ARRAY, "-0", "[0]"),
        ],
    )  # fmt: skip
    def test_a_number_is_judged_by_its_value(self, declared, text, value):
        raw = parse_number(text)
        decoded = decode_value(declared, [raw] if declared is ARRAY else raw)
        assert (type(decoded), repr(decoded)) == (type(value), repr(value))

    @pytest.mark.parametrize(
        ("declared", "text", "words"),
        [
            (INTEGER, "1.0000000000000000001", "expected an integer, found"),
            (INTEGER, "9223372036854775808", "expected an integer within 64 bits"),
            (INTEGER, "9223372036854775807.5", "expected an integer, found"),
            (INTEGER, "1e-400", "expected an integer, found"),
            (INTEGER, "1e999999999999999999999", "expected an integer within 64 bits"),
            (NUMBER, "9007199254740993", "more digits than a float64 .* is 9007199254740992"),
            (NUMBER, "9007199254740993.0", "more digits than a float64 .* is 9007199254740992"),
            (NUMBER, "12345678901234567891", "more digits than a float64"),
            (NUMBER, "1e-400", "1e-400 is not zero, but the nearest float64 is"),
            (NUMBER, "-1e400", "-1e400 is beyond float64"),
            (NUMBER, "9" * 5000, "beyond float64"),
            (ARRAY, "12345678901234567891", "more digits than a float64"),
            (ARRAY, "1e-400", "is not zero, but the nearest float64 is"),
            (ARRAY, "1e400", "1e400 is beyond float64"),
        ],
    )
    def test_a_number_that_would_become_another_is_refused(self, declared, text, words):
        raw = parse_number(text)
        with pytest.raises(InvalidInputError, match=words) as caught:
            decode_value(declared, [raw] if declared is ARRAY else raw)
        assert len(str(caught.value)) < 200

    @given(st.floats(allow_nan=False, allow_infinity=False), st.integers(0, 25))
    def test_a_float_comes_back_however_many_digits_it_is_written_with(self, value, digits):
        for text in (
            repr(value),
            f"{value:.17g}",
            f"{value:.{17 + digits}e}",
            f"{value:.{digits}f}",
        ):
            if float(text) == value:
                decoded = decode_value(NUMBER, parse_number(text))
                assert decoded == value

    @pytest.mark.parametrize("declared", [STRING, NUMBER, INTEGER, BOOLEAN, DATE, INSTANT, UUID])
    def test_a_huge_or_deep_value_is_refused_in_a_few_words(self, declared):
        deep: object = 1
        for _ in range(50_000):
            deep = [deep]
        for raw in (deep, {"a" * 1000: "b" * 100_000}, list(range(100_000))):
            with pytest.raises(InvalidInputError, match="expected") as caught:
                decode_value(declared, raw)
            assert len(str(caught.value)) < 200

    @given(st.dates())
    def test_every_date(self, day):
        assert decode_value(DATE, day.isoformat()) == day

    @given(
        st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)),  # noqa: DTZ001 (zone follows)
        st.integers(-1439, 1439),
    )
    def test_every_instant_is_kept_in_utc(self, local, offset_minutes):
        instant = local.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
        decoded = decode_value(INSTANT, instant.isoformat())
        assert decoded == instant
        assert isinstance(decoded, datetime)
        assert decoded.tzinfo is UTC

    @given(st.uuids())
    def test_every_uuid(self, value):
        assert decode_value(UUID, str(value).upper()) == str(value)
        assert uuid.UUID(str(decode_value(UUID, str(value)))) == value

    @given(st.integers(-(2**63), 2**63 - 1))
    def test_every_integer_of_64_bits(self, value):
        assert decode_value(INTEGER, json.loads(json.dumps(value))) == value

    @given(st.floats())
    def test_every_float(self, value):
        decoded = decode_value(NUMBER, json.loads(json.dumps(value)))
        assert decoded == value or (math.isnan(value) and math.isnan(decoded))  # type: ignore[arg-type]

    @given(st.text())
    def test_every_text_that_utf8_and_postgresql_can_store(self, text):
        if "\x00" in text:
            with pytest.raises(InvalidInputError):
                decode_value(STRING, text)
        else:
            assert decode_value(STRING, text) == text


class TestRows:
    COLUMNS = (
        column("integer", name="a", required=True),
        column("string", name="b", default="-"),
        column("number", name="c", renamed_from="old_c"),
        column("integer", name="d", required=True, default=0),
    )

    def test_absent_null_and_surplus(self):
        assert decode_row(self.COLUMNS, {"a": 1, "z": object()}) == (1, "-", None, 0)
        assert decode_row(self.COLUMNS, {"a": 1, "b": None, "c": None}) == (1, None, None, 0)

    def test_the_old_name_replaces_an_absent_new_one(self):
        assert decode_row(self.COLUMNS, {"a": 1, "old_c": 2})[2] == 2.0
        assert decode_row(self.COLUMNS, {"a": 1, "old_c": 2, "c": None})[2] is None
        twice = [column("string", name="c", renamed_from=["b", "a"])]
        assert decode_row(twice, {"a": "oldest"}) == ("oldest",)
        assert decode_row(twice, {"a": "oldest", "b": "newer"}) == ("newer",)

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({}, "column 'a': is absent, but is required"),
            ({"a": None}, "column 'a': is null, but is required"),
            ({"a": 1, "d": None}, "column 'd': is null, but is required"),
            ({"a": 1, "old_c": "x"}, "column 'old_c': expected a number, found 'x'"),
        ],
    )
    def test_refusals_name_the_column(self, row, words):
        with pytest.raises(InvalidInputError, match=words):
            decode_row(self.COLUMNS, row)

    def test_decoded_rows_can_be_encoded(self):
        columns = [
            column(c.type, c.format, name=f"c{n}")
            for n, c in enumerate(
                (STRING, NUMBER, INTEGER, BOOLEAN, ARRAY, OBJECT, DATE, INSTANT, UUID)
            )
        ]
        raw = [
            "s",
            1,
            2,
            True,
            [1],
            {},
            "2026-01-31",
            "2026-01-31T12:00:00Z",
            str(uuid.UUID(int=1)),
        ]
        row = decode_row(columns, {f"c{n}": value for n, value in enumerate(raw)})
        encoder = row_encoder(columns)
        assert len(encoder.rows([row])) > len(encoder.rows([(None,) * 9])) > 4
