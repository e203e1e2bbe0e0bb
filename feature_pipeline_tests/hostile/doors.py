"""What the cases share: columns, stored documents of each kind, and their readers."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.inspection.log_kinds import kind_of
from feature_pipeline.archive.logs import inbox
from feature_pipeline.archive.logs.entries import decode_entry
from feature_pipeline.archive.logs.losses import Loss, LossEntry
from feature_pipeline.archive.logs.tombstones import TombstoneAction, TombstoneEntry
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.compute.pod_transfer import S3Results
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.runners.kubernetes.transfer_protocol import AttemptKey
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.release import HookRelease
from feature_pipeline_tests.fixtures.care import CareScene, everything
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK

IDS = ("a", "b")


@dataclass(frozen=True)
class Door:
    """A kind of document: a good one, and its reader."""

    good: bytes
    read: Callable[[bytes], object]


def changed(document: bytes, path: str, text: str | None) -> bytes:
    """The document with JSON text in the place of a value; None leaves the value out.

    Args:
        document: A JSON object.
        path: Keys and positions with points between them; one that is not there is added.
        text: Any text, also one that is not JSON.
    """
    root = json.loads(document)
    *parents, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    place = root
    for part in parents:
        place = place[part]
    if text is None:
        del place[last]
    else:
        place[last] = "@here@"
    written = json.dumps(root, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return written.replace('"@here@"', text or "").encode("utf-8", "surrogatepass")


def _result(name: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        store = MemoryStore()
        store.create(layout.upload("run", "job", name), data)
        results = S3Results(store)
        attempt = AttemptKey("run", "job")
        return results.result(attempt) if name == "result.json" else results.end(attempt)

    return read


def _waiting(entry_id: str) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        entry = inbox.read_entry(entry_id, utc_now(), data)
        if entry.content is None:
            raise InvalidInputError(entry.problem)
        return entry.content

    return read


def _entry(key: str) -> Callable[[bytes], object]:
    model, _ = kind_of(key)
    return lambda data: decode_entry(model, key, data, "memory")


A_DIGEST = Digest.of(b"a")
_RESULT = {
    "spec_version": 1,
    "exit_code": 0,
    "is_late": False,
    "oom_kills": 0,
    "peak_memory_bytes": 5,
    "started_at": 1767225600.5,
    "finished_at": 1767225601.5,
    "start_error": None,
    "node": "n1",
    "files": {"features.jsonl": [str(A_DIGEST), 1]},
    "irregular": [],
    "too_large": {},
    "log": [str(A_DIGEST), 1],
}
_END = {
    "spec_version": 1,
    "kind": "deadline",
    "reason": "not done after 1h",
    "exit_code": None,
    "log_tail": ["x"],
    "memory_limit_bytes": 5,
    "started_at": "2026-01-01T00:00:00Z",
    "finished_at": "2026-01-01T01:00:00Z",
    "node": "n1",
}


@cache
def doors() -> dict[str, Door]:
    """The kinds of documents by name, each with one that is good."""
    with TemporaryDirectory() as folder:
        scene = CareScene(MemoryStore(), Path(folder))
        everything(scene)
    made: dict[str, Door] = {
        "result": Door(json.dumps(_RESULT).encode(), _result("result.json")),
        "end": Door(json.dumps(_END).encode(), _result("end.json")),
    }
    names = {
        layout.feature_log(DATASET, HOOK, "b1"): "feature entry",
        layout.batch_log(DATASET, "b1"): "batch entry",
        layout.release_log(DATASET, HOOK): "release entry",
    }
    for info in scene.store.list_objects(""):
        data = scene.store.get(info.key).data
        for prefix, name in names.items():
            if info.key == layout.entry(prefix, 1):
                made[name] = Door(data, _entry(info.key))
        if info.key.startswith(layout.INBOX):
            made["completion"] = Door(data, _waiting(info.key.removeprefix(layout.INBOX)))
        elif info.key.startswith(layout.QUARANTINE):
            made["quarantined"] = Door(
                data, lambda data: inbox.QuarantinedEntry.decode(data, "q/x").inbox_entry()
            )
        elif data.startswith(b'{"batch":"b1","batch_digest"'):
            made["manifest"] = Door(data, lambda data: Manifest.decode(data, "sha256:x"))
        elif data.startswith(b'{"batch":"b1","dataset"'):
            made["batch"] = Door(data, RecordBatch.decode)
    release = json.loads(made["release entry"].good)["release"]
    made["release"] = Door(json.dumps(release).encode(), HookRelease.decode)
    submission = inbox.Submission(dataset=DATASET, batch="b1", digest=A_DIGEST, source="import")
    made["submission"] = Door(submission.encode(), _waiting(submission.inbox_id))
    tombstone = TombstoneEntry(
        seq=1,
        dataset=DATASET,
        action=TombstoneAction.WITHDRAW,
        record_ids=("r1",),
        reason="asked for",
    )
    loss = LossEntry(
        seq=1,
        dataset=DATASET,
        losses=(
            Loss(
                log=layout.batch_log(DATASET, "b1"),
                entries=1,
                last=A_DIGEST,
                known_entries=2,
            ),
        ),
        by="anna",
        reason="the backup is older",
    )
    for name, entry in (("tombstone", tombstone), ("loss", loss)):
        key = layout.entry(entry.log_prefix, 1)
        made[name] = Door(entry.encode(), _entry(key))
    return made
