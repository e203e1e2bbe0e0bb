"""Files that hooks leave: a bad line costs its record, a bad file costs the hook run."""

import pytest

from feature_pipeline.archive.format.encode import encode_outcomes, encode_rows
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks import json_lines
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.outcomes import DecodedOutput, OutcomeKind, Status
from feature_pipeline_tests.fixtures.columns import EVERY_TYPE
from feature_pipeline_tests.hostile.doors import IDS

FEATURES, REJECTIONS, ERRORS = "features.jsonl", "rejections.jsonl", "errors.jsonl"
NEIGHBOUR = b'{"id": "b", "features": [{"score": 1}]}\n'


def row(member: str) -> bytes:
    return b'{"id": "a", "features": [{%s}]}' % member.encode("utf-8", "surrogatepass")


def decode(files: dict[str, bytes], ids: tuple[str, ...] = IDS) -> DecodedOutput:
    decoded = decode_output(files, ids, EVERY_TYPE, Cardinality.MANY, {})
    # Whatever it is, it can be stored.
    encode_outcomes(decoded.outcomes)
    encode_rows(EVERY_TYPE, decoded.outcomes)
    for text in (*decoded.unknown_ids, *decoded.undeclared_keys, *decoded.notes):
        text.encode()
    return decoded


VALUES = [
    # numbers: judged by their value under the column's type
    ("exponent of nine digits", '"score": 1e999999999', "score': 1e999999999 is beyond float64"),
    ("negative exponent of nine digits", '"score": 1e-999999999', "is not zero, but the nearest"),
    ("just beyond float64", '"score": 1.7976931348623159e308', "is beyond float64"),
    ("half of the least", '"score": 2e-324', "is not zero, but the nearest float64 is"),
    ("a digit too many", '"score": 100000000000000000000000001', "more digits than a float64 holds"),
    ("a number as text", '"score": "1e5"', "score': expected a number, found '1e5'"),
    ("a number in a list", '"score": [1]', "score': expected a number, found"),
    ("infinity as text", '"score": "Infinity"', "expected a number, found 'Infinity'"),
    ("an integer and a half", '"count": 0.5', "count': expected an integer, found 0.5"),
    ("nearly an integer", '"count": 2.0000000000000000000001', "expected an integer, found 2.000"),
    ("an integer as text", '"count": "7"', "count': expected an integer, found '7'"),
    ("an integer as false", '"count": false', "count': expected an integer, found False"),
    ("beyond 64 bits", '"count": 9223372036854775808', "an integer within 64 bits"),
    ("beyond 64 bits by an exponent", '"count": 1e19', "an integer within 64 bits"),
    ("5,000 digits", f'"count": {"7" * 5_000}', "(5000 long)"),
    ("infinity of an integer", '"count": Infinity', "expected an integer, found inf"),
    ("zero of a boolean", '"good": 0', "good': expected true or false, found 0"),
    ("true as text", '"good": "true"', "good': expected true or false, found 'true'"),
    ("NaN of a boolean", '"good": NaN', "good': expected true or false, found nan"),
    # texts
    ("a number of a text", '"name": 1.5', "name': expected a string, found 1.5"),
    ("a list of a text", '"name": ["x"]', "name': expected a string, found"),
    ("a NUL character in the middle", r'"name": "a\u0000b"', "NUL character at position 1"),
    ("half a pair of surrogates", r'"name": "\ud83d"', r"lone surrogate \ud83d at position 0"),
    ("the halves the wrong way round", r'"name": "\ude00\ud83d"', r"lone surrogate \ude00"),
    # formats
    ("a date without zeros", '"day": "2026-1-31"', "day': expected a date such as 2026-01-31"),
    ("a date with a time", '"day": "2026-01-31T00:00:00Z"', "expected a date such as"),
    ("a week", '"day": "2026-W05-1"', "expected a date such as 2026-01-31"),
    ("a day of the year", '"day": "2026-031"', "expected a date such as 2026-01-31"),
    ("the 29th of a common year", '"day": "2025-02-29"', "'2025-02-29' is not a date"),
    ("the year zero", '"day": "0000-01-01"', "'0000-01-01' is not a date"),
    ("digits that are not ASCII", '"day": "２０２６-０１-３１"', "expected a date such as"),
    ("a date with white space", '"day": " 2026-01-31"', "expected a date such as"),
    ("a number of a date", '"day": 20260131', "day': expected a date such as 2026-01-31"),
    ("a time without its zone", '"at": "2026-01-31T12:00:00"', "expected a time with its offset"),
    ("a time with a zone's name", '"at": "2026-01-31T12:00:00 CET"', "expected a time with its"),
    ("an hour too many", '"at": "2026-01-31T24:00:01Z"', "at': "),
    ("a leap second", '"at": "2026-12-31T23:59:60Z"', "at': "),
    ("an offset of a day", '"at": "2026-01-31T12:00:00+24:00"', "at': "),
    ("nanoseconds", '"at": "2026-01-31T12:00:00.000000001Z"', "finer than microseconds"),
    ("seconds since 1970", '"at": 1767225600', "at': expected a time with its offset"),
    ("before the year 1", '"at": "0001-01-01T00:00:00+00:01"', "years 0001 to 9999 in UTC"),
    ("after the year 9999", '"at": "9999-12-31T23:59:59-00:01"', "years 0001 to 9999 in UTC"),
    ("a UUID in braces", '"uid": "{c0ffee00-0000-4000-8000-000000000000}"', "expected a UUID"),
    ("a UUID without hyphens", '"uid": "c0ffee00000040008000000000000000"', "expected a UUID"),
    ("a UUID of a letter too many", '"uid": "c0ffee00-0000-4000-8000-00000000000g"', "a UUID"),
    # lists and objects
    ("a list of an object", '"map": [["a", 1]]', "map': expected an object, found"),
    ("text of an object", r'"map": "{}"', "map': expected an object, found '{}'"),
    ("an object of a list", '"list": {"0": 1}', "list': expected an array, found"),
    ("NaN deep inside", '"list": [{"a": [NaN]}]', "list': "),
    ("1e400 deep inside", '"map": {"a": [[1e400]]}', "1e400 is beyond float64"),
    ("1e-400 deep inside", '"map": {"a": [[1e-400]]}', "is not zero, but the nearest float64 is"),
    ("a NUL character in a key", r'"map": {"a\u0000": 1}', "NUL character"),
    ("half a pair in a key, deep", r'"list": [[{"\udc00": 1}]]', r"lone surrogate \udc00"),
    ("65 levels of objects", '"map": ' + '{"a":' * 65 + "1" + "}" * 65, "nested deeper than 64"),
    ("a key twice, deep", '"map": {"a": [{"k": 1, "k": 1}]}', "key 'k' is in one object twice"),
    ("a key twice by an escape", r'"map": {"k": 1, "\u006b": 2}', "key 'k' is in one object twice"),
]  # fmt: skip


@pytest.mark.parametrize(("member", "words"), [v[1:] for v in VALUES], ids=[v[0] for v in VALUES])
def test_a_bad_value_costs_its_record(member, words):
    decoded = decode({FEATURES: NEIGHBOUR + row(member) + b"\n"})
    bad, neighbour = decoded.outcomes
    assert (bad.status, bad.kind) == (Status.ERRORED, OutcomeKind.INVALID_OUTPUT)
    assert bad.reason.startswith(f"{FEATURES} line 2: ")
    assert words in bad.reason
    assert len(bad.reason) < 400
    assert neighbour.rows[0][1] == 1.0


LINES = [
    ("two ids", FEATURES, b'{"id": "a", "features": [], "id": "b"}', "has two ids"),
    ("an id in another case", FEATURES, b'{"ID": "a", "features": []}', "has no id"),
    ("an id of a number", FEATURES, b'{"id": 12345678901234567890, "features": []}', "not text"),
    ("an id of a list, deep", FEATURES, b'{"id": ' + b"[" * 900 + b"]" * 900 + b"}", "line 2: "),
    ("no object", FEATURES, b'"a"', "expected an object"),
    ("two values", FEATURES, b'{"id": "a", "features": []} {}', "not JSON: Extra data"),
    ("a comma too many", FEATURES, b'{"id": "a", "features": [],}', "not JSON"),
    ("single quotes", FEATURES, b"{'id': 'a', 'features': []}", "column 2: not JSON"),
    ("a comment", FEATURES, b'{"id": "a", "features": []} // done', "not JSON: Extra data"),
    ("Python's None", FEATURES, b'{"id": "a", "features": None}', "column 25: not JSON"),
    ("a hexadecimal number", FEATURES, b'{"id": "a", "x": 0x10}', "not JSON"),
    ("an octal number", FEATURES, b'{"id": "a", "x": 010}', "not JSON"),
    ("a plus", FEATURES, b'{"id": "a", "x": +1}', "not JSON"),
    ("a bare point", FEATURES, b'{"id": "a", "x": .5}', "not JSON"),
    ("a nan of C", FEATURES, b'{"id": "a", "x": nan}', "not JSON"),
    ("an escape that JSON has not", FEATURES, rb'{"id": "a\x41"}', r"not JSON: Invalid \escape"),
    ("half an escape", FEATURES, rb'{"id": "a", "x": "\u12"}', r"not JSON: Invalid \uXXXX escape"),
    ("UTF-16", FEATURES, '{"id": "a"}'.encode("utf-16"), "line 2, column 1: not JSON"),
    ("UTF-16 without its mark", FEATURES, '{"id": "a"}'.encode("utf-16-be"), "not JSON"),
    ("UTF-32", FEATURES, '{"id": "a"}'.encode("utf-32"), "line 2, column 1: not JSON"),
    ("a mark in the middle of the file", FEATURES, b'\xef\xbb\xbf{"id": "a"}', "column 1: not JSON"),
    ("a mark behind the object", FEATURES, b'{"id": "a", "features": []}\xef\xbb\xbf', "Extra data"),
    ("NUL bytes", FEATURES, b"\x00" * 64, "line 2, column 1: not JSON"),
    ("a no-break space outside of texts", FEATURES, b'{"id":\xc2\xa0"a"}', "column 7: not JSON"),
    ("a line separator outside of texts", FEATURES, b'{"id":\xe2\x80\xa8"a"}', "not JSON"),
    ("a vertical tab outside of texts", FEATURES, b'{"id":\x0b"a"}', "column 7: not JSON"),
    ("lines that end in CR alone", FEATURES, b'{"id": "a"}\r{"id": "c"}\r', "end each with a line feed"),
    ("a gzip file", FEATURES, b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "column 1: not JSON"),
    ("a zstd file", FEATURES, b"\x28\xb5\x2f\xfd\x24\x00\x01\x00\x00", "column 1: not JSON"),
    ("a Parquet file", FEATURES, b"PAR1\x15\x04\x15\x15PAR1", "column 1: not JSON"),
    ("an answer of a web server", FEATURES, b"<html><body>504</body></html>", "not JSON"),
    ("a line cut off", FEATURES, b'{"id": "a", "features": [{"score": 1.', "not JSON"),
    ("100,000 levels", FEATURES, b'{"id": "a", "features": ' + b"[" * 100_000 + b"}", "not JSON"),
    ("a rejection that is none", REJECTIONS, b'["a", "no"]', "expected an object"),
    ("a rejection without its record", REJECTIONS, b'{"reason": "no"}', "has no id"),
    ("an error without its record", ERRORS, b'{"error": "x", "retryable": true}', "has no id"),
    ("an error in CSV", ERRORS, b"a,no memory,true", "column 1: not JSON"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line", "words"), [case[1:] for case in LINES], ids=[case[0] for case in LINES]
)
def test_a_line_that_names_no_record_fails_the_hook_run(name, line, words):
    first = NEIGHBOUR if name == FEATURES else b'{"id": "b", "reason": "x", "error": "x"}\n'
    with pytest.raises(InvalidInputError) as raised:
        decode({name: first + line + b"\n"})
    assert str(raised.value).startswith(f"{name} line 2")
    assert words in str(raised.value)
    assert len(str(raised.value)) < 400


MEMBERS = [
    ("features of null", FEATURES, b'{"id": "a", "features": null}', "features: expected a list"),
    ("features of one object", FEATURES, b'{"id": "a", "features": {}}', "found an object"),
    ("features of text", FEATURES, b'{"id": "a", "features": "[]"}', "features: expected a list"),
    ("no features", FEATURES, b'{"id": "a", "feature": []}', "has no features"),
    ("a feature of a list", FEATURES, b'{"id": "a", "features": [null, []]}', "feature 2: expected"),
    ("a feature of text", FEATURES, b'{"id": "a", "features": ["x"]}', "feature 1: expected"),
    ("features twice", FEATURES, b'{"id": "a", "features": [], "features": []}', "twice"),
    ("a byte that is not UTF-8", FEATURES, b'{"id": "a", "features": [{"name": "\xfe"}]}', "0xfe"),
    ("a sequence cut off", FEATURES, b'{"id": "a", "features": [{"name": "\xe2\x82"}]}', "0xe2"),
    ("an overlong slash", FEATURES, b'{"id": "a", "features": [{"name": "\xc0\xaf"}]}', "0xc0"),
    ("a surrogate in UTF-8", FEATURES, b'{"id": "a", "features": [{"name": "\xed\xa0\x80"}]}', "0xed"),
    ("Latin-1", FEATURES, '{"id": "a", "features": [{"name": "Ångström"}]}'.encode("latin-1"), "0xc5"),
    ("a tab in a text", FEATURES, b'{"id": "a", "features": [{"name": "a\tb"}]}', "U+0009"),
    ("a CR in a text", FEATURES, b'{"id": "a", "features": [{"name": "a\rb"}]}', "U+000D"),
    ("no reason", REJECTIONS, b'{"id": "a"}', "reason: expected text, found nothing"),
    ("a reason of a number", REJECTIONS, b'{"id": "a", "reason": 404}', "reason: expected text"),
    ("a reason of null", REJECTIONS, b'{"id": "a", "reason": null}', "expected text, found null"),
    ("a reason with NUL", REJECTIONS, rb'{"id": "a", "reason": "\u0000"}', "NUL character"),
    ("a reason with half a pair", REJECTIONS, rb'{"id": "a", "reason": "\udfff"}', "lone surrogate"),
    ("no error", ERRORS, b'{"id": "a", "retryable": true}', "error: expected text, found nothing"),
    ("an error of an object", ERRORS, b'{"id": "a", "error": {"x": 1}}', "error: expected text"),
    ("retryable of text", ERRORS, b'{"id": "a", "error": "x", "retryable": "no"}', "retryable: "),
    ("retryable of a number", ERRORS, b'{"id": "a", "error": "x", "retryable": 1}', "retryable: "),
    ("retryable of null", ERRORS, b'{"id": "a", "error": "x", "retryable": null}', "found null"),
    ("deep beside the reason", REJECTIONS, b'{"id": "a", "reason": "x", "y": ' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper than 64"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line", "words"), [case[1:] for case in MEMBERS], ids=[case[0] for case in MEMBERS]
)
def test_a_line_that_names_its_record_costs_that_alone(name, line, words):
    files = {FEATURES: NEIGHBOUR}
    files[name] = files.get(name, b"") + line + b"\n"
    decoded = decode(files)
    bad, neighbour = decoded.outcomes
    assert (bad.status, bad.kind) == (Status.ERRORED, OutcomeKind.INVALID_OUTPUT)
    assert bad.reason.startswith(f"{name} line {2 if name == FEATURES else 1}: ")
    assert words in bad.reason
    assert neighbour.status is Status.PASSED


SINGLE = [
    ("empty", b"", "features.json: line 1, column 1: not JSON"),
    ("white space", b" \n\n", "line 3, column 1: not JSON"),
    ("lines", b'{"score": 1}\n{"score": 2}\n', "line 2, column 1: not JSON: Extra data"),
    ("UTF-16", "[]".encode("utf-16"), "not JSON"),
    ("cut off", b'[{"score": 1}', "not JSON"),
    ("gzip", b"\x1f\x8b\x08\x00", "not JSON"),
    ("1,001 values", b"[" + b"0," * 1_000 + b"0]", "has more than 1,000 values"),
]


@pytest.mark.parametrize(("data", "words"), [s[1:] for s in SINGLE], ids=[s[0] for s in SINGLE])
def test_a_single_document_that_is_none_fails_the_hook_run(data, words, monkeypatch):
    monkeypatch.setattr(json_lines, "MOST_LINE_VALUES", 1_000)
    with pytest.raises(InvalidInputError) as raised:
        decode({"features.json": data}, ("a",))
    assert words in str(raised.value)


IDS_OF_NO_RECORD = [
    ("a line end", rb"a\n"),
    ("white space", b" a"),
    ("another case", b"A"),
    ("a part above", b"../a"),
    ("markup", b"<script>alert(1)</script>"),
    ("SQL", b"a'; drop table features.pockets; --"),
    ("a template", b"{{ a }}"),
    ("8 MB", b"y" * (8 << 20)),
    ("half a pair", rb"\ud800"),
    ("a byte that is not UTF-8", b"\xff"),
    ("combined and not", "a\u0301".encode()),
    ("right to left", "a\u202e".encode()),
    ("nothing", b""),
]


@pytest.mark.parametrize(
    "data", [i[1] for i in IDS_OF_NO_RECORD], ids=[i[0] for i in IDS_OF_NO_RECORD]
)
def test_a_line_about_no_record_of_the_batch_is_noted(data):
    decoded = decode({FEATURES: NEIGHBOUR + b'{"id": "%s", "features": []}\n' % data})
    assert decoded.outcomes[0].reason.startswith("no outcome")
    assert decoded.outcomes[1].status is Status.PASSED
    [unknown] = decoded.unknown_ids
    assert len(unknown) < 300


@pytest.mark.parametrize("data", [b"\xff\x00", b"[" * 9_999, b'{"id": "a"}', b"PAR1", b"\r\r\r"])
def test_progress_is_stored_and_not_read(data):
    decoded = decode({FEATURES: NEIGHBOUR, "progress.jsonl": data})
    assert decoded.outcomes[1].status is Status.PASSED
