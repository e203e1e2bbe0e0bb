"""Walk from the roots (log, inbox, quarantine) to every object that something names."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from feature_pipeline.archive import blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import Document, NewerVersionError
from feature_pipeline.archive.format.manifest import LOG, OUTCOMES, RAW, ROWS, Manifest
from feature_pipeline.archive.inspection.findings import (
    Finding,
    ObjectKind,
    Reached,
    Reference,
    Scope,
    State,
)
from feature_pipeline.archive.inspection.log_kinds import kind_of
from feature_pipeline.archive.inspection.scan import DocumentReader
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.erasures import Erased, ErasureEntry, erased
from feature_pipeline.archive.logs.inbox import (
    Completion,
    QuarantinedEntry,
    Submission,
    decode_quarantined,
    quarantine_key,
    read_entry,
)
from feature_pipeline.archive.logs.known_lengths import KnownLogs, known_logs
from feature_pipeline.archive.logs.known_lengths import compare as compare_logs
from feature_pipeline.archive.logs.log import (
    BatchEntry,
    FeatureEntry,
    LogEntry,
    StoredRelease,
    batch_disagreement,
    release_disagreement,
)
from feature_pipeline.archive.logs.losses import LossEntry
from feature_pipeline.archive.logs.tombstones import TombstoneEntry
from feature_pipeline.archive.read import disagreement
from feature_pipeline.archive.store.base import BlobStore, StoredObject, get_small
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.text.counted import counted
from feature_pipeline.parallel import WORKERS, map_threads

_DIGEST_TEXT: Final = re.compile(r"sha256:([0-9a-f]{64})")
_MOVES: Final = 2
"""How often an entry may move between inbox and quarantine while it is read."""
_LISTINGS: Final = 5
"""How often an entry may be listed but absent when read, before the store is blamed."""

L = TypeVar("L", bound=LogEntry)


def reach(
    store: BlobStore,
    scope: Scope | None = None,
    workers: int = WORKERS,
    planned: Erased | None = None,
    after: Mapping[str, int] | None = None,
) -> Reached:
    """Follow every root within the scope.

    Args:
        store: The archive.
        scope: The part to walk; all of it if None.
        workers: Concurrent requests.
        planned: Erasures about to be written: what they replace counts as erased.
        after: By log, the number up to which entries are skipped because an earlier walk read them.
            The walk reads what is waiting and what was appended since, and checks that no log
            became shorter. It does not check that new entries agree with skipped ones.

    Raises:
        StoreUnavailableError: The store could not list objects, so that there is no result.
    """
    # Before any listing: logs only grow, so what is known by now is there whenever they are listed.
    known = known_logs(store) if after is None else None
    walk = _Walk(store, scope or Scope(), workers, planned or Erased())
    # A completion is in its log before it leaves the inbox: read in this order, whatever moves
    # meanwhile is seen in one place or the other.
    walk.read_losses()
    walk.read_erasures()
    walk.after = after
    if walk.scope.is_whole:
        walk.read_waiting()
    walk.read_logs()
    walk.find_vanished()
    if known is not None:
        walk.compare(known)
    walk.follow()
    walk.forget_erased_since()
    return walk.reached


def erased_since(store: BlobStore, scope: Scope, reached: Reached) -> set[str]:
    """Return the keys that erasures started after `reach` have deleted or will delete.

    A damaged log of erasures is skipped: `reach` has reported it.
    """
    datasets = [scope.dataset] if scope.dataset else store.list_folders(layout.ERASURE_LOGS)
    now: set[Digest] = set()
    for dataset in datasets:
        with suppress(CorruptDataError, NewerVersionError):
            now.update(erased(store, dataset).blobs)
    before = {digest for erasure in reached.erasures.values() for digest in erasure.blobs}
    return {layout.blob(digest) for digest in now - before}


class _Walk(DocumentReader):
    def __init__(self, store: BlobStore, scope: Scope, workers: int, planned: Erased) -> None:
        super().__init__(store, workers)
        self.scope = scope
        self.planned = planned
        self._manifests: dict[Digest, list[FeatureEntry]] = {}
        self._named_by: dict[Digest, str] = {}
        self._batches: dict[Digest, str] = {}
        self._batch_entries: dict[Digest, list[BatchEntry]] = {}
        self._unknown: dict[Digest, str] = {}
        self._releases: dict[tuple[str, str], list[StoredRelease]] = {}
        self._batch_digests: dict[tuple[str, str], list[Digest]] = {}

    # Roots

    def _prefix(self, logs: str, of_dataset: Callable[[str], str]) -> str:
        return logs if self.scope.dataset is None else of_dataset(self.scope.dataset)

    def read_losses(self) -> None:
        """Read the accepted losses, only to check them."""
        self.read_log(
            ObjectKind.LOSS_ENTRY, self._prefix(layout.LOSS_LOGS, layout.loss_log), LossEntry
        )

    def compare(self, known: KnownLogs) -> None:
        """Find the logs that are shorter than known, or changed."""
        self.reached.known = known
        # One comparison a prefix that was read: nothing is known to be wrong with other logs.
        self.reached.shortfalls = tuple(
            shortfall
            for prefix in dict.fromkeys(self.prefixes)
            for shortfall in compare_logs(
                self.store, known, prefix, self.reached.seen, self.workers
            )
        )
        # What is known of an absent entry says more than that others need it.
        short = {shortfall.damage.key for shortfall in self.reached.shortfalls}
        self.reached.findings = [
            finding
            for finding in self.reached.findings
            if finding.state is not State.MISSING or finding.key not in short
        ]
        for shortfall in self.reached.shortfalls:
            damage = shortfall.damage
            _, kind = kind_of(shortfall.log)
            named_by = "what was known of its log"
            self.find(damage.state, kind, damage.key, named_by, str(damage.error))
        for key, damage in known.damage.items():
            if key.startswith(layout.CENSUS):
                self.find(damage.state, ObjectKind.CENSUS, key, "comparing logs", str(damage.error))

    def read_erasures(self) -> None:
        """Read tombstones and erasures, to know which objects may be absent."""
        prefix = self._prefix(layout.ERASURE_LOGS, layout.erasure_log)
        erasures = self._by_dataset(ObjectKind.ERASURE_ENTRY, prefix, ErasureEntry)
        # After them: an erasure follows its tombstone.
        prefix = self._prefix(layout.TOMBSTONE_LOGS, layout.tombstone_log)
        tombstones = self._by_dataset(ObjectKind.TOMBSTONE_ENTRY, prefix, TombstoneEntry)
        for dataset, dataset_entries in tombstones.items():
            ids: set[str] = set()
            for tombstone in dataset_entries:
                tombstone.apply(ids)
            self.reached.withdrawn[dataset] = ids
        for dataset, entries in erasures.items():
            self.reached.erasures[dataset] = Erased.of(entries)
            self._check_tombstones(entries, tombstones.get(dataset, []))

    def _by_dataset(self, kind: ObjectKind, prefix: str, model: type[L]) -> dict[str, list[L]]:
        """Return the logs of the kinds that each dataset has one of."""
        logs = self.read_log(kind, prefix, model)
        return {layout.last_part(name): entries for name, entries in logs.items()}

    def _check_tombstones(
        self, entries: Sequence[ErasureEntry], tombstones: Sequence[TombstoneEntry]
    ) -> None:
        """Check that every erased record is withdrawn by an existing tombstone."""
        named = {record_id for tombstone in tombstones for record_id in tombstone.record_ids}
        last = max((tombstone.seq for tombstone in tombstones), default=layout.FIRST_SEQ - 1)
        for entry in entries:
            if lost := sorted(set(entry.record_ids) - named):
                key = layout.entry(layout.tombstone_log(entry.dataset), last + 1)
                named_by = f"erasure {entry.seq} of dataset {entry.dataset}"
                detail = (
                    f"{counted(len(lost), 'record')} erased without a tombstone, {lost[0]!r} among"
                    f" them: `feature-pipeline erase --dataset {entry.dataset}` with their ids"
                    " withdraws them again"
                )
                self.find(State.MISSING, ObjectKind.TOMBSTONE_ENTRY, key, named_by, detail)
                return

    def _is_erased(self, digest: Digest) -> bool:
        known = [self.planned, *self.reached.erasures.values()]
        return any(digest in erased.manifests or digest in erased.batches for erased in known)

    def read_waiting(self) -> None:
        """Read the inbox and the quarantine, following entries that move between them.

        Entries that came after the listing are new, and entries that disappeared were accepted or
        discarded.
        """
        keys = self._waiting_keys()
        self.reached.waiting.update(keys)
        objects: dict[str, StoredObject | StoreUnavailableError | CorruptDataError] = {}
        for _ in range(_LISTINGS):
            read = map_threads(self._read_waiting, keys, self.workers)
            objects |= dict(filter(None, read))
            absent = {key for key, entry in zip(keys, read, strict=True) if entry is None}
            # An entry may have been accepted, and the same run published again, in between.
            keys = sorted(absent.intersection(self._waiting_keys())) if absent else []
            if not keys:
                break
        else:
            raise StoreUnavailableError(f"{self.store.identity}: {keys[0]} is listed but absent")
        for key, stored in objects.items():
            self._name_waiting(key, stored)

    def _waiting_keys(self) -> list[str]:
        # The inbox twice: an entry may be left again while the quarantine is listed.
        listed = (
            info.key
            for prefix in (layout.INBOX, layout.QUARANTINE, layout.INBOX)
            for info in self.store.list_objects(prefix)
        )
        return list(dict.fromkeys(listed))

    def _read_waiting(
        self, key: str
    ) -> tuple[str, StoredObject | StoreUnavailableError | CorruptDataError] | None:
        """Return the entry and its current key; None if it no longer waits."""
        if key.startswith(layout.INBOX):
            other = quarantine_key(key.removeprefix(layout.INBOX))
        else:
            other = f"{layout.INBOX}{key.removeprefix(layout.QUARANTINE)}"
        for place in (key, other) * _MOVES:
            try:
                return place, get_small(self.store, place, QuarantinedEntry.most_bytes)
            except NotFoundError:
                continue  # it may have been quarantined, or left again
            except (StoreUnavailableError, CorruptDataError) as error:
                return place, error
        return None

    def _name_waiting(
        self, key: str, stored: StoredObject | StoreUnavailableError | CorruptDataError
    ) -> None:
        is_inbox = key.startswith(layout.INBOX)
        kind = ObjectKind.INBOX_ENTRY if is_inbox else ObjectKind.QUARANTINE_ENTRY
        if isinstance(stored, StoreUnavailableError):
            self.find(State.UNREADABLE, kind, key, kind.value, str(stored))
            return
        if isinstance(stored, CorruptDataError):
            self.find(State.CORRUPT, kind, key, kind.value, str(stored))
            return
        if not self.is_ours(stored):
            detail = "its bytes do not match the stored checksum"
            self.find(State.CORRUPT, kind, key, kind.value, detail)
        entry_id, data = key.removeprefix(layout.INBOX), stored.data
        if not is_inbox:
            try:
                document = decode_quarantined(stored.data, key, key)
            except NewerVersionError as error:
                self.find(State.NEWER, kind, key, kind.value, str(error))
                return
            except InvalidInputError as error:
                self.find(State.CORRUPT, kind, key, kind.value, str(error))
                self._name_unknown(key, stored.data.decode(errors="replace"))
                return
            entry_id, data = document.id, document.entry.encode()
        self.count(stored.data)
        entry = read_entry(entry_id, stored.info.modified_at, data)
        match entry.content:
            case Submission(digest=digest):
                self._batches.setdefault(digest, key)
            case Completion(manifest=digest):
                self._name_manifest(digest, key)
            case None if entry.is_newer:
                self.find(State.NEWER, kind, key, kind.value, str(entry.problem))
                self._name_unknown(key, data.decode(errors="replace"))
            case _:
                if is_inbox:
                    self.find(State.CORRUPT, kind, key, kind.value, str(entry.problem))
                else:
                    self.reached.unparsed[key] = str(entry.problem)
                self._name_unknown(key, data.decode(errors="replace"))

    def _name_unknown(self, key: str, text: str) -> None:
        """Keep everything that an unreadable document may name: `gc` must not delete it."""
        for name in _DIGEST_TEXT.findall(text):
            self._unknown.setdefault(Digest(name), key)

    def _name_manifest(self, digest: Digest, named_by: str) -> None:
        self._named_by.setdefault(digest, named_by)

    def read_logs(self) -> None:
        """Read releases, batches and features, and check that they agree with each other."""
        # Features first: whatever they name was there before them.
        features = self._read_features()
        scope = self.scope
        if scope.batch is None or scope.hook is not None:
            self._read_releases()
        self._read_batches()
        for entries in features:
            self._name_features(entries)
        if scope.is_whole and self.after is None:
            for entries in features:
                self._check_successors(entries)

    def find_vanished(self) -> None:
        """Find logs that an earlier walk saw with more entries."""
        for name, seq in (self.after or {}).items():
            if self.ends.get(name, 0) < seq:
                key = layout.entry(name, seq)
                _, kind = kind_of(name)
                self.find(State.MISSING, kind, key, f"log {name}", "it existed a moment ago")

    def _check_successors(self, entries: Sequence[FeatureEntry]) -> None:
        """Check that everything an erasure replaced has a successor in a log or waiting.

        The loss of one may have been accepted after another erasure had replaced it, too.
        """
        for entry in entries:
            erased = self.reached.erasures.get(entry.dataset, Erased())
            successors = list(erased.successors(entry.manifest))
            if successors and not any(one in self._named_by for one in successors):
                prefix = layout.feature_log(entry.dataset, entry.hook, entry.batch)
                key = layout.entry(prefix, entries[-1].seq + 1)
                named_by = (
                    f"an erasure of dataset {entry.dataset}, which replaced entry {entry.seq}"
                )
                self.find_once(ObjectKind.FEATURE_ENTRY, key, named_by)

    def _read_features(self) -> list[list[FeatureEntry]]:
        scope = self.scope
        if scope.dataset is None:
            prefix = layout.FEATURE_LOGS
        elif scope.hook is None:
            prefix = f"{layout.FEATURE_LOGS}{scope.dataset}/"
        else:
            prefix = layout.feature_logs(scope.dataset, scope.hook)
        if scope.batch is not None and scope.dataset is not None:
            hooks = [scope.hook] if scope.hook else self.store.list_folders(prefix)
            prefixes = [layout.feature_log(scope.dataset, hook, scope.batch) for hook in hooks]
        else:
            prefixes = [prefix]
        return [
            entries
            for name in prefixes
            for entries in self.read_log(ObjectKind.FEATURE_ENTRY, name, FeatureEntry).values()
        ]

    def _read_releases(self) -> None:
        scope = self.scope
        if scope.dataset is None:
            prefix = layout.RELEASE_LOGS
        elif scope.hook is None:
            prefix = f"{layout.RELEASE_LOGS}{scope.dataset}/"
        else:
            prefix = layout.release_log(scope.dataset, scope.hook)
        for name, entries in self.read_log(ObjectKind.RELEASE_ENTRY, prefix, StoredRelease).items():
            for entry in entries:
                try:
                    release = log.release_entry(entry).release
                except CorruptDataError as error:
                    key = layout.entry(name, entry.seq)
                    self.find(State.CORRUPT, ObjectKind.RELEASE_ENTRY, key, "its log", str(error))
                    continue
                document = release.document
                self._releases.setdefault((document.dataset, document.hook), []).append(entry)
                named_by = f"release {entry.seq} of {document.dataset}/{document.hook}"
                for file in document.code:
                    self.reached.add(Reference(ObjectKind.CODE, file.blob, file.size, named_by))

    def _read_batches(self) -> None:
        scope = self.scope
        if scope.dataset is not None and scope.batch is not None:
            prefix = layout.batch_log(scope.dataset, scope.batch)
        else:
            prefix = self._prefix(layout.BATCH_LOGS, layout.batch_logs)
        for entries in self.read_log(ObjectKind.BATCH_ENTRY, prefix, BatchEntry).values():
            for entry in entries:
                named_by = f"batch {entry.dataset}/{entry.batch} (entry {entry.seq})"
                known = self._batch_digests.setdefault((entry.dataset, entry.batch), [])
                known.append(entry.digest)
                if scope.hook is None:
                    self._batches.setdefault(entry.digest, named_by)
                    self._batch_entries.setdefault(entry.digest, []).append(entry)

    def _name_features(self, entries: Iterable[FeatureEntry]) -> None:
        for entry in entries:
            where = f"{entry.dataset}/{entry.hook}/{entry.batch}"
            named_by = f"{where} (entry {entry.seq}, {entry.verdict})"
            key = layout.entry(entry.log_prefix, entry.seq)
            self._name_manifest(entry.manifest, named_by)
            self._manifests.setdefault(entry.manifest, []).append(entry)
            if self.after is not None:
                continue
            if (entry.dataset, entry.batch) not in self._batch_digests:
                prefix = layout.batch_log(entry.dataset, entry.batch)
                self.find_once(
                    ObjectKind.BATCH_ENTRY, layout.entry(prefix, layout.FIRST_SEQ), named_by
                )
            if self.scope.batch is None or self.scope.hook is not None:
                self._check_release(entry, key, named_by)

    def find_once(self, kind: ObjectKind, key: str, named_by: str) -> None:
        """Report a missing log entry once, however many others need it."""
        if not any(finding.key == key for finding in self.reached.findings):
            self.find(State.MISSING, kind, key, named_by, "other entries need it")

    def _check_release(self, entry: FeatureEntry, key: str, named_by: str) -> None:
        known = {
            release.seq: release.digest
            for release in self._releases.get((entry.dataset, entry.hook), [])
        }
        if entry.release_seq not in known:
            prefix = layout.release_log(entry.dataset, entry.hook)
            release_key = layout.entry(prefix, entry.release_seq)
            self.find_once(ObjectKind.RELEASE_ENTRY, release_key, named_by)
        elif problem := release_disagreement(entry, known[entry.release_seq]):
            self.find(State.CORRUPT, ObjectKind.FEATURE_ENTRY, key, named_by, problem)

    # What the roots name

    def follow(self) -> None:
        """Read manifests and batches, and follow the objects that they name."""
        for digest in self._unknown:
            self._probe_unknown(digest)
        map_threads(self._follow_manifest, list(self._named_by), self.workers)
        map_threads(self._follow_batch, list(self._batches), self.workers)

    def forget_erased_since(self) -> None:
        """Drop findings about objects that an erasure deleted during the walk."""
        if not any(map(_is_missing_blob, self.reached.findings)):
            return
        erased_keys = erased_since(self.store, self.scope, self.reached)
        for finding in list(self.reached.findings):
            if _is_missing_blob(finding) and finding.key in erased_keys:
                self.reached.findings.remove(finding)
                self.reached.erased[layout.parse_blob(finding.key)] = finding.named_by

    def _probe_unknown(self, digest: Digest) -> None:
        """Read blobs that an unreadable document names, and keep what they may name in turn."""
        named_by = self._unknown[digest]
        try:
            info = self.store.stat(layout.blob(digest))
            if info is not None and info.size > Document.most_bytes:
                # Too large for a document: it names nothing.
                self.reached.add(Reference(ObjectKind.NAMED, digest, info.size, named_by))
                return
            data = blobs.read_blob(self.store, digest)
        except (NotFoundError, CorruptDataError):
            return
        except StoreUnavailableError as error:
            key = layout.blob(digest)
            self.find(State.UNREADABLE, ObjectKind.NAMED, key, named_by, str(error))
            return
        self.reached.add(Reference(ObjectKind.NAMED, digest, len(data), named_by))
        if _is_document(lambda: Manifest.decode(data, str(digest))):
            self._name_manifest(digest, named_by)
        elif _is_document(lambda: RecordBatch.decode(data)):
            self._batches.setdefault(digest, named_by)

    def _document_blob(self, kind: ObjectKind, digest: Digest, named_by: str) -> bytes | None:
        key = layout.blob(digest)
        if self._is_erased(digest):
            self.reached.erased.setdefault(digest, named_by)
            return None
        stored = self.get(kind, key, named_by, Document.most_bytes)
        if stored is None:
            return None
        if (actual := Digest.of(stored.data)) != digest:
            self.find(State.CORRUPT, kind, key, named_by, f"its bytes have the digest {actual}")
            return None
        self.count(stored.data)
        self.reached.add(Reference(kind, digest, len(stored.data), named_by))
        return stored.data

    def _follow_manifest(self, digest: Digest) -> None:
        named_by = self._named_by[digest]
        data = self._document_blob(ObjectKind.MANIFEST, digest, named_by)
        if data is None:
            return
        try:
            manifest = Manifest.decode(data, str(digest))
        except InvalidInputError as error:
            state = State.NEWER if isinstance(error, NewerVersionError) else State.CORRUPT
            self.find(state, ObjectKind.MANIFEST, layout.blob(digest), named_by, str(error))
            return
        for entry in self._manifests.get(digest, []):
            self._check_entry(entry, manifest, named_by)
        if self._is_of_a_replaced_batch(manifest):
            detail = (
                "it was made of a batch from which records were erased since: run"
                f" `feature-pipeline erase --dataset {manifest.dataset}` to erase them from it"
            )
            key = layout.blob(digest)
            self.find(State.NOT_ERASED, ObjectKind.MANIFEST, key, named_by, detail)
        for name, ref in manifest.blobs.items():
            self.reached.add(Reference(_kind_of(name), ref.digest, ref.size, f"{named_by}: {name}"))

    def _is_of_a_replaced_batch(self, manifest: Manifest) -> bool:
        """Return whether an erasure replaced the artifact's batch by another one."""
        erased = self.reached.erasures.get(manifest.dataset)
        if erased is not None and manifest.batch_digest in erased.batches:
            return True
        log_of_it = self._batch_digests.get((manifest.dataset, manifest.batch), [])
        return manifest.batch_digest in log_of_it and manifest.batch_digest != log_of_it[-1]

    def _check_entry(self, entry: FeatureEntry, manifest: Manifest, named_by: str) -> None:
        if problem := disagreement(entry, manifest):
            key = layout.entry(entry.log_prefix, entry.seq)
            self.find(State.CORRUPT, ObjectKind.FEATURE_ENTRY, key, named_by, problem)

    def _follow_batch(self, digest: Digest) -> None:
        named_by = self._batches[digest]
        data = self._document_blob(ObjectKind.BATCH, digest, named_by)
        if data is None:
            return
        try:
            batch = RecordBatch.decode(data)
        except InvalidInputError as error:
            self.find(State.CORRUPT, ObjectKind.BATCH, layout.blob(digest), named_by, str(error))
            return
        for entry in self._batch_entries.get(digest, []):
            if problem := batch_disagreement(entry, batch):
                key = layout.entry(entry.log_prefix, entry.seq)
                self.find(State.CORRUPT, ObjectKind.BATCH_ENTRY, key, named_by, problem)
        withdrawn = self.reached.withdrawn.get(batch.dataset, set())
        if withdrawn_ids := sorted(record.id for record in batch.records if record.id in withdrawn):
            detail = (
                f"record {withdrawn_ids[0]!r} is withdrawn: run `feature-pipeline erase --dataset"
                f" {batch.dataset}` to erase it"
            )
            key = layout.blob(digest)
            self.find(State.NOT_ERASED, ObjectKind.BATCH, key, named_by, detail)
        for record in batch.records:
            for file in record.files:
                where = f"{named_by}: record {record.id!r}, file {file.name!r}"
                self.reached.add(Reference(ObjectKind.RECORD_FILE, file.blob, file.size, where))


def _is_missing_blob(finding: Finding) -> bool:
    return finding.state is State.MISSING and finding.key.startswith(layout.BLOBS)


def _is_document(decode: Callable[[], object]) -> bool:
    try:
        decode()
    except InvalidInputError:
        return False
    return True


def _kind_of(name: str) -> ObjectKind:
    if name.startswith(RAW):
        return ObjectKind.RAW
    return {ROWS: ObjectKind.ROWS, OUTCOMES: ObjectKind.OUTCOMES, LOG: ObjectKind.HOOK_LOG}.get(
        name, ObjectKind.NAMED
    )
