"""The action of a record: everything that its outcome may depend on, as one digest.

Equal actions have equal answers, so what was answered once is carried over. Limits and declared
columns are not in it: they change how a hook is run and read, not what it says.
"""

from collections.abc import Mapping, Sequence

from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.records import Record
from feature_pipeline.model.release import HookRelease


def record_action(release: HookRelease, record: Record, inputs: Mapping[str, str]) -> Digest:
    """Return the action of one record.

    Args:
        release: What is run.
        record: Its id, metadata, and files by name and digest are part of the action; neither the
            order of files nor their sizes are.
        inputs: Per input hook, the digest of what it says about this record.
    """
    document = {
        "action": "record",
        "release": release.action_identity(),
        "record": _identity(record),
        "inputs": dict(inputs),
    }
    return Digest.of(document_bytes(document))


def batch_action(
    release: HookRelease, records: Sequence[Record], inputs: Mapping[str, str]
) -> Digest:
    """Return the one action of all records of a batch, for hooks of `scope: batch`.

    Args:
        release: What is run.
        records: All records, in order: a hook that sees them all sees their order too.
        inputs: Per input hook, the digest of what it says about the batch.
    """
    document = {
        "action": "batch",
        "release": release.action_identity(),
        "records": [_identity(record) for record in records],
        "inputs": dict(inputs),
    }
    return Digest.of(document_bytes(document))


def _identity(record: Record) -> dict[str, object]:
    return {
        "id": record.id,
        "metadata": record.metadata,
        "files": {file.name: file.digest for file in record.files},
    }
