"""Digests and canonical encodings: part of the stored format, so known values are pinned."""

import hashlib
import io
import json
import math
import struct
from datetime import UTC, date, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import (
    MAX_NESTING,
    ContentSum,
    Digest,
    RowEncoder,
    _write_json,
    canonical_json,
    canonical_json_bytes,
    check_text,
    digest_stream,
    document_bytes,
    plain_json,
)
from feature_pipeline.model.text.json_text import Number

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
INT64 = st.integers(-(2**63), 2**63 - 1)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | INT64 | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)
HASH = st.binary(min_size=32, max_size=32)
ANY_TEXT = st.text(max_size=8)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT
    | st.sampled_from([Number("1.10"), Number("1e400"), "\x00", "\ud800", "\\u0000"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


class TestDigest:
    def test_known_value(self):
        assert str(Digest.of(b"")) == f"sha256:{hashlib.sha256(b'').hexdigest()}"
        assert Digest.of(b"").short == "e3b0c44298fc"

    @given(st.binary(max_size=100))
    def test_it_reads_what_it_writes(self, data):
        assert Digest.parse(str(Digest.of(data))) == Digest.of(data)

    @pytest.mark.parametrize(
        "text",
        ["", "sha256:", "0" * 64, "md5:" + "0" * 64, "sha256:" + "0" * 63, "sha256:" + "A" * 64,
         "sha256:" + "0" * 65, "SHA256:" + "0" * 64, "sha256:" + "0" * 63 + "\n"],
    )  # fmt: skip
    def test_what_is_no_digest(self, text):
        with pytest.raises(InvalidInputError, match="64"):
            Digest.parse(text)

    @given(st.binary(max_size=300), st.integers(1, 100))
    def test_streams_are_read_from_where_they_are(self, data, chunk):
        stream = io.BytesIO(b"seen" + data)
        stream.read(4)
        assert digest_stream(stream, chunk) == (Digest.of(data), len(data))


def is_same(read: object, value: object) -> bool:
    """A float is what its shortest text says: another reader gets the same float from it."""
    if isinstance(value, dict):
        pairs = [(read[key], item) for key, item in value.items()]  # type: ignore[index]
        return len(read) == len(value) and all(is_same(*pair) for pair in pairs)  # type: ignore[arg-type]
    if isinstance(value, list):
        return len(read) == len(value) and all(map(is_same, read, value))  # type: ignore[arg-type,call-overload]
    return (float(read) if isinstance(value, float) else read) == value  # type: ignore[arg-type]


class TestCanonicalJson:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            ({"b": 1, "a": [True, None]}, '{"a":[true,null],"b":1}'),
            ([1.0, 1, 10**3, 1e3], "[1,1,1000,1000]"),
            ([-0.0, 0.0, 0], "[0,0,0]"),
            ([0.1, 1e-7, 1.5e300], "[0.1,1e-07,1.5e+300]"),
            (2**63 - 1, "9223372036854775807"),
            (-(2**63), "-9223372036854775808"),
            (float(2**63), "9.223372036854776e+18"),
            (2**63, "9.223372036854776e+18"),
            (10**22, "1e+22"),
            (1.2345678901234568e18, "1234567890123456800"),
            (Number("9007199254740993.0"), "9007199254740993"),
            (Number("1.10"), "1.1"),
            (Number("0.12345678901234567890"), "0.12345678901234568"),
            (2.0**53, "9007199254740992"),
            ('é\n"\\\x7f\u2028😀', '"é\\n\\"\\\\\x7f\u2028😀"'),
            ({"é": 1, "z": 2, "Z": 3, "": 4}, '{"":4,"Z":3,"z":2,"é":1}'),
            ((1, 2), "[1,2]"),
        ],
    )
    def test_known_texts(self, value, text):
        assert canonical_json(value) == text
        assert canonical_json_bytes(value) == text.encode()

    @given(JSON)
    def test_it_has_the_same_value_and_is_its_own_canonical_form(self, value):
        text = canonical_json(value)
        assert is_same(json.loads(text), value)
        assert canonical_json(json.loads(text)) == text

    @given(JSON)
    def test_it_does_not_depend_on_how_the_value_was_written(self, value):
        for options in ({"indent": 1}, {"sort_keys": True}, {"ensure_ascii": False}):
            assert canonical_json(json.loads(json.dumps(value, **options))) == canonical_json(value)

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            (math.nan, "nan is not a JSON number"),
            ([math.inf], "inf is not a JSON number"),
            ({"a": -math.inf}, "-inf is not a JSON number"),
            (10**400, "beyond float64"),
            ("a\x00", "NUL character at position 1"),
            ({"\x00": 1}, "NUL character at position 0"),
            (["\ud800"], r"lone surrogate \\ud800 at position 0"),
            ({1: 2}, "an object's key is int, not text"),
            (b"x", "bytes is not a JSON value"),
            (date(2026, 1, 1), "date is not a JSON value"),
        ],
    )
    def test_what_has_no_canonical_form(self, value, words):
        with pytest.raises(InvalidInputError, match=words):
            canonical_json(value)

    @pytest.mark.parametrize("innermost", [None, 1, "x", [], {}])
    def test_nesting(self, innermost):
        """The limit counts arrays and objects, whatever the innermost one holds."""
        containers = isinstance(innermost, list | dict)
        value = innermost
        for _ in range(MAX_NESTING - containers):
            value = [value]
        canonical_json(value)
        with pytest.raises(InvalidInputError, match="deeper than 64"):
            canonical_json({"one": value})


class TestDocuments:
    def test_numbers_stay_as_they_are(self):
        document = {"b": 2.0, "a": 2, "é": [10**30]}
        expected = '{"a":2,"b":2.0,"é":[1000000000000000000000000000000]}'
        assert document_bytes(document) == expected.encode()

    @given(JSON)
    def test_they_come_back_the_same(self, value):
        again = json.loads(document_bytes(value))
        assert repr(again) == repr(json.loads(json.dumps(value, sort_keys=True)))

    @pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": "\ud800"}, b"x", {(): 1}])
    def test_what_is_no_document(self, value):
        with pytest.raises(InvalidInputError, match="not a JSON document"):
            document_bytes(value)

    def test_endless_nesting_is_refused(self):
        value: object = 1
        for _ in range(100_000):
            value = [value]
        with pytest.raises(InvalidInputError, match="not a JSON document"):
            document_bytes(value)


def test_text_that_databases_can_store():
    check_text("é\n\t\ufffe😀")
    for text in ("\x00", "\udfff", "ok\ud83d"):
        with pytest.raises(InvalidInputError, match="at position"):
            check_text(text)


class TestContentSum:
    @given(st.lists(HASH, max_size=6), st.randoms())
    def test_it_does_not_depend_on_order(self, digests, random):
        shuffled = random.sample(digests, len(digests))
        assert ContentSum.of(shuffled) == ContentSum.of(digests)

    @given(st.lists(HASH, max_size=5), st.lists(HASH, max_size=5))
    def test_sums_add_up(self, one, other):
        whole = ContentSum.of(one + other)
        assert ContentSum.of(one) + ContentSum.of(other) == whole
        assert whole - ContentSum.of(other) == ContentSum.of(one)

    @given(HASH)
    def test_a_set_differs_from_one_with_a_record_twice(self, digest):
        """An exclusive-or would forget both."""
        once, twice = ContentSum.of([digest]), ContentSum.of([digest, digest])
        assert (once == twice) == (digest == bytes(32))

    @given(st.lists(HASH, max_size=4))
    def test_it_reads_what_it_writes(self, digests):
        total = ContentSum.of(digests)
        assert ContentSum.parse(str(total)) == total
        assert int.from_bytes(total.to_bytes()) == total.value

    def test_encoding_and_decoding_returns_the_value(self):
        assert ContentSum.of([b"\xff" * 32, bytes(31) + b"\x01"]) == ContentSum(0)
        assert ContentSum(0) - ContentSum(1) == ContentSum(2**256 - 1)


KINDS = ("string", "number", "integer", "boolean", "json", "date", "date-time", "uuid")


def encoder(*kinds: str) -> RowEncoder:
    return RowEncoder(b"[]", kinds)


class TestRows:
    def test_known_bytes(self):
        """Another implementation must be able to make these from docs/format.md."""
        instant, uid = datetime(1970, 1, 1, 0, 0, 1, 2, UTC), "00000000-0000-0000-0000-0000000000ff"
        row = ("é", -1.5, -1, False, "{}", date(1969, 12, 31), instant, uid)
        expected = (
            struct.pack(">I", 2)
            + b"s\x00\x00\x00\x02\xc3\xa9"
            + b"d" + struct.pack(">d", -1.5)
            + b"i" + struct.pack(">q", -1)
            + b"F"
            + b"j\x00\x00\x00\x02{}"
            + b"D" + struct.pack(">q", -1)
            + b"t" + struct.pack(">q", 1_000_002)
            + b"u" + bytes(15) + b"\xff"
            + b"N" * 8
        )  # fmt: skip
        assert encoder(*KINDS).rows([row, (None,) * 8]) == expected

    def test_one_nan_and_two_zeros(self):
        other_nan = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]
        numbers = encoder("number")
        assert numbers.rows([(math.nan,)]) == numbers.rows([(other_nan,)])
        assert numbers.rows([(0.0,)]) != numbers.rows([(-0.0,)])
        assert numbers.rows([(math.nan,)]) != numbers.rows([(None,)])

    @given(st.datetimes(timezones=st.just(UTC)))
    def test_instants_are_exact_to_the_microsecond(self, instant):
        (encoded,) = struct.unpack(">q", encoder("date-time").rows([(instant,)])[5:])
        assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=encoded) == instant

    def test_an_instant_is_one_whatever_its_offset(self):
        instant = datetime(2026, 1, 31, 12, tzinfo=UTC)
        moved = instant.astimezone(timezone(timedelta(hours=5, minutes=30)))
        rows = encoder("date-time").rows
        assert rows([(instant,)]) == rows([(moved,)])

    @given(
        st.lists(st.lists(st.none() | TEXT, min_size=2, max_size=2), max_size=3),
        st.lists(st.lists(st.none() | TEXT, min_size=2, max_size=2), max_size=3),
    )
    def test_different_rows_have_different_encodings(self, one, other):
        encode = encoder("string", "string").rows
        assert (encode(one) == encode(other)) == (one == other)

    def test_a_row_of_another_length_is_not_encoded(self):
        with pytest.raises(ValueError, match="argument"):
            encoder("string").rows([("a", "b")])

    def test_outcomes_differ_by_each_field(self):
        encode = encoder("string")
        rows = encode.rows([("x",)])
        outcomes = {
            encode.outcome_digest("r", "passed", None, rows),
            encode.outcome_digest("s", "passed", None, rows),
            encode.outcome_digest("r", "rejected", None, rows),
            encode.outcome_digest("r", "passed", "", rows),
            encode.outcome_digest("r", "passed", None, encode.rows([])),
            RowEncoder(b"[1]", ["string"]).outcome_digest("r", "passed", None, rows),
            encode.rows_digest("r", rows),
        }
        assert len(outcomes) == 7

    def test_the_content_digest_names_columns_and_outcomes(self):
        one, other = encoder("string"), RowEncoder(b"{}", ["string"])
        digests = {e.content_digest(ContentSum(n)) for e in (one, other) for n in (5, 6)}
        assert len(digests) == 4


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


class TestPlainJson:
    @given(ANY_JSON)
    def test_it_is_the_canonical_text_or_nothing(self, value):
        if (text := plain_json(value)) is not None:
            parts: list[str] = []
            _write_json(value, parts, 0)
            assert text == "".join(parts)

    def test_it_is_the_text_of_usual_values(self):
        value = [{"b": [0.1, -3, None, True], "a": "é\n"}]
        assert plain_json(value) == '[{"a":"é\\n","b":[0.1,-3,null,true]}]'

    @pytest.mark.parametrize(
        "value",
        [1.0, -0.0, math.nan, math.inf, 2**63, Number("1.10"), "\x00", "\ud800", {1: 2},
         {"\x00": 1}, nested(MAX_NESTING + 1)],
    )  # fmt: skip
    def test_it_is_nothing_of_others(self, value):
        assert plain_json([value]) is None
        assert plain_json({"a": value}) is None
