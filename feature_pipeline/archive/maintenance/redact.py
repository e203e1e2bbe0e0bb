"""Redact artifacts, batches and hooks' files: remove some of their records.

Lines of other records stay byte for byte. Content that cannot be attributed to a record (a line
that is not JSON, the hook's log, the reason of a failed run) is left out, because it may be about
them.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from feature_pipeline.archive import blobs, read
from feature_pipeline.archive.format.content_digests import Content
from feature_pipeline.archive.format.encode import encode_outcomes, encode_rows
from feature_pipeline.archive.format.manifest import (
    LOG,
    MANIFEST_MEDIA_TYPE,
    OUTCOMES,
    RAW,
    ROWS,
    BlobRef,
    Manifest,
)
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome
from feature_pipeline.model.records import RecordBatch

_BOM: Final = b"\xef\xbb\xbf"
_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_LINES: Final = ".jsonl"
_WITHHELD: Final = "withheld: the run's input had a record that was withdrawn since"


def redact_batch(batch: RecordBatch, record_ids: Collection[str]) -> RecordBatch:
    """Return the batch without these records; it may become empty."""
    kept = tuple(record for record in batch.records if record.id not in record_ids)
    return RecordBatch.of(batch.document.model_copy(update={"records": kept}))


def redact_lines(data: bytes, record_ids: Collection[str]) -> bytes:
    """Return a file of JSON lines without those of these records, otherwise unchanged."""
    kept = [
        line
        for number, line in enumerate(_lines(data))
        if not _is_about(line.removeprefix(_BOM) if number == 0 else line, record_ids)
    ]
    return b"".join(kept)


def _lines(data: bytes) -> list[bytes]:
    # Only the line feed ends a line: splitlines() would also split at a carriage return.
    return [line + b"\n" for line in data.split(b"\n")[:-1]] + [data.rpartition(b"\n")[2]]


def _is_about(line: bytes, record_ids: Collection[str]) -> bool:
    if not line.strip():
        return False
    text = line.decode("utf-8", "surrogateescape")
    ids: list[object] = []
    depth: list[list[tuple[str, object]]] = []

    def members(pairs: list[tuple[str, object]]) -> dict[str, object]:
        depth.append(pairs)  # the outermost object is the last to be finished
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=members, strict=False)
    except RecursionError:
        # Too deep for the parser and yet a record's line: its id is among the strings.
        return any(string in record_ids for string in _strings(text))
    except ValueError:
        return True
    if isinstance(value, dict):
        ids = [item for key, item in depth[-1] if key == "id"]
    if not any(isinstance(item, str) for item in ids):
        return any(record_id in string for string in _strings(text) for record_id in record_ids)
    return any(item in record_ids for item in ids)


def _strings(text: str) -> list[str]:
    return [json.loads(match[0], strict=False) for match in _STRING.finditer(text)]


def redact_artifact(
    store: BlobStore,
    manifest: Manifest,
    record_ids: Collection[str],
    batch_digest: Digest,
    carried: Mapping[Digest, Digest],
) -> tuple[Manifest, BlobRef]:
    """Store the artifact without these records; return its manifest and the manifest's digest.

    Equal arguments give equal bytes, so a repeated call writes nothing new.

    Args:
        store: The archive.
        manifest: The artifact to redact; it stays as it is.
        record_ids: The records to leave out.
        batch_digest: The batch without them.
        carried: Successors of redacted manifests, for outcomes that were carried over from these.

    Raises:
        NotFoundError, CorruptDataError: A blob of the artifact is missing or damaged.
    """
    outcomes = read.read_artifact_outcomes(store, manifest)
    kept = [_moved(outcome, carried) for outcome in outcomes if outcome.record_id not in record_ids]
    computed = {outcome.record_id for outcome in outcomes if outcome.carried_from is None}
    refs: dict[str, BlobRef] = {}
    for name in read.raw_names(manifest):
        ref = manifest.blobs[f"{RAW}{name}"]
        data = read.read_raw(store, manifest, name)
        if name.endswith(_LINES):
            data = redact_lines(data, record_ids)
        elif not computed or computed & set(record_ids):
            continue  # a file of one record, and it is this one, or unknown
        refs[f"{RAW}{name}"] = blobs.put_blob(store, data, ref.media_type)
    update: dict[str, object] = {}
    if not manifest.is_failed:
        for name, data in (
            (ROWS, encode_rows(manifest.columns, kept)),
            (OUTCOMES, encode_outcomes(kept)),
        ):
            refs[name] = blobs.put_blob(store, data, manifest.blobs[name].media_type)
        content = Content.of(manifest.columns, kept)
        update = {
            "counts": content.counts,
            "content_digest": content.content_digest,
            "rows_digest": content.rows_digest,
        }
    if manifest.failure is not None:
        update["failure"] = manifest.failure.model_copy(update={"reason": _WITHHELD})
    successor = manifest.model_copy(
        update={
            **update,
            "batch_digest": batch_digest,
            "blobs": dict(sorted(refs.items())),
            "without_output": {
                record_id: stated
                for record_id, stated in manifest.without_output.items()
                if record_id not in record_ids
            },
            "notes": _notes(manifest, record_ids),
        }
    )
    return successor, blobs.put_blob(store, successor.encode(), MANIFEST_MEDIA_TYPE)


def _moved(outcome: Outcome, carried: Mapping[Digest, Digest]) -> Outcome:
    source = outcome.carried_from
    while source is not None and source in carried:
        source = carried[source]
    return outcome if source is outcome.carried_from else replace(outcome, carried_from=source)


def _notes(manifest: Manifest, record_ids: Collection[str]) -> tuple[str, ...]:
    note = "records withdrawn since were removed"
    kept = [n for n in manifest.notes if not any(record_id in n for record_id in record_ids)]
    if LOG in manifest.blobs:
        note += ", and the hook's log with them"
    return (*kept, note)
