"""Plot summaries: histograms of numeric columns and bars of outcomes.

matplotlib is an extra, imported on use; no display and no browser is needed.
"""

import io
import math
import warnings
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from feature_pipeline.archive.query.summary import SHOWN_BINS, ColumnSummary, Summary
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.counted import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OUTCOMES: Final = ("passed", "empty", "rejected", "errored")
_COLORS: Final = ("#2b7a3d", "#9bc4a4", "#c98a1b", "#b3342d")
_ACROSS: Final = 3
_FEWEST_BINS: Final = 8
_INCHES: Final = (4.0, 2.8)
_HUGE: Final = 1e300
MEDIA_TYPES: Final = {".png": "image/png", ".svg": "image/svg+xml", ".html": "text/html"}


def draw(summary: Summary, suffix: str, *, dpi: int = 100) -> bytes:
    """Return the plot as `.png`, `.svg`, or a self-contained `.html` page.

    Raises:
        InvalidInputError: `suffix` is another one, or matplotlib is not installed.
    """
    if suffix not in MEDIA_TYPES:
        raise InvalidInputError(f"{suffix!r}: a plot is written as {', '.join(MEDIA_TYPES)}")
    figure = _figure(summary)
    if suffix == ".html":
        return _page(summary, _saved(figure, "svg", dpi).decode()).encode()
    return _saved(figure, suffix.removeprefix("."), dpi)


def _figure(summary: Summary) -> "Figure":
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError as error:
        raise InvalidInputError(
            "matplotlib is not installed: pip install 'feature-pipeline[plot]'"
        ) from error
    pictures = 1 + len(summary.columns)
    across = min(_ACROSS, pictures)
    down = math.ceil(pictures / across)
    figure = Figure(figsize=(_INCHES[0] * across, _INCHES[1] * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flat
    _draw_outcomes(axes[0], summary)
    for axis, column in zip(axes[1:pictures], summary.columns, strict=True):
        _draw_column(axis, column)
    for axis in axes[:pictures]:
        axis.tick_params(labelsize=8)
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[pictures:]:
        axis.set_axis_off()
    return figure


def _draw_outcomes(axis: "Axes", summary: Summary) -> None:
    totals = summary.totals()
    heights = [totals["passed"] - totals["empty"], *(totals[name] for name in OUTCOMES[1:])]
    bars = axis.bar(OUTCOMES, heights, color=_COLORS)
    axis.bar_label(bars, labels=[f"{height:,}" for height in heights], fontsize=8)
    axis.margins(y=0.15)
    axis.set_title("records", fontsize=10)


def _draw_column(axis: "Axes", summary: ColumnSummary) -> None:
    # Rice's rule: more bins than the values can fill are a comb.
    bins = max(_FEWEST_BINS, math.ceil(2 * math.cbrt(summary.values)))
    edges, counts = summary.histogram.bins(min(bins, SHOWN_BINS))
    # An axis reaches beyond its values, and cannot reach beyond float64.
    is_huge = counts.size > 0 and max(-edges[0], edges[-1]) > _HUGE
    if counts.size:
        axis.stairs(counts, edges / _HUGE if is_huge else edges, fill=True, color="#39648f")
    else:
        axis.text(0.5, 0.5, "no values", ha="center", transform=axis.transAxes)
    # Names are not formulas, whatever characters they have.
    axis.set_title(summary.label, fontsize=10, parse_math=False)
    notes = ([f"times {_HUGE:g}"] if is_huge else []) + _left_out(summary)
    axis.set_xlabel(", ".join(notes), fontsize=8)


def _left_out(summary: ColumnSummary) -> list[str]:
    counts = (("NULL", summary.nulls), ("NaN", summary.nans), ("infinite", summary.infinite))
    return [f"{count:,} {what}" for what, count in counts if count]


def _saved(figure: "Figure", form: str, dpi: int) -> bytes:
    sink = io.BytesIO()
    with warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        # No date: the same numbers are the same file.
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(sink, format=form, dpi=dpi, metadata=metadata)
    return sink.getvalue()


def statistics(summary: Summary) -> tuple[list[str], list[list[object]]]:
    """Return headings and lines of a table of the columns' statistics."""
    heads = ["column", "values", "NULL", "NaN", "infinite", "min", "mean", "max"]
    return heads, [
        [c.label, c.values, c.nulls, c.nans, c.infinite, c.minimum, c.mean, c.maximum]
        for c in summary.columns
    ]


def _page(summary: Summary, svg: str) -> str:
    title = escape(f"{summary.dataset}/{summary.hook}")
    heads, lines = statistics(summary)
    svg = svg[svg.index("<svg") :]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        "<style>body{font-family:sans-serif;margin:2em}svg{max-width:100%;height:auto}"
        "td,th{padding:.2em .8em;text-align:right}td:first-child,th:first-child{text-align:left}"
        f"</style><h1>{title}</h1><p>{counted(summary.batches, 'batch')},"
        f" {counted(summary.rows, 'row')}</p>"
        f"{svg}<table>{_row('th', heads)}{''.join(_row('td', line) for line in lines)}</table>"
        "</html>\n"
    )


def _row(tag: str, cells: Sequence[object]) -> str:
    inner = "".join(f"<{tag}>{escape(cell_text(cell))}</{tag}>" for cell in cells)
    return f"<tr>{inner}</tr>"


def cell_text(cell: object) -> str:
    """Return a count or a statistic for display."""
    if cell is None:
        return ""
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)
