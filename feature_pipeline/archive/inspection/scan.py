"""Read documents without trusting them: a problem with one is a finding, not an error.

Documents are always read from the store, never from this process's memory, because they may have
been changed behind the archive's back.
"""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import TypeVar

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.inspection.findings import Finding, ObjectKind, Reached, State
from feature_pipeline.archive.logs.entries import LogEntry, StoredEntry, decode_entry, misfits
from feature_pipeline.archive.logs.known_lengths import Sighting
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo, StoredObject, get_small
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.parallel import map_threads

L = TypeVar("L", bound=LogEntry)


class DocumentReader:
    """Read a store's documents into `reached`, with a finding for each invalid one.

    Args:
        store: The archive.
        workers: Concurrent requests.
    """

    def __init__(self, store: BlobStore, workers: int) -> None:
        self.store = store
        self.workers = workers
        self.reached = Reached()
        self.after: Mapping[str, int] | None = None
        """By log the number up to which entries are passed over; None: none is."""
        self.ends: dict[str, int] = {}
        """By log the number of its last entry."""
        self.prefixes: list[str] = []
        """Of the logs that were read."""
        self._lock = threading.Lock()

    def find(self, state: State, kind: ObjectKind, key: str, named_by: str, detail: str) -> None:
        """Record a problem with an object."""
        self.reached.findings.append(Finding(state, kind, key, named_by, detail))

    def get(
        self, kind: ObjectKind, key: str, named_by: str, most_bytes: int | None = None
    ) -> StoredObject | None:
        """Return the object; record a finding and return None if it is absent or too large."""
        try:
            if most_bytes is not None:
                return get_small(self.store, key, most_bytes)
            return self.store.get(key)
        except NotFoundError as error:
            self.find(State.MISSING, kind, key, named_by, str(error))
        except CorruptDataError as error:
            self.find(State.CORRUPT, kind, key, named_by, str(error))
        except StoreUnavailableError as error:
            self.find(State.UNREADABLE, kind, key, named_by, str(error))
        return None

    def is_ours(self, stored: StoredObject) -> bool:
        """Return whether the bytes are those that were written, as far as the store can tell.

        A document's key does not name its bytes. Its writer sent their checksum, which the store
        keeps and every read compares. An object that was copied or restored may have none: its
        content is checked instead, and the missing checksum is noted.
        """
        if stored.info.sha256 is not None:
            return stored.info.sha256 == Digest.of(stored.data)
        self.note_unchecked(stored.info)
        return True

    def note_unchecked(self, info: ObjectInfo) -> None:
        """Note an object that the store keeps no checksum of."""
        if info.sha256 is None and info.composite_sha256 is None:
            with self._lock:
                self.reached.unchecked.add(info.key)

    def read_log(self, kind: ObjectKind, prefix: str, model: type[L]) -> dict[str, list[L]]:
        """Return the entries of each log below `prefix`, in order; others become findings."""
        infos: list[ObjectInfo] = []
        logs: dict[str, list[StoredEntry[L]]] = {}
        for name, group in groupby(
            self.store.list_objects(prefix), key=lambda info: info.key.rpartition("/")[0]
        ):
            listed = list(group)
            if _gaps(name, listed):
                # an entry that was made beside the listing, before one that is listed
                listed = list(self.store.list_objects(f"{name}/"))
            self._check_gaps(kind, name, listed)
            infos += self._unseen(f"{name}/", listed)
        self.prefixes.append(prefix)
        entries = map_threads(lambda info: self._entry(kind, info, model), infos, self.workers)
        for info, entry in zip(infos, entries, strict=True):
            log = info.key.rpartition("/")[0] + "/"
            digest = None
            if entry is not None:
                digest = entry.digest
                logs.setdefault(log, []).append(entry)
            with suppress(InvalidInputError):
                seq = layout.parse_entry(info.key).seq
                self.reached.seen.setdefault(log, {})[seq] = Sighting(info.etag, digest)
        for name, stored in logs.items():
            for misfit, problem in misfits(stored):
                key = layout.entry(name, misfit.entry.seq)
                self.find(State.CORRUPT, kind, key, f"log {name.rstrip('/')}", problem)
        return {name: [one.entry for one in stored] for name, stored in logs.items()}

    def _unseen(self, log: str, infos: Sequence[ObjectInfo]) -> list[ObjectInfo]:
        """Return the entries of a log that have to be read."""
        last = self.ends[log] = max(_seqs(infos), default=0)
        if self.after is None:
            return list(infos)
        unseen = {layout.entry(log, seq) for seq in range(self.after.get(log, 0) + 1, last + 1)}
        return [info for info in infos if info.key in unseen]

    def _check_gaps(self, kind: ObjectKind, name: str, infos: Sequence[ObjectInfo]) -> None:
        for info in infos:
            try:
                layout.parse_entry(info.key)
            except InvalidInputError as error:
                self.find(State.CORRUPT, kind, info.key, f"log {name}", str(error))
        for key in _gaps(name, infos):
            self.find(State.MISSING, kind, key, f"log {name}", "later entries exist")

    def _entry(self, kind: ObjectKind, info: ObjectInfo, model: type[L]) -> StoredEntry[L] | None:
        named_by = f"log {info.key.rpartition('/')[0]}"
        stored = self.get(kind, info.key, named_by)
        if stored is None:
            return None
        try:
            entry = decode_entry(model, info.key, stored.data, self.store.identity)
            if not self.is_ours(stored):
                raise CorruptDataError("its bytes do not match the stored checksum")
        except CorruptDataError as error:
            self.find(State.CORRUPT, kind, info.key, named_by, str(error))
            return None
        except NewerVersionError as error:
            self.find(State.NEWER, kind, info.key, named_by, str(error))
            return None
        self.count(stored.data)
        return entry

    def count(self, data: bytes) -> None:
        """Count these bytes of a document as read."""
        with self._lock:
            self.reached.documents += 1
            self.reached.bytes_read += len(data)


def _gaps(name: str, infos: Sequence[ObjectInfo]) -> list[str]:
    """Return the keys that are missing before the last entry of a log."""
    seqs = _seqs(infos)
    absent = set(range(layout.FIRST_SEQ, max(seqs, default=0))) - seqs
    return [layout.entry(f"{name}/", seq) for seq in sorted(absent)]


def _seqs(infos: Sequence[ObjectInfo]) -> set[int]:
    seqs = set()
    for info in infos:
        with suppress(InvalidInputError):
            seqs.add(layout.parse_entry(info.key).seq)
    return seqs
