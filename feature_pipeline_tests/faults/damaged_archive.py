"""An archive with an object of every kind, and the ways in which each of them can be damaged.

The kinds are those of the layout and of `verify`: `KINDS_OF_LAYOUT` names the prefix of each, so a
new prefix without a kind fails a test.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Final

from feature_pipeline.archive import accept, claims, publish, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.maintenance.accept_loss import accept_losses, plan_losses
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline.archive.maintenance.repair import append_again, find_unfinished
from feature_pipeline.archive.store.base import ObjectStream, StoredObject
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.definition import Cardinality, HookDefinition
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.records import RecordBatch
from feature_pipeline_tests.fixtures.care import CareScene
from feature_pipeline_tests.fixtures.stores import COLUMNS, HOOK

ERASED: Final = "xyzzy7"
"""A record that was erased, whose id is in nothing else."""
ERASABLE: Final = "r2"
"""A record of a current artifact, which the commands erase."""


class Kind(StrEnum):
    """What an object of the archive is."""

    RAW = "raw output"
    ROWS = "rows"
    OUTCOMES = "outcomes"
    HOOK_LOG = "hook log"
    MANIFEST = "manifest"
    OLD_MANIFEST = "manifest that is history"
    FEATURE_ENTRY = "feature log: last entry"
    OLD_FEATURE_ENTRY = "feature log: earlier entry"
    BATCH = "batch document"
    BATCH_ENTRY = "batch log entry"
    RECORD_FILE = "record file"
    RELEASE_ENTRY = "release log: last entry"
    OLD_RELEASE_ENTRY = "release log: earlier entry"
    CODE = "code of a hook"
    TOMBSTONE = "tombstone"
    ERASURE = "entry of the erasure log"
    LOSS = "entry of the loss log"
    ERASED_BLOB = "blob that was erased"
    CENSUS = "census"
    SUBMISSION = "inbox: batch"
    COMPLETION = "inbox: completion"
    WAITING_MANIFEST = "manifest of a waiting completion"
    WAITING_ROWS = "rows of a waiting completion"
    QUARANTINED = "quarantine entry"
    ANSWERS = "memory of answers"
    CLAIM = "claim of a hook run"
    IN_FLIGHT = "in-flight hook run"
    UPLOAD = "upload of a pod"
    FOLLOWED = "memory of a followed server"
    GC_MARK = "mark of a collection"
    GC_LEASE = "lease of a deletion"
    PROBE = "probe of the store"


KINDS_OF_LAYOUT: Final[dict[str, tuple[Kind, ...]]] = {
    layout.BLOBS: (
        Kind.RAW,
        Kind.ROWS,
        Kind.OUTCOMES,
        Kind.HOOK_LOG,
        Kind.MANIFEST,
        Kind.OLD_MANIFEST,
        Kind.BATCH,
        Kind.RECORD_FILE,
        Kind.CODE,
        Kind.ERASED_BLOB,
        Kind.WAITING_MANIFEST,
        Kind.WAITING_ROWS,
    ),
    layout.FEATURE_LOGS: (Kind.FEATURE_ENTRY, Kind.OLD_FEATURE_ENTRY),
    layout.BATCH_LOGS: (Kind.BATCH_ENTRY,),
    layout.RELEASE_LOGS: (Kind.RELEASE_ENTRY, Kind.OLD_RELEASE_ENTRY),
    layout.TOMBSTONE_LOGS: (Kind.TOMBSTONE,),
    layout.ERASURE_LOGS: (Kind.ERASURE,),
    layout.LOSS_LOGS: (Kind.LOSS,),
    layout.CENSUS: (Kind.CENSUS,),
    layout.INBOX: (Kind.SUBMISSION, Kind.COMPLETION),
    layout.QUARANTINE: (Kind.QUARANTINED,),
    layout.IN_FLIGHT: (Kind.IN_FLIGHT,),
    layout.UPLOADS: (Kind.UPLOAD,),
    layout.ANSWERS: (Kind.ANSWERS,),
    layout.CLAIMS: (Kind.CLAIM,),
    layout.FOLLOWED: (Kind.FOLLOWED,),
    layout.GC_MARKS: (Kind.GC_MARK,),
    layout.GC_LEASE: (Kind.GC_LEASE,),
    layout.PROBE: (Kind.PROBE,),
}
NOT_OBJECTS: Final = frozenset({layout.LOGS})
"""Prefixes of the layout that only group others."""


class Damage(StrEnum):
    """What happens to an object."""

    DELETED = "deleted"
    FLIPPED = "one bit flipped"
    """On the store's disk: the checksum that the store keeps is of the bytes before."""
    COPIED = "one bit flipped, copied"
    """By a program that stores no checksum."""
    TRUNCATED = "truncated"
    EMPTIED = "emptied"
    REPLACED = "replaced"
    """By the same kind of object of another archive, with its own checksum."""
    OLDER = "older version"
    """What the key had before: of keys that are written again, or deleted."""


class CheckedStore(MemoryStore):
    """Refuses bytes that differ from the checksum that it keeps, as S3 and its clients do."""

    def get(self, key: str, size: int | None = None) -> StoredObject:
        stored = super().get(key, size)
        self._check(stored)
        return stored

    @contextmanager
    def open(self, key: str, size: int | None = None) -> Iterator[ObjectStream]:
        stored = super().get(key, size)

        def chunks() -> Iterator[bytes]:
            yield stored.data
            self._check(stored)

        yield ObjectStream(stored.info, chunks())

    def _check(self, stored: StoredObject) -> None:
        if stored.info.sha256 not in (None, Digest.of(stored.data)):
            raise CorruptDataError(
                f"{self.identity}: {stored.info.key!r} does not match its checksum"
            )


def copied(store: MemoryStore, into: type[MemoryStore] = CheckedStore) -> MemoryStore:
    """Another store with the same objects."""
    other = into()
    other._objects.update(store._objects)
    # As in S3, no other bytes ever get the etag of an object that a census knows.
    other._etags = itertools.count(1 << 30)
    return other


@dataclasses.dataclass
class DamagedScene(CareScene):
    """An archive with an object of every kind, in the state that weeks of use leave.

    Two with different words have the same keys in their logs, and other blobs.
    """

    word: str = "a"

    def batch_of(self, key: str, ids: tuple[str, ...]) -> RecordBatch:
        batch = super().batch_of(key, ids)
        records = [
            r.model_copy(
                update={
                    "metadata": {"title": f"{self.word} {r.id}"},
                    "files": (self.file(f"{self.word} {r.id}".encode()),),
                }
            )
            for r in batch.records
        ]
        return RecordBatch.create(self.dataset, key, batch.document.source, tuple(records))

    def run(  # type: ignore[override]
        self, batch: RecordBatch, version: int, label: str, base: int = 0
    ) -> publish.Completion:
        """Publish an artifact whose rows are those that are decoded from its raw output."""
        ids = [record.id for record in batch.records]
        lines = [
            {
                "id": i,
                "features": [{"score": n + 0.5, "rank": n, "label": f"{self.word} {label} of {i}"}],
            }
            for n, i in enumerate(ids)
        ]
        raw = b"".join(document_bytes(line) + b"\n" for line in lines)
        actions = {i: Digest.of(f"{version} {label} {i}".encode()) for i in ids}
        decoded = decode_output({"features.jsonl": raw}, ids, COLUMNS, Cardinality.MANY, actions)
        artifact = self.artifact(
            batch,
            log.releases(self.store, self.dataset, HOOK)[version - 1],
            label=label,
            outcomes=decoded.outcomes,
            raw={"features.jsonl": raw, "errors.jsonl": b""},
            run_id=f"{batch.key}-{label}",
        )
        return self.completion(artifact, base=base)

    def _computed(self, batch: RecordBatch, version: int, label: str, base: int = 0) -> None:
        completion = publish.enqueue_completion(
            self.store, self.run(batch, version, label, base=base)
        )
        self.entries_of_accepted[completion.inbox_id] = self.store.get(
            layout.inbox(completion.inbox_id)
        ).data
        accept.accept(self.store, completion)
        inbox.remove(self.store, completion.inbox_id)

    def fill(self) -> None:
        """Live through everything that leaves an object."""
        store = self.store
        self.entries_of_accepted: dict[str, bytes] = {}
        self.older: dict[Kind, tuple[str, bytes]] = {}
        store.create(layout.PROBE, b"probe")
        # r3 is in b1, too, and belongs to it: it is submitted later.
        b0 = self.submit(self.batch_of("b0", ("q1", "r3")))
        b1 = self.submit(self.batch_of("b1", ("r1", ERASABLE, "r3")))
        b2 = self.submit(self.batch_of("b2", ("s1", "s2")))
        b3 = self.submit(self.batch_of("b3", ("t1", ERASED)))
        b4 = self.submit(self.batch_of("b4", ("u1",)))
        for version in ("1", "2"):
            self.release(f"{self.word}{version}")
        self._computed(b1, 1, "first")
        self._computed(b1, 2, "second", 1)
        for batch in (b0, b2, b3):
            self._computed(batch, 2, "only")
        self._computed(b4, 2, "kept")
        self._computed(b4, 2, "lost", 1)
        write_census(store)
        self._lose(layout.entry(layout.feature_log(self.dataset, HOOK, "b4"), 2))
        before = {i.key: store.get(i.key).data for i in store.list_objects(layout.BLOBS)}
        assert erase(store, self.dataset, [ERASED], "asked for").is_finished
        gone = next(key for key in sorted(before) if store.stat(key) is None)
        self.older[Kind.ERASED_BLOB] = gone, before[gone]
        self._leave_what_waits(b1, b2)
        self._leave_what_is_derived(b2)
        log.forget_read_entries()

    def _lose(self, key: str) -> None:
        store = self.store
        store.delete(key)
        log.forget_read_entries()
        plan = plan_losses(store, verify(store, writes_census=False).findings)
        accept_losses(store, plan, by="me", reason="gone")
        append_again(store, find_unfinished(store, self.dataset), [])
        write_census(store)

    def _leave_what_waits(self, b1: RecordBatch, b2: RecordBatch) -> None:
        store = self.store
        self.waiting = publish.enqueue_completion(store, self.run(b2, 2, "waits", base=1))
        refused = publish.enqueue_completion(store, self.run(b1, 2, "refused", base=2))
        [entry] = [e for e in inbox.waiting(store) if e.id == refused.inbox_id]
        inbox.quarantine(store, entry, "for the test")
        b5 = self.batch_of("b5", ("v1",))
        publish.submit_batch(store, b5, self.paths(b5))
        done, data = next(iter(self.entries_of_accepted.items()))
        self.older[Kind.COMPLETION] = layout.inbox(done), data

    def _leave_what_is_derived(self, batch: RecordBatch) -> None:
        store, program = self.store, Digest.of(b"program")
        key = layout.claim(self.dataset, HOOK, program, batch.key)
        for number in (0, 1):
            claim = claims.ClaimDocument(
                holder="of the test",
                number=number,
                batch=batch.key,
                since=store.now(),
                actions=(program.hex[:16],),
            )
            self._write(Kind.CLAIM, key, claim.encode())
        self._write(Kind.IN_FLIGHT, layout.in_flight("run-9", "worker"), b'{"id":"run-9"}')
        self._write(Kind.UPLOAD, layout.upload("run-9", "job", "records.jsonl"), b"{}\n")
        for text in (b'{"ingests":{}}', b'{"ingests":{},"looked_at":"x"}'):
            self._write(Kind.FOLLOWED, layout.followed("server"), text)
        store.create(layout.blob(Digest.of(b"orphan")), b"orphan")
        collect_garbage(store, GcScope.everything(), is_dry_run=False, new_orphans=1000)
        first = store.get(layout.GC_LEASE).data if store.stat(layout.GC_LEASE) else None
        if first is None:
            self._write(Kind.GC_LEASE, layout.GC_LEASE, b"{}")

    def _write(self, kind: Kind, key: str, data: bytes) -> None:
        """Store it; what was there before is its older version."""
        info = self.store.stat(key)
        if info is None:
            assert self.store.create(key, data)
        else:
            self.older[kind] = key, self.store.get(key).data
            assert self.store.replace(key, data, info.etag)

    @cached_property
    def objects(self) -> dict[Kind, str]:
        """The key of an object of each kind."""
        store, dataset = self.store, self.dataset
        [b1_first, b1_last] = log.read_log(store, dataset, HOOK, "b1")
        manifest = read.read_manifest(store, b1_last.manifest)
        releases = log.releases(store, dataset, HOOK)
        batch = log.read_batch(store, dataset, "b1")
        waiting = read.read_manifest(store, self.waiting.manifest)
        [submission] = [i.key for i in inbox.list_waiting(store) if inbox.is_batch(i)]

        def last(prefix: str) -> str:
            return max(info.key for info in store.list_objects(prefix))

        return {
            Kind.RAW: layout.blob(manifest.blobs["raw/features.jsonl"].digest),
            Kind.ROWS: layout.blob(manifest.blobs["rows"].digest),
            Kind.OUTCOMES: layout.blob(manifest.blobs["outcomes"].digest),
            Kind.HOOK_LOG: layout.blob(manifest.blobs["log"].digest),
            Kind.MANIFEST: layout.blob(b1_last.manifest),
            Kind.OLD_MANIFEST: layout.blob(b1_first.manifest),
            Kind.FEATURE_ENTRY: layout.entry(b1_last.log_prefix, 2),
            Kind.OLD_FEATURE_ENTRY: layout.entry(b1_last.log_prefix, 1),
            Kind.BATCH: layout.blob(batch.digest),
            Kind.BATCH_ENTRY: layout.entry(layout.batch_log(dataset, "b1"), 1),
            Kind.RECORD_FILE: layout.blob(batch.records[0].files[0].blob),
            Kind.RELEASE_ENTRY: layout.entry(layout.release_log(dataset, HOOK), 2),
            Kind.OLD_RELEASE_ENTRY: layout.entry(layout.release_log(dataset, HOOK), 1),
            Kind.CODE: layout.blob(releases[-1].release.document.code[0].blob),
            Kind.TOMBSTONE: last(layout.tombstone_log(dataset)),
            Kind.ERASURE: last(layout.erasure_log(dataset)),
            Kind.LOSS: last(layout.loss_log(dataset)),
            Kind.ERASED_BLOB: self.older[Kind.ERASED_BLOB][0],
            Kind.CENSUS: last(layout.CENSUS),
            Kind.SUBMISSION: submission,
            Kind.COMPLETION: layout.inbox(self.waiting.inbox_id),
            Kind.WAITING_MANIFEST: layout.blob(self.waiting.manifest),
            Kind.WAITING_ROWS: layout.blob(waiting.blobs["rows"].digest),
            Kind.QUARANTINED: last(layout.QUARANTINE),
            Kind.ANSWERS: last(layout.ANSWERS),
            Kind.CLAIM: last(layout.CLAIMS),
            Kind.IN_FLIGHT: last(layout.IN_FLIGHT),
            Kind.UPLOAD: last(layout.UPLOADS),
            Kind.FOLLOWED: last(layout.FOLLOWED),
            Kind.GC_MARK: last(layout.GC_MARKS),
            Kind.GC_LEASE: layout.GC_LEASE,
            Kind.PROBE: layout.PROBE,
        }

    def definition(self, table: str = HOOK) -> HookDefinition:
        """The definition of the hook, whose code is in `folder`."""
        (self.folder / "hook.py").write_bytes(f"code {self.word}2".encode())
        return HookDefinition.model_validate(
            {
                "name": HOOK,
                "dataset": self.dataset,
                "release": {
                    "version": f"{self.word}2",
                    "command": ["run"],
                    "code": ["hook.py"],
                    "limits": {"memory": "1Gi", "timeout": "10m"},
                },
                "table": {"name": table},
                "feature": {"columns": [c.model_dump(exclude_none=True) for c in COLUMNS]},
            }
        )


def damages(scene: DamagedScene, other: DamagedScene, kind: Kind) -> list[Damage]:
    """The damages that an object of the kind can have."""
    if kind is Kind.ERASED_BLOB:
        return [Damage.OLDER]
    data = scene.store.get(scene.objects[kind]).data
    return [
        damage
        for damage in Damage
        if not (damage is Damage.OLDER and kind not in scene.older)
        and not (damage is Damage.REPLACED and other.store.get(other.objects[kind]).data == data)
    ]


def damaged(
    scene: DamagedScene, other: DamagedScene, kind: Kind, damage: Damage
) -> tuple[MemoryStore, str]:
    """A copy of the archive in which the object is damaged; and its key."""
    store, key = copied(scene.store), scene.objects[kind]
    stored = store._objects.get(key)
    data = b"" if stored is None else stored.data
    match damage:
        case Damage.DELETED:
            store.delete(key)
        case Damage.FLIPPED:
            _put(store, key, _flipped(data), stored.info.sha256 if stored else None)
        case Damage.COPIED:
            _put(store, key, _flipped(data), None)
        case Damage.TRUNCATED:
            _put(store, key, data[: len(data) // 2], None)
        case Damage.EMPTIED:
            _put(store, key, b"", None)
        case Damage.REPLACED:
            replacement = other.store.get(other.objects[kind]).data
            _put(store, key, replacement, Digest.of(replacement))
        case Damage.OLDER:
            key, data = scene.older[kind]
            _put(store, key, data, Digest.of(data))
    log.forget_read_entries()
    return store, key


def _flipped(data: bytes) -> bytes:
    at = len(data) * 2 // 3
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _put(store: MemoryStore, key: str, data: bytes, sha256: Digest | None) -> None:
    """Store these bytes behind the archive's back, with this checksum."""
    store.delete(key)
    assert store.create(key, data)
    stored = store._objects[key]
    info = dataclasses.replace(stored.info, sha256=sha256)
    store._objects[key] = dataclasses.replace(stored, info=info)


def fill_archive(folder: Path, word: str) -> DamagedScene:
    """An archive whose texts have the word."""
    folder.mkdir()
    scene = DamagedScene(CheckedStore(), folder, word=word)
    scene.fill()
    return scene
