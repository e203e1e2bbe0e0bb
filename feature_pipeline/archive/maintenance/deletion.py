"""The one rule for deleting blobs, and the one way to delete them.

**The rule.** A blob is deleted only if it is known that nothing needs it. That is known only if
everything that may name blobs was read. While one such object of any dataset is missing, corrupt,
lost, unreadable or of a newer version, nothing is deleted; nor while a listing has less than was
known before. Each obstacle is reported, and stays until it is restored or given up by name.

**The way.** Read everything; take the lease with the condemned blobs; read what was named since;
delete what is still not named, by requests that the store refuses when the lease is over. If a
publisher names a blob before the second reading, the deletion sees it; if later, the publisher sees
the lease (`guard`) and writes the blob again.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from feature_pipeline.archive.deletion_lease import DeletionLease
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.findings import Finding, Reached, State
from feature_pipeline.archive.inspection.reachable import reach
from feature_pipeline.archive.logs.erasures import Erased
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.model.digest import Digest
from feature_pipeline.parallel import WORKERS, map_threads

logger = logging.getLogger(__name__)

EMPTY: Final = Digest.of(b"")
"""The blob without bytes. Publishers rely on it at any time, and it costs nothing to keep."""

_GROUP: Final = 1000
"""Number of blobs condemned at once: publishers read their names while they may be deleted."""
_AT_ONCE: Final = 64
"""Number of blobs deleted between two checks of the remaining time."""
_READINGS_PER_LEASE: Final = 4
"""Ratio of the lease to the time that reading took, so that most of it is for deleting."""


@dataclass(frozen=True, slots=True)
class NeededBlobs:
    """The blobs named in the whole archive, and what prevents knowing all of them."""

    needed: frozenset[Digest]
    """Every blob that something names."""
    obstacles: tuple[str, ...]
    """Why nothing may be deleted, one sentence each. If empty, unneeded blobs may be deleted."""
    ends: Mapping[str, int] = field(default_factory=dict)
    """By log the number of its last entry."""
    waiting: frozenset[str] = frozenset()
    """Keys of the entries in inbox and quarantine."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """The result of a deletion."""

    deleted: tuple[Digest, ...] = ()
    spared: tuple[Digest, ...] = ()
    """Candidates that something needs by now, or that were rewritten."""
    kept_back: tuple[Digest, ...] = ()
    """Candidates that may be deleted once the `obstacles` are removed."""
    obstacles: tuple[str, ...] = ()


def find_needed_blobs(
    store: BlobStore,
    *,
    planned: Erased | None = None,
    given_up: Collection[Digest] = (),
    after: Mapping[str, int] | None = None,
    workers: int = WORKERS,
) -> NeededBlobs:
    """Read everything that may name blobs.

    Args:
        store: The archive.
        planned: Erasures about to be written: what they replace needs nothing.
        given_up: Manifests and batches that are given up: blobs that only they name may be deleted.
        after: Skip log entries up to these numbers, which an earlier reading covered.
        workers: Concurrent requests.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    reached = reach(store, workers=workers, planned=planned, after=after)
    return NeededBlobs(
        needed=frozenset(reached.digests),
        obstacles=obstacles(reached, given_up),
        ends={name: max(entries) for name, entries in reached.seen.items()},
        waiting=frozenset(reached.waiting),
    )


def obstacles(reached: Reached, given_up: Collection[Digest] = ()) -> tuple[str, ...]:
    """Return what forbids deletion; empty if unneeded blobs may be deleted.

    Args:
        reached: The objects reached in the whole archive.
        given_up: Manifests and batches that are given up.
    """
    lost = {layout.blob(digest) for digest in given_up}
    sentences = [
        _sentence(finding)
        for finding in reached.findings
        if finding.state is not State.NOT_ERASED and finding.key not in lost
    ]
    if reached.known is not None and reached.known.census is None:
        sentences.append(
            "there is no census, so missing logs cannot be detected: `feature-pipeline"
            " verify` writes one"
            if reached.seen
            else "there is no log and no census, so it is unknown which blobs are needed"
        )
    sentences += [
        f"{key} cannot be read as an entry ({why}), so the blobs that it names are"
        " unknown: `feature-pipeline quarantine --discard` gives it up"
        for key, why in reached.unparsed.items()
    ]
    return tuple(sorted(set(sentences)))


def _sentence(finding: Finding) -> str:
    return (
        f"{finding.kind} {finding.key} is {finding.state} ({finding.detail}), so what it names is"
        " not known"
    )


def delete(
    store: BlobStore,
    candidates: Sequence[ObjectInfo],
    first: NeededBlobs,
    *,
    waits: Callable[[str], None] | None = None,
    given_up: Collection[Digest] = (),
    workers: int = WORKERS,
    progress: Callable[[int, int], None] | None = None,
) -> Deletion:
    """Delete the candidates that nothing needs, if the rule allows it.

    Args:
        store: The archive.
        candidates: Blobs as they were when they were chosen: one that was rewritten since is
            spared.
        first: What is needed, read after they were chosen.
        waits: Wait for another deletion to end rather than raise, and report that with this
            function.
        given_up: As for `find_needed_blobs`.
        workers: Concurrent requests.
        progress: Called with (candidates processed, candidates).

    Raises:
        ConflictError: Another deletion is under way, or took over. Completed deletions were right.
        StoreUnavailableError, OutcomeUnknownError: The store did not answer. As above; call again.
    """
    wanted = {_digest(info): info for info in candidates if _digest(info) != EMPTY}
    if first.obstacles:
        return Deletion(kept_back=tuple(wanted), obstacles=first.obstacles)
    going = {d: info for d, info in wanted.items() if d not in first.needed}
    run = _Run(store, first, given_up, workers, progress, len(wanted))
    run.spared += [digest for digest in wanted if digest not in going]
    if not going:
        return run.outcome(())
    lease = DeletionLease.acquire_when_free(store, waits) if waits else DeletionLease.acquire(store)
    try:
        left = run.delete_under(lease, going)
    except FeaturePipelineError:
        with suppress(FeaturePipelineError):
            lease.end()
        raise
    lease.end()
    logger.info("%s: %d blobs deleted", store.identity, len(run.deleted))
    return run.outcome(left)


@dataclass
class _Run:
    store: BlobStore
    first: NeededBlobs
    given_up: Collection[Digest]
    workers: int
    progress: Callable[[int, int], None] | None
    total: int
    deleted: list[Digest] = field(default_factory=list)
    spared: list[Digest] = field(default_factory=list)
    obstacles: tuple[str, ...] = ()

    def outcome(self, kept_back: Collection[Digest]) -> Deletion:
        return Deletion(tuple(self.deleted), tuple(self.spared), tuple(kept_back), self.obstacles)

    def delete_under(
        self, lease: DeletionLease, going: Mapping[Digest, ObjectInfo]
    ) -> list[Digest]:
        """Delete under the lease; return the blobs kept back because of new obstacles."""
        left = list(going)
        at_least = timedelta()
        while left:
            lease.condemn(left[:_GROUP], at_least)
            began = time.monotonic()
            now = find_needed_blobs(
                self.store, given_up=self.given_up, after=self.first.ends, workers=self.workers
            )
            at_least = _READINGS_PER_LEASE * timedelta(seconds=time.monotonic() - began)
            if now.obstacles:
                self.obstacles = now.obstacles
                return left
            condemned, left = left[:_GROUP], left[_GROUP:]
            while condemned and lease.has_time:
                some, condemned = condemned[:_AT_ONCE], condemned[_AT_ONCE:]
                self._delete_if_unchanged(lease, some, now, going)
            left = condemned + left
        return left

    def _delete_if_unchanged(
        self,
        lease: DeletionLease,
        digests: Sequence[Digest],
        now: NeededBlobs,
        going: Mapping[Digest, ObjectInfo],
    ) -> None:
        def delete_one(digest: Digest) -> bool:
            if digest in now.needed:
                return False
            info, then = self.store.stat(layout.blob(digest)), going[digest]
            if info is None:
                return True
            if (info.size, info.modified_at, info.etag) != (then.size, then.modified_at, then.etag):
                return False
            lease.delete(digest)
            return True

        results = map_threads(delete_one, digests, self.workers)
        for digest, is_deleted in zip(digests, results, strict=True):
            (self.deleted if is_deleted else self.spared).append(digest)
        if self.progress is not None:
            self.progress(len(self.deleted) + len(self.spared), self.total)


def _digest(info: ObjectInfo) -> Digest:
    return layout.parse_blob(info.key)
