"""The record of what was taken from the server: one object in the bucket, derived from the logs.

With it, a pass reads only what is new. Without it, every complete output is read again; those that
are in a log already add nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Final

from pydantic import Field

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import Document, InstantField, Part
from feature_pipeline.archive.store.base import JSON_MEDIA_TYPE, BlobStore
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.osa.server.storage import Seen

_SHORT: Final = 16


class Taken(Part):
    """An output that was taken."""

    files: str
    """Changes whenever a file of the output is written."""
    content: str
    """Changes with what was published of it."""
    is_final: bool = False
    """Whether it was looked at after its run had ended and no worker can write it again."""


class IngestMemory(Part):
    """What was taken of one ingest run."""

    closed: tuple[str, ...] | None = None
    """The hooks, once the run has ended, all outputs were taken, and looked at again."""
    outputs: dict[str, Taken] = Field(default_factory=dict)
    """By `<batch index>/<hook>`; empty once it is closed."""


class DepositionMemory(Part):
    """What was taken of one deposition."""

    updated_at: InstantField
    hooks: tuple[str, ...]
    """The hooks whose outputs were looked for."""
    outputs: dict[str, Taken] = Field(default_factory=dict)
    """By hook."""


class Unreadable(Part):
    """An output that could not be taken."""

    reason: str
    tried_at: InstantField


class Memory(Document):
    """What was taken, and what could not be. The dictionaries are changed in place."""

    document_type: ClassVar[str] = "memory of a followed server"

    ingests: dict[str, IngestMemory] = Field(default_factory=dict)
    depositions: dict[str, DepositionMemory] = Field(default_factory=dict)
    unreadable: dict[str, Unreadable] = Field(default_factory=dict)
    """By `<batch key>/<hook>`."""
    looked_at: str = ""
    """The last output that was looked at again, of unfinished runs."""

    def ingest(self, run: str) -> IngestMemory:
        """Return what was taken of a run; a new one is remembered."""
        return self.ingests.setdefault(run, IngestMemory())


@dataclass
class StoredMemory:
    """The memory of one server, and its object."""

    store: BlobStore
    key: str
    memory: Memory
    notes: list[str] = field(default_factory=list)
    _etag: str | None = None
    _stored: bytes = b""

    @classmethod
    def read(cls, store: BlobStore, name: str) -> "StoredMemory":
        """Read the memory of the server of this name; an unreadable one counts as empty."""
        key = layout.followed(name)
        info = store.stat(key)
        if info is None:
            return cls(store, key, Memory())
        try:
            data = store.get(key).data
            memory = Memory.decode(data, f"{key} in {store.identity}")
        except (InvalidInputError, CorruptDataError, NotFoundError) as error:
            notes = [f"every output is looked at again: {error}"]
            return cls(store, key, Memory(), notes, info.etag)
        return cls(store, key, memory, [], info.etag, data)

    def save(self) -> None:
        """Store it, if it changed.

        If another process stored its own meanwhile, nothing is stored: what was taken here is found
        in the logs by the next pass.
        """
        data = self.memory.encode()
        if data == self._stored:
            return
        if self._etag is None:
            is_stored = self.store.create(self.key, data, JSON_MEDIA_TYPE)
        else:
            is_stored = self.store.replace(self.key, data, self._etag, JSON_MEDIA_TYPE)
        info = self.store.stat(self.key) if is_stored else None
        if info is not None:
            self._etag, self._stored = info.etag, data


def files_mark(files: Mapping[str, Seen]) -> str:
    """Return a text that changes whenever one of the files is written."""
    return _short([[name, seen.size, seen.version] for name, seen in sorted(files.items())])


def content_mark(parts: Iterable[object]) -> str:
    """Return a text that changes with these values."""
    return _short(list(parts))


def _short(value: list[object]) -> str:
    return Digest.of(document_bytes(value)).hex[:_SHORT]


def hours_since(earlier: datetime, now: datetime) -> float:
    """Return the hours between two instants."""
    return (now - earlier).total_seconds() / 3600
