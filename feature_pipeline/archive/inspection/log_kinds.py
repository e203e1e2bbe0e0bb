"""The kinds of logs, with their entry classes and the kinds of findings about them."""

from typing import Final

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.findings import ObjectKind
from feature_pipeline.archive.logs.erasures import ErasureEntry
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry, LogEntry, StoredRelease
from feature_pipeline.archive.logs.losses import LossEntry
from feature_pipeline.archive.logs.tombstones import TombstoneEntry
from feature_pipeline.errors import InvalidInputError

KINDS: Final[dict[str, tuple[type[LogEntry], ObjectKind]]] = {
    layout.FEATURE_LOGS: (FeatureEntry, ObjectKind.FEATURE_ENTRY),
    layout.BATCH_LOGS: (BatchEntry, ObjectKind.BATCH_ENTRY),
    layout.RELEASE_LOGS: (StoredRelease, ObjectKind.RELEASE_ENTRY),
    layout.TOMBSTONE_LOGS: (TombstoneEntry, ObjectKind.TOMBSTONE_ENTRY),
    layout.ERASURE_LOGS: (ErasureEntry, ObjectKind.ERASURE_ENTRY),
    layout.LOSS_LOGS: (LossEntry, ObjectKind.LOSS_ENTRY),
}
"""By the prefix of the logs of each kind."""


def kind_of(log: str) -> tuple[type[LogEntry], ObjectKind]:
    """Return the kind of the log (or log entry) with this prefix (or key).

    Raises:
        InvalidInputError: There is no such kind of log.
    """
    for prefix, kind in KINDS.items():
        if log.startswith(prefix):
            return kind
    raise InvalidInputError(f"{log!r} is not a log; logs are below {', '.join(KINDS)}")
