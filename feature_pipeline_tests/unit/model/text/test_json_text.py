"""JSON as it comes in: every mistake has a place, and numbers are as they were written."""

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import document_bytes
from feature_pipeline.model.text.json_text import (
    Number,
    check_object,
    exact_integer,
    nearest_float,
    parse_document,
    parse_number,
    read_json,
    walk,
)

NUMBERS = st.from_regex(
    r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,25})?([eE][-+]?[0-9]{1,3})?", fullmatch=True
)
WRITTEN = (
    "1.10", "1e-400", "0.1234567890123456789", "1E5", "1e5", "-0", "-0.0", "2.0", "2",
    "12345678901234567891", "100000000000000000000000000000000000000000.5",
)  # fmt: skip


class TestNumbers:
    @pytest.mark.parametrize("text", WRITTEN)
    def test_a_document_has_them_as_they_were_written(self, text):
        data = f'{{"a":[{text}],"b":{text}}}'.encode()
        assert document_bytes(read_json(data, "here")) == data
        assert document_bytes(parse_document(data)) == data

    @given(NUMBERS)
    def test_every_number_is_written_as_it_was_read(self, text):
        assert document_bytes(parse_document(text.encode())) == text.encode()

    @given(NUMBERS)
    def test_an_integer_is_exact_or_is_none(self, text):
        value = Decimal(text)
        is_one = value == value.to_integral_value() and -(2**63) <= value < 2**63
        assert exact_integer(parse_number(text)) == (int(value) if is_one else None)

    @given(NUMBERS)
    def test_a_float_is_the_nearest_or_is_refused(self, text):
        try:
            nearest = nearest_float(parse_number(text))
        except InvalidInputError:
            value = Decimal(text)
            became = float(text)
            assert abs(became) in (0.0, float("inf")) or Decimal(became) != value
        else:
            assert nearest == float(text)

    def test_what_python_writes_in_the_same_way_is_pythons(self):
        assert [type(parse_number(text)) for text in ("1", "1.5", "1e+20", "1e-07")] == [
            int, float, float, float,
        ]  # fmt: skip
        assert [
            type(parse_number(text)) for text in ("1.50", "1e20", "1e-7", "-0", "1" * 5000)
        ] == [Number] * 5


class TestReading:
    @pytest.mark.parametrize(
        ("data", "words"),
        [
            ('{"id": "x",\n "id": "y"}', "line 8, column 2: key 'id' is in one object twice"),
            ('{"a": {"b": 1, "b": 1}}', "line 7, column 16: key 'b' is in one object twice"),
            ('{"a": [1, NaN]}', "line 7, column 11: NaN is not a JSON number"),
            ('{"a": -Infinity}', "line 7, column 7: -Infinity is not a JSON number"),
            ('{"a": 1e400}', "line 7, column 7: 1e400 is beyond float64"),
            ('{"a": 1' + "0" * 400 + "}", "line 7, column 7: 1000.* long. is beyond float64"),
            ('{"a": "\\ud800"}', r"line 7, column 7: lone surrogate \\ud800"),
            ('{"a": "x\ty"}', r"line 7, column 9: control character U\+0009 that is not escaped"),
            ("[" * 65 + "]" * 65, "line 7, column 65: nested deeper than 64 levels"),
            ("[" * 5000 + "]" * 5000, "line 7, column 65: nested deeper than 64 levels"),
            ('{"a": 1', "line 7, column 8: not JSON: Expecting ',' delimiter"),
            ('{"a": 1} {', "line 7, column 10: not JSON: Extra data"),
            ('{"a": 1}\r{"a": 2}\r', "line 7, column 10: .* end each with a line feed"),
            ("{'a': 1}", "line 7, column 2: not JSON"),
            ("", "line 7, column 1: not JSON: Expecting value"),
            ('{"a": 01}', "line 7, column 8: not JSON"),
            (b'{"a": "\xff"}', "line 7, column 8: byte 0xff is not UTF-8"),
            ('{"ä": 1}\n'.encode("latin-1"), "line 7, column 3: byte 0xe4 is not UTF-8"),
            (b'{\n"b": "\xc3\xa4\xc3"}', "line 8, column 8: byte 0xc3 is not UTF-8"),
        ],
    )
    def test_a_mistake_has_a_place(self, data, words):
        with pytest.raises(InvalidInputError, match=f"^list.jsonl, {words}") as caught:
            read_json(data.encode() if isinstance(data, str) else data, "list.jsonl", 7)
        assert len(str(caught.value)) < 200

    def test_a_byte_order_mark_and_pairs_of_surrogates_are_no_mistakes(self):
        assert read_json(b'\xef\xbb\xbf{"a": "\\ud83e\\uddec"}', "x") == {"a": "🧬"}
        assert read_json(b"[" * 64 + b"]" * 64, "x")
        assert read_json(b'[{"a": 1}, {"a": 1}]', "x") == [{"a": 1}] * 2

    @given(st.binary(max_size=60))
    def test_any_bytes_are_read_or_refused_with_a_place(self, data):
        try:
            value = read_json(data, "x")
        except InvalidInputError as error:
            assert str(error).startswith("x, line ")  # noqa: PT017
        else:
            assert parse_document(data.removeprefix(b"\xef\xbb\xbf")) == value

    @given(st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    ))  # fmt: skip
    def test_the_walk_sees_every_key_and_text(self, value):
        document = [
            json.loads(t.text) for t in walk(json.dumps(value)) if t.kind in ("key", "text")
        ]
        assert sorted(document) == sorted(texts_of(value))


class TestStoredDocuments:
    @pytest.mark.parametrize(
        "data", [b"", b"{", b"\xff", b'{"a":1,"a":1}', b"[NaN]", b"[" * 100_000]
    )
    def test_bytes_that_are_none(self, data):
        with pytest.raises(InvalidInputError):
            parse_document(data)

    def test_what_older_releases_took_stays_readable(self):
        for data in (b"[" * 100 + b"]" * 100, b"[1" + b"0" * 400 + b"]"):
            assert document_bytes(parse_document(data)) == data

    @given(NUMBERS, st.text(max_size=5))
    def test_the_writer_for_numbers_writes_the_same_as_the_compiled_one(self, text, word):
        """Whether a document holds such a number must not change how the rest is written."""
        try:
            rest = {word: [True, None, 1, -2.5, 1e-7, {"é\u2028\x7f": word}], "b": []}
            plain = document_bytes(rest)
        except InvalidInputError:
            return
        both = document_bytes(
            {"~": Number(text), **{f"a{key}": value for key, value in rest.items()}}
        )
        assert both == document_bytes(parse_document(both))
        assert document_bytes([Number(text), rest]) == f"[{text},".encode() + plain + b"]"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "expected an object, found a list"),
        (None, "expected an object, found null"),
        ("x", "expected an object, found text"),
        (1.5, "expected an object, found a number"),
        (True, "expected an object, found true or false"),
        ({1: 2}, "an object's key is 1, not text"),
        ({"a": [{1, 2}]}, "set is not a JSON value"),
    ],
)
def test_what_is_no_object(value, words):
    with pytest.raises(InvalidInputError, match=words):
        check_object(value)


def texts_of(value):
    if isinstance(value, str):
        return [value]
    if isinstance(value, list):
        return [text for item in value for text in texts_of(item)]
    if isinstance(value, dict):
        return [*value, *texts_of(list(value.values()))]
    return []
