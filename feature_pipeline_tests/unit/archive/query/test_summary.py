"""What rows come to: exact counts whatever the values and their order; and pictures of them."""

import builtins
import math
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from feature_pipeline.archive.query import plots
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.query.summary import (
    SHOWN_BINS,
    STORED_BINS,
    ColumnSummary,
    Histogram,
    Summary,
    summarize,
)
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

finite = st.floats(allow_nan=False, allow_infinity=False)
HUGE = sys.float_info.max


@given(st.lists(st.lists(finite, max_size=6), max_size=5), st.randoms(use_true_random=False))
@example([[0.0], [5e-324, 1.0]], None)
@example([[HUGE, -HUGE], [5e-324]], None)
@example([[-0.0], [1e-300], [2e-300]], None)
def test_every_value_is_in_its_bin(pieces, random) -> None:
    """Bins are few, of equal width, and hold exactly what lies between their edges."""
    histogram, again = Histogram(), Histogram()
    for piece in pieces:
        histogram.add(np.array(piece, np.float64))
    values = [value for piece in pieces for value in piece]
    for most in (SHOWN_BINS, STORED_BINS, 1):
        edges, counts = histogram.bins(most)
        # A value on each side of 0 cannot share a bin: the edges are multiples of the width.
        assert counts.size <= max(most, 2)
        assert counts.sum() == len(values)
        for low, high, count in zip(edges, edges[1:], counts, strict=False):
            inside = [v for v in values if low <= v < high or v == high == HUGE]
            assert len(inside) == count
    if values and random is not None:
        random.shuffle(values)
        again.add(np.array(values, np.float64))
        assert again.bins(8)[1].sum() == len(values)


def test_whole_numbers_have_bins_of_whole_width() -> None:
    histogram = Histogram(is_whole=True)
    histogram.add(np.array([1.0, 2.0, 2.0, 7.0]))
    edges, counts = histogram.bins()
    assert edges.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert counts.tolist() == [1, 2, 0, 0, 0, 0, 1]


COLUMNS = (
    Column(name="score", type="number", unit="kcal/mol"),
    Column(name="count", type="integer"),
    Column(name="名", type="number", unit="$a_{b}$"),
    Column(name="label", type="string"),
)


@pytest.fixture
def archive() -> FeatureArchive:
    archive = FeatureArchive(COLUMNS)
    archive.add(
        "b1",
        {
            "r1": [{"score": math.nan, "count": 2**60}, {"score": 1.5}, {"score": -math.inf}],
            "r2": "no protein",
            "r3": [],
        },
    )
    archive.add("b2", {"r4": [{"score": 2.5, "count": -3}], "r1": ValueError("boom")})
    return archive


def test_a_summary_counts_everything_once(archive: FeatureArchive) -> None:
    """Record r1 is the later batch's, where it errored: its rows of b1 are not read."""
    features = Archive(archive.store).features("pockets", every_batch=True)
    progress_lines: list[str] = []
    summary = summarize(features, progress=progress_lines.append)
    assert (summary.batches, summary.rows, progress_lines) == (2, 4, ["b2", "b1"])
    assert summary.outcomes == {
        "b2": {"passed": 1, "errored": 1, "empty": 0},
        "b1": {"passed": 2, "rejected": 1, "empty": 1},
    }
    assert summary.totals() == {"passed": 3, "rejected": 1, "errored": 1, "empty": 1}
    heads, lines = plots.statistics(summary)
    assert [dict(zip(heads, line, strict=True)) for line in lines[:2]] == [
        {
            "column": "score [kcal/mol]",
            "values": 2,
            "NULL": 0,
            "NaN": 1,
            "infinite": 1,
            "min": 1.5,
            "mean": 2.0,
            "max": 2.5,
        },
        {
            "column": "count",
            "values": 2,
            "NULL": 2,
            "NaN": 0,
            "infinite": 0,
            "min": -3.0,
            "mean": 2.0**59,
            "max": 2.0**60,
        },
    ]
    assert lines[2][1:3] == [0, 4]
    owned = summarize(Archive(archive.store).features("pockets"), ["count"])
    assert (owned.rows, [c.label for c in owned.columns]) == (1, ["count"])
    with pytest.raises(InvalidInputError, match="no numeric column 'label'; it has score, count"):
        summarize(features, ["label"])


@pytest.mark.parametrize(
    ("suffix", "is_right"),
    [
        (".png", lambda data: data.startswith(b"\x89PNG")),
        (".svg", lambda data: data.startswith(b"<?xml") and data.endswith(b"</svg>\n")),
        (
            ".html",
            lambda data: b"<svg" in data and b"<td>score [kcal/mol]</td><td>1</td>" in data,
        ),
    ],
)
def test_pictures(archive: FeatureArchive, suffix: str, is_right: Callable[[bytes], bool]) -> None:
    """Names with characters of formulas, and of no font, are drawn; the same is drawn the same."""
    summary = summarize(Archive(archive.store).features("pockets"))
    data = plots.draw(summary, suffix)
    assert is_right(data)
    if suffix == ".png":
        assert data == plots.draw(summary, suffix)


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([1e308, -1e308], 0.0),
        ([1.7e308] * 3, 1.7e308),
        ([-sys.float_info.max, sys.float_info.max], 0.0),
        ([1e308, 1.0], 5e307),
        ([5e-324, 0.0], 0.0),
        ([1e300, 1.0001e300], 1.00005e300),
    ],
)
def test_values_at_the_ends_of_float64_are_drawn(values: list[float], mean: float) -> None:
    """Their sum, and an axis around them, are beyond it."""
    column = ColumnSummary.of(Column(name="x", type="number"))
    column.add(pa.chunked_array([pa.array(values, pa.float64())]))
    summary = Summary("demo", "pockets", 1, len(values), [column])
    for suffix in (".png", ".svg", ".html"):
        assert plots.draw(summary, suffix)
    assert column.mean == pytest.approx(mean, rel=1e-15)


def test_values_that_cannot_be_drawn_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match=r"written as \.png, \.svg, \.html"):
        plots.draw(Summary("demo", "pockets", 0), ".pdf")
    actual = builtins.__import__

    def without(name: str, *arguments: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return actual(name, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InvalidInputError, match=r"pip install 'feature-pipeline\[plot\]'"):
        plots.draw(Summary("demo", "pockets", 0), ".png")


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A histogram of ten times the values is no larger."""

    def peak(pieces: int) -> int:
        histogram, random = Histogram(), np.random.default_rng(1)
        tracemalloc.start()
        for number in range(pieces):
            histogram.add(random.normal(scale=10.0**number % 7, size=10_000))
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(100) < 1.2 * peak(10)
