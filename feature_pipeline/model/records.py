"""Records and batches.

A batch never changes after it was submitted, and records the origin of its records only as the word
in `source`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.batch_source import Source as Source
from feature_pipeline.model.digest import Digest, check_text, document_bytes
from feature_pipeline.model.text.json_text import JsonObject, parse_document
from feature_pipeline.model.text.quoting import problems, quoted

MAX_RECORD_ID_BYTES: Final = 512
BATCH_KEY: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
DATASET_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,39}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def check_record_id(record_id: str) -> str:
    """Return `record_id` if it can name a record, and a folder of the record's files.

    Raises:
        InvalidInputError: It is longer than 512 bytes of UTF-8, has a control character, or a part
            between `/` is empty, `.` or `..`.
    """
    check_text(record_id)
    if len(record_id.encode()) > MAX_RECORD_ID_BYTES:
        raise _id_error(record_id, f"is longer than {MAX_RECORD_ID_BYTES} bytes")
    if control := _CONTROL.search(record_id):
        raise _id_error(record_id, f"has the control character {control[0]!r}")
    for part in record_id.split("/"):
        if part in {"", ".", ".."}:
            problem = (
                f"a part {part!r}" if part else "an empty part" if record_id else "no character"
            )
            raise _id_error(record_id, f"has {problem}: its parts between '/' name folders")
    return record_id


def _id_error(record_id: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"record id {quoted(record_id, 40)!r} {problem}")


def check_folders(record_ids: Sequence[str]) -> None:
    """Check that no record's folder is in another's: `10.1/a` and `10.1/a/b` exclude each other.

    Raises:
        InvalidInputError: One is; names both.
    """
    known = set(record_ids)
    for record_id in record_ids:
        parent = record_id
        while parent := parent.rpartition("/")[0]:
            if parent in known:
                raise InvalidInputError(
                    f"records {parent!r} and {record_id!r} are in one batch, but the folder of one"
                    " would be inside the other's: submit them in two batches"
                )


def check_file_name(name: str) -> str:
    """Return `name` if it can name a record's file: one path component of at most 255 bytes."""
    check_text(name)
    if name in {"", ".", ".."} or "/" in name or len(name.encode()) > 255:
        raise InvalidInputError(
            f"file name {quoted(name)!r}: one path component of at most 255 bytes is needed"
        )
    return name


def check_digest(digest: str) -> str:
    """Return `digest` if it is written `sha256:<64 hex digits>`."""
    return str(Digest.parse(digest))


def check_batch_key(key: str) -> str:
    """Return `key` if it can name a batch (and so a partition).

    Raises:
        InvalidInputError: It is not of the form `[a-z0-9][a-z0-9_-]{0,62}`.
    """
    if not BATCH_KEY.fullmatch(key):
        raise InvalidInputError(
            f"batch key {quoted(key)!r}: 1 to 63 of a-z, 0-9, '_' and '-', not starting with '_' or"
            " '-'"
        )
    return key


def check_dataset(name: str) -> str:
    """Return `name` if it can name a dataset or hook: `[a-z][a-z0-9_]{0,39}`."""
    if not DATASET_NAME.fullmatch(name):
        raise InvalidInputError(
            f"name {quoted(name)!r}: 1 to 40 of a-z, 0-9 and '_', starting with a letter"
        )
    return name


def check_spec_version(subject: str, content: object) -> None:
    """Check that this release of the package can read a stored document.

    It precedes the check of the document's own form, in which a newer version differs too.

    Raises:
        InvalidInputError: `content` has another `spec_version` than 1.
    """
    version = content.get("spec_version", 1) if isinstance(content, dict) else 1
    if type(version) is not int or version != 1:
        raise InvalidInputError(
            f"{subject} has spec_version {quoted(repr(version))}; this version of feature-pipeline"
            " reads only 1: upgrade it"
        )


class RecordFile(BaseModel):
    """A file of a record, stored as a blob."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(check_file_name)]
    digest: Annotated[str, AfterValidator(check_digest)]
    size: StrictInt = Field(ge=0, description="Bytes.")

    @property
    def blob(self) -> Digest:
        """The file's digest."""
        return Digest.parse(self.digest)


class Record(BaseModel):
    """One item of science data with a stable id."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, AfterValidator(check_record_id)]
    metadata: JsonObject = Field(default_factory=dict)
    files: tuple[RecordFile, ...] = ()


class BatchDocument(BaseModel):
    """The stored form of a batch: deterministic JSON, named by its digest.

    A submitted batch has records; one that lost its last record to an erasure has none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec_version: int = 1
    dataset: Annotated[str, AfterValidator(check_dataset)]
    batch: Annotated[str, AfterValidator(check_batch_key)]
    source: Source
    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """A fixed, ordered list of records with its stored form."""

    document: BatchDocument
    digest: Digest
    _encoded: bytes = field(repr=False, compare=False)

    @classmethod
    def create(cls, dataset: str, batch: str, source: Source, records: tuple[Record, ...]) -> Self:
        """Return the batch of these records.

        Raises:
            InvalidInputError: No records, an id twice, a file name twice in a record, or a name
                that cannot be one.
        """
        if not records:
            raise InvalidInputError(
                f"batch {batch!r} of {dataset!r}: it has no records; at least 1 item is needed"
            )
        try:
            document = BatchDocument(dataset=dataset, batch=batch, source=source, records=records)
        except ValidationError as error:
            raise InvalidInputError(f"batch {batch!r} of {dataset!r}: {problems(error)}") from error
        return cls.of(document)

    @classmethod
    def of(cls, document: BatchDocument) -> Self:
        """Return the batch of a document; errors as for `create`."""
        _check_records(document)
        encoded = _document_bytes(document)
        return cls(document, Digest.of(encoded), encoded)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the batch stored as `data`; its digest is that of these bytes.

        Raises:
            InvalidInputError: `data` is not a batch document, or of a newer `spec_version`.
        """
        try:
            content = parse_document(data)
        except InvalidInputError as error:
            raise InvalidInputError(f"not a batch document: {error}") from error
        check_spec_version("batch document", content)
        try:
            document = BatchDocument.model_validate(content)
        except ValidationError as error:
            raise InvalidInputError(f"not a batch document: {problems(error)}") from error
        _check_records(document)
        return cls(document, Digest.of(data), data)

    def encode(self) -> bytes:
        """Return the stored bytes, which `digest` names."""
        return self._encoded

    @property
    def dataset(self) -> str:
        """The dataset it belongs to."""
        return self.document.dataset

    @property
    def key(self) -> str:
        """The batch key, which is the Dagster partition key."""
        return self.document.batch

    @property
    def records(self) -> tuple[Record, ...]:
        """The records, in order."""
        return self.document.records


def _check_records(document: BatchDocument) -> None:
    """Check the records of a document together; errors as for `RecordBatch.create`."""
    seen: set[str] = set()
    for record in document.records:
        if record.id in seen:
            raise InvalidInputError(f"batch {document.batch!r}: record {record.id!r} occurs twice")
        seen.add(record.id)
        if record.files and len({file.name for file in record.files}) != len(record.files):
            raise InvalidInputError(
                f"batch {document.batch!r}: record {record.id!r} has two files with the same name"
            )
    try:
        check_folders(list(seen))
    except InvalidInputError as error:
        raise InvalidInputError(f"batch {document.batch!r}: {error}") from error


def _document_bytes(document: BatchDocument) -> bytes:
    """Return what a batch is stored as."""
    records = [
        # dumping it would copy the metadata
        {"id": r.id, "metadata": r.metadata, "files": [each.model_dump() for each in r.files]}
        for r in document.records
    ]
    return document_bytes({**document.model_dump(exclude={"records"}), "records": records})
