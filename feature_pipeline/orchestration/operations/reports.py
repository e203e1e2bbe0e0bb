"""What the job `feature_report` shows of a hook's features in the UI, made from S3 when asked for.

Belongs here: turning summaries and comparisons into Markdown.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import dagster as dg

from feature_pipeline.archive.logs.log import ReleaseEntry
from feature_pipeline.archive.query import plots
from feature_pipeline.archive.query.compare import (
    Comparison,
    compare_releases,
    find_release,
    last_two_releases,
)
from feature_pipeline.archive.query.features import Features
from feature_pipeline.archive.query.summary import Summary, summarize
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.outcomes import Status
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.orchestration import markdown
from feature_pipeline.orchestration.events.metadata import Metadata
from feature_pipeline.orchestration.markdown import Markup, code, plain

SHOWN_BATCHES: Final = 50
SHOWN_RECORDS: Final = 100
"""Maximum length of a reason."""
MAX_PICTURE_BYTES: Final = 250_000
"""Encoded size. Events are rows of Dagster's database, and the UI loads a run's all at once."""
_DPI: Final = (80, 60, 40)


def report(features: Features, columns: Sequence[str] = ()) -> Metadata:
    """Return outcomes, rejected and errored records, statistics and histograms, of bounded size.

    Raises:
        InvalidInputError: One of `columns` is not a numeric column.
    """
    summary = summarize(features, columns)
    totals = summary.totals()
    metadata: Metadata = {
        "batches": dg.MetadataValue.int(summary.batches),
        "dagster/row_count": dg.MetadataValue.int(summary.rows),
        **{
            name: dg.MetadataValue.int(totals[name])
            for name in ("passed", "rejected", "errored", "empty")
        },
        "outcomes": dg.MetadataValue.md(outcomes_markdown(summary)),
        "rejected_and_errored": dg.MetadataValue.md(unhappy_markdown(features, totals)),
    }
    if summary.columns:
        metadata["columns"] = dg.MetadataValue.md(table(*plots.statistics(summary)))
    metadata["plots"] = dg.MetadataValue.md(picture_markdown(summary))
    if features.damage:
        metadata["left_out"] = dg.MetadataValue.md(damage_markdown(features))
    return metadata


def damage_markdown(features: Features) -> str:
    """List the batches that the report leaves out, and how to see what can be restored."""
    lines = [[batch, quoted(why)] for batch, why in list(features.damage.items())[:SHOWN_BATCHES]]
    count = len(features.damage)
    return (
        f"{counted(count, 'batch')} damaged or lost in the archive, left out with their records in"
        " earlier batches; `feature-pipeline repair` shows what can be restored.\n\n"
        f"{table(['batch', 'what is wrong'], lines)}"
    )


def outcomes_markdown(summary: Summary) -> str:
    """Return outcomes per batch, those with most errors and rejections first."""
    names = ("passed", "empty", "rejected", "errored")
    ordered = sorted(
        summary.outcomes.items(), key=lambda item: (-item[1]["errored"], -item[1]["rejected"])
    )
    totals = summary.totals()
    lines = [[Markup("**all**"), *(totals[name] for name in names)]]
    lines += [[batch, *(counts[name] for name in names)] for batch, counts in ordered]
    shown = table(["batch", *names], lines[: SHOWN_BATCHES + 1])
    left = len(ordered) - SHOWN_BATCHES
    return f"{shown}\n\n{counted(left, 'more batch')} not shown." if left > 0 else shown


def unhappy_markdown(features: Features, totals: "dict[str, int]") -> str:
    """List the first rejected and errored records, and the command that prints all of them."""
    count = totals["rejected"] + totals["errored"]
    if not count:
        return "None."
    lines: list[list[object]] = []
    for outcomes in features.outcomes():
        for row in zip(
            *(outcomes.column(name).to_pylist() for name in ("record_id", "status", "kind")),
            *(outcomes.column(name).to_pylist() for name in ("retryable", "batch", "reason")),
            strict=True,
        ):
            record_id, status, kind, is_retryable, batch, reason = row
            if status != Status.PASSED and len(lines) < SHOWN_RECORDS:
                again = "retryable" if is_retryable else ""
                lines.append([record_id, batch, status, kind or "", again, quoted(reason or "")])
        if len(lines) == SHOWN_RECORDS:
            break
    heads = ["record", "batch", "status", "kind", "", "reason"]
    command = (
        f"feature-pipeline read {features.hook} --dataset {features.dataset}"
        " --status rejected --status errored --format csv"
    )
    return (
        f"{table(heads, lines)}\n\n{len(lines):,} of {counted(count, 'record')}. All: `{command}`"
    )


def picture_markdown(summary: Summary) -> str:
    """Return histograms as one embedded picture; fewer of them if it would be too large."""
    shown = summary
    while True:
        for dpi in _DPI:
            try:
                data = base64.b64encode(plots.draw(shown, ".png", dpi=dpi))
            except InvalidInputError as error:
                return plain(str(error))
            if len(data) <= MAX_PICTURE_BYTES:
                left = len(summary.columns) - len(shown.columns)
                note = (
                    f"\n\n{counted(left, 'more column')}: name them in `columns`." if left else ""
                )
                return f"![histograms](data:image/png;base64,{data.decode()}){note}"
        if not shown.columns:
            return "The picture is too large."
        shown = replace(shown, columns=shown.columns[: len(shown.columns) // 2])


def report_comparison(
    store: BlobStore,
    features: Features,
    from_release: str | None,
    to_release: str | None,
    batches: Sequence[str] | None,
) -> dg.MetadataValue:
    """Show the differences between two releases; by default the last two.

    Raises:
        NotFoundError: There is no such release, or there are not two.
    """
    where = (features.dataset, features.hook)
    before = from_release and find_release(store, *where, from_release)
    after = to_release and find_release(store, *where, to_release)
    if not (before and after):
        last = last_two_releases(store, *where)
        before, after = before or last[0], after or last[1]
    return dg.MetadataValue.md(
        comparison_markdown(compare_releases(store, *where, before, after, batches))
    )


def comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison of two releases."""
    difference = comparison.difference
    parts = [
        f"From {_named(comparison.before)} to {_named(comparison.after)}, over"
        f" {counted(difference.batches, 'batch')}, {difference.equal_batches:,} of them equal.",
        table(
            ["", "equal", "added", "removed", "changed"],
            [
                [what, *(getattr(difference, f"{what}_{how}") for how in _HOW)]
                for what in ("records", "rows")
            ],
        ),
    ]
    changes = [
        *(
            f"{plain(a)} → {plain(b)}: {counted(count, 'record')}"
            for (a, b), count in difference.outcomes.most_common()
        ),
        *(
            f"column {code(name)}: {counted(count, 'row')}"
            for name, count in difference.columns.most_common()
        ),
        *(f"column {code(name)} added" for name in comparison.columns_added),
        *(f"column {code(name)} removed" for name in comparison.columns_removed),
        *(f"column {code(name)} of another type" for name in comparison.columns_retyped),
        *(f"{counted(len(b), 'batch')} under one release only" for b in _only(comparison)),
    ]
    parts.append("\n".join(f"- {change}" for change in changes))
    if difference.examples:
        heads = ["batch", "record", "before", "after", "columns"]
        parts.append(
            table(
                heads,
                [
                    [e.batch, e.record_id, quoted(e.before), quoted(e.after), ", ".join(e.columns)]
                    for e in difference.examples
                ],
            )
        )
    return "\n\n".join(part for part in parts if part)


_HOW: Final = ("equal", "added", "removed", "changed")


def _only(comparison: Comparison) -> list[tuple[str, ...]]:
    return [batches for batches in (comparison.only_before, comparison.only_after) if batches]


def _named(entry: ReleaseEntry) -> str:
    return f"release {plain(entry.release.document.version)} (#{entry.seq})"


def table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table whose cells cannot break out of it."""
    shown = ([c if isinstance(c, Markup) else plots.cell_text(c) for c in line] for line in lines)
    return markdown.table(heads, shown)
