"""`feature-pipeline submit`: submit records and their files as batches to the archive's inbox."""

from collections.abc import Sequence
from pathlib import Path

from feature_pipeline.archive.budget import check_budget
from feature_pipeline.archive.publish import submit_batch
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.local_records import LocalRecord, read_records
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest, digest_stream
from feature_pipeline.model.records import (
    Record,
    RecordBatch,
    RecordFile,
    Source,
    check_batch_key,
    check_dataset,
    check_folders,
)
from feature_pipeline.regular_files import open_regular


def submit(
    path: Path,
    dataset: str,
    source: str,
    batch: str | None,
    batch_size: int,
    exclude: Sequence[str],
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline submit`."""
    Project.find().load_environment()
    output = Output(as_json)
    check_dataset(dataset)
    if batch is not None:
        check_batch_key(batch)
    local = read_records(path, exclude)
    records = local.records
    groups = [records[i : i + batch_size] for i in range(0, len(records), batch_size)]
    for group in groups:
        check_folders([record.id for record in group])
    store = open_archive()
    check_budget(store, dataset, len(groups))
    submitted = []
    with output.progress("submitting", len(groups)) as steps:
        for number, group in enumerate(groups, 1):
            key = batch if batch is None or len(groups) == 1 else f"{batch}-{number:05d}"
            done = submit_records(store, dataset, Source(source), group, key)
            submitted.append({"batch": done.key, "records": len(group), "digest": str(done.digest)})
            steps.advance()
    output.table(
        f"submitted to {dataset}",
        ["batch", "records", "digest"],
        [[item["batch"], item["records"], str(item["digest"])[:19]] for item in submitted],
    )
    if local.left_out:
        output.say(f"Left out by --exclude: {', '.join(local.left_out)}")
    output.say(
        "They wait in the inbox for the inbox sensor, which runs while Dagster's daemon does and"
        " the code location loads. `feature-pipeline status` shows what waits."
    )
    output.result({"dataset": dataset, "batches": submitted, "left_out": local.left_out})


def submit_records(
    store: BlobStore,
    dataset: str,
    source: Source,
    records: Sequence[LocalRecord],
    key: str | None = None,
) -> RecordBatch:
    """Store the records' files and leave the batch in the inbox.

    Args:
        key: The batch's key. Without one it is derived from the records, so that submitting the
            same records again names the same batch.

    Raises:
        InvalidInputError: A file cannot be read, or the records cannot be a batch.
    """
    files: dict[Digest, Path] = {}
    described: list[Record] = []
    for record in records:
        described_files = []
        for name, path in sorted(record.files.items()):
            try:
                with open_regular(path) as stream:
                    digest, size = digest_stream(stream)
            except OSError as error:
                raise InvalidInputError(
                    f"{record.place or record.id}: {path} cannot be read: {error.strerror}"
                ) from error
            except InvalidInputError as error:
                raise InvalidInputError(f"{record.place or record.id}: {path} {error}") from error
            files[digest] = path
            described_files.append(RecordFile(name=name, digest=str(digest), size=size))
        described.append(
            Record.model_validate(
                {"id": record.id, "metadata": record.metadata, "files": tuple(described_files)}
            )
        )
    if key is None:
        unnamed = RecordBatch.create(dataset, "unnamed", source, tuple(described))
        key = f"{source.value}-{unnamed.digest.short}"
    batch = RecordBatch.create(dataset, key, source, tuple(described))
    submit_batch(store, batch, files)
    return batch
