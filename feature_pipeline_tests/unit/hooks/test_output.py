"""Every way to get the output wrong, and what becomes of it (DESIGN 3.1)."""

import io
import json
import math
import os
import tracemalloc
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.archive.format.encode import decode_outcomes, encode_outcomes, encode_rows
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks import json_lines, output
from feature_pipeline.hooks.output import decode_output, raw_files
from feature_pipeline.model.column_sources import raw_keys
from feature_pipeline.model.columns import Column, ColumnType
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import DecodedOutput, Outcome, OutcomeKind, Status
from feature_pipeline_tests.fixtures.columns import EVERY_TYPE, SCORE


def decode(
    files: dict[str, str | bytes],
    ids: tuple[str, ...] = ("a", "b", "c"),
    columns: tuple[Column, ...] = EVERY_TYPE,
    cardinality: Cardinality = Cardinality.MANY,
) -> DecodedOutput:
    data = {
        name: text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        for name, text in files.items()
    }
    return decode_output(data, ids, columns, cardinality, {i: Digest.of(i.encode()) for i in ids})


def lines(*documents: object) -> str:
    return "".join(json.dumps(document) + "\n" for document in documents)


def passed(record_id: str, *features: object) -> str:
    return lines({"id": record_id, "features": list(features)})


def only(files: dict[str, str | bytes], **options: object) -> Outcome:
    """The outcome of record a, after checking that record b was left alone."""
    files = {"features.jsonl": b""} | files
    kept = files["features.jsonl"]
    kept = kept.encode("utf-8", "surrogatepass") if isinstance(kept, str) else kept
    files["features.jsonl"] = passed("b", {"score": 1.5}).encode() + kept
    decoded = decode(files, ("a", "b"), **options)  # type: ignore[arg-type]
    assert decoded.outcomes[1].status is Status.PASSED
    assert decoded.outcomes[1].rows != ()
    assert decoded.outcomes[0].record_id == "a"
    return decoded.outcomes[0]


def invalid(files: dict[str, str | bytes], **options: object) -> str:
    outcome = only(files, **options)
    assert (outcome.status, outcome.kind) == (Status.ERRORED, OutcomeKind.INVALID_OUTPUT)
    assert outcome.is_retryable is False
    assert outcome.reason is not None
    return outcome.reason


def test_each_kind_of_outcome_in_the_order_of_the_batch():
    decoded = decode(
        {
            "rejections.jsonl": lines({"id": "b", "reason": "too short:\n3 residues"}),
            "features.jsonl": passed("d") + passed("a", {"score": 1}, None, {"score": 2.5}),
            "errors.jsonl": lines(
                {"id": "c", "error": "no answer", "retryable": True}, {"id": "e", "error": "bad"}
            ),
        },
        ("a", "b", "c", "d", "e"),
        (SCORE,),
    )
    assert decoded.outcomes == (
        Outcome("a", Status.PASSED, ((1.0,), (2.5,)), action=Digest.of(b"a")),
        Outcome("b", Status.REJECTED, reason="too short:\n3 residues", action=Digest.of(b"b")),
        Outcome(
            "c",
            Status.ERRORED,
            reason="no answer",
            kind=OutcomeKind.HOOK,
            is_retryable=True,
            action=Digest.of(b"c"),
        ),
        Outcome("d", Status.PASSED, action=Digest.of(b"d")),
        Outcome("e", Status.ERRORED, reason="bad", kind=OutcomeKind.HOOK, action=Digest.of(b"e")),
    )
    assert (decoded.unknown_ids, decoded.undeclared_keys, decoded.notes) == ((), (), ())


def test_values_of_every_type():
    row = {
        "name": "Å\n",
        "score": 1,
        "count": 2**63 - 1,
        "good": False,
        "list": [1.0, {"b": 1, "a": None}],
        "map": {},
        "day": "0001-01-01",
        "at": "2026-01-31T12:00:00.123456+02:00",
        "uid": "C0FFEE00-0000-4000-8000-000000000000",
    }
    assert only({"features.jsonl": passed("a", row)}).rows == (
        (
            "Å\n",
            1.0,
            2**63 - 1,
            False,
            '[1,{"a":null,"b":1}]',
            "{}",
            date(1, 1, 1),
            datetime(2026, 1, 31, 10, 0, 0, 123456, tzinfo=UTC),
            "c0ffee00-0000-4000-8000-000000000000",
        ),
    )


def test_nan_and_infinity_are_values_of_number_columns():
    text = '{"id": "a", "features": [{"score": NaN}, {"score": Infinity}, {"score": -Infinity}]}\n'
    rows = only({"features.jsonl": text}, columns=(SCORE,)).rows
    assert math.isnan(rows[0][0])  # type: ignore[arg-type]
    assert rows[1:] == ((math.inf,), (-math.inf,))
    assert {type(row[0]) for row in rows} == {float}


def test_negative_zero_keeps_its_sign():
    rows = only(
        {"features.jsonl": '{"id":"a","features":[{"score":-0.0}]}\n'}, columns=(SCORE,)
    ).rows
    assert math.copysign(1, rows[0][0]) == -1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("member", "column", "message"),
    [
        ('"score": 1e400', "score", "1e400 is beyond float64"),
        ('"score": -1e400', "score", "-1e400 is beyond float64"),
        ('"score": ' + "9" * 5000, "score", "beyond float64"),
        ('"score": 9007199254740993', "score", "more digits than a float64 holds"),
        ('"score": 1e-400', "score", "1e-400 is not zero, but the nearest float64 is"),
        ('"score": "1.5"', "score", "expected a number, found '1.5'"),
        ('"score": true', "score", "expected a number, found True"),
        ('"count": 1.5', "count", "expected an integer, found 1.5"),
        ('"count": NaN', "count", "expected an integer, found nan"),
        ('"count": -9223372036854775809', "count", "an integer within 64 bits"),
        ('"good": 1', "good", "expected true or false, found 1"),
        ('"list": {}', "list", "expected an array, found {}"),
        ('"map": []', "map", "expected an object, found []"),
        ('"list": [NaN]', "list", "found nan"),
        ('"map": {"x": [-Infinity]}', "map", "found -inf"),
        ('"list": [1e400]', "list", "1e400 is beyond float64"),
        ('"list": [18446744073709551617]', "list", "more digits than a float64 holds"),
        (
            '"count": 1.0000000000000000001',
            "count",
            "expected an integer, found 1.0000000000000000001",
        ),
        ('"list": ["\\u0000"]', "list", "NUL character at position 0"),
        ('"map": {"\\ud800": 1}', "map", "lone surrogate \\ud800"),
        ('"list": ' + "[" * 65 + "]" * 65, "list", "nested deeper than 64 levels"),
        ('"name": "x\\u0000"', "name", "NUL character at position 1"),
        ('"name": "\\udfff"', "name", "lone surrogate \\udfff at position 0"),
        ('"name": 5', "name", "expected a string, found 5"),
        ('"day": "2026-02-30"', "day", "'2026-02-30' is not a date"),
        ('"day": "10000-01-01"', "day", "expected a date such as 2026-01-31"),
        ('"day": "-4713-01-01"', "day", "expected a date such as 2026-01-31"),
        ('"at": "2026-01-31T12:00:00"', "at", "expected a time with its offset"),
        ('"at": "2026-01-31T12:00:00.1234567Z"', "at", "finer than microseconds"),
        ('"at": "0001-01-01T00:00:00+01:00"', "at", "years 0001 to 9999 in UTC"),
        ('"at": "9999-12-31T23:59:59-01:00"', "at", "years 0001 to 9999 in UTC"),
        ('"uid": "not one"', "uid", "expected a UUID of 36 characters"),
    ],
)
def test_a_value_that_breaks_its_column_names_line_feature_column_and_reason(
    member, column, message
):
    text = '{"id": "a", "features": [{"score": 1}, {' + member + "}]}\n"
    reason = invalid({"features.jsonl": text})
    assert reason.startswith(f"features.jsonl line 2: feature 2, column {column!r}: ")
    assert message in reason
    assert len(reason) < 300


def test_nesting_of_64_is_accepted():
    text = '{"id": "a", "features": [{"list": ' + "[" * 64 + "1" + "]" * 64 + "}]}\n"
    assert only({"features.jsonl": text}).rows[0][4] == "[" * 64 + "1" + "]" * 64


@pytest.mark.parametrize("depth", [66, 200, 990, 5_000, 200_000])
@pytest.mark.parametrize("place", ["list", "undeclared", "beside"])
def test_nesting_so_deep_that_parsers_give_up_errors_its_record_only(depth, place):
    deep = '[{"id": "x", "y": ' * (depth // 2) + "null" + "}]" * (depth // 2)
    if place == "beside":
        text = f'{{"features": [], "x": {deep}, "id": "a"}}\n'
    else:
        text = f'{{"features": [{{"{place}": {deep}}}], "id": "a"}}\n'
    assert "nested deeper than 64" in invalid({"features.jsonl": text})


@pytest.mark.parametrize("key", ["list", "undeclared"])
def test_the_limit_on_nesting_is_the_same_for_every_reader(key):
    for depth, status in ((64, Status.PASSED), (65, Status.ERRORED)):
        text = f'{{"id": "a", "features": [{{"{key}": {"[" * depth + "1" + "]" * depth}}}]}}\n'
        assert only({"features.jsonl": text}).status is status
        text = f'{{"id": "a", "features": [{{"{key}": {"[" * depth + "]" * depth}}}]}}\n'
        assert only({"features.jsonl": text}).status is status


@pytest.mark.parametrize("deep", ["[" * 100_000, "[" * 100_000 + "}", "[" * 5000 + "]" * 4999])
def test_a_deep_line_that_is_not_json_makes_the_file_unparsable(deep):
    with pytest.raises(InvalidInputError, match=r"features.jsonl line 1, column \d+: not JSON"):
        decode({"features.jsonl": f'{{"id": "a", "features": {deep}}}\n'})


def test_a_deep_line_that_is_cut_off_is_truncated():
    with pytest.raises(InvalidInputError, match="line 1, column 50024: truncated"):
        decode({"features.jsonl": '{"id": "a", "features":' + "[" * 50_000})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"id": "a", "features": [{"score": 1, "score": 1}]}',
            "column 39: key 'score' is in one object twice",
        ),
        ('{"id": "a", "features": [{"map": {"k": 1, "k": 2}}]}', "key 'k' is in one object twice"),
        ('{"id": "a", "features": [], "features": []}', "key 'features' is in one object twice"),
        ('{"id": "a", "id": "a", "features": []}', "key 'id' is in one object twice"),
        ('{"id": "a", "features": [{"name": "a\x00b"}]}', "control character U+0000"),
        ('{"id": "a", "features": [{"name": "a\tb"}]}', "column 37: control character U+0009"),
        ('{"id": "a"}', "has no features: write [] for none"),
        ('{"id": "a", "features": null}', "features: expected a list, found null"),
        ('{"id": "a", "features": {"score": 1}}', "features: expected a list, found an object"),
        ('{"id": "a", "features": "x"}', "features: expected a list, found 'x'"),
        ('{"id": "a", "features": [[1]]}', "feature 1: expected an object, found a list"),
        ('{"id": "a", "features": [{}, 7]}', "feature 2: expected an object, found 7"),
    ],
)
def test_a_line_that_names_its_record_errors_that_record_only(text, message):
    reason = invalid({"features.jsonl": text + "\n"})
    assert reason.startswith("features.jsonl line 2: ")
    assert message in reason


def test_invalid_utf8_errors_the_record_that_its_line_names():
    reason = invalid({"features.jsonl": b'{"id": "a", "features": [{"name": "\xff"}]}\n'})
    assert reason == "features.jsonl line 2: column 36: byte 0xff is not UTF-8"


def test_invalid_utf8_in_the_id_leaves_an_unknown_record():
    decoded = decode({"features.jsonl": b'{"id": "a\xff", "features": []}\n'}, ("a",))
    assert decoded.outcomes[0].reason == (
        "no outcome: it is in none of features.jsonl, rejections.jsonl, errors.jsonl"
    )
    (unknown,) = decoded.unknown_ids
    unknown.encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"id": "b", "features": []}\n{"id": "a", "fea\n', "line 2, column 13: not JSON"),
        (b'{"id": "b", "features": []}\n{"id": "a", "fea', "line 2, column 13: truncated"),
        (b'{"id": "b", "features": []}{"id": "a"}\n', "line 1, column 28: not JSON: Extra data"),
        (b'{"id": "b", "features": []},\n', "line 1, column 28: not JSON: Extra data"),
        (b"\x00\x00\x00\x00\n", "line 1, column 1: not JSON"),
        (b"\xff\xfe{\x00\n", "line 1, column 1: not JSON"),
        (b"[1]\n", "line 1: expected an object"),
        (b"null\n", "line 1: expected an object"),
        (b'{"features": []}\n', "line 1: has no id"),
        (b'{"id": 5}\n', "line 1: id is '5', not text"),
        (b'{"id": null}\n', "line 1: id is 'None', not text"),
        (b'{"id": "a", "id": "b", "features": []}\n', "line 1: has two ids"),
        (b'\n\n{"id": "a", "features": [NULL]}\n', "line 3, column 26: not JSON"),
    ],
)
@pytest.mark.parametrize("name", ["features.jsonl", "rejections.jsonl", "errors.jsonl"])
def test_a_line_without_a_record_id_fails_the_hook_run(name, data, message):
    with pytest.raises(InvalidInputError) as caught:
        decode({name: data})
    assert f"{name} {message}" in str(caught.value)


def test_lines_that_end_in_a_carriage_return_alone_are_named_as_such():
    data = b'{"id": "a", "features": []}\r{"id": "b", "features": []}\r'
    for name in ("features.jsonl", "errors.jsonl"):
        with pytest.raises(InvalidInputError, match=r"column 29: .* end each with a line feed"):
            decode({name: data})


def test_a_last_line_without_its_end_counts_when_it_parses():
    decoded = decode({"features.jsonl": '{"id": "a", "features": []}'}, ("a",))
    assert decoded.outcomes[0].status is Status.PASSED


def test_empty_lines_other_line_ends_and_a_byte_order_mark_are_no_trouble():
    data = b'\xef\xbb\xbf{"id": "a", "features": []}\r\n\r\n  \n{"id": "b", "features": []}\r\n'
    decoded = decode({"features.jsonl": data, "rejections.jsonl": b"\xef\xbb\xbf"}, ("a", "b"))
    assert {outcome.status for outcome in decoded.outcomes} == {Status.PASSED}


def test_a_record_without_outcome_is_errored_even_when_there_is_no_file_at_all():
    decoded = decode({})
    assert {outcome.kind for outcome in decoded.outcomes} == {OutcomeKind.INVALID_OUTPUT}
    assert all((outcome.reason or "").startswith("no outcome") for outcome in decoded.outcomes)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (
            {"features.jsonl": passed("a") * 2},
            "2 outcomes instead of one: features.jsonl line 2, features.jsonl line 3",
        ),
        (
            {
                "features.jsonl": passed("a"),
                "rejections.jsonl": lines({"id": "a", "reason": "no"}),
            },
            "2 outcomes instead of one: features.jsonl line 2, rejections.jsonl line 1",
        ),
        (
            {
                "rejections.jsonl": lines({"id": "a", "reason": "no"}),
                "errors.jsonl": lines({"id": "a", "error": "no"}),
            },
            "2 outcomes instead of one: rejections.jsonl line 1, errors.jsonl line 1",
        ),
        (
            {"features.jsonl": passed("a", 5) + passed("a")},
            "2 outcomes instead of one: features.jsonl line 2, features.jsonl line 3",
        ),
        (
            {"errors.jsonl": lines({"id": "a", "error": "no"}) * 9},
            "9 outcomes instead of one: "
            + ", ".join(f"errors.jsonl line {n}" for n in range(1, 6))
            + " and 4 more",
        ),
    ],
)
def test_two_outcomes_are_none_and_both_places_are_named(files, reason):
    assert invalid(files) == reason


def test_unknown_ids_are_reported_once_and_are_no_failure():
    decoded = decode(
        {
            "features.jsonl": passed("a") + passed("x", 5) + passed("x"),
            "errors.jsonl": lines(
                {"id": "line-3", "error": "malformed"}, {"id": "\ud800", "error": ""}
            ),
        },
        ("a",),
    )
    assert decoded.outcomes[0].status is Status.PASSED
    assert decoded.unknown_ids == ("x", "line-3", "\\ud800")


def test_undeclared_keys_are_reported_and_do_no_harm():
    row = {"score": 1, "surplus": [math.nan], "\x00": 1}
    decoded = decode({"features.jsonl": passed("a", row)}, ("a",), (SCORE,))
    assert decoded.outcomes[0].rows == ((1.0,),)
    assert decoded.undeclared_keys == ("\\x00", "surplus")


def test_a_hook_without_columns_has_rows_of_no_values_only_if_it_writes_any():
    decoded = decode({"features.jsonl": passed("a", None) + passed("b", {})}, ("a", "b"), ())
    assert [outcome.rows for outcome in decoded.outcomes] == [(), ((),)]


def test_absent_takes_the_default_and_null_stays_null():
    columns = (
        Column(name="n", type=ColumnType.INTEGER, default=7),
        Column(name="s", type=ColumnType.STRING),
    )
    text = passed("a", {}, {"n": None, "s": "x"})
    assert decode({"features.jsonl": text}, ("a",), columns).outcomes[0].rows == (
        (7, None),
        (None, "x"),
    )


def test_a_renamed_column_is_read_under_its_old_name():
    columns = (Column(name="new", type=ColumnType.INTEGER, renamed_from="old", required=True),)
    decoded = decode({"features.jsonl": passed("a", {"old": 1}, {"new": 2})}, ("a",), columns)
    assert decoded.outcomes[0].rows == ((1,), (2,))
    assert decoded.undeclared_keys == ()


def test_two_values_for_one_column_are_refused():
    """An unchanged hook goes on writing what was another column before the rename."""
    columns = (Column(name="new", type=ColumnType.INTEGER, renamed_from=["old", "oldest"]),)
    reason = invalid({"features.jsonl": passed("a", {"old": 1, "new": 2})}, columns=columns)
    assert reason.endswith(
        "column 'new': 'new', 'old' are names of this one column, and their values differ: write"
        " one of them"
    )
    both = passed("a", {"old": 2, "new": 2}, {"oldest": None, "old": None})
    decoded = decode({"features.jsonl": both}, ("a",), columns)
    assert decoded.outcomes[0].rows == ((2,), (None,))


def test_output_of_other_columns_is_read_under_the_keys_that_it_has():
    written = (Column(name="a", type="integer"), Column(name="b", type="integer"))
    now = (Column(name="b", type="integer", renamed_from="a"),)
    output = {"features.jsonl": passed("r", {"a": 1, "b": 2}, {"b": 3}).encode()}
    keys = raw_keys(written, now)
    decoded = decode_output(output, ["r"], now, Cardinality.MANY, {}, keys)
    assert decoded.outcomes[0].rows == ((1,), (None,))


@pytest.mark.parametrize(("row", "message"), [({}, "is absent"), ({"score": None}, "is null")])
def test_a_required_column_must_have_a_value(row, message):
    columns = (Column(name="score", type=ColumnType.NUMBER, required=True),)
    reason = invalid({"features.jsonl": passed("a", row)}, columns=columns)
    assert reason.endswith(f"column 'score': {message}, but is required")


def test_cardinality_one_takes_one_row_or_none():
    text = passed("a", None, {"score": 1}, None) + passed("b") + passed("c", {}, {})
    outcomes = decode({"features.jsonl": text}, cardinality=Cardinality.ONE).outcomes
    assert [len(outcome.rows) for outcome in outcomes] == [1, 0, 0]
    assert outcomes[2].reason == "features.jsonl line 3: 2 features, where cardinality is one"


@pytest.mark.parametrize("name", ["reason", "error"])
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "expected text, found nothing"),
        ({"?": None}, "expected text, found null"),
        ({"?": 5}, "expected text, found 5"),
        ({"?": ["x"]}, "expected text, found a list"),
        ({"?": "a\x00"}, "NUL character at position 1"),
        ({"?": "\udc80"}, "lone surrogate \\udc80"),
    ],
)
def test_reasons_and_errors_are_text(name, members, message):
    file = {"reason": "rejections.jsonl", "error": "errors.jsonl"}[name]
    document = {"id": "a"} | dict.fromkeys([name] * len(members), members.get("?"))
    reason = invalid({file: lines(document)})
    assert reason.startswith(f"{file} line 1: {name}: ")
    assert message in reason


def test_a_verdict_without_a_reason_is_valid():
    rejected = only({"rejections.jsonl": lines({"id": "a", "reason": " \n"})})
    assert (rejected.status, rejected.reason) == (Status.REJECTED, "(no reason given)")
    errored = only({"errors.jsonl": lines({"id": "a", "error": "", "retryable": True})})
    assert (errored.kind, errored.is_retryable) == (OutcomeKind.HOOK, True)


@pytest.mark.parametrize("retryable", [None, 1, "true"])
def test_retryable_is_true_or_false(retryable):
    document = {"id": "a", "error": "x", "retryable": retryable}
    assert "retryable: expected true or false" in invalid({"errors.jsonl": lines(document)})


class TestSingleRecordForm:
    @pytest.mark.parametrize(
        ("text", "rows"),
        [
            ('{"score": 1}', ((1.0,),)),
            ('[{"score": 1}, null, {"score": 2}]', ((1.0,), (2.0,))),
            ("[]\n", ()),
            ("[null]", ()),
        ],
    )
    def test_a_list_or_one_object(self, text, rows):
        decoded = decode({"features.json": text}, ("a",), (SCORE,))
        assert decoded.outcomes == (Outcome("a", Status.PASSED, rows, action=Digest.of(b"a")),)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"score": 1e999}', "feature 1, column 'score'"),
            ('[{"score": 1, "score": 2}]', "key 'score' is in one object twice"),
            ("5", "expected a list, found 5"),
            ("null", "expected a list, found null"),
        ],
    )
    def test_what_is_wrong_errors_the_record(self, text, message):
        (outcome,) = decode({"features.json": text}, ("a",), (SCORE,)).outcomes
        assert outcome.kind is OutcomeKind.INVALID_OUTPUT
        assert message in (outcome.reason or "")

    @pytest.mark.parametrize("text", ["", "[{", '[{"score": 1}] x', "[{'score': 1}]"])
    def test_what_is_not_json_fails_the_run(self, text):
        with pytest.raises(InvalidInputError, match=r"features.json: line 1, column \d+: not JSON"):
            decode({"features.json": text}, ("a",))

    def test_it_is_refused_for_a_batch_of_several(self):
        with pytest.raises(InvalidInputError, match=r"got 3: write features\.jsonl"):
            decode({"features.json": "[]", "features.jsonl": passed("a")})

    def test_beside_features_jsonl_it_is_a_second_outcome(self):
        decoded = decode({"features.json": "[]", "features.jsonl": passed("a")}, ("a",))
        assert "features.jsonl line 1, features.json line 1" in (decoded.outcomes[0].reason or "")


class TestFolder:
    def decode(self, folder: Path) -> DecodedOutput:
        return decode_output(folder, ("a",), (SCORE,), Cardinality.MANY, {})

    def test_it_is_read_like_bytes_and_streams(self, tmp_path):
        data = passed("a", {"score": 0.5}).encode()
        (tmp_path / "features.jsonl").write_bytes(data)
        (tmp_path / "progress.jsonl").write_bytes(b"not json at all")
        from_folder = self.decode(tmp_path)
        assert from_folder.outcomes == (Outcome("a", Status.PASSED, ((0.5,),)),)
        again = decode_output(
            {"features.jsonl": io.BytesIO(data)}, ("a",), (SCORE,), Cardinality.MANY, {}
        )
        assert from_folder.read == {"features.jsonl": Digest.of(data)}
        assert again.outcomes == from_folder.outcomes
        by_path = decode_output(raw_files(tmp_path), ("a",), (SCORE,), Cardinality.MANY, {})
        assert by_path == from_folder
        assert set(raw_files(tmp_path)) == {"features.jsonl", "progress.jsonl"}

    def test_files_that_are_not_part_of_the_contract_are_noted(self, tmp_path):
        (tmp_path / "plot.png").write_bytes(b"")
        (tmp_path / "features.jsonl").write_text(passed("a"))
        assert self.decode(tmp_path).notes == ("not stored from the output: plot.png",)

    def test_a_folder_that_does_not_exist_is_an_empty_one(self, tmp_path):
        assert (self.decode(tmp_path / "none").outcomes[0].reason or "").startswith("no outcome")
        assert raw_files(tmp_path / "none") == {}

    def test_links_and_pipes_are_neither_followed_nor_kept(self, tmp_path):
        secret = tmp_path / "secret"
        secret.write_text(passed("a"))
        output = tmp_path / "out"
        output.mkdir()
        (output / "features.jsonl").symlink_to(secret)
        os.mkfifo(output / "errors.jsonl")
        (output / "rejections.jsonl").mkdir()
        assert raw_files(output) == {}
        with pytest.raises(InvalidInputError, match=r"features\.jsonl is not a regular file"):
            self.decode(output)

    def test_a_link_in_the_place_of_the_folder_is_not_followed(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "features.jsonl").write_text(passed("a"))
        (tmp_path / "out").symlink_to(tmp_path / "real")
        assert raw_files(tmp_path / "out") == {}
        with pytest.raises(InvalidInputError, match="replaced by a link"):
            self.decode(tmp_path / "out")

    def test_a_dangling_link_is_not_an_absent_file(self, tmp_path):
        (tmp_path / "features.jsonl").symlink_to(tmp_path / "nowhere")
        with pytest.raises(InvalidInputError, match=r"is not a regular file \(l"):
            self.decode(tmp_path)


HOSTILE: tuple[str | bytes, ...] = (
    *("", " ", "null", "true", "[]", "{}", '""', "NaN", "-Infinity", "1e400", "-0", "9" * 400),
    *('"\\u0000"', '"\\ud800"', '"\\x41"', '"\x01"', '"a\n"', "'a'", "/* */ 1", "1,", "01", "+1"),
    *("[" * 300, '{"a":' * 300 + "1" + "}" * 300, b"\xff", b'"\xed\xa0\x80"', b"\x00", '"\u2028"'),
)
PLACES: dict[str, tuple[str, str]] = {
    "line": ("features.jsonl", "?"),
    "id": ("features.jsonl", '{"id": ?, "features": []}'),
    "features": ("features.jsonl", '{"id": "a", "features": ?}'),
    "feature": ("features.jsonl", '{"id": "a", "features": [?, {"score": 1}]}'),
    "value": ("features.jsonl", '{"id": "a", "features": [{"list": ?}]}'),
    "undeclared": ("features.jsonl", '{"features": [], "more": ?, "id": "a"}'),
    "reason": ("rejections.jsonl", '{"id": "a", "reason": ?}'),
    "retryable": ("errors.jsonl", '{"id": "a", "error": "x", "retryable": ?}'),
    "document": ("features.json", "?"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_hostile_is_decoded_stored_and_read_or_refused(place):
    """Nothing else comes of it, wherever it stands: 252 outputs."""
    name, template = PLACES[place]
    ids = ("a",) if name == "features.json" else ("a", "b", "c")
    before, _, after = template.partition("?")
    for hostile in HOSTILE:
        text = hostile if isinstance(hostile, bytes) else hostile.encode("utf-8", "surrogatepass")
        line = before.encode() + text + after.encode()
        others = passed("b", {"score": 2}) + passed("c") if name == "features.jsonl" else ""
        decoded, refusal = attempt({name: others.encode() + line + b"\n"}, ids)
        if decoded is None:
            assert name in refusal, hostile
            continue
        assert tuple(outcome.record_id for outcome in decoded.outcomes) == ids
        tables = encode_rows(EVERY_TYPE, decoded.outcomes), encode_outcomes(decoded.outcomes)
        stored = decode_outcomes(EVERY_TYPE, *(pq.read_table(io.BytesIO(t)) for t in tables))
        assert repr(stored) == repr(list(decoded.outcomes)), hostile


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda children: (
        st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=4), children, max_size=4)
    ),
    max_leaves=12,
)


@given(st.lists(st.tuples(st.sampled_from("abcx"), JSON_VALUES), max_size=6))
def test_every_record_has_one_outcome_whatever_the_lines_contain(message):
    text = lines(*({"id": record_id, "features": value} for record_id, value in message))
    decoded = decode({"features.jsonl": text})
    assert [outcome.record_id for outcome in decoded.outcomes] == ["a", "b", "c"]
    for outcome in decoded.outcomes:
        (outcome.reason or "").encode()


def attempt(
    files: dict[str, str | bytes], ids: tuple[str, ...] = ("a", "b", "c")
) -> tuple[DecodedOutput | None, str]:
    try:
        return decode(files, ids), ""
    except InvalidInputError as error:
        return None, str(error)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_decoded_or_refused_with_a_place(data):
    decoded, refusal = attempt({"features.jsonl": data, "errors.jsonl": data})
    if decoded is None:
        assert refusal.startswith("features.jsonl line ")
    else:
        assert len(decoded.outcomes) == 3


@given(st.data())
def test_a_file_cut_off_anywhere_is_whole_lines_or_refused(data):
    """A crash of the disk or the hook never turns into other values."""
    whole = (passed("a", {"score": 1.25}) + passed("b") + passed("c", {"name": "Å"})).encode()
    cut = data.draw(st.integers(0, len(whole)))
    complete = decode({"features.jsonl": whole}).outcomes
    decoded, refusal = attempt({"features.jsonl": whole[:cut]})
    if decoded is None:
        assert "truncated" in refusal
        return
    for before, after in zip(complete, decoded.outcomes, strict=True):
        assert after == before or (after.reason or "").startswith("no outcome")


class TestMuch:
    """What is too much to be parsed costs its record; what is quoted of it is cut."""

    @pytest.fixture(autouse=True)
    def little(self, monkeypatch):
        monkeypatch.setattr(json_lines, "MOST_LINE_BYTES", 2_000)
        monkeypatch.setattr(output, "MOST_LINE_BYTES", 2_000)
        monkeypatch.setattr(json_lines, "MOST_LINE_VALUES", 100)

    def test_a_long_line(self):
        text = passed("a", {"name": "x" * 3_000}) + passed("c", {"score": 2.0})
        for end in ("", passed("b", {"score": 1.0})):
            outcomes = decode({"features.jsonl": text + end}).outcomes
            assert outcomes[0].reason == (
                "features.jsonl line 1: has 3,040 bytes; at most 2,000 are read"
            )
            assert outcomes[2].rows == ((None, 2.0, *[None] * 7),)

    def test_a_long_line_that_does_not_begin_with_its_id(self):
        line = json.dumps({"features": [{"name": "x" * 3_000}], "id": "a"})
        with pytest.raises(InvalidInputError, match='does not begin with "id"'):
            decode({"features.jsonl": line})

    def test_a_long_line_twice(self):
        outcome = only({"features.jsonl": passed("a", {"name": "x" * 3_000}) * 2})
        assert (outcome.reason or "").startswith("2 outcomes instead of one")

    def test_a_hole_is_not_read_whole(self, tmp_path):
        with (tmp_path / "features.jsonl").open("wb") as file:
            file.write(passed("a", {"score": 1.0}).encode())
            file.truncate(50_000_000)
        tracemalloc.start()
        with pytest.raises(InvalidInputError, match=r"has 49,999,9\d\d bytes"):
            decode_output(tmp_path, ("a",), (SCORE,), Cardinality.MANY, {})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 5_000_000

    def test_many_values_in_few_bytes(self):
        outcome = only({"features.jsonl": passed("a", *[{}] * 101)})
        assert "has more than 100 values" in (outcome.reason or "")

    def test_commas_in_texts_are_no_values(self):
        outcome = only({"features.jsonl": passed("a", {"name": "," * 500})})
        assert outcome.status is Status.PASSED

    def test_a_large_document(self):
        for text in (json.dumps({"name": "x" * 3_000}), json.dumps([{}] * 101)):
            with pytest.raises(InvalidInputError, match=r"features.json: has (more than|3,012)"):
                decode({"features.json": text}, ("a",))

    def test_ids_in_messages(self):
        long = "i" * 1_900
        for first, last in (("a", long), (long, "a")):
            line = f'{{"id": "{first}", "id": "{last}"}}'
            with pytest.raises(InvalidInputError, match="has two ids") as raised:
                decode({"features.jsonl": line})
            assert len(str(raised.value)) < 400

    def test_unknown_ids_and_keys(self):
        long = "i" * 1_500
        decoded = decode(
            {"features.jsonl": passed(long) + passed("\ud800") + passed("a", {long: 1})}
        )
        cut = f"{long[:200]}... (1,500 characters)"
        assert decoded.unknown_ids == (cut, "\\ud800")
        assert decoded.undeclared_keys == (cut,)

    def test_many_unknown_ids_and_keys(self, monkeypatch):
        monkeypatch.setattr(output, "_MOST_NOTED", 3)
        text = "".join(passed(f"x{n}") for n in range(9))
        decoded = decode({"features.jsonl": text + passed("a", {f"k{n}": n for n in range(9)})})
        assert decoded.unknown_ids == ("x0", "x1", "x2")
        assert len(decoded.undeclared_keys) == 3

    def test_reasons_that_quote_what_was_written(self):
        outcome = only(
            {"features.jsonl": passed("a", {"day": "x" * 1_900})},
            columns=(Column(name="score", type="number"), EVERY_TYPE[6]),
        )
        assert len(outcome.reason or "") < 2_100
