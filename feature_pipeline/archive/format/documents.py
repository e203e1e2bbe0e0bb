"""The form of every JSON document in the archive: deterministic bytes, a version, checked fields.

Pydantic models need their annotations at run time, so annotations are not postponed here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    ValidationError,
)

from feature_pipeline.errors import FeaturePipelineError, InvalidInputError
from feature_pipeline.model.digest import ContentSum, Digest, check_text, document_bytes
from feature_pipeline.model.text.json_text import INT64_MAX, INT64_MIN, leaves, parse_document
from feature_pipeline.model.text.quoting import problems, quoted


class NewerVersionError(InvalidInputError):
    """A document's version is newer than this code supports; nothing is wrong with it."""


def utc_now() -> datetime:
    """Return the current time in UTC."""
    return datetime.now(UTC)


def instant_text(value: datetime) -> str:
    """Return ISO 8601 in UTC with microseconds and `Z`; text sorts as time does."""
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _parse_digest(value: object) -> object:
    return Digest.parse(value) if isinstance(value, str) else value


def _parse_sum(value: object) -> object:
    return ContentSum.parse(value) if isinstance(value, str) else value


def _parse_instant(value: object) -> datetime:
    instant = datetime.fromisoformat(value) if isinstance(value, str) else value
    if not isinstance(instant, datetime) or instant.tzinfo is None:
        raise InvalidInputError(f"{quoted(repr(value))} is not a time with a UTC offset")
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        raise InvalidInputError(f"{value} is not within the years 1 to 9999 in UTC") from None


DigestField = Annotated[Digest, BeforeValidator(_parse_digest), PlainSerializer(str)]
SumField = Annotated[ContentSum, BeforeValidator(_parse_sum), PlainSerializer(str)]
InstantField = Annotated[
    datetime, BeforeValidator(_parse_instant), PlainSerializer(instant_text, return_type=str)
]


class Part(BaseModel):
    """A part of a stored document."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Document(Part):
    """A stored document. Equal documents have equal bytes.

    Each kind of document has versions of its own. New documents have the newest version; older ones
    stay readable, and are encoded as they were.
    """

    document_type: ClassVar[str] = "document"
    newest: ClassVar[int] = 1
    """The newest version of this kind that this code knows."""
    added: ClassVar[Mapping[str, int]] = {}
    """Fields that version 1 did not have, with the version that added each."""
    most_bytes: ClassVar[int] = 256 << 20
    """The largest object that is read as such a document."""

    spec_version: int = 1

    def encode(self) -> bytes:
        """Return the stored bytes: deterministic JSON."""
        absent = {name for name, since in self.added.items() if since > self.spec_version}
        return document_bytes(self.model_dump(exclude=absent or None))

    @classmethod
    def decode(
        cls, data: bytes, where: str, broken: type[FeaturePipelineError] = InvalidInputError
    ) -> Self:
        """Return the document stored as `data`.

        Args:
            data: The stored bytes.
            where: The object, for messages.
            broken: The error to raise when `data` is not such a document.

        Raises:
            NewerVersionError: The document's version is newer than this code supports.
        """
        if len(data) > cls.most_bytes:
            raise broken(f"{cls.document_type} {where} {cls.too_large(len(data))}")
        document = _parse(data, f"{cls.document_type} {where}", broken)
        version = document.get("spec_version")
        if type(version) is not int or version < 1:
            raise broken(
                f"{cls.document_type} {where} has the spec_version {quoted(repr(version))},"
                " expected a positive integer"
            )
        if version > cls.newest:
            raise NewerVersionError(
                f"{cls.document_type} {where} has spec_version {quoted(repr(version))}; this"
                f" version of feature-pipeline knows up to {cls.newest}: upgrade it to read the"
                " archive"
            )
        for name, since in cls.added.items():
            if (name in document) != (version >= since):
                has = "has" if name in document else "lacks"
                raise broken(
                    f"{cls.document_type} {where} {has} {name!r} in spec_version {version}"
                )
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise broken(f"{cls.document_type} {where} is invalid: {problems(error)}") from error

    @classmethod
    def too_large(cls, size: int) -> str:
        """Return the error message for an object whose `size` in bytes exceeds the limit."""
        return f"has {size:,} bytes; it can have at most {cls.most_bytes:,}"

    @classmethod
    def check_size(cls, data: bytes, subject: str, remedy: str) -> bytes:
        """Return `data`, which is to be stored, if readers will read as many bytes.

        Raises:
            InvalidInputError: They are too many for `what`; says the `remedy`.
        """
        if len(data) > cls.most_bytes:
            raise InvalidInputError(f"{subject} {cls.too_large(len(data))}: {remedy}")
        return data


def _parse(data: bytes, subject: str, broken: type[FeaturePipelineError]) -> dict[str, Any]:
    try:
        document = parse_document(data)
    except InvalidInputError as error:
        raise broken(f"{subject} is {error}") from error
    if not isinstance(document, dict):
        raise broken(f"{subject} is not a JSON object")
    return document


def check_values(document: Document) -> None:
    """Check that PostgreSQL and readers in other languages can store each value of a document.

    Texts must have no NUL characters or lone surrogates, and integers must fit into 64 bits.

    Raises:
        InvalidInputError: A value does not; names its field.
    """
    for place, value in leaves(document.model_dump()):
        _check_value(document, place, value)


def _check_value(document: Document, place: str, value: object) -> None:
    problem: str | None = None
    if isinstance(value, str):
        try:
            check_text(value)
        except InvalidInputError as error:
            problem = str(error)
    elif isinstance(value, int) and not INT64_MIN <= value <= INT64_MAX:
        problem = "an integer beyond 64 bits"
    if problem is not None:
        raise InvalidInputError(f"{document.document_type}: {quoted(place)}: {problem}")
