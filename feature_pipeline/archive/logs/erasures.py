"""The log of erasures, one per dataset: the artifacts that each replaced, the blobs it deleted."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from pydantic import Field

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import DigestField, InstantField, utc_now
from feature_pipeline.archive.logs.log import LogEntry, read_entries
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.digest import Digest


class ErasureEntry(LogEntry):
    """One erasure. It is written after the successors and before anything is deleted."""

    dataset: str
    record_ids: tuple[str, ...]
    manifests: Mapping[str, DigestField] = Field(
        default_factory=dict, description="Per manifest that named a record, its successor."
    )
    batches: Mapping[str, DigestField] = Field(
        default_factory=dict, description="Per batch that had a record, its successor."
    )
    blobs: tuple[DigestField, ...] = Field(
        default=(), description="What nothing else needed then, to be deleted."
    )
    erased_at: InstantField = Field(default_factory=utc_now)

    @property
    def log_prefix(self) -> str:
        """See `LogEntry.log_prefix`."""
        return layout.erasure_log(self.dataset)


def erasures(store: BlobStore, dataset: str) -> list[ErasureEntry]:
    """Return every erasure of the dataset, in order."""
    return read_entries(store, layout.erasure_log(dataset), ErasureEntry)


@dataclass(frozen=True)
class Erased:
    """The combined content of erasures, by digest."""

    manifests: Mapping[Digest, Digest] = field(default_factory=dict)
    """By erased manifest, its successor, which may be erased in turn."""
    batches: Mapping[Digest, Digest] = field(default_factory=dict)
    """By erased batch, its successor, likewise."""
    blobs: Mapping[Digest, frozenset[str]] = field(default_factory=dict)
    """By blob that was to be deleted, the records concerned; bare ids of one dataset."""
    records: frozenset[str] = frozenset()
    """Every record that was erased, even if it is allowed again; bare ids of one dataset."""

    @classmethod
    def of(cls, entries: Iterable[ErasureEntry]) -> Self:
        """Combine the entries."""
        manifests: dict[Digest, Digest] = {}
        batches: dict[Digest, Digest] = {}
        records: set[str] = set()
        blobs: dict[Digest, frozenset[str]] = {}
        for entry in entries:
            records.update(entry.record_ids)
            manifests |= {Digest.parse(old): new for old, new in entry.manifests.items()}
            batches |= {Digest.parse(old): new for old, new in entry.batches.items()}
            for digest in entry.blobs:
                blobs[digest] = blobs.get(digest, frozenset()) | set(entry.record_ids)
        return cls(manifests, batches, blobs, frozenset(records))

    def manifest_now(self, digest: Digest) -> Digest:
        """Return the current replacement of a manifest: itself, or its last successor."""
        for successor in self.successors(digest):
            digest = successor
        return digest

    def successors(self, digest: Digest) -> Iterator[Digest]:
        """Yield what replaced a manifest, then what replaced that, one for each erasure."""
        while (successor := self.manifests.get(digest)) is not None:
            yield successor
            digest = successor

    def batch_now(self, digest: Digest) -> Digest:
        """Return the current replacement of a batch: itself, or its last successor."""
        while (successor := self.batches.get(digest)) is not None:
            digest = successor
        return digest


def erased(store: BlobStore, dataset: str) -> Erased:
    """Return the combined erasures of the dataset."""
    return Erased.of(erasures(store, dataset))
