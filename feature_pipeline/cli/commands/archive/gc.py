"""`feature-pipeline gc`: mark blobs that nothing needs, and delete them a grace period later."""

from collections.abc import Sequence
from typing import Final

from feature_pipeline.archive import blobs
from feature_pipeline.archive.maintenance.gc import GcReport, GcScope, collect_garbage
from feature_pipeline.cli.commands.archive.verify import progress_of
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.quantities import format_size

_SHOWN: Final = 20
"""Number of obstacles that are printed; `--json` has all of them."""
_NEXT_ITEM: Final = "\n  - "


def gc(
    is_all: bool,
    shards: tuple[str, ...],
    delete: bool,
    lost: tuple[str, ...],
    new_orphans: int,
    workers: int,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline gc`."""
    Project.find().load_environment()
    output = Output(as_json)
    if is_all == bool(shards):
        raise InvalidInputError("choose the blobs to collect: --all, or --shard (repeatable)")
    scope = GcScope.everything() if is_all else GcScope(frozenset(shards))
    store = open_archive(is_changed=delete)
    with progress_of(output, "deleting") as progress:
        report = collect_garbage(
            store,
            scope,
            is_dry_run=not delete,
            lost=frozenset(map(Digest.parse, lost)),
            new_orphans=new_orphans,
            workers=workers,
            progress=progress,
        )
    output.say(
        f"{counted(report.stored, 'blob')} ({format_size(report.stored_bytes)}) in {store.uri('')}"
    )
    if not report.obstacles:
        _say_orphans(output, report)
    if report.deleted or report.spared:
        output.say(
            f"{len(report.deleted)} deleted ({format_size(report.deleted_bytes)}),"
            f" {len(report.spared)} spared because they were written again"
        )
    say_obstacles(output, report.obstacles)
    if not delete and not report.obstacles:
        output.say("Dry run: nothing was marked or deleted. --delete does both")
    output.result(report.to_json())
    if report.obstacles:
        raise SystemExit(FINDINGS)


def _say_orphans(output: Output, report: GcReport) -> None:
    output.say(f"{report.orphaned} of them ({format_size(report.orphaned_bytes)}) are unneeded")
    if report.first_mark_at is None:
        output.say(f"No mark is {blobs.GRACE.days} days old yet: nothing is due")
    else:
        output.say(
            f"{len(report.due)} ({format_size(report.due_bytes)}) are due: marked"
            f" {report.first_mark_at:%Y-%m-%d %H:%M} UTC, and unchanged since"
        )


def say_obstacles(output: Output, obstacles: Sequence[str]) -> None:
    """Print why nothing is deleted, and how to resolve it."""
    if not obstacles:
        return
    output.say("Nothing is deleted, because the needed blobs cannot be determined:")
    output.say(f"  - {first_few(obstacles, _SHOWN, separator=_NEXT_ITEM)}")
    output.say(
        "Restore what is damaged or missing, then run gc again: `feature-pipeline verify` lists"
        " everything. Use --lost to give up a manifest or batch that cannot be restored"
    )
