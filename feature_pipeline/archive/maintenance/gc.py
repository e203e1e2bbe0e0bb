"""Garbage collection: delete blobs that two marks, a grace period apart, found orphaned.

Publishers that check for concurrent deletions (`guard`) need no grace period. It is for everything
else: programs that write blobs by hand and name them later, and mistakes that are noticed within a
week. For their sake a publisher that finds a blob older than half the grace period writes it again,
and a blob that was written since the first mark is spared.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar, Final, Self
from uuid import uuid4

from pydantic import Field

from feature_pipeline.archive import blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import Document, InstantField, Part
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.maintenance.deletion import (
    EMPTY,
    NeededBlobs,
    delete,
    find_needed_blobs,
)
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo, create_or_read
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.json_values import json_instant
from feature_pipeline.parallel import WORKERS, map_threads

_MASS: Final = 0.1
"""Fraction of newly orphaned blobs above which a dead publisher is not a plausible cause."""
_FEW: Final = 12
"""Number of new orphans, in all shards together, that is never a mass, however small the
archive.
"""
_SHARDS: Final = frozenset(f"{number:02x}" for number in range(256))


@dataclass(frozen=True, slots=True)
class GcScope:
    """The blobs that a collection may delete, chosen explicitly: all, or some of 256 shards."""

    shards: frozenset[str]
    """The first two hex digits of the blobs' names."""

    def __post_init__(self) -> None:
        if not self.shards:
            raise InvalidInputError(
                "choose the blobs to collect: everything, or shards by the first two hex digits of"
                " the blobs' names"
            )
        if unknown := sorted(self.shards - _SHARDS):
            raise InvalidInputError(f"shard {unknown[0]!r}: write two lower-case hex digits")

    @classmethod
    def everything(cls) -> Self:
        """Return the scope of all blobs."""
        return cls(_SHARDS)

    @property
    def prefixes(self) -> list[str]:
        """The prefixes to list."""
        if self.shards == _SHARDS:
            return [layout.BLOBS]
        return [f"{layout.BLOBS}{shard}/" for shard in sorted(self.shards)]


class Orphan(Part):
    """A blob that nothing named, in its state at that time."""

    size: int
    modified_at: InstantField
    etag: str


class Mark(Document):
    """The orphans found by one collection."""

    document_type: ClassVar[str] = "mark of a collection"

    started_at: InstantField
    """Before the first root was read."""
    finished_at: InstantField
    """After the last blob was listed."""
    shards: tuple[str, ...]
    orphans: Mapping[str, Orphan] = Field(description="By digest.")
    waiting: tuple[str, ...] = ()
    """Keys of the entries that waited in inbox and quarantine."""


@dataclass(frozen=True, slots=True)
class GcReport:
    """The result of a collection: what it found, and what it deleted or would delete."""

    is_dry_run: bool
    stored: int
    """Number of blobs within the scope."""
    stored_bytes: int
    orphaned: int
    """Number of those that nothing names now."""
    orphaned_bytes: int
    due: tuple[Digest, ...]
    """Those that an earlier mark, a grace period ago, found orphaned and that are unchanged."""
    due_bytes: int
    deleted: tuple[Digest, ...]
    deleted_bytes: int
    spared: tuple[Digest, ...]
    """Due blobs that were rewritten since this collection began."""
    first_mark_at: datetime | None
    """Time of the mark that makes blobs due; None if none is old enough."""
    obstacles: tuple[str, ...] = ()
    """Why nothing more was deleted, and nothing marked if that was known before. One sentence each;
    empty on success.
    """

    def to_json(self) -> dict[str, object]:
        """Return the report for programs."""
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
            "first_mark_at": None
            if self.first_mark_at is None
            else json_instant(self.first_mark_at),
            "obstacles": list(self.obstacles),
        }


def collect_garbage(
    store: BlobStore,
    scope: GcScope,
    *,
    is_dry_run: bool = True,
    lost: Collection[Digest] = (),
    new_orphans: int = 0,
    workers: int = WORKERS,
    progress: Callable[[int, int], None] | None = None,
) -> GcReport:
    """Mark the orphans; delete those that a mark at least `blobs.GRACE` old has too.

    A dry run writes and deletes nothing. Otherwise due blobs are deleted and the mark is kept for
    later collections. You can stop it at any time and run it again. If there is an obstacle
    (`deletion.obstacles`, or a mass of new orphans), nothing is marked or deleted, and the report
    names it.

    Args:
        store: The archive.
        scope: The blobs that may be deleted.
        is_dry_run: Only report.
        lost: Manifests and batches that are given up: blobs that only they name may be deleted.
        new_orphans: Number of blobs that may have become orphaned since the last mark, even if that
            is a mass of them.
        workers: Concurrent requests.
        progress: Called with (blobs processed, blobs due).

    Raises:
        ConflictError: Another deletion is under way; completed deletions were right.
        StoreUnavailableError, OutcomeUnknownError: Some of what was due may be deleted.
    """
    marks = read_marks(store)
    mark, stored, needed = make_mark(store, scope, lost, workers)
    covering = [m for m in marks.values() if set(m.shards) >= scope.shards]
    obstacles = (
        *needed.obstacles,
        *_unlisted(store, marks.values(), needed),
        *_mass(mark, stored, covering, new_orphans),
    )
    first = _first_mark(covering, mark)
    due = [] if first is None or obstacles else _due(first, mark)
    report = partial(
        GcReport,
        is_dry_run=is_dry_run,
        stored=len(stored),
        stored_bytes=sum(info.size for info in stored),
        orphaned=len(mark.orphans),
        orphaned_bytes=sum(orphan.size for orphan in mark.orphans.values()),
        due=tuple(due),
        due_bytes=_bytes_of(mark, due),
        first_mark_at=None if first is None else first.started_at,
    )
    if is_dry_run or obstacles:
        return report(deleted=(), deleted_bytes=0, spared=(), obstacles=obstacles)
    # The mark before the deletions: a collection that dies halfway has marked all the same.
    name = f"{mark.started_at:%Y%m%dT%H%M%S.%f}Z-{uuid4().hex[:8]}"
    create_or_read(store, layout.gc_mark(name), mark.encode())
    # How far logs went that named what this mark has not: the next collection misses what is lost.
    write_census(store, workers)
    infos = {layout.parse_blob(info.key): info for info in stored}
    done = delete(
        store,
        [infos[digest] for digest in due],
        needed,
        given_up=lost,
        workers=workers,
        progress=progress,
    )
    _remove_old_marks(store, scope)
    return report(
        deleted=done.deleted,
        deleted_bytes=_bytes_of(mark, done.deleted),
        spared=done.spared,
        obstacles=done.obstacles,
    )


def _bytes_of(mark: Mark, digests: Collection[Digest]) -> int:
    return sum(mark.orphans[str(digest)].size for digest in digests)


def make_mark(
    store: BlobStore,
    scope: GcScope,
    lost: Collection[Digest] = (),
    workers: int = WORKERS,
) -> tuple[Mark, list[ObjectInfo], NeededBlobs]:
    """Return the orphans within the scope, all blobs stored within it, and the needed blobs.

    Writes nothing. If there are obstacles, the mark is meaningless.
    """
    started_at = store.now()
    needed = find_needed_blobs(store, given_up=lost, workers=workers)
    stored = [info for prefix in scope.prefixes for info in store.list_objects(prefix)]
    orphans = {
        str(digest): Orphan(size=info.size, modified_at=info.modified_at, etag=info.etag)
        for info in stored
        if (digest := layout.parse_blob(info.key)) not in needed.needed and digest != EMPTY
    }
    mark = Mark(
        started_at=started_at,
        finished_at=store.now(),
        shards=tuple(sorted(scope.shards)),
        orphans=orphans,
        waiting=tuple(sorted(needed.waiting)),
    )
    return mark, stored, needed


def _unlisted(store: BlobStore, marks: Iterable[Mark], needed: NeededBlobs) -> list[str]:
    """Return entries that were waiting at the newest mark, exist and are not listed."""
    newest = max(marks, key=lambda mark: mark.started_at, default=None)
    unlisted = [] if newest is None else sorted(set(newest.waiting) - needed.waiting)
    stored = map_threads(store.stat, unlisted)
    return [
        f"{key} is stored and was not listed: the store's listing is incomplete, so the needed"
        " blobs are unknown"
        for key, info in zip(unlisted, stored, strict=True)
        if info is not None
    ]


def _mass(
    mark: Mark, stored: Collection[ObjectInfo], covering: Collection[Mark], allowed: int
) -> list[str]:
    """Return the obstacle if a mass of blobs was orphaned since the last mark."""
    last = max(covering, key=lambda mark: mark.started_at, default=None)
    known = set() if last is None else last.orphans.keys()
    new = len(mark.orphans.keys() - known)
    few = max(_MASS * len(stored), _FEW * len(mark.shards) / len(_SHARDS))
    if new <= max(few, allowed):
        return []
    since = "no earlier mark knows" if last is None else f"nothing needs since {last.started_at:%F}"
    return [
        f"{new} of {counted(len(stored), 'blob')}: new orphans, which {since}:"
        " `feature-pipeline verify` shows whether entries of logs are missing; if a large"
        f" submission was given up, or many records were erased, `--new-orphans {new}` continues"
    ]


def read_marks(store: BlobStore) -> dict[str, Mark]:
    """Return every stored mark, by key, oldest first."""
    infos = list(store.list_objects(layout.GC_MARKS))
    marks = map_threads(lambda info: _read_mark(store, info.key), infos)
    return {info.key: mark for info, mark in zip(infos, marks, strict=True) if mark is not None}


def _read_mark(store: BlobStore, key: str) -> Mark | None:
    """Return the mark; None if another collection removed it since it was listed."""
    try:
        return Mark.decode(store.get(key).data, key, broken=CorruptDataError)
    except NotFoundError:
        return None


def _first_mark(marks: Iterable[Mark], second: Mark) -> Mark | None:
    """Return the last mark that ended a grace period before the second one began."""
    old = [mark for mark in marks if second.started_at - mark.finished_at >= blobs.GRACE]
    return max(old, key=lambda mark: mark.started_at, default=None)


def _due(first: Mark, second: Mark) -> list[Digest]:
    return [
        Digest.parse(name)
        for name, orphan in sorted(second.orphans.items())
        if first.orphans.get(name) == orphan
    ]


def _remove_old_marks(store: BlobStore, scope: GcScope) -> None:
    """Remove marks of this scope that a later, sufficiently old one replaces."""
    now = store.now()
    ripe = [
        key
        for key, mark in read_marks(store).items()
        if now - mark.finished_at >= blobs.GRACE and set(mark.shards) == scope.shards
    ]
    for key in ripe[:-1]:
        store.delete(key)
