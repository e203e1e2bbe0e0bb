"""Counts, statistics and histograms of rows and outcomes, in one pass over the archive.

Memory is bounded by the batches being read, whatever the number of rows: a histogram has a fixed
number of bins, whose width doubles when a value lies outside of them.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.query.features import BATCH, Features
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column, ColumnType
from feature_pipeline.model.outcomes import Status

STORED_BINS: Final = 1024
SHOWN_BINS: Final = 40
NUMERIC: Final = frozenset({ColumnType.NUMBER, ColumnType.INTEGER})
_EXACT_BITS: Final = 52
"""Bins are numbered by integers that float64 represents exactly."""
_SMALLER: Final = 64

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


class Histogram:
    """Exact counts of finite numbers in bins of equal width, a power of two.

    Bin n holds the values from n times the width up to, not including, n + 1 times. Two bins make
    one of double width exactly, so the counts do not depend on the order of the values.

    Args:
        is_whole: The values are integers: bins are no narrower than 1.
    """

    def __init__(self, is_whole: bool = False) -> None:
        self._exponent = 0 if is_whole else -1074  # the smallest float64 above 0
        self._first = 0
        self._counts: Counts = np.zeros(0, np.int64)

    def add(self, values: Floats) -> None:
        """Count these, which must be finite."""
        if not values.size:
            return
        self._widen(self._exponent_with(float(values.min()), float(values.max())))
        numbers = _bin_numbers(values, self._exponent)
        first = int(numbers.min())
        counts = np.bincount(numbers - first)
        self._first, self._counts = _sum(self._first, self._counts, first, counts)

    def _exponent_with(self, low: float, high: float) -> int:
        """Return the least exponent with which all values need few enough bins."""
        exponent = _exponent_for(low, high, STORED_BINS, self._exponent)
        if not self._counts.size:
            return exponent
        ours = self._first, self._first + self._counts.size - 1
        while True:
            shift = exponent - self._exponent
            numbers = [number >> shift for number in ours]
            numbers += _bin_numbers(np.array([low, high]), exponent).tolist()
            if max(numbers) - min(numbers) < STORED_BINS:
                return exponent
            exponent += 1

    def bins(self, most: int = SHOWN_BINS) -> tuple[Floats, Counts]:
        """Return edges, one more than counts, and counts of at most `most` bins."""
        if not self._counts.size:
            return np.zeros(0), self._counts
        copy = Histogram()
        copy._exponent, copy._first, copy._counts = self._exponent, self._first, self._counts
        # Values on both sides of 0 never share a bin, however wide.
        while copy._counts.size > max(most, 2):
            copy._widen(copy._exponent + 1)
        numbers = np.arange(copy._first, copy._first + copy._counts.size + 1, dtype=np.float64)
        with np.errstate(over="ignore"):
            edges = np.ldexp(numbers, copy._exponent)
        return np.clip(edges, -sys.float_info.max, sys.float_info.max), copy._counts

    def _widen(self, exponent: int) -> None:
        doublings = exponent - self._exponent
        self._exponent = exponent
        if not doublings or not self._counts.size:
            return
        numbers = np.arange(self._first, self._first + self._counts.size) >> min(doublings, 63)
        self._first = int(numbers[0])
        self._counts = np.bincount(numbers - self._first, self._counts).astype(np.int64)


def _exponent_for(low: float, high: float, most: int, least: int) -> int:
    """Return the least exponent, from `least`, with which the values fit into `most` bins."""
    largest = max(abs(low), abs(high))
    exponent = max(least, math.frexp(largest)[1] - _EXACT_BITS) if largest else least
    # The subtraction may overflow where the values are of both signs and huge; halves do not.
    span = math.frexp(high / 2 - low / 2)[1] + 1 if high > low else -1074
    exponent = max(exponent, span - int(math.log2(most)) - 1)
    while np.ptp(_bin_numbers(np.array([low, high]), exponent)) >= most:
        exponent += 1
    return exponent


def _bin_numbers(values: Floats, exponent: int) -> Counts:
    scaled = np.ldexp(values, -exponent)
    numbers = np.floor(scaled).astype(np.int64)
    # What is negative and too small beside the width becomes -0, which is not below 0.
    numbers[(scaled == 0) & (values < 0)] = -1
    return numbers


def _sum(first: int, counts: Counts, other: int, more: Counts) -> tuple[int, Counts]:
    if not counts.size:
        return other, more.astype(np.int64)
    start = min(first, other)
    total = np.zeros(max(first + counts.size, other + more.size) - start, np.int64)
    total[first - start : first - start + counts.size] += counts
    total[other - start : other - start + more.size] += more
    return start, total


@dataclass
class ColumnSummary:
    """One numeric column over all rows."""

    column: Column
    histogram: Histogram
    values: int = 0
    """Number of finite values; the histogram counts these."""
    nulls: int = 0
    nans: int = 0
    infinite: int = 0
    minimum: float | None = None
    maximum: float | None = None
    _sum: float = 0.0
    _small_sum: float = 0.0
    """Sum of the values divided by 2^64, which does not overflow."""

    @classmethod
    def of(cls, column: Column) -> "ColumnSummary":
        """Return an empty summary of the column."""
        return cls(column, Histogram(is_whole=column.type is ColumnType.INTEGER))

    @property
    def mean(self) -> float | None:
        """Mean of the finite numbers."""
        if self.minimum is None or self.maximum is None:
            return None
        if math.isfinite(self._sum):
            return self._sum / self.values
        mean = math.ldexp(self._small_sum / self.values, _SMALLER)
        return min(max(mean, self.minimum), self.maximum)

    @property
    def label(self) -> str:
        """Name and unit."""
        unit = self.column.unit
        return f"{self.column.name} [{unit}]" if unit else self.column.name

    def add(self, array: "pa.ChunkedArray[Any]") -> None:
        """Count these values."""
        self.nulls += array.null_count
        filled: Any = pc.cast(array.drop_null(), pa.float64(), safe=False)
        numbers: Floats = filled.to_numpy()
        finite = numbers[np.isfinite(numbers)]
        nans = int(np.isnan(numbers).sum())
        self.nans += nans
        self.infinite += numbers.size - finite.size - nans
        if not finite.size:
            return
        self.values += finite.size
        with np.errstate(over="ignore", invalid="ignore"):
            self._sum += float(finite.sum())
            self._small_sum += float(np.ldexp(finite, -_SMALLER).sum())
        low, high = float(finite.min()), float(finite.max())
        self.minimum = low if self.minimum is None else min(low, self.minimum)
        self.maximum = high if self.maximum is None else max(high, self.maximum)
        self.histogram.add(finite)


@dataclass
class Summary:
    """Totals of a hook's rows and outcomes."""

    dataset: str
    hook: str
    batches: int
    rows: int = 0
    columns: list[ColumnSummary] = field(default_factory=list)
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    """By batch, from the one submitted last, the number of records per outcome; `empty` also
    passed.
    """

    def totals(self) -> Counter[str]:
        """Return the number of records per outcome, over all batches."""
        return sum(self.outcomes.values(), Counter())


def summarize(
    features: Features,
    columns: Collection[str] = (),
    progress: Callable[[str], None] = lambda _: None,
) -> Summary:
    """Count the outcomes and summarize the numeric columns of `features`.

    Args:
        features: What to read.
        columns: Names of numeric columns; all of them by default.
        progress: Called with every batch after its rows have been counted.

    Raises:
        InvalidInputError: A name is not that of a numeric column.
        NotFoundError, CorruptDataError: A blob is missing, or does not match its name.
    """
    numeric = {c.name: c for c in features.columns if c.type in NUMERIC}
    if unknown := [name for name in columns if name not in numeric]:
        raise InvalidInputError(
            f"hook {features.hook!r} has no numeric column {unknown[0]!r}; it has"
            f" {', '.join(numeric) or 'none'}"
        )
    chosen = [numeric[name] for name in dict.fromkeys(columns)] or list(numeric.values())
    summary = Summary(
        features.dataset,
        features.hook,
        0,
        columns=[ColumnSummary.of(column) for column in chosen],
    )
    for batch, table in features.batch_tables():
        summary.batches += 1
        summary.rows += len(table)
        for summarized in summary.columns:
            summarized.add(table.column(summarized.column.name))
        progress(batch)
    for table in features.outcomes().tables():
        if len(table):
            summary.outcomes[table.column(BATCH)[0].as_py()] = _count_outcomes(table)
    return summary


def _count_outcomes(table: pa.Table) -> Counter[str]:
    statuses: list[Any] = table.column("status").to_pylist()
    counts = Counter[str](statuses)
    rows = zip(statuses, table.column("row_count").to_pylist(), strict=True)
    counts["empty"] = sum(status == Status.PASSED and not count for status, count in rows)
    return counts
