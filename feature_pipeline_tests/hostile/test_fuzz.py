"""Changed input at every door: it is taken, and read back as it was, or refused by this package."""

import json
import os
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_pipeline_tests.hostile.targets import Target, targets

NAMES = sorted(targets())
# Read at import: the session takes such variables out of the environment.
EXAMPLES = int(os.environ.get("FEATURE_PIPELINE_TEST_EXAMPLES", "32"))

FRAGMENTS = st.sampled_from(
    [
        *(b"\x00", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b"\r", b"\n", b" "),
        *(
            b'"',
            b"{",
            b"}",
            b"[",
            b"]",
            b",",
            b":",
            b"\\",
            rb"\ud800",
            rb"\u0000",
            b"null",
            b"true",
        ),
        *(b"NaN", b"-Infinity", b"1e400", b"1e-400", b"-0", b"9" * 400, b"0.1", b"1.10", b'"x"'),
        *(b"[" * 300, b'{"a":' * 300, b"*a", b"&a ", b"!!binary ", b"<<: ", b"---\n", b"\t"),
    ]
)
JSON_TEXTS = st.one_of(
    st.sampled_from(
        [
            *("null", "true", "-1", "0", "1.0", "1e400", "1e-400", "NaN", "[]", "{}", '""', '"5"'),
            *(r'"\ud800"', r'"a\u0000"', r'"x\ny"', r'"..\/x"', r'"\u2028"', "9" * 5_000),
            *('"0001-01-01T00:00+14:00"', "[" * 400 + "]" * 400, '"' + "y" * 20_000 + '"'),
            '{"a": 1, "a": 1}',
        ]
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ).map(json.dumps),
)


@cache
def target(name: str) -> Target:
    return targets()[name]


@st.composite
def changed_bytes(draw: st.DrawFn, good: bytes) -> bytes:
    """Good bytes with parts left out, replaced and put in."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        data[at : at + size] = draw(FRAGMENTS | st.binary(max_size=12))
    return bytes(data)


def places(value: object, path: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    inner: list[tuple[object, object]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [place for key, item in inner for place in ((*path, key), *places(item, (*path, key)))]


@st.composite
def changed_values(draw: st.DrawFn, good: bytes) -> bytes:
    """A good JSON document with other values, without some, and with more."""
    root = json.loads(good)
    texts: list[str] = []
    for _ in range(draw(st.integers(1, 3))):
        known = places(root)
        if not known:
            break
        *parents, last = draw(st.sampled_from(known))
        place = root
        for part in parents:
            place = place[part]
        how = draw(st.sampled_from(["replace", "leave out", "add"]))
        if how == "leave out":
            del place[last]
            continue
        mark = f"@{len(texts)}@"
        texts.append(draw(JSON_TEXTS))
        if how == "add" and isinstance(place, dict):
            place[draw(st.text(max_size=5))] = mark
        else:
            place[last] = mark
    written = json.dumps(root, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    for number, text in enumerate(texts):
        written = written.replace(f'"@{number}@"', text)
    end = b"\n" if good.endswith(b"\n") else b""
    return written.encode("utf-8", "surrogatepass") + end


@pytest.mark.parametrize("name", NAMES)
def test_good_input_is_taken(name):
    assert target(name)(target(name).good)


@pytest.mark.parametrize("name", NAMES)
def test_changed_bytes(name):
    @settings(max_examples=EXAMPLES)
    @given(changed_bytes(target(name).good))
    def check(data: bytes) -> None:
        target(name)(data)

    check()


@pytest.mark.parametrize("name", [n for n in NAMES if target(n).good.lstrip()[:1] in b"[{"])
def test_changed_values(name):
    @settings(max_examples=EXAMPLES)
    @given(changed_values(target(name).good))
    def check(data: bytes) -> None:
        target(name)(data)

    check()
