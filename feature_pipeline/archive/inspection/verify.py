"""Verify that every object that something names is stored and matches its name.

A log alone cannot show that its end is missing. Therefore the logs are compared with the newest
census, and a new census of all logs is written at the end. An entry that the census knows and that
is absent is lost.
"""

import random
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from feature_pipeline.archive import blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError, utc_now
from feature_pipeline.archive.inspection import census, checksums
from feature_pipeline.archive.inspection.findings import (
    Finding,
    ObjectKind,
    Reached,
    Reference,
    Scope,
    State,
)
from feature_pipeline.archive.inspection.reachable import erased_since, reach
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.json_values import json_instant
from feature_pipeline.parallel import WORKERS, map_threads

_DOCUMENTS = frozenset({ObjectKind.MANIFEST, ObjectKind.BATCH})


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The objects that were checked, and every problem found."""

    scope: Scope
    started_at: datetime
    finished_at: datetime
    documents: int
    """Log, inbox and quarantine entries, manifests and batches, all of which were read."""
    blobs: int
    """Other blobs that are named."""
    blobs_read: int
    """Those of them that were read completely; fewer than `blobs` only in a sample."""
    bytes_read: int
    erased: int
    """Objects that are absent because a record was withdrawn, as intended."""
    findings: tuple[Finding, ...]
    """One for each object with a problem: the first problem found."""
    sample: float = 1.0
    seed: int | None = None
    """Repeats the same sample."""
    notes: tuple[str, ...] = ()
    """Information that is not a problem."""

    @property
    def is_clean(self) -> bool:
        """Whether no problem was found."""
        return not self.findings

    def count(self, state: State) -> int:
        """Return the number of objects in this state."""
        return sum(finding.state is state for finding in self.findings)

    def summary(self) -> str:
        """Return a one-line summary."""
        objects = f"{counted(self.documents, 'document')} and {counted(self.blobs_read, 'blob')}"
        if self.blobs_read < self.blobs:
            objects += f" (of {self.blobs})"
        wrong = [f"{count} {state}" for state in State if (count := self.count(state))]
        erased = f"; {self.erased} erased" if self.erased else ""
        right = "all right"
        if not (self.documents or self.blobs or self.erased):
            right = "nothing is stored; if something should be, check bucket, prefix and names"
        return f"{self.scope}: {objects} read: {', '.join(wrong) or right}{erased}"

    def to_json(self) -> dict[str, object]:
        """Return the report for programs."""
        return {
            "scope": {
                "dataset": self.scope.dataset,
                "hook": self.scope.hook,
                "batch": self.scope.batch,
            },
            "is_clean": self.is_clean,
            "started_at": json_instant(self.started_at),
            "finished_at": json_instant(self.finished_at),
            "documents": self.documents,
            "blobs": self.blobs,
            "blobs_read": self.blobs_read,
            "bytes_read": self.bytes_read,
            "erased": self.erased,
            "sample": self.sample,
            "seed": self.seed,
            "notes": list(self.notes),
            "counts": {state.value: self.count(state) for state in State},
            "findings": [
                {
                    "state": finding.state.value,
                    "kind": finding.kind.value,
                    "key": finding.key,
                    "named_by": finding.named_by,
                    "detail": finding.detail,
                }
                for finding in self.findings
            ],
        }


def verify(
    store: BlobStore,
    scope: Scope | None = None,
    *,
    sample: float = 1.0,
    seed: int | None = None,
    workers: int = WORKERS,
    progress: Callable[[int, int], None] | None = None,
    restore_checksums: bool = False,
    writes_census: bool = True,
) -> VerifyReport:
    """Read everything in the scope again, and report problems.

    All documents are read, and the fraction `sample` of the other blobs, completely. The logs are
    compared with the newest census. If the whole archive is read, a census of its current state is
    written, unless `writes_census` is False. Nothing else is written unless checksums are restored.

    Args:
        store: The archive.
        scope: The part to verify; all if None.
        sample: Above 0, up to 1.
        seed: Choose the same blobs as an earlier sample; if None, a seed is drawn and reported.
        workers: Concurrent requests.
        progress: Called with (blobs read, blobs to read), from any thread but never concurrently.
        restore_checksums: Rewrite valid objects of which the store keeps no checksum.
        writes_census: Whether a census may be written.

    Raises:
        StoreUnavailableError: The store could not list objects; nothing was verified.
        InvalidInputError: `sample` is not such a fraction.
    """
    if not 0 < sample <= 1:
        raise InvalidInputError(f"sample {sample}: write a fraction above 0 and at most 1")
    if seed is None and sample < 1:
        seed = random.SystemRandom().getrandbits(32)
    scope = scope or Scope()
    started_at = utc_now()
    reached = reach(store, scope, workers)
    named = [r for r in reached.references.values() if r.kind not in _DOCUMENTS]
    chosen = _choose(named, sample, seed)
    reading = _Reading(store, len(chosen), progress)
    map_threads(reading.read, chosen, workers)
    all_findings = [*reached.findings, *reading.findings, *_not_erased(store, scope, reached)]
    findings = list({finding.key: finding for finding in reversed(all_findings)}.values())
    kept, erased_since_listing = _without_erased_since(store, scope, reached, findings)
    unchecked = (
        reached.unchecked | reading.unchecked | _unchecked_documents(store, reached, workers)
    )
    wrong = {finding.key for finding in findings}
    notes = _note_checksums(store, unchecked - wrong, restore_checksums, workers)
    if scope.is_whole and writes_census:
        notes += _write_census(store, reached, workers)
    return VerifyReport(
        scope=scope,
        started_at=started_at,
        finished_at=utc_now(),
        documents=reached.documents,
        blobs=len(named),
        blobs_read=len(chosen),
        bytes_read=reached.bytes_read + reading.bytes_read,
        erased=len(_erased_digests(reached)) + erased_since_listing,
        findings=tuple(sorted(kept, key=lambda f: (f.state, f.kind, f.key))),
        sample=sample,
        seed=seed,
        notes=notes,
    )


def _write_census(store: BlobStore, reached: Reached, workers: int) -> tuple[str, ...]:
    """Write the current lengths of the logs; an obstacle is a note, not a finding."""
    if reached.known is None:
        return ()
    try:
        census.record(store, reached.known, reached.seen, reached.shortfalls, workers)
    except (StoreUnavailableError, OutcomeUnknownError, NewerVersionError) as error:
        return (f"no census was written: {error}",)
    return ()


def _unchecked_documents(store: BlobStore, reached: Reached, workers: int) -> set[str]:
    """Return manifests and batches without a stored checksum, which reading does not show."""
    keys = {r.key for r in reached.references.values() if r.kind in _DOCUMENTS}
    try:
        infos = map_threads(store.stat, sorted(keys), workers)
    except StoreUnavailableError:
        return set()
    stored = [info for info in infos if info is not None]
    return {i.key for i in stored if i.sha256 is None and i.composite_sha256 is None}


def _note_checksums(
    store: BlobStore, unchecked: Collection[str], restores: bool, workers: int
) -> tuple[str, ...]:
    """Note valid objects without a stored checksum, if the store keeps any."""
    probe = store.stat(layout.PROBE) if unchecked else None
    if probe is None or probe.sha256 is None:
        return ()
    objects = f"the store keeps no checksum of {counted(len(unchecked), 'valid object')}"
    if not restores:
        return (f"{objects}: `feature-pipeline verify --restore-checksums` restores it",)
    try:
        restored = checksums.restore_checksums(store, unchecked, workers)
    except StoreUnavailableError as error:
        return (f"{objects}; it could not be set again: {error}",)
    return (f"{objects}; it was set again for {restored} of them",)


def _choose(named: Sequence[Reference], sample: float, seed: int | None) -> Sequence[Reference]:
    if sample == 1:
        return named
    ordered = sorted(named, key=lambda reference: (reference.digest, reference.size or 0))
    count = min(len(ordered), max(1, round(sample * len(ordered))))
    return random.Random(seed).sample(ordered, count)  # noqa: S311 - which to look at, no secret


@dataclass
class _Reading:
    store: BlobStore
    total: int
    progress: Callable[[int, int], None] | None
    done: int = 0
    bytes_read: int = 0
    findings: list[Finding] = field(default_factory=list)
    unchecked: set[str] = field(default_factory=set)
    """Keys of blobs of which the store keeps no checksum."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, reference: Reference) -> None:
        problem: tuple[State, str] | None = None
        size, unchecked = 0, None
        try:
            with blobs.open_blob(self.store, reference.digest, reference.size) as stream:
                size = sum(len(chunk) for chunk in stream.chunks)
                if stream.info.sha256 is None and stream.info.composite_sha256 is None:
                    unchecked = reference.key
        except NotFoundError as error:
            problem = State.MISSING, str(error)
        except CorruptDataError as error:
            problem = State.CORRUPT, str(error)
        except StoreUnavailableError as error:
            problem = State.UNREADABLE, str(error)
        with self._lock:
            self.done += 1
            self.bytes_read += size
            if unchecked is not None:
                self.unchecked.add(unchecked)
            if problem is not None:
                state, detail = problem
                self.findings.append(
                    Finding(state, reference.kind, reference.key, reference.named_by, detail)
                )
            if self.progress is not None:
                self.progress(self.done, self.total)


def _erased_digests(reached: Reached) -> set[Digest]:
    """Return the erased objects that nothing needs; all of them for a whole archive."""
    erased_blobs = {digest for erased in reached.erasures.values() for digest in erased.blobs}
    return (erased_blobs | reached.erased.keys()) - reached.digests


def _not_erased(store: BlobStore, scope: Scope, reached: Reached) -> list[Finding]:
    """Return data of withdrawn records that still exists because an erasure is unfinished."""
    findings: list[Finding] = []
    # What else needs a blob is known only when all is looked at.
    if not scope.is_whole:
        return findings
    for dataset, erased in reached.erasures.items():
        ids = reached.withdrawn.get(dataset, set())
        due = [d for d, whose in erased.blobs.items() if whose & ids and d not in reached.digests]
        stored = map_threads(lambda digest: store.stat(layout.blob(digest)), due)
        named_by = f"an erasure of dataset {dataset}"
        detail = f"run `feature-pipeline erase --dataset {dataset}` to complete the erasure"
        findings += [
            Finding(State.NOT_ERASED, ObjectKind.NAMED, layout.blob(digest), named_by, detail)
            for digest, info in zip(due, stored, strict=True)
            if info is not None
        ]
    return findings


def _without_erased_since(
    store: BlobStore, scope: Scope, reached: Reached, findings: Sequence[Finding]
) -> tuple[list[Finding], int]:
    """Return the findings without objects that an erasure deleted meanwhile."""
    missing = [f for f in findings if f.state is State.MISSING and f.key.startswith(layout.BLOBS)]
    if not missing:
        return list(findings), 0
    since = erased_since(store, scope, reached)
    kept = [f for f in findings if f.state is not State.MISSING or f.key not in since]
    return kept, len(findings) - len(kept)
