"""`feature-pipeline verify`: the archive is read again, and what is wrong is named."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.findings import Scope
from feature_pipeline.archive.inspection.verify import verify as verify_archive
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.databases import ask_databases
from feature_pipeline.cli.output import Output, json_option, size
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import InvalidInputError, NotFoundError

_SHOWN = 200


@click.command()
@click.option("--dataset", help="Only this dataset.")
@click.option("--hook", help="Only this hook: its releases and what it said.")
@click.option("--batch", help="Only this batch.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Read this fraction of the blobs. Logs, manifests and batches are always read.",
)
@click.option("--seed", type=int, help="Read the sample that this number chose before.")
@click.option("--workers", type=click.IntRange(1, 64), default=8, show_default=True)
@click.option(
    "--restore-checksums",
    is_flag=True,
    help="Write right objects again of which the store keeps no checksum.",
)
@json_option
def verify(
    dataset: str | None,
    hook: str | None,
    batch: str | None,
    sample: float,
    seed: int | None,
    workers: int,
    restore_checksums: bool,
    as_json: bool,
) -> None:
    """Read what is stored and compare it with its names.

    What the tables and Dagster know is compared with the logs, where they are configured.

    Exits with 0 if all is right, with 2 if something is missing, corrupt, lost, unreadable or not
    erased, with 1 if the archive could not be verified at all.
    """
    Project.find().load_environment()
    output = Output(as_json)
    store = open_archive()
    scope = Scope(find_dataset(store, hook, dataset, batch), hook, batch)
    with progress_of(output, "verifying") as progress:
        report = verify_archive(
            store,
            scope,
            sample=sample,
            seed=seed,
            workers=workers,
            progress=progress,
            restore_checksums=restore_checksums,
        )
    report = ask_databases(output, scope.dataset).add_lost(report, store)
    if report.findings:
        output.table(
            f"{len(report.findings)} objects are not as they should be",
            ["state", "what", "key", "needed by"],
            [[f.state.value, f.kind.value, f.key, f.named_by] for f in report.findings[:_SHOWN]],
        )
        if len(report.findings) > _SHOWN:
            output.say(f"... and {len(report.findings) - _SHOWN} more: --json shows all")
        output.say(
            "What a damaged log entry, manifest or batch names was not looked at: bring it back,"
            " then verify again. `feature-pipeline repair` shows what can be brought back"
        )
    for note in report.notes:
        output.say(f"note: {note}")
    output.say(f"{report.summary()} ({size(report.bytes_read)})")
    if report.blobs_read < report.blobs:
        output.say(f"The same sample is read again with --sample {sample} --seed {report.seed}")
    output.result(report.to_json())
    if not report.is_clean:
        raise SystemExit(2)


@contextmanager
def progress_of(output: Output, description: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that is told (done, total)."""
    shown = 0
    with output.progress(description, None) as steps:

        def advance(done: int, total: int) -> None:
            nonlocal shown
            steps.expect(total)
            steps.advance(done - shown)
            shown = done

        yield advance


def find_dataset(
    store: BlobStore, hook: str | None, dataset: str | None, batch: str | None = None
) -> str | None:
    """The dataset, found by its hook or batch where it was not named; None if neither was.

    Raises:
        NotFoundError: No dataset has the hook, or the batch.
        InvalidInputError: Several have: it must be said which.
    """
    if dataset is not None or (hook is None and batch is None):
        return dataset
    found = [
        name
        for name in log.datasets(store)
        if (hook is None or hook in log.hooks(store, name))
        and (batch is None or _has_batch(store, name, batch))
    ]
    what = f"hook {hook!r}" if batch is None else f"batch {batch!r}"
    if not found:
        raise NotFoundError(f"no dataset of the archive has {what}")
    if len(found) > 1:
        raise InvalidInputError(f"{what} is in {', '.join(found)}: say which with --dataset")
    return found[0]


def _has_batch(store: BlobStore, dataset: str, batch: str) -> bool:
    """Whether a log of the dataset is about the batch. No entry is read: it may be damaged."""
    logs = [layout.batch_log(dataset, batch)]
    logs += [layout.feature_log(dataset, hook, batch) for hook in log.hooks(store, dataset)]
    return any(True for prefix in logs for _ in store.list_objects(prefix))
