"""`feature-pipeline verify`: read the archive again and report every problem."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.findings import Scope
from feature_pipeline.archive.inspection.verify import verify as verify_archive
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.databases import query_databases
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quantities import format_size

_SHOWN = 200


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
    """Carry out `feature-pipeline verify`."""
    Project.find().load_environment()
    output = Output(as_json)
    store = open_archive(is_changed=restore_checksums)
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
    report = query_databases(output, scope.dataset).add_lost(report, store)
    if report.findings:
        output.table(
            counted(len(report.findings), "damaged or missing object"),
            ["state", "what", "key", "needed by"],
            [[f.state.value, f.kind.value, f.key, f.named_by] for f in report.findings[:_SHOWN]],
        )
        if len(report.findings) > _SHOWN:
            output.say(f"... and {len(report.findings) - _SHOWN} more: --json shows all")
        output.say(
            "Objects that only a damaged log entry, manifest or batch names were not checked:"
            " restore it, then verify again. `feature-pipeline repair` shows what can be restored"
        )
    for note in report.notes:
        output.say(f"note: {note}")
    output.say(f"{report.summary()} ({format_size(report.bytes_read)})")
    if report.blobs_read < report.blobs:
        output.say(f"The same sample is read again with --sample {sample} --seed {report.seed}")
    output.result(report.to_json())
    if not report.is_clean:
        raise SystemExit(FINDINGS)


@contextmanager
def progress_of(output: Output, description: str) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar that is updated with (done, total)."""
    shown = 0
    with output.progress(description, None) as steps:

        def advance(done: int, total: int) -> None:
            nonlocal shown
            steps.set_total(total)
            steps.advance(done - shown)
            shown = done

        yield advance


def find_dataset(
    store: BlobStore, hook: str | None, dataset: str | None, batch: str | None = None
) -> str | None:
    """Return the named dataset, or find it by hook or batch; None without any of the three.

    Raises:
        NotFoundError: No dataset has the hook, or the batch.
        InvalidInputError: Several datasets have it, so that --dataset is required.
    """
    if dataset is not None or (hook is None and batch is None):
        return dataset
    datasets = [
        name
        for name in log.datasets(store)
        if (hook is None or hook in log.hooks(store, name))
        and (batch is None or _has_batch(store, name, batch))
    ]
    subject = f"hook {hook!r}" if batch is None else f"batch {batch!r}"
    if not datasets:
        raise NotFoundError(f"no dataset of the archive has {subject}")
    if len(datasets) > 1:
        raise InvalidInputError(f"{subject} is in {', '.join(datasets)}: choose one with --dataset")
    return datasets[0]


def _has_batch(store: BlobStore, dataset: str, batch: str) -> bool:
    """Return whether the dataset has a log of the batch, reading no entry of it."""
    logs = [layout.batch_log(dataset, batch)]
    logs += [layout.feature_log(dataset, hook, batch) for hook in log.hooks(store, dataset)]
    return any(True for prefix in logs for _ in store.list_objects(prefix))
