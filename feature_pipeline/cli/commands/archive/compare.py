"""`feature-pipeline compare`: compare two releases of a hook over the same batches."""

from feature_pipeline.archive.logs.log import ReleaseEntry
from feature_pipeline.archive.query.compare import (
    Comparison,
    compare_releases,
    find_release,
    last_two_releases,
)
from feature_pipeline.cli.commands.archive.verify import find_dataset
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import NotFoundError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few


def compare(
    hook: str,
    before: str | None,
    after: str | None,
    batches: tuple[str, ...],
    dataset: str | None,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline compare`."""
    Project.find().load_environment()
    output = Output(as_json)
    store = open_archive(is_changed=False)
    where = find_dataset(store, hook, dataset)
    if where is None:
        raise NotFoundError(f"no dataset of the archive has hook {hook!r}")
    if before is None or after is None:
        defaults = last_two_releases(store, where, hook)
    old = defaults[0] if before is None else find_release(store, where, hook, before)
    new = defaults[1] if after is None else find_release(store, where, hook, after)
    comparison = compare_releases(store, where, hook, old, new, batches or None)
    _show(output, comparison)
    output.result({"dataset": where, "hook": hook, **comparison.to_json()})


def named(entry: ReleaseEntry) -> str:
    """Return a release's name for display."""
    return f"{entry.release.document.version} (#{entry.seq}, {entry.release.digest.short})"


def _show(output: Output, comparison: Comparison) -> None:
    difference = comparison.difference
    output.say(f"from {named(comparison.before)} to {named(comparison.after)}")
    output.say(
        f"{counted(difference.batches, 'batch')}, {difference.equal_batches:,} of them equal"
    )
    output.table(
        "",
        ["", "equal", "added", "removed", "changed"],
        [
            [what, *(getattr(difference, f"{what}_{how}") for how in _HOW)]
            for what in ("records", "rows")
        ],
    )
    for what, names in (
        ("columns added", comparison.columns_added),
        ("columns removed", comparison.columns_removed),
        ("columns of another type, not compared", comparison.columns_retyped),
        ("batches that only the first was run over", comparison.only_before),
        ("batches that only the second was run over", comparison.only_after),
    ):
        if names:
            output.say(f"{what}: {first_few(names, _SHOWN)}")
    for (status, other), count in difference.outcomes.most_common():
        output.say(f"{status} -> {other}: {counted(count, 'record')}")
    if difference.reasons_changed:
        records = counted(difference.reasons_changed, "record")
        output.say(f"same status, another reason: {records}")
    for column, count in difference.columns.most_common():
        output.say(f"column {column} differs in {counted(count, 'row')}")
    if difference.examples:
        output.table(
            "examples",
            ["batch", "record", "before", "after", "columns"],
            [
                [e.batch, e.record_id, e.before[:_WIDE], e.after[:_WIDE], ", ".join(e.columns)]
                for e in difference.examples
            ],
        )


_HOW = ("equal", "added", "removed", "changed")
_SHOWN = 10
_WIDE = 40
"""Characters of a reason that are shown; --json has all of them."""
