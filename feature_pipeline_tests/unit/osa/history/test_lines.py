"""Raw output made of a table's rows, and its decoding a column at a time."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from feature_pipeline.archive.format.encode import encode_outcomes, encode_rows, encode_table
from feature_pipeline.archive.format.outcome_columns import OutcomeColumns
from feature_pipeline.hooks.output import FEATURES, decode_output
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.outcomes import DecodedOutput, OutcomeKind, Status
from feature_pipeline.osa.history import lines
from feature_pipeline.osa.history.lines import decode_lines, run_lines

COLUMNS = (
    Column(name="name", type="string"),
    Column(name="score", type="number"),
    Column(name="rank", type="integer"),
    Column(name="good", type="boolean"),
    Column(name="centre", type="array"),
    Column(name="parts", type="object"),
    Column(name="day", type="string", format="date"),
    Column(name="at", type="string", format="date-time"),
    Column(name="run", type="string", format="uuid"),
)
WHEN = datetime(2026, 1, 2, tzinfo=UTC)


def one_by_one(text: bytes, order: list[str], columns: tuple[Column, ...]) -> DecodedOutput:
    """The outcomes as any hook's output is decoded."""
    return decode_output({FEATURES: text}, order, columns, Cardinality.MANY, {})


def check(
    text: bytes,
    order: list[str],
    left: list[str],
    columns: tuple[Column, ...] = (),
    cardinality: Cardinality = Cardinality.MANY,
) -> None:
    """Whether the outcomes are stored as those of any hook's output; `left` names the records whose
    lines are decoded one by one.
    """
    columns = columns or COLUMNS
    decoded = decode_lines(text, order, columns, cardinality)
    assert [each.record_id for each in decoded.one_by_one.outcomes] == left
    wanted = decode_output({FEATURES: text}, order, columns, cardinality, {})
    outcomes = OutcomeColumns.with_rows(columns, order, decoded.rows, decoded.others)
    # equal texts show the sign of zero
    assert repr(list(outcomes)) == repr(list(wanted.outcomes))
    assert encode_table(outcomes.rows) == encode_rows(columns, wanted.outcomes)
    assert encode_table(outcomes.outcomes) == encode_outcomes(wanted.outcomes)
    assert decoded.one_by_one.unknown_ids == wanted.unknown_ids
    assert decoded.one_by_one.undeclared_keys == wanted.undeclared_keys


def line(*rows: str, record: str = "r1") -> bytes:
    return f'{{"id":"{record}","features":[{",".join(rows)}]}}\n'.encode()


EQUAL = [
    '"name":"å \\" \\u00e5","score":0.1,"rank":-5,"good":true',
    '"name":"","score":0,"rank":-1,"good":false,"centre":null,"parts":null',
    '"score":-0.0',
    '"score":1e-07',
    '"score":12345678.000000002,"rank":9223372036854775807',
    '"score":null,"rank":null,"good":null,"name":null,"day":null,"at":null,"run":null',
    '"day":"2026-01-31","at":"2026-01-31T12:00:00.5+02:00"',
    '"run":"85B187A2-4970-5f04-952c-7dd62f2a0cb9"',
    '"centre":[],"parts":{}',
    '"centre":[1, 2.0, -0.0, 1.50, 0.1, 1e5, 1E-7, 123456789012345678, 0.30000000000000004]',
    '"centre":[ "a b", "å", "\\u00e5", "\\"", {"b": 1, "a": [null, true]} ]',
    '"centre":[9007199254740993.0, 9007199254740993]',
    '"parts":{"bb": 1, "a": {"ö": 2.0, "z": "x:y, {"}}',
    '"centre":[-0, 0.0]',
]
SLOW = [
    '"score":NaN',
    '"score":-0',
    '"rank":-0',
    '"score":1e+22',
    '"rank":2.0',
    '"parts":{"a": 0.00000000000000000000000000001}',
]
REFUSED = [
    '"centre":[12345678901234567890]',
    '"score":1e400',
    '"score":1e-400',
    '"score":0.' + "0" * 400 + "1",
    '"score":9007199254740993',
    '"score":"1"',
    '"rank":9223372036854775808',
    '"rank":1.5',
    '"good":1',
    '"name":"\\u0000"',
    '"name":1',
    '"centre":{}',
    '"centre":"[1]"',
    '"centre":[NaN]',
    '"centre":[1e400]',
    '"centre":[1e-400]',
    '"centre":["\\u0000"]',
    '"centre":["\\ud800"]',
    '"centre":' + "[" * 65 + "]" * 65,
    '"parts":[]',
    '"parts":{"a": 1, "a": 2}',
    '"parts":{"a": 1, "b": {"c": 1, "c": 1}}',
    '"day":"2026-02-30"',
    '"at":"2026-01-31T12:00:00"',
    '"run":"85b187a2"',
]


@pytest.mark.parametrize("row", EQUAL)
def test_rows_are_those_that_any_output_is_decoded_to(row: str) -> None:
    text = line("{" + row + "}", "{" + EQUAL[0] + "}") + line("{}", record="r2")
    check(text, ["r1", "r2"], [])


@pytest.mark.parametrize("row", [*SLOW, *REFUSED])
def test_a_special_value_costs_the_line_of_its_record_alone(row: str) -> None:
    first, last = (line("{" + each + "}", record=f"r{n}") for n, each in enumerate(EQUAL[:2]))
    odd = line("{" + EQUAL[0] + "}", "{" + row + "}", record="odd")
    check(first + odd + last, ["r0", "odd", "r1"], ["odd"])
    check(odd, ["odd"], ["odd"])
    check(odd + first + odd.replace(b"odd", b"too"), ["odd", "r0", "too"], ["odd", "too"])


@pytest.mark.parametrize("row", SLOW)
def test_a_special_value_is_a_value(row: str) -> None:
    (outcome,) = one_by_one(line("{" + row + "}"), ["r1"], COLUMNS).outcomes
    assert outcome.status is Status.PASSED


@pytest.mark.parametrize("row", REFUSED)
def test_a_value_that_no_outcome_can_have(row: str) -> None:
    (outcome,) = one_by_one(line("{" + row + "}"), ["r1"], COLUMNS).outcomes
    assert outcome.kind is OutcomeKind.INVALID_OUTPUT


@pytest.mark.parametrize(
    ("column", "left"),
    [
        (Column(name="score", type="number", default=5), ["r1", "r2"]),
        (Column(name="points", type="number", renamed_from="score"), ["r1", "r2"]),
        (Column(name="score", type="number", required=True), ["r1"]),
        (Column(name="rank", type="integer"), ["r1", "r2"]),
    ],
)
def test_columns_of_other_names_defaults_and_required_ones(column: Column, left: list[str]) -> None:
    text = line('{"score":1.0}', "{}", '{"score":null}') + line('{"score":2.5}', record="r2")
    check(text, ["r1", "r2"], left, (column,))


def test_one_row_where_the_cardinality_is_one() -> None:
    text = line("{}", "{}") + line("{}", record="r2")
    check(text, ["r1", "r2"], [])
    check(text, ["r1", "r2"], ["r1"], cardinality=Cardinality.ONE)
    check(text, ["r3", "r2"], ["r3"])


def test_a_line_that_is_too_long_costs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, limit in (("MOST_LINE_BYTES", 150), ("MOST_LINE_VALUES", 12)):
        with monkeypatch.context() as patch:
            patch.setattr(lines, name, limit)
            text = line("{}", *["{}"] * 60) + line("{}", record="r2")
            check(text, ["r1", "r2"], ["r1"])


def test_lines_have_the_order_of_the_records_and_that_of_each_ones_rows() -> None:
    rows = pa.table(
        {
            "id": [3, 4, 5, 6, 7],
            "record_srn": ["s2", "s1", "other", "s2", "s1"],
            "created_at": pa.array([WHEN] * 5, pa.timestamp("us", "UTC")),
            "text": ['{"n":1}', '{"n":2}', '{"n":3}', '{"n":4}', '{"n":5}'],
        }
    )
    made = run_lines(["r1", 'r"2'], {"r1": "s1", 'r"2': "s2"}, rows)
    assert [json.loads(each) for each in made.text.splitlines()] == [
        {"id": "r1", "features": [{"n": 2}, {"n": 5}]},
        {"id": 'r"2', "features": [{"n": 1}, {"n": 4}]},
    ]
    assert made.ids.to_pylist() == [
        {"record": record, "row": row, "id": number, "record_srn": srn, "created_at": WHEN}
        for record, row, number, srn in (
            ("r1", 0, 4, "s1"),
            ("r1", 1, 7, "s1"),
            ('r"2', 0, 3, "s2"),
            ('r"2', 1, 6, "s2"),
        )
    ]
    assert run_lines([], {}, rows).text == b""
