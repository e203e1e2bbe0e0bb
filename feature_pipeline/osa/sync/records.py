"""The records of an ingest's batch, or of a deposition, as a batch of the archive."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest, digest_stream
from feature_pipeline.model.records import Record, RecordBatch, RecordFile, Source
from feature_pipeline.model.text.json_text import read_json
from feature_pipeline.model.text.quoting import problems, quoted
from feature_pipeline.osa.server.database import Deposition
from feature_pipeline.osa.server.ids import local_id
from feature_pipeline.osa.server.storage import Place, ServerStorage

_RECORDS: Final = "records.jsonl"


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """A batch, and where its files are on this machine; None if the server's batch is empty."""

    batch: RecordBatch | None
    files: Mapping[Digest, Path] = field(default_factory=dict)


def ingest_batch(
    storage: ServerStorage, place: Place, dataset: str, key: str, folder: Path
) -> ReadBatch:
    """Return a batch of an ingest: the records of `ingester/records.jsonl`, with their files.

    Args:
        storage: The server's files.
        place: The folder of its batch.
        dataset: The dataset of the batch here.
        key: Its key.
        folder: Files that must be copied go there.

    Raises:
        NotFoundError: The list of records, or a file that it names, is not in the storage.
        InvalidInputError: A line is not a record, or the records cannot be a batch.
    """
    listed = place / "ingester" / _RECORDS
    records: list[Record] = []
    files: dict[Digest, Path] = {}
    copies = count()
    for number, line in enumerate(storage.read(listed).split(b"\n"), 1):
        if not line.strip():
            continue
        where = f"{listed}:{number}"
        content = read_json(line, str(listed), number)
        if not isinstance(content, dict):
            raise InvalidInputError(f"{where}: expected an object, found {quoted(repr(content))}")
        record_id = content.get("source_id", content.get("id"))
        if not isinstance(record_id, str):
            raise InvalidInputError(f"{where}: the record has neither source_id nor id as text")
        described: list[RecordFile] = []
        for each in _files(content.get("files"), where):
            name = each["name"]
            relative = each.get("relative_path") or f"{record_id}/{name}"
            source = place / "ingester" / "files" / relative
            try:
                path = storage.local(source, folder / str(next(copies)))
            except NotFoundError as error:
                raise NotFoundError(
                    f"{where}: file {name!r} of record {quoted(record_id)!r}: {error}"
                ) from error
            with path.open("rb") as stream:
                digest, size = digest_stream(stream)
            files[digest] = path
            described.append(RecordFile(name=name, digest=str(digest), size=size))
        records.append(_record(record_id, content.get("metadata"), described, where))
    if not records:
        return ReadBatch(None)
    return ReadBatch(RecordBatch.create(dataset, key, Source.HARVEST, tuple(records)), files)


def deposition_batch(deposition: Deposition, dataset: str, key: str) -> RecordBatch:
    """Return the batch of a deposition: one record, whose id is the deposition's local id.

    Its files have the digests that the server states; `deposition_files` fetches them.

    Raises:
        InvalidInputError: Its metadata or files are not those of a record.
    """
    where = f"deposition {deposition.srn}"
    described = []
    for each in _files(deposition.files, where):
        name, size, checksum = each["name"], each.get("size"), each.get("checksum")
        try:
            stated = {"name": name, "digest": checksum, "size": size}
            described.append(RecordFile.model_validate(stated))
        except ValidationError as error:
            raise InvalidInputError(f"{where}: file {quoted(name)!r}: {problems(error)}") from error
    record = _record(local_id(deposition.srn), deposition.metadata, described, where)
    return RecordBatch.create(dataset, key, Source.DEPOSITION, (record,))


def deposition_files(
    storage: ServerStorage, place: Place, batch: RecordBatch, folder: Path
) -> dict[Digest, Path]:
    """Return where the deposition's files are on this machine, by digest.

    Raises:
        NotFoundError: One is not in the storage.
    """
    (record,) = batch.records
    return {
        file.blob: storage.local(place / "files" / file.name, folder / str(number))
        for number, file in enumerate(record.files)
    }


def _files(listed: object, where: str) -> list[dict[str, str]]:
    if listed is None:
        return []
    if not isinstance(listed, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in listed
    ):
        raise InvalidInputError(
            f"{where}: files: expected a list of objects with a name, found {quoted(repr(listed))}"
        )
    return listed


def _record(record_id: str, metadata: object, described: list[RecordFile], where: str) -> Record:
    try:
        return Record.model_validate(
            {"id": record_id, "metadata": metadata or {}, "files": tuple(described)}
        )
    except ValidationError as error:
        raise InvalidInputError(
            f"{where}: record {quoted(record_id)!r}: {problems(error)}"
        ) from error
