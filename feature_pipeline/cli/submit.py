"""`feature-pipeline submit`: records with their files become batches in the archive's inbox."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import click

from feature_pipeline.archive import log
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.publish import MAX_BATCHES, submit_batch
from feature_pipeline.cli.output import Output, json_option
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.digest import Digest, digest_stream
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.records import Record, RecordBatch, RecordFile, Source, check_dataset


@dataclass(frozen=True, slots=True)
class LocalRecord:
    """A record whose files are on this machine: name in the archive to path here."""

    id: str
    metadata: dict[str, object]
    files: Mapping[str, Path]


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", required=True, help="The dataset the records belong to.")
@click.option(
    "--source", type=click.Choice([s.value for s in Source]), required=True, help="How they came."
)
@click.option("--batch", help="Key of the first batch; made of the content when absent.")
@click.option("--batch-size", default=1000, show_default=True, type=click.IntRange(1, 100_000))
@json_option
def submit(
    path: Path, dataset: str, source: str, batch: str | None, batch_size: int, as_json: bool
) -> None:
    """Submit the records of PATH.

    PATH is a folder (each file a record of its own, each folder a record with its files), or a
    .jsonl file with one {"id", "metadata", "files": {name: path}} a line; paths are relative to
    it. Submitting the same again changes nothing.
    """
    Project.find().load_environment()
    output = Output(as_json)
    check_dataset(dataset)
    records = list(read_records(path))
    if not records:
        raise InvalidInputError(f"{path} holds no records")
    store = open_archive()
    groups = [records[i : i + batch_size] for i in range(0, len(records), batch_size)]
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
    output.say("The inbox sensor accepts them within seconds while Dagster's daemon runs.")
    output.result({"dataset": dataset, "batches": submitted})


def check_budget(store: BlobStore, dataset: str, more: int) -> None:
    """Return if the dataset may have that many more batches.

    Raises:
        InvalidInputError: It would have more than `MAX_BATCHES`.
    """
    have = len(log.batches(store, dataset))
    if have + more > MAX_BATCHES:
        raise InvalidInputError(
            f"dataset {dataset!r} has {have} batches; {more} more would exceed {MAX_BATCHES}:"
            " raise --batch-size, or submit to another dataset"
        )


def submit_records(
    store: BlobStore,
    dataset: str,
    source: Source,
    records: list[LocalRecord],
    key: str | None = None,
) -> RecordBatch:
    """The records are a batch in the inbox, its files stored.

    Args:
        key: The batch's key; without one it is made of the records, so that submitting the same
            records again names the same batch.
    """
    files: dict[Digest, Path] = {}
    described: list[Record] = []
    for record in records:
        described_files = []
        for name, path in sorted(record.files.items()):
            with path.open("rb") as stream:
                digest, size = digest_stream(stream)
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


def read_records(path: Path) -> Iterator[LocalRecord]:
    """The records of a folder or a .jsonl file, in order.

    Raises:
        InvalidInputError: A line is not a record, or a file it names is missing; names the line.
    """
    if path.is_dir():
        yield from _folder_records(path)
    elif path.suffix == ".jsonl":
        yield from _jsonl_records(path)
    else:
        raise InvalidInputError(f"{path}: a folder or a .jsonl file is needed")


def _folder_records(folder: Path) -> Iterator[LocalRecord]:
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files = {file.name: file for file in sorted(entry.iterdir()) if file.is_file()}
            yield LocalRecord(entry.name, {}, files)
        elif entry.is_file():
            yield LocalRecord(entry.stem, {}, {entry.name: entry})


def _jsonl_records(path: Path) -> Iterator[LocalRecord]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                item = json.loads(line)
            except ValueError as error:
                raise InvalidInputError(f"{where}: not JSON: {error}") from error
            if not isinstance(item, dict) or not isinstance(item.get("id"), str):
                raise InvalidInputError(f'{where}: a record is {{"id": text, "metadata", "files"}}')
            if unknown := item.keys() - {"id", "metadata", "files"}:
                raise InvalidInputError(f"{where}: unknown keys {sorted(unknown)}")
            files = {}
            for name, target in (item.get("files") or {}).items():
                files[name] = path.parent / target
                if not files[name].is_file():
                    raise InvalidInputError(f"{where}: file {files[name]} does not exist")
            yield LocalRecord(item["id"], item.get("metadata") or {}, files)
