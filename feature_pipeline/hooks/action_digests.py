"""The action of a record: one digest of everything that its outcome may depend on.

Equal actions have equal answers, so an answered action is carried over. Limits and declared columns
are not part of it: they change how a hook is run and its output decoded, not its answer.
"""

from collections.abc import Mapping, Sequence

from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.records import Record
from feature_pipeline.model.release import HookRelease


def record_action(release: HookRelease, record: Record, inputs: Mapping[str, str]) -> Digest:
    """Return the action of one record.

    Args:
        release: The hook's release.
        record: Its id, metadata, and files by name and digest are part of the action; the order of
            files and their sizes are not.
        inputs: By input hook, the digest of its outcome for this record.
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
        release: The hook's release.
        records: All records, in order: a hook that gets all of them can depend on their order.
        inputs: By input hook, the content digest for the batch.
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
