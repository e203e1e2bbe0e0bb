"""Erase withdrawn records: the one exception to keeping everything.

Crash safety rests on the order: the tombstone (from here on nothing about the record is accepted or
loaded), successors of batches and artifacts, their log entries, the entry of the erasure log with
the replacements and the blobs to delete, the deletions. If a process dies in between, the next call
continues: a batch's own log shows which batch replaces which, so an unfinished erasure is found
even without an erasure entry. The erasure log distinguishes erased objects from lost ones.

Damaged documents hold back the deletions (`maintenance.deletion`), but not the withdrawal.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from feature_pipeline.archive import blobs, read
from feature_pipeline.archive.deletion_guard import Guard
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.format.manifest import BlobRef, Manifest
from feature_pipeline.archive.logs import inbox, log, tombstones
from feature_pipeline.archive.logs.damage import Damage
from feature_pipeline.archive.logs.erasures import Erased, ErasureEntry, erasures
from feature_pipeline.archive.logs.inbox import InboxEntry, Submission
from feature_pipeline.archive.logs.known_lengths import KnownLogs, check_complete, known_logs
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry, Verdict
from feature_pipeline.archive.logs.tombstones import withdraw, withdrawn
from feature_pipeline.archive.maintenance import deletion
from feature_pipeline.archive.maintenance.redact import redact_artifact, redact_batch
from feature_pipeline.archive.store.base import JSON_MEDIA_TYPE, BlobStore
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.text.counted import counted
from feature_pipeline.parallel import map_threads

_MAX_PASSES: Final = 10

OUTSIDE_REACH: Final = (
    "Dagster's events and logs: previews, metadata, what hooks print, and the logs of the processes"
    " that start runs may show values of the records; delete the runs, or the instance's events,"
    " and these logs",
    "tables until they are loaded again: run the job `reconcile`, or rebuild them; generations"
    " kept for rollback hold the records until they are dropped; PostgreSQL's statistics show"
    " values until `analyze`",
    "bytes of deleted rows and objects on the disks of PostgreSQL (`vacuum full`) and of the store,"
    " until their space is used again; and PostgreSQL's write-ahead log",
    "copies of the bucket and of the database: replicas, old object versions, backups, dumps",
    "the servers' own logs: the store's access logs name keys and their prefixes, and PostgreSQL's"
    " log names records in the statements and values of its errors; delete them, or let their"
    " retention end",
    "output about other records: an alignment may name a withdrawn one",
    "input and output of hook runs that did not finish, in `uploads/` and in the work folders of"
    " the machines that ran them: until their batch is computed again, 14 days at most",
    "blobs that nothing names (a publisher died before its manifest): `feature-pipeline gc`",
)
"""Copies that an erasure in the archive does not reach, for display."""


@dataclass
class ErasureReport:
    """The result of an erasure; it is complete unless `is_finished` is False."""

    dataset: str
    record_ids: tuple[str, ...]
    """The records that were removed from batches."""
    batches: list[str] = field(default_factory=list)
    """Batches that have a successor now."""
    artifacts: int = 0
    """Artifacts, current or not, that have a successor now."""
    waiting: int = 0
    """Entries of inbox and quarantine that were replaced."""
    deleted: int = 0
    """Blobs deleted."""
    problems: list[str] = field(default_factory=list)
    """Objects that could not be read, so that records may still be in them."""
    kept_back: int = 0
    """Number of blobs that are not deleted yet, because of `obstacles`."""
    obstacles: tuple[str, ...] = ()
    """What is unknown, so that records may be in it and nothing may be deleted: see
    `deletion.obstacles`.
    """
    lifted: tuple[str, ...] = ()
    """The records that may be submitted again because of this call."""

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self.problems and not self.obstacles

    def to_json(self) -> dict[str, object]:
        """Return the report for programs."""
        return {
            "dataset": self.dataset,
            "record_ids": list(self.record_ids),
            "batches": self.batches,
            "artifacts": self.artifacts,
            "waiting": self.waiting,
            "deleted": self.deleted,
            "problems": self.problems,
            "kept_back": self.kept_back,
            "obstacles": list(self.obstacles),
            "lifted": list(self.lifted),
            "outside_reach": list(OUTSIDE_REACH),
        }


def erase(
    store: BlobStore,
    dataset: str,
    record_ids: Collection[str],
    reason: str,
    progress: Callable[[str], None] | None = None,
    lost: Collection[Digest] = (),
) -> ErasureReport:
    """Withdraw the records, and remove all their data from the archive.

    They cannot be submitted again before the withdrawal is lifted (`lift`). Idempotent; after a
    crash, `finish_erasing` continues.

    Args:
        store: The archive.
        dataset: The records' dataset.
        record_ids: Records of any batches; ids that no batch has are withdrawn as well.
        reason: Stored permanently in the tombstone: no personal data.
        progress: Called with the current step.
        lost: Manifests and batches that are given up: blobs that only they name may be deleted.

    Raises:
        InvalidInputError: No ids, or one that cannot name a record; nothing was done.
        StoreUnavailableError, OutcomeUnknownError, ConflictError: It is not finished; call again.
    """
    _known_logs(store, dataset)
    withdraw(store, dataset, record_ids, reason)
    return finish_erasing(store, dataset, progress, lost)


def finish_erasing(
    store: BlobStore,
    dataset: str,
    progress: Callable[[str], None] | None = None,
    lost: Collection[Digest] = (),
) -> ErasureReport:
    """Remove all data of the dataset's withdrawn records from the archive.

    An earlier erasure is completed even if its records were allowed again since.

    Raises:
        StoreUnavailableError, OutcomeUnknownError, ConflictError: It is not finished; call again.
    """
    say = progress or (lambda _: None)
    report = ErasureReport(dataset, ())
    known = _known_logs(store, dataset)
    ids = frozenset(withdrawn(store, dataset))
    own: set[int] = set()
    # A completion accepted while a pass ran is found by the next one.
    for number in range(1, _MAX_PASSES + 1):
        say(f"pass {number}: looking for {counted(len(ids), 'withdrawn record')}")
        if not _Pass(store, dataset, ids, report, say, own, known).run():
            break
    else:
        raise ConflictError(
            f"dataset {dataset!r}: each of {_MAX_PASSES} passes found more to erase: a process"
            " keeps writing about withdrawn records; run `feature-pipeline erase --dataset"
            f" {dataset}` again"
        )
    _delete(store, dataset, ids, own, report, say, lost)
    report.problems = list(dict.fromkeys(report.problems))
    return report


def _known_logs(store: BlobStore, dataset: str) -> KnownLogs:
    """Return what is known of all logs, after checking those of tombstones and erasures.

    Raises:
        CorruptDataError, StoreUnavailableError: One of them has lost entries.
    """
    known = known_logs(store)
    for prefix in (layout.tombstone_log(dataset), layout.erasure_log(dataset)):
        check_complete(store, known, prefix)
    return known


def lift(
    store: BlobStore,
    dataset: str,
    record_ids: Collection[str],
    reason: str,
    progress: Callable[[str], None] | None = None,
    lost: Collection[Digest] = (),
) -> ErasureReport:
    """Allow the records again in new batches, after all their data in old ones is erased.

    An interrupted erasure is completed first: a half-finished one would leave artifacts about
    records that their batch no longer has. If it cannot be completed, nothing is lifted, and the
    report gives the reason.

    Raises:
        InvalidInputError: A record is not withdrawn; nothing was done.
        StoreUnavailableError, OutcomeUnknownError, ConflictError: It is not finished; call again.
    """
    tombstones.check_withdrawn(dataset, record_ids, withdrawn(store, dataset))
    report = finish_erasing(store, dataset, progress, lost)
    if report.is_finished:
        report.lifted = tombstones.lift(store, dataset, record_ids, reason).record_ids
    return report


def _delete(
    store: BlobStore,
    dataset: str,
    ids: Collection[str],
    own: Collection[int],
    report: ErasureReport,
    say: Callable[[str], None],
    lost: Collection[Digest],
) -> None:
    """Delete the blobs listed by erasures of these records, and by erasures of these numbers."""
    due = {
        digest
        for entry in erasures(store, dataset)
        if entry.seq in own or set(ids).intersection(entry.record_ids)
        for digest in entry.blobs
    }
    stored = map_threads(store.stat, [layout.blob(digest) for digest in sorted(due)])
    there = [info for info in stored if info is not None]
    # Asked again: something may have come to need one since it was said to go. What cannot be read
    # may also be about a withdrawn record.
    first = deletion.find_needed_blobs(store, given_up=lost)
    report.obstacles = first.obstacles
    if not there:
        return
    say(f"deleting {counted(len(there), 'blob')}")
    done = deletion.delete(store, there, first, waits=say, given_up=lost)
    report.deleted = len(done.deleted)
    report.kept_back = len(done.kept_back)
    report.obstacles = done.obstacles


class _Pass:
    """One pass over everything that may name a withdrawn record."""

    def __init__(
        self,
        store: BlobStore,
        dataset: str,
        ids: frozenset[str],
        report: ErasureReport,
        say: Callable[[str], None],
        own: set[int],
        known_logs: KnownLogs,
    ) -> None:
        self.store = store
        self.dataset = dataset
        self.ids = ids
        self.report = report
        self.say = say
        self.own = own
        """The numbers of the entries of the erasure log that this erasure wrote."""
        self.known_logs = known_logs
        """A log that has lost entries is not written to: their numbers are not free."""
        self.guard = Guard(store)
        before = erasures(store, dataset)
        self.known = Erased.of(before)
        self.gone = {record_id for entry in before for record_id in entry.record_ids} | ids
        """Every record that was taken out of some batch, or is to be."""
        self.erased_ids: set[str] = set()
        self.batches: dict[Digest, Digest] = {}
        self.manifests: dict[Digest, Digest] = {}
        self.successors: dict[Digest, Manifest] = {}
        self.candidates: set[Digest] = set()
        self.written: list[tuple[tuple[BlobRef, ...], Callable[[], object]]] = []
        """Per successor its blobs, and what writes them again."""

    def run(self) -> bool:
        """Return whether there was anything to do, so that another pass is needed."""
        logs = self._batch_logs()
        self._redact_batches(logs)
        touched = {
            key
            for key, entries in logs.items()
            if any(self._successor_batch(entry.digest) is not None for entry in entries)
        }
        for hook in self.store.list_folders(f"{layout.FEATURE_LOGS}{self.dataset}/"):
            read = log.readable_feature_logs(
                self.store, self.dataset, hook, touched, self.known_logs
            )
            self._report(read.damage, f"{self.dataset}/{hook}/{{}}")
            for key, features in read.intact.items():
                with self._reporting(f"{self.dataset}/{hook}/{key}"):
                    self._redact_log(features)
        replaced = self._replace_waiting()
        self._write_lost_again()
        if self.batches or self.manifests:
            self._write_entry()
        for key in replaced:
            self.store.delete(key)
        self.report.waiting += len(replaced)
        self.report.record_ids = tuple(sorted({*self.report.record_ids, *self.erased_ids}))
        return bool(self.batches or self.manifests or replaced)

    @contextmanager
    def _reporting(self, where: str) -> Iterator[None]:
        """Record an unreadable object as a problem, and continue with the rest."""
        try:
            yield
        except (NotFoundError, CorruptDataError, InvalidInputError) as error:
            self.report.problems.append(f"{where}: {error}")

    def _write_lost_again(self) -> None:
        """Write the successors' blobs again that a concurrent deletion took; they are named now."""
        refs = [ref for written, _ in self.written for ref in written]
        lost = {ref.digest for ref in self.guard.find_lost(refs)} if refs else set()
        for written, write in self.written:
            if any(ref.digest in lost for ref in written):
                write()

    # Batches

    def _batch_logs(self) -> Mapping[str, list[BatchEntry]]:
        """Return the log of every batch that can be read."""
        read = log.readable_batch_logs(self.store, self.dataset, self.known_logs)
        self._report(read.damage, "the log of batch {}")
        return read.intact

    def _report(self, damage: Mapping[str, Damage], where: str) -> None:
        self.report.problems += [f"{where.format(k)}: {d.error}" for k, d in damage.items()]

    def _redact_batches(self, logs: Mapping[str, list[BatchEntry]]) -> None:
        ends = []
        for key, entries in logs.items():
            with self._reporting(f"batch {key}"):
                for before, after in pairwise(entries):
                    if self._note_replaced(before.digest, after.digest):
                        self.report.batches.append(key)
                if (last := entries[-1].digest) in self.known.batches:
                    raise CorruptDataError(
                        f"its log ends with {last}, which an erasure replaced: the entry after it"
                        " is missing"
                    )
                ends += [(key, last)] if self.ids else []
        answers_of = map_threads(self._names_withdrawn, ends)
        for (key, digest), is_named in zip(ends, answers_of, strict=True):
            if is_named:
                self.say(f"batch {key}")
                self._append_batch(key, self._redact_batch(digest, self._batch(digest)))
                self.report.batches.append(key)

    def _note_replaced(self, before: Digest, after: Digest) -> bool:
        """Record a replacement known only from a batch's log; return whether it is one."""
        if before in self.known.batches:
            return False
        batch = self._batch(before)
        kept = {record.id for record in self._batch(after).records}
        self._note_redacted(batch, {record.id for record in batch.records} - kept, after)
        return True

    def _note_redacted(
        self, batch: RecordBatch, record_ids: Collection[str], successor: Digest
    ) -> None:
        self.batches[batch.digest] = successor
        self.candidates.add(batch.digest)
        for record in batch.records:
            if record.id in record_ids:
                self.erased_ids.add(record.id)
                self.gone.add(record.id)
                self.candidates.update(file.blob for file in record.files)

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

        def write() -> BlobRef:
            return blobs.put_blob(self.store, successor.encode(), JSON_MEDIA_TYPE)

        self.written.append(((write(),), write))
        self._note_redacted(batch, self.ids, successor.digest)
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
        """Return the successor of a batch with a withdrawn record; None for any other batch."""
        now = Erased(batches={**self.known.batches, **self.batches}).batch_now(digest)
        return None if now == digest else now

    def _removed_records(self, successor: Digest) -> frozenset[str]:
        """Return the records removed from the batch; some may be allowed elsewhere by now."""
        return frozenset(self.gone - {record.id for record in self._batch(successor).records})

    def _redact_log(self, entries: Iterable[FeatureEntry]) -> None:
        for entry in entries:
            if entry.manifest in self.known.manifests:
                continue
            where = f"{entry.dataset}/{entry.hook}/{entry.batch}, entry {entry.seq}"
            successor = self._redact_artifact(entry.manifest, where)
            if successor is not None:
                self._append_features(entry, successor)
                self.report.artifacts += 1

    def _redact_artifact(self, digest: Digest, where: str) -> Digest | None:
        """Return the artifact's successor; None if it needs none, or cannot be read."""
        if digest in self.manifests:
            return self.manifests[digest]
        with self._reporting(where):
            manifest = read.read_manifest(self.store, digest)
            successor_batch = self._successor_batch(manifest.batch_digest)
            if successor_batch is None:
                return None
            self.say(f"artifact {where}")
            removed = self._removed_records(successor_batch)
            carried = {**self.known.manifests, **self.manifests}

            def write() -> tuple[Manifest, BlobRef]:
                return redact_artifact(self.store, manifest, removed, successor_batch, carried)

            successor, ref = write()
            self.written.append(((*successor.blobs.values(), ref), write))
            self.manifests[digest] = ref.digest
            self.successors[ref.digest] = successor
            self.candidates.add(digest)
            self.candidates.update(ref.digest for ref in manifest.blobs.values())
        return self.manifests.get(digest)

    def _append_features(self, old: FeatureEntry, successor: Digest) -> None:
        manifest = self.successors[successor]

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
        """Leave successors of waiting entries; return the keys of the replaced ones."""
        replaced = []
        for entry in inbox.waiting(self.store):
            with self._reporting(f"inbox entry {entry.id}"):
                if self._enqueue_successor(entry, f"inbox entry {entry.id}"):
                    replaced.append(f"{layout.INBOX}{entry.id}")
        for info in self.store.list_objects(layout.QUARANTINE):
            with self._reporting(info.key):
                quarantined = inbox.read_quarantined(self.store, info.key)
                entry = quarantined.inbox_entry()
                if self._enqueue_successor(entry, f"quarantined entry {quarantined.id}"):
                    replaced.append(info.key)
        return replaced

    def _enqueue_successor(self, entry: InboxEntry, where: str) -> bool:
        content = entry.content
        if content is None:
            raise InvalidInputError(f"{entry.problem}; it may name a withdrawn record")
        if content.dataset != self.dataset:
            return False
        if isinstance(content, Submission):
            return self._enqueue_submission(content)
        logged = log.read_log(self.store, content.dataset, content.hook, content.batch)
        if any((e.completion, e.manifest) == (content.id, content.manifest) for e in logged):
            return False  # accepted: its entry has a successor, and this one is removed by others
        if content.manifest in self.known.manifests:
            successor: Digest | None = self.known.manifest_now(content.manifest)
        else:
            successor = self._redact_artifact(content.manifest, where)
        if successor is None:
            return False
        if content.published_at is None:
            content = content.as_published(entry.modified_at)
        inbox.enqueue(self.store, content.model_copy(update={"manifest": successor}))
        return True

    def _enqueue_submission(self, content: Submission) -> bool:
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
        inbox.enqueue(self.store, content.model_copy(update={"digest": successor}))
        return True

    def _write_entry(self) -> None:
        """Record the replacements and the blobs to delete, before anything is deleted."""
        planned = Erased(self.manifests, self.batches)
        # What needs a candidate besides what is replaced keeps it, in any dataset. It is asked
        # again before anything is deleted: this is what people may expect to be gone.
        needed = deletion.find_needed_blobs(self.store, planned=planned).needed
        entry = ErasureEntry(
            seq=layout.FIRST_SEQ,
            dataset=self.dataset,
            record_ids=tuple(sorted(self.ids | self.erased_ids)),
            manifests=_texts(self.manifests),
            batches=_texts(self.batches),
            blobs=tuple(sorted(self.candidates - needed - {deletion.EMPTY})),
        )

        def decide(entries: list[ErasureEntry]) -> ErasureEntry:
            return entry.model_copy(update={"seq": log.next_seq(entries)})

        written, _ = log.append(self.store, layout.erasure_log(self.dataset), ErasureEntry, decide)
        self.own.add(written.seq)


def _texts(successors: Mapping[Digest, Digest]) -> dict[str, Digest]:
    return {str(old): new for old, new in sorted(successors.items())}
