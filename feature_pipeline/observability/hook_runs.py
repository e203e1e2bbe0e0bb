"""Hook runs and current artifacts, from the archive's logs and manifests.

Every log entry is read once in a process's life, and so is every manifest. A restarted reader
reads them all again and arrives at the same numbers: nothing is lost when a process dies, and
counters do not begin again at zero.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.entries import StoredEntry
from feature_pipeline.archive.logs.log import FeatureEntry, Verdict
from feature_pipeline.archive.logs.reading import list_logs, try_read
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.model.instruments import (
    ERROR_TYPE,
    HOOK_RECORDS,
    HOOK_ROWS,
    HOOK_RUN_DURATION,
    HOOK_RUN_MEMORY,
    HOOK_RUNS,
)
from feature_pipeline.model.outcomes import OutcomeCounts, Status
from feature_pipeline.observability.samples import Sample, sample
from feature_pipeline.parallel import map_threads

_AT_ONCE: Final = 1024
"""Manifests in memory."""
UNKNOWN: Final = "unreadable"
"""The kind of a failure whose manifest cannot be read."""
OTHER: Final = "other"
"""A kind that a manifest names and this code does not know."""
_KINDS: Final = frozenset(kind.value for kind in FailureKind)
_OUTCOMES: Final = tuple(status.value for status in Status)


@dataclass(slots=True)
class _Log:
    seen: int = 0
    """The number of its last entry that was read."""
    counts: OutcomeCounts | None = None
    """Of the current artifact; None without one, or if its manifest cannot be read."""


@dataclass(slots=True)
class HookRuns:
    """What was read of the logs so far."""

    _logs: dict[tuple[str, str], dict[str, _Log]] = field(default_factory=dict)
    """By dataset and hook, by batch."""
    _added: list[Sample] = field(default_factory=list)
    """Read and not yet returned: a later request of the same reading failed."""

    def read(self, store: BlobStore) -> tuple[list[Sample], list[Sample]]:
        """Read what is new; return what to add, and what the current artifacts hold.

        An entry that cannot be read is left out until it can be, and so is what follows it in its
        log: `hook.batches` counts the batch as damaged.

        Raises:
            StoreUnavailableError: The store did not answer; the next call continues from there.
        """
        state: list[Sample] = []
        for dataset in log.datasets(store):
            for hook in log.hooks(store, dataset):
                self._read_hook(store, dataset, hook)
                state += self._current(dataset, hook)
        added, self._added = self._added, []
        return added, state

    def _read_hook(self, store: BlobStore, dataset: str, hook: str) -> None:
        known = self._logs.setdefault((dataset, hook), {})
        new: list[ObjectInfo] = []
        for batch, infos in list_logs(store, layout.feature_logs(dataset, hook), None).items():
            batch_log = known.setdefault(batch, _Log())
            seqs = [layout.parse_entry(info.key).seq for info in infos]
            batch_log.seen = min(batch_log.seen, seqs[-1])  # its end was lost, and given up
            new += [info for info, seq in zip(infos, seqs, strict=True) if seq > batch_log.seen]
        for start in range(0, len(new), _AT_ONCE):
            chunk = new[start : start + _AT_ONCE]
            stored = map_threads(lambda info: try_read(store, info, FeatureEntry), chunk)
            entries = []
            seen: dict[str, int] = {}
            for one in stored:
                # What comes after an entry that cannot be read does not follow.
                if isinstance(one, StoredEntry):
                    batch, seq = one.entry.batch, one.entry.seq
                    if seq == seen.get(batch, known[batch].seen) + 1:
                        seen[batch] = seq
                        entries.append(one.entry)
            manifests = map_threads(lambda entry: _manifest(store, entry), entries)
            for entry, manifest in zip(entries, manifests, strict=True):
                batch_log = known[entry.batch]
                batch_log.seen = entry.seq
                if entry.verdict is Verdict.CURRENT:
                    batch_log.counts = None if manifest is None else manifest.counts
                self._added += _run_samples(entry, manifest)

    def _current(self, dataset: str, hook: str) -> list[Sample]:
        totals: Counter[str] = Counter()
        for batch_log in self._logs[dataset, hook].values():
            if batch_log.counts is not None:
                totals.update(
                    {name: getattr(batch_log.counts, name) for name in (*_OUTCOMES, "rows")}
                )
        return [
            *(
                sample(HOOK_RECORDS, totals[name], dataset=dataset, hook=hook, outcome=name)
                for name in _OUTCOMES
            ),
            sample(HOOK_ROWS, totals["rows"], dataset=dataset, hook=hook),
        ]


def _manifest(store: BlobStore, entry: FeatureEntry) -> Manifest | None:
    """Return the entry's manifest; None if it is damaged: the log's own facts then count."""
    try:
        return read.manifest_of(store, entry)
    except (NotFoundError, CorruptDataError, InvalidInputError, NewerVersionError):
        return None


def _failure_kind(manifest: Manifest | None) -> str:
    """Return a kind of a bounded set: any publisher writes manifests."""
    failure = None if manifest is None else manifest.failure
    if failure is None:
        return UNKNOWN
    return failure.kind if failure.kind in _KINDS else OTHER


def _run_samples(entry: FeatureEntry, manifest: Manifest | None) -> list[Sample]:
    labels = {
        "dataset": entry.dataset,
        "hook": entry.hook,
        "release": entry.release.short,
    }
    status = {"status": entry.verdict.value}
    error = {}
    if entry.verdict is Verdict.FAILED:
        error = {ERROR_TYPE: _failure_kind(manifest)}
    samples = [Sample(HOOK_RUNS, 1, {**labels, **status, **error})]
    if manifest is not None and manifest.run.attempts:
        seconds = max(0.0, manifest.run.duration_seconds)
        samples.append(Sample(HOOK_RUN_DURATION, seconds, {**labels, **status}))
        if manifest.run.memory_bytes is not None:
            samples.append(Sample(HOOK_RUN_MEMORY, manifest.run.memory_bytes, labels))
    return samples
