"""Blobs that nothing names are deleted, once two marks a grace period apart found them orphaned.

What belongs here: marks, and deleting by them. Not here: what names a blob (`reachable`), data of
withdrawn records (`erase`).

Why it is safe beside publishers that do not know of it: a publisher that finds a blob in place
relies on it only if it is younger than half the grace, and otherwise writes it again. So a blob
that is as old as when the first mark saw it was relied upon, if ever, less than half a grace after
that mark; whoever did had half a grace to name it before the second mark, which then sees it
named. What is written again between the second mark and the deletion is settled by the lease
(`sweep`). Publishing must take less than half the grace, and clocks must agree to a minute.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final, Self
from uuid import uuid4

from pydantic import Field

from feature_pipeline.archive import blobs, layout
from feature_pipeline.archive.blob_store import BlobStore, ObjectInfo, create_or_read
from feature_pipeline.archive.documents import Document, InstantField, Part, utc_now
from feature_pipeline.archive.objects import ObjectKind, Reached, State
from feature_pipeline.archive.reachable import reach
from feature_pipeline.archive.sweep import Sweep
from feature_pipeline.archive.threads import WORKERS, map_threads
from feature_pipeline.digest import Digest
from feature_pipeline.errors import CorruptDataError, FeaturePipelineError, InvalidInputError

logger = logging.getLogger(__name__)

_GROUP: Final = 64
"""Blobs that are looked at and deleted between two renewals of the lease."""
_SHARDS: Final = frozenset(f"{number:02x}" for number in range(256))


@dataclass(frozen=True, slots=True)
class GcScope:
    """The blobs that a collection may delete, said explicitly: all, or some of 256 shards."""

    shards: frozenset[str]
    """The first two hex digits of the blobs' names."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise InvalidInputError(
                "say what may be collected: everything, or shards by the first two hex digits of"
                " the blobs' names"
            )
        if unknown := sorted(self.shards - _SHARDS):
            raise InvalidInputError(f"shard {unknown[0]!r}: two lower-case hex digits are needed")

    @classmethod
    def everything(cls) -> Self:
        """All blobs."""
        return cls(_SHARDS)

    @property
    def prefixes(self) -> list[str]:
        """What to list."""
        if self.shards == _SHARDS:
            return [layout.BLOBS]
        return [f"{layout.BLOBS}{shard}/" for shard in sorted(self.shards)]


class Orphan(Part):
    """A blob that nothing named, as it was."""

    size: int
    modified_at: InstantField
    etag: str


class Mark(Document):
    """What one collection found orphaned."""

    what: ClassVar[str] = "mark of a collection"

    started_at: InstantField
    """Before the first root was read."""
    finished_at: InstantField
    """After the last blob was listed."""
    shards: tuple[str, ...]
    orphans: Mapping[str, Orphan] = Field(description="By digest.")


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a collection found, and what it deleted or would delete."""

    is_dry_run: bool
    stored: int
    """Blobs within the scope."""
    stored_bytes: int
    orphaned: int
    """Those that nothing names now."""
    orphaned_bytes: int
    due: tuple[Digest, ...]
    """Those that an earlier mark, a grace period ago, found orphaned and unchanged."""
    due_bytes: int
    deleted: tuple[Digest, ...]
    deleted_bytes: int
    spared: tuple[Digest, ...]
    """Due, and written again since this collection began."""
    first_mark_at: datetime | None
    """When the mark was made by which blobs are due; None if none is old enough."""

    def to_json(self) -> dict[str, object]:
        """The report for programs."""
        return {
            "is_dry_run": self.is_dry_run,
            "stored": self.stored,
            "stored_bytes": self.stored_bytes,
            "orphaned": self.orphaned,
            "orphaned_bytes": self.orphaned_bytes,
            "due": [str(digest) for digest in self.due],
            "due_bytes": self.due_bytes,
            "deleted": [str(digest) for digest in self.deleted],
            "deleted_bytes": self.deleted_bytes,
            "spared": [str(digest) for digest in self.spared],
            "first_mark_at": None if self.first_mark_at is None else self.first_mark_at.isoformat(),
        }


def collect_garbage(
    store: BlobStore,
    scope: GcScope,
    *,
    is_dry_run: bool = True,
    lost: Collection[Digest] = (),
    workers: int = WORKERS,
    progress: Callable[[int, int], None] | None = None,
) -> GcReport:
    """Mark what is orphaned now; delete what a mark at least `blobs.GRACE` old found orphaned too.

    A dry run writes and deletes nothing. Without one, what is due is deleted and the mark is kept
    for later collections. Stopped at any moment, it can be run again.

    Args:
        store: The archive.
        scope: What may be deleted.
        is_dry_run: Only say what would be done.
        lost: Manifests and batches that are given up: what only they name may be deleted.
        workers: Requests at once.
        progress: Called with (blobs settled, blobs due).

    Raises:
        CorruptDataError: Something that the roots name cannot be read, so what it names in turn is
            unknown; nothing was deleted. `verify` says what it is.
        ConflictError: Another collection is deleting; what this one deleted was right.
        StoreUnavailableError, OutcomeUnknownError: Some of what was due may be deleted.
    """
    mark, stored = make_mark(store, scope, lost, workers)
    first = _first_mark(read_marks(store).values(), mark)
    due = [] if first is None else _due(first, mark)
    deleted: list[Digest] = []
    spared: list[Digest] = []
    if not is_dry_run:
        # The mark before the deletions: a collection that dies halfway has marked all the same.
        name = f"{mark.started_at:%Y%m%dT%H%M%S.%f}Z-{uuid4().hex[:8]}"
        create_or_read(store, layout.gc_mark(name), mark.encode())
        deleted, spared = _delete(store, mark, due, workers, progress)
        _remove_old_marks(store, scope)
    return GcReport(
        is_dry_run=is_dry_run,
        stored=len(stored),
        stored_bytes=sum(info.size for info in stored),
        orphaned=len(mark.orphans),
        orphaned_bytes=sum(orphan.size for orphan in mark.orphans.values()),
        due=tuple(due),
        due_bytes=_bytes_of(mark, due),
        deleted=tuple(deleted),
        deleted_bytes=_bytes_of(mark, deleted),
        spared=tuple(spared),
        first_mark_at=None if first is None else first.started_at,
    )


def _bytes_of(mark: Mark, digests: Collection[Digest]) -> int:
    return sum(mark.orphans[str(digest)].size for digest in digests)


def make_mark(
    store: BlobStore,
    scope: GcScope,
    lost: Collection[Digest] = (),
    workers: int = WORKERS,
) -> tuple[Mark, list[ObjectInfo]]:
    """What is orphaned within the scope, and all that is stored within it. Nothing is written.

    Raises:
        CorruptDataError: As of `collect_garbage`.
    """
    started_at = utc_now()
    reached = reach(store, workers=workers)
    _check_readable(store, reached, {layout.blob(digest) for digest in lost})
    needed = reached.digests
    stored: list[ObjectInfo] = []
    orphans: dict[str, Orphan] = {}
    for prefix in scope.prefixes:
        for info in store.list_objects(prefix):
            digest = layout.parse_blob(info.key)
            stored.append(info)
            if digest not in needed:
                orphans[str(digest)] = Orphan(
                    size=info.size, modified_at=info.modified_at, etag=info.etag
                )
    mark = Mark(
        started_at=started_at,
        finished_at=utc_now(),
        shards=tuple(sorted(scope.shards)),
        orphans=orphans,
    )
    return mark, stored


def _check_readable(store: BlobStore, reached: Reached, lost: Collection[str]) -> None:
    """Refuse to go on where a document is not known: what it names would look orphaned."""
    known = {State.NOT_ERASED}
    # A quarantined entry that is no document is kept for people; every digest in its text counts
    # as named.
    unparsable = {ObjectKind.INBOX_ENTRY, ObjectKind.QUARANTINE_ENTRY}
    for finding in reached.findings:
        if finding.state in known or finding.key in lost:
            continue
        if finding.state is State.CORRUPT and finding.kind in unparsable:
            continue
        raise CorruptDataError(
            f"{store.identity}: {finding.kind} {finding.key} is {finding.state}"
            f" ({finding.detail}), so what it names is not known and nothing is deleted;"
            " `feature-pipeline verify` lists all that is wrong; what cannot be brought back is"
            " given up with --lost"
        )


def read_marks(store: BlobStore) -> dict[str, Mark]:
    """Every mark that is kept, by key, oldest first."""
    infos = list(store.list_objects(layout.GC_MARKS))
    found = map_threads(lambda info: store.get(info.key).data, infos)
    return {
        info.key: Mark.decode(data, info.key, broken=CorruptDataError)
        for info, data in zip(infos, found, strict=True)
    }


def _first_mark(marks: Iterable[Mark], second: Mark) -> Mark | None:
    """The last mark that ended a grace period before the second one began."""
    old = [
        mark
        for mark in marks
        if second.started_at - mark.finished_at >= blobs.GRACE
        and set(mark.shards) >= set(second.shards)
    ]
    return max(old, key=lambda mark: mark.started_at, default=None)


def _due(first: Mark, second: Mark) -> list[Digest]:
    return [
        Digest.parse(name)
        for name, orphan in sorted(second.orphans.items())
        if first.orphans.get(name) == orphan
    ]


def _delete(
    store: BlobStore,
    mark: Mark,
    due: Sequence[Digest],
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[list[Digest], list[Digest]]:
    deleted: list[Digest] = []
    spared: list[Digest] = []
    if not due:
        return deleted, spared
    sweep = Sweep.take(store)

    def settle(digest: Digest) -> bool:
        info = store.stat(layout.blob(digest))
        orphan = mark.orphans[str(digest)]
        if info is None:
            return True
        if (info.size, info.modified_at, info.etag) != (
            orphan.size,
            orphan.modified_at,
            orphan.etag,
        ) or not sweep.is_safe:
            return False
        store.delete(info.key)
        return True

    try:
        for start in range(0, len(due), _GROUP):
            group = due[start : start + _GROUP]
            sweep.renew()
            for digest, is_deleted in zip(group, map_threads(settle, group, workers), strict=True):
                (deleted if is_deleted else spared).append(digest)
            if progress is not None:
                progress(len(deleted) + len(spared), len(due))
    except FeaturePipelineError:
        with suppress(FeaturePipelineError):
            sweep.end()
        raise
    sweep.end()
    logger.info("%s: %d orphaned blobs deleted", store.identity, len(deleted))
    return deleted, spared


def _remove_old_marks(store: BlobStore, scope: GcScope) -> None:
    """Marks of this scope go that a later one, old enough by now, stands in for."""
    now = utc_now()
    ripe = [
        key
        for key, mark in read_marks(store).items()
        if now - mark.finished_at >= blobs.GRACE and set(mark.shards) == scope.shards
    ]
    for key in ripe[:-1]:
        store.delete(key)
