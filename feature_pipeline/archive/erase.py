"""Withdrawn records are taken out of the archive: the one exception to keeping everything.

What belongs here: the order in which it is done, and what is deleted. Not here: what is left of
an artifact or batch (`redact`), saying that a record is withdrawn (`tombstones`).

The order is what crash safety rests on: the tombstone (from here on nothing about the record is
accepted or loaded), successors of batches and artifacts, their log entries, the entry of the
erasure log that says what they replace and what is to be deleted, the deletions. Whatever dies in
between leaves an archive that reads rightly and that the next call takes further; the erasure log
is what tells an erased object from a lost one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Final

from feature_pipeline.archive import blobs, inbox, layout, log, read
from feature_pipeline.archive.blob_store import JSON_MEDIA_TYPE, BlobStore, ObjectInfo
from feature_pipeline.archive.documents import utc_now
from feature_pipeline.archive.erasures import Erased, ErasureEntry, erasures
from feature_pipeline.archive.inbox import InboxEntry, Submission
from feature_pipeline.archive.log import BatchEntry, FeatureEntry, Verdict
from feature_pipeline.archive.objects import State
from feature_pipeline.archive.reachable import reach
from feature_pipeline.archive.redact import redact_artifact, redact_batch
from feature_pipeline.archive.sweep import MARGIN, Sweep, outlast
from feature_pipeline.archive.threads import map_threads
from feature_pipeline.archive.tombstones import withdraw, withdrawn
from feature_pipeline.digest import Digest
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    FeaturePipelineError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.records import RecordBatch

_MAX_PASSES: Final = 10
_GROUP: Final = 1000
"""Blobs deleted between two looks at what is named by now; each look lists the logs."""
_EMPTY: Final = Digest.of(b"")
"""It says nothing of anybody, and publishers rely on it at any moment."""

OUTSIDE_REACH: Final = (
    "Dagster's events and logs: previews, metadata and run logs may show values of the records;"
    " delete the runs, or the instance's events, if they must go",
    "tables until they are loaded again: run the job `reconcile`, or rebuild them; generations"
    " kept for rollback hold the records until they are dropped",
    "copies of the bucket and of the database: replicas, old object versions, backups, dumps",
    "what hooks said about other records: an alignment may name a withdrawn one",
    "what hooks' pods were given and left, in `uploads/`: 14 days by the bucket's lifecycle rule",
    "blobs that nothing names (a publisher died before its manifest): `feature-pipeline gc`",
)
"""What an erasure in the archive does not reach, for people."""


@dataclass
class ErasureReport:
    """What was done; everything that was asked for, unless `problems` says otherwise."""

    dataset: str
    record_ids: tuple[str, ...]
    """The records that were found in batches and taken out."""
    batches: list[str] = field(default_factory=list)
    """Batches that have a successor now."""
    artifacts: int = 0
    """Artifacts, current or not, that have a successor now."""
    waiting: int = 0
    """Entries of inbox and quarantine that were replaced."""
    deleted: int = 0
    """Blobs deleted."""
    problems: list[str] = field(default_factory=list)
    """What could not be read, so that records may still be there; nothing else was left out."""

    def to_json(self) -> dict[str, object]:
        """The report for programs."""
        return {
            "dataset": self.dataset,
            "record_ids": list(self.record_ids),
            "batches": self.batches,
            "artifacts": self.artifacts,
            "waiting": self.waiting,
            "deleted": self.deleted,
            "problems": self.problems,
            "outside_reach": list(OUTSIDE_REACH),
        }


def erase(
    store: BlobStore,
    dataset: str,
    record_ids: Collection[str],
    reason: str,
    progress: Callable[[str], None] | None = None,
) -> ErasureReport:
    """The records are withdrawn, and nothing of them is in the archive.

    They cannot be submitted again before the withdrawal is lifted (`tombstones.lift`). Idempotent;
    after a crash, `finish_erasing` goes on.

    Args:
        store: The archive.
        dataset: The records' dataset.
        record_ids: Records in whichever batches; ids that no batch has are withdrawn all the same.
        reason: Kept in the tombstone for ever: no personal data.
        progress: Called with what is being done.

    Raises:
        InvalidInputError: No ids, or one that cannot name a record; nothing was done.
        StoreUnavailableError, OutcomeUnknownError, ConflictError: It is not finished; call again.
    """
    withdraw(store, dataset, record_ids, reason)
    return finish_erasing(store, dataset, progress)


def finish_erasing(
    store: BlobStore, dataset: str, progress: Callable[[str], None] | None = None
) -> ErasureReport:
    """Nothing of any withdrawn record of the dataset is in the archive.

    Raises:
        StoreUnavailableError, OutcomeUnknownError, ConflictError: It is not finished; call again.
    """
    say = progress or (lambda _: None)
    report = ErasureReport(dataset, ())
    ids = frozenset(withdrawn(store, dataset))
    if not ids:
        return report
    # A completion accepted while a pass ran is found by the next one.
    for number in range(1, _MAX_PASSES + 1):
        say(f"pass {number}: looking for {len(ids)} withdrawn records")
        erasing = _Pass(store, dataset, ids, report, say)
        if not erasing.run():
            break
    report.problems = list(dict.fromkeys(report.problems))
    return report


class _Pass:
    """One look at everything that may name a withdrawn record."""

    def __init__(
        self,
        store: BlobStore,
        dataset: str,
        ids: frozenset[str],
        report: ErasureReport,
        say: Callable[[str], None],
    ) -> None:
        self.store = store
        self.dataset = dataset
        self.ids = ids
        self.report = report
        self.say = say
        before = erasures(store, dataset)
        self.known = Erased.of(before)
        self.erased_ids = frozenset(i for entry in before for i in entry.record_ids)
        self.found: set[str] = set()
        self.batches: dict[Digest, Digest] = {}
        self.manifests: dict[Digest, Digest] = {}
        self.candidates: set[Digest] = set()

    def run(self) -> bool:
        """Whether there was anything to do, so that another look is worth it."""
        logs = self._batch_logs()
        self._redact_batches(logs)
        touched = {
            key
            for key, entries in logs.items()
            if any(self._successor_batch(entry.digest) is not None for entry in entries)
        }
        for hook in self.store.list_folders(f"{layout.FEATURE_LOGS}{self.dataset}/"):
            for key in sorted(touched):
                with self._reporting(f"{self.dataset}/{hook}/{key}"):
                    self._redact_log(hook, key)
        replaced = self._replace_waiting()
        if self.batches or self.manifests:
            self._write_entry()
        for key in replaced:
            self.store.delete(key)
        deleted = self._delete()
        self.report.deleted += deleted
        self.report.waiting += len(replaced)
        self.report.record_ids = tuple(sorted({*self.report.record_ids, *self.found}))
        return bool(self.batches or self.manifests or replaced or deleted)

    @contextmanager
    def _reporting(self, where: str) -> Iterator[None]:
        """What cannot be read is a problem of its own: the rest is erased all the same."""
        try:
            yield
        except (NotFoundError, CorruptDataError, InvalidInputError) as error:
            self.report.problems.append(f"{where}: {error}")

    # Batches

    def _batch_logs(self) -> dict[str, list[BatchEntry]]:
        """The log of every batch, as far as they can be read."""
        with suppress(CorruptDataError, InvalidInputError):
            return log.batch_logs(self.store, self.dataset)
        found: dict[str, list[BatchEntry]] = {}
        for key in self.store.list_folders(layout.batch_logs(self.dataset)):
            with self._reporting(f"the log of batch {key}"):
                found[key] = log.batch_entries(self.store, self.dataset, key)
        return found

    def _redact_batches(self, logs: Mapping[str, list[BatchEntry]]) -> None:
        unknown = [
            (key, digest)
            for key, entries in logs.items()
            for digest in dict.fromkeys(entry.digest for entry in entries)
            if digest not in self.known.batches
        ]
        found = map_threads(self._names_withdrawn, unknown)
        for (key, digest), is_named in zip(unknown, found, strict=True):
            if is_named:
                self.say(f"batch {key}")
                self._append_batch(key, self._redact_batch(digest, self._batch(digest)))
                self.report.batches.append(key)

    def _names_withdrawn(self, which: tuple[str, Digest]) -> bool:
        key, digest = which
        try:
            return self._names(self._batch(digest))
        except (NotFoundError, CorruptDataError, InvalidInputError) as error:
            self.report.problems.append(f"batch {key}: {error}")
            return False

    def _batch(self, digest: Digest) -> RecordBatch:
        # Not by way of the cache: another process may have erased it since.
        return RecordBatch.decode(blobs.read_blob(self.store, digest))

    def _names(self, batch: RecordBatch) -> bool:
        return any(record.id in self.ids for record in batch.records)

    def _redact_batch(self, digest: Digest, batch: RecordBatch) -> RecordBatch:
        successor = redact_batch(batch, self.ids)
        blobs.put_blob(self.store, successor.encode(), JSON_MEDIA_TYPE)
        self.batches[digest] = successor.digest
        self.candidates.add(digest)
        for record in batch.records:
            if record.id in self.ids:
                self.found.add(record.id)
                self.candidates.update(file.blob for file in record.files)
        return successor

    def _append_batch(self, key: str, successor: RecordBatch) -> None:
        def decide(entries: list[BatchEntry]) -> BatchEntry:
            for entry in entries:
                if entry.digest == successor.digest:
                    return entry
            return entries[-1].model_copy(
                update={
                    "seq": log.next_seq(entries),
                    "write_id": log.new_write_id(),
                    "digest": successor.digest,
                    "records": len(successor.records),
                    "accepted_at": utc_now(),
                }
            )

        log.append(self.store, layout.batch_log(self.dataset, key), BatchEntry, decide)

    # Artifacts

    def _successor_batch(self, digest: Digest) -> Digest | None:
        """The batch that replaces one which had a withdrawn record; None for any other."""
        now = Erased(batches={**self.known.batches, **self.batches}).batch_now(digest)
        return None if now == digest else now

    def _gone(self, successor: Digest) -> frozenset[str]:
        """The records that were taken out of the batch; some may be allowed elsewhere by now."""
        kept = {record.id for record in self._batch(successor).records}
        return (self.ids | self.erased_ids) - kept

    def _redact_log(self, hook: str, key: str) -> None:
        for entry in log.read_log(self.store, self.dataset, hook, key):
            if entry.manifest in self.known.manifests:
                continue
            where = f"{self.dataset}/{hook}/{key}, entry {entry.seq}"
            successor = self._redact_artifact(entry.manifest, where)
            if successor is not None:
                self._append_features(entry, successor)
                self.report.artifacts += 1

    def _redact_artifact(self, digest: Digest, where: str) -> Digest | None:
        """The artifact's successor; None if it needs none, or cannot be read."""
        if digest in self.manifests:
            return self.manifests[digest]
        successor = None
        with self._reporting(where):
            manifest = read.read_manifest(self.store, digest)
            successor_batch = self._successor_batch(manifest.batch_digest)
            if successor_batch is None:
                return None
            self.say(f"artifact {where}")
            carried = {**self.known.manifests, **self.manifests}
            successor = redact_artifact(
                self.store, manifest, self._gone(successor_batch), successor_batch, carried
            )
            self.manifests[digest] = successor
            self.candidates.add(digest)
            self.candidates.update(ref.digest for ref in manifest.blobs.values())
        return successor

    def _append_features(self, old: FeatureEntry, successor: Digest) -> None:
        manifest = read.read_manifest(self.store, successor)

        def decide(entries: list[FeatureEntry]) -> FeatureEntry:
            for entry in entries:
                if (entry.completion, entry.manifest) == (old.completion, successor):
                    return entry
            verdict = old.verdict
            current = log.last_current(entries)
            if verdict is Verdict.CURRENT and (current is None or current.seq != old.seq):
                verdict = Verdict.SUPERSEDED
            return old.model_copy(
                update={
                    "seq": log.next_seq(entries),
                    "write_id": log.new_write_id(),
                    "manifest": successor,
                    "verdict": verdict,
                    "content_digest": manifest.content_digest,
                    "accepted_at": utc_now(),
                }
            )

        prefix = layout.feature_log(old.dataset, old.hook, old.batch)
        log.append(self.store, prefix, FeatureEntry, decide)

    # What waits

    def _replace_waiting(self) -> list[str]:
        """Leave successors of entries that wait; the keys of those that they replace."""
        replaced = []
        for entry in inbox.waiting(self.store):
            with self._reporting(f"inbox entry {entry.id}"):
                if self._leave_successor(entry, f"inbox entry {entry.id}"):
                    replaced.append(f"{layout.INBOX}{entry.id}")
        for info in self.store.list_objects(layout.QUARANTINE):
            with self._reporting(info.key):
                held = inbox.read_quarantined(self.store, info.key)
                entry = inbox.read_entry(held.id, held.left_at, held.entry.encode())
                if self._leave_successor(entry, f"quarantined entry {held.id}"):
                    replaced.append(info.key)
        return replaced

    def _leave_successor(self, entry: InboxEntry, where: str) -> bool:
        content = entry.content
        if content is None:
            raise InvalidInputError(f"{entry.problem}; whether it names a record is not known")
        if content.dataset != self.dataset:
            return False
        if isinstance(content, Submission):
            return self._leave_submission(content)
        logged = log.read_log(self.store, content.dataset, content.hook, content.batch)
        if any((e.completion, e.manifest) == (content.id, content.manifest) for e in logged):
            return False  # accepted: its entry has a successor, and this one is removed by others
        if content.manifest in self.known.manifests:
            successor: Digest | None = self.known.manifest_now(content.manifest)
        else:
            successor = self._redact_artifact(content.manifest, where)
        if successor is None:
            return False
        inbox.leave(self.store, content.model_copy(update={"manifest": successor}))
        return True

    def _leave_submission(self, content: Submission) -> bool:
        known = log.batch_entries(self.store, content.dataset, content.batch)
        if any(entry.digest == content.digest for entry in known):
            return False
        if content.digest in self.known.batches:
            successor = self.known.batch_now(content.digest)
        else:
            batch = self._batch(content.digest)
            if not self._names(batch):
                return False
            successor = self._redact_batch(content.digest, batch).digest
        inbox.leave(self.store, content.model_copy(update={"digest": successor}))
        return True

    # Deletions

    def _write_entry(self) -> None:
        """Say what is replaced and what is to be deleted, before anything is."""
        planned = Erased(self.manifests, self.batches)
        # Whatever needs a candidate besides what is replaced keeps it, in any dataset.
        needed = self._needed(planned)
        entry = ErasureEntry(
            seq=layout.FIRST_SEQ,
            dataset=self.dataset,
            record_ids=tuple(sorted(self.ids)),
            manifests=_texts(self.manifests),
            batches=_texts(self.batches),
            blobs=tuple(sorted(self.candidates - needed - {_EMPTY})),
        )

        def decide(entries: list[ErasureEntry]) -> ErasureEntry:
            return entry.model_copy(update={"seq": log.next_seq(entries)})

        log.append(self.store, layout.erasure_log(self.dataset), ErasureEntry, decide)

    def _needed(self, planned: Erased, since: datetime | None = None) -> set[Digest]:
        """Every blob of any dataset that something needs besides what is replaced.

        With `since`: what waits and later log entries alone.
        """
        reached = reach(self.store, planned=planned, since=since)
        for finding in reached.findings:
            if finding.state in {State.UNREADABLE, State.NEWER}:
                raise StoreUnavailableError(
                    f"{finding.kind} {finding.key} is {finding.state} ({finding.detail}): what it"
                    " needs is not known, so nothing is deleted; run `feature-pipeline erase"
                    f" --dataset {self.dataset}` again once it can be read"
                )
        return reached.digests

    def _delete(self) -> int:
        """Delete what this erasure, or an earlier one that died, said was to go."""
        due = {
            digest
            for entry in erasures(self.store, self.dataset)
            if self.ids.intersection(entry.record_ids)
            for digest in entry.blobs
        }
        keys = [layout.blob(digest) for digest in sorted(due)]
        stored = map_threads(self.store.stat, keys)
        there = {info.key: info for info in stored if info is not None}
        if not there:
            return 0
        # Asked again: somebody may have come to need one since it was said to go.
        looked_at = utc_now()
        needed = {layout.blob(digest) for digest in self._needed(Erased())}
        going = [info for key, info in there.items() if key not in needed]
        self.say(f"deleting {len(going)} blobs")
        return self._sweep(going, looked_at) if going else 0

    def _sweep(self, going: Sequence[ObjectInfo], looked_at: datetime) -> int:
        """Delete those that nobody has come to rely on since; how many there were.

        A publisher may have found one present before it named it. Under the lease, either it is
        named by now, or the publisher looks once this is over: see `publish.find_lost`.
        """
        count = 0
        sweep = self._take_lease()
        try:
            for start in range(0, len(going), _GROUP):
                sweep.renew()
                named = self._needed(Erased(), since=looked_at - MARGIN)
                group = [i for i in going[start : start + _GROUP] if _digest(i) not in named]
                count += sum(map_threads(partial(self._delete_unchanged, sweep), group))
        finally:
            with suppress(FeaturePipelineError):
                sweep.end()
        return count

    def _take_lease(self) -> Sweep:
        while True:
            # A dead one's lease ends by itself.
            outlast(self.store)
            try:
                return Sweep.take(self.store)
            except ConflictError as error:
                self.say(f"waiting: {error}")

    def _delete_unchanged(self, sweep: Sweep, then: ObjectInfo) -> bool:
        now = self.store.stat(then.key)
        if now is None or (now.etag, now.modified_at) != (then.etag, then.modified_at):
            return False  # written anew: it is named soon, or `verify` says that it is left
        if not sweep.is_safe:
            raise ConflictError(
                f"looking for what is named took longer than the lease: {then.key} is not deleted;"
                f" run `feature-pipeline erase --dataset {self.dataset}` again"
            )
        self.store.delete(then.key)
        return True


def _digest(info: ObjectInfo) -> Digest:
    return layout.parse_blob(info.key)


def _texts(successors: Mapping[Digest, Digest]) -> dict[str, Digest]:
    return {str(old): new for old, new in sorted(successors.items())}
