"""Which written column a wanted one is: the table that every way of reading goes by."""

import pytest

from feature_pipeline.model.column_sources import (
    RawKeys,
    UnclearColumnError,
    contradictions,
    own_keys,
    pair_columns,
    raw_keys,
)
from feature_pipeline.model.columns import Column


def columns(*declared: str) -> list[Column]:
    """`b<a` is column b, renamed from a; `c<b,a` renamed twice."""
    return [
        Column(
            name=text.partition("<")[0],
            type="number",
            renamed_from=text.partition("<")[2].split(",") if "<" in text else None,
        )
        for text in declared
    ]


@pytest.mark.parametrize(
    ("written", "wanted", "sources"),
    [
        (["a"], ["a"], ["a"]),
        (["a", "b"], ["b", "a"], ["b", "a"]),
        (["a"], ["b"], [None]),
        (["a"], ["b<a"], ["a"]),
        (["b"], ["b<a"], ["b"]),
        (["b<a"], ["b<a"], ["b"]),
        # the former b was dropped and a has its name now
        (["a", "b"], ["b<a"], ["a"]),
        (["a", "b"], ["c", "b<a"], [None, "a"]),
        # the declaration no longer says what it was called
        (["b<a"], ["b"], ["b"]),
        # renamed twice, listed and not listed
        (["a"], ["c<b,a"], ["a"]),
        (["b"], ["c<b,a"], ["b"]),
        (["b<a"], ["c<b"], ["b"]),
        (["a", "b"], ["c<b,a"], ["b"]),
        (["a"], ["c<b"], [None]),
        # taken back
        (["b<a"], ["a"], ["b"]),
        (["c<b,a"], ["a"], ["c"]),
        (["c<b,a"], ["b<a"], ["c"]),
        # under its own name, and a column of a former name beside it
        (["c<b", "a"], ["c<b,a"], ["c"]),
    ],
)
def test_the_source_of_each_column(written, wanted, sources) -> None:
    pairs = pair_columns(columns(*written), columns(*wanted))
    assert [source and source.name for source in pairs.sources] == sources
    assert not pairs.unclear


@pytest.mark.parametrize(
    ("written", "wanted", "unclear"),
    [
        (["b<a"], ["a", "b"], {"b": ("a", "b")}),
        (["c<b,a"], ["a", "b"], {"c": ("a", "b")}),
        (["b<a", "n"], ["n", "b", "a"], {"b": ("b", "a")}),
    ],
)
def test_a_column_that_may_be_two_is_neither(written, wanted, unclear) -> None:
    pairs = pair_columns(columns(*written), columns(*wanted))
    assert pairs.unclear == unclear
    assert {source and source.name for source in pairs.sources} <= {None, "n"}
    assert "computes them under the present" in pairs.refusals()[0]
    with pytest.raises(UnclearColumnError, match="as it was written, may be"):
        raw_keys(columns(*written), columns(*wanted))


@pytest.mark.parametrize(
    ("written", "wanted", "keys"),
    [
        (["a", "b"], ["b<a"], [RawKeys(("a",))]),
        # an undeclared key is read where the declared key is absent
        (["a"], ["b<a"], [RawKeys(("a",), ("b",))]),
        (["a"], ["a", "n"], [RawKeys(("a",)), RawKeys((), ("n",))]),
        (["b<a"], ["c<b,a"], [RawKeys(("b", "a"), ("c",))]),
        (["b<a"], ["a"], [RawKeys(("b", "a"))]),
        (["b<a"], ["b<a"], [RawKeys(("b", "a"))]),
    ],
)
def test_the_keys_of_each_column_in_raw_output(written, wanted, keys) -> None:
    assert list(raw_keys(columns(*written), columns(*wanted))) == keys


def test_a_hook_writes_under_its_own_columns() -> None:
    [keys] = own_keys(columns("c<b,a"))
    assert keys.all == ("c", "b", "a")


@pytest.mark.parametrize(
    ("declarations", "wanted", "expected"),
    [
        ([["a"], ["b<a"]], ["b<a"], {}),
        ([["a", "b"], ["b<a"]], ["b<a"], {}),
        ([["a"], ["b<a"], ["c<b,a"]], ["b<a"], {}),
        ([["b<a"], ["a"]], ["a"], {}),
        ([["a", "b"], ["a"]], ["a", "b"], {}),
        # nothing links them: a column that was renamed in steps, its first name left out
        ([["a"], ["b<a"]], ["c<b"], {}),
        # the former name is forgotten, and rows from before it are still there
        ([["a", "b"], ["b<a"]], ["b"], {"0": "'b' by its names, and 'a' by the declaration"}),
        ([["a", "b"], ["b<a"], ["b"]], ["b"], {"0": "'b' by its names, and 'a' by"}),
        ([["a", "b"], ["b<a"]], ["c<b"], {"0": "column 'c' is what was written as 'b'"}),
        # of two former names the newer one counts, and here it was another column's before
        ([["a", "b"], ["b<a"]], ["c<b,a"], {"0": "column 'c' is what was written as 'b'"}),
    ],
)
def test_batches_with_different_meanings_of_one_column(declarations, wanted, expected) -> None:
    batches = {str(number): columns(*each) for number, each in enumerate(declarations)}
    batches |= {f"{number} again": each for number, each in batches.items()}
    reasons = contradictions(batches, columns(*wanted))
    assert reasons.keys() == {name for batch in expected for name in (batch, f"{batch} again")}
    for batch, words in expected.items():
        assert words in reasons[batch]
