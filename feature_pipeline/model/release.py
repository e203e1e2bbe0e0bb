"""A release: one immutable version of a hook, registered in the archive before its first run."""

from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.records import RecordFile, check_dataset, check_spec_version
from feature_pipeline.model.text.json_text import JsonObject, parse_document
from feature_pipeline.model.text.quoting import problems


class ReleaseDocument(BaseModel):
    """The stored form of a release: deterministic JSON, named by its digest.

    Limits and declared columns are not part of it: they change how a hook is run and its output
    decoded, not its answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec_version: int = 1
    dataset: Annotated[str, AfterValidator(check_dataset)]
    hook: Annotated[str, AfterValidator(check_dataset)]
    version: str = Field(min_length=1)
    image: str | None = None
    command: tuple[str, ...] = Field(min_length=1)
    code: tuple[RecordFile, ...] = ()
    config: JsonObject = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HookRelease:
    """(version, image digest or code digests, command, config) of a hook, with its digest."""

    document: ReleaseDocument
    digest: Digest

    @classmethod
    def of(cls, document: ReleaseDocument) -> Self:
        """Return the release of a document."""
        return cls(document, Digest.of(document_bytes(document.model_dump())))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the release stored as `data`.

        Raises:
            InvalidInputError: `data` is not a release document of a known `spec_version`.
        """
        try:
            content = parse_document(data)
        except InvalidInputError as error:
            raise InvalidInputError(f"not a release document: {error}") from error
        check_spec_version("release", content)
        try:
            document = ReleaseDocument.model_validate(content)
        except ValidationError as error:
            raise InvalidInputError(f"not a release document: {problems(error)}") from error
        return cls.of(document)

    def encode(self) -> bytes:
        """Return the bytes that `digest` names."""
        return document_bytes(self.document.model_dump())

    @property
    def program(self) -> Digest:
        """Digest of what determines an answer: releases that differ in name alone share it."""
        return Digest.of(document_bytes(self.action_identity()))

    def action_identity(self) -> dict[str, object]:
        """The parts that determine an answer: the image, or version, command and code; config.

        An image by digest contains its code, so a version label beside it changes nothing.
        """
        document = self.document
        program: dict[str, object] = {
            "command": list(document.command),
            "config": document.config,
        }
        if document.image is not None:
            program["image"] = document.image
        else:
            program["version"] = document.version
        if document.code or document.image is None:
            program["code"] = {file.name: file.digest for file in document.code}
        return program
