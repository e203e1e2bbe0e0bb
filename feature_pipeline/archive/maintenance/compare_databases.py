"""Compare the archive's logs with the entries that tables and Dagster know of.

A log's end can be lost without a trace in the log. An entry that a table or Dagster has recorded
proves that it existed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.findings import Finding, ObjectKind, Scope, State
from feature_pipeline.archive.inspection.verify import VerifyReport
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.logs.losses import losses
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted


@dataclass(frozen=True, slots=True)
class KnownEntry:
    """An entry of a hook's log over a batch that a table or Dagster has read."""

    dataset: str
    hook: str
    batch: str
    seq: int | None
    """None if only the manifest was recorded: any entry that names it matches."""
    manifest: Digest
    known_by: str
    """For display: `table pockets`, `Dagster (structures/features/pockets)`."""
    known_at: datetime
    """When it was read, by the reader's clock."""

    @property
    def artifact(self) -> tuple[str, str, str, Digest]:
        """The artifact of the entry, whatever its number."""
        return self.dataset, self.hook, self.batch, self.manifest

    def is_entry(self, entry: FeatureEntry) -> bool:
        """Return whether `entry` is the one that was read.

        Both its number and its manifest must match: a log that lost its end reuses numbers.
        """
        return self.manifest == entry.manifest and self.seq in {None, entry.seq}


@dataclass(frozen=True, slots=True)
class LostEntry:
    """A known entry that its log no longer has, and what the log has instead."""

    known: KnownEntry
    detail: str

    @property
    def finding(self) -> Finding:
        """The finding that `verify` reports."""
        known = self.known
        prefix = layout.feature_log(known.dataset, known.hook, known.batch)
        key = prefix if known.seq is None else layout.entry(prefix, known.seq)
        return Finding(State.LOST, ObjectKind.FEATURE_ENTRY, key, known.known_by, self.detail)

    def __str__(self) -> str:
        known = self.known
        number = "an entry" if known.seq is None else f"entry {known.seq}"
        return (
            f"{known.known_by} was made from {number} (manifest {known.manifest.short}) that the"
            f" archive no longer has: {self.detail}"
        )


@dataclass(frozen=True, slots=True)
class KnownBatch:
    """A submitted batch that a table or Dagster has read."""

    dataset: str
    batch: str
    digest: Digest
    """Digest of the batch document."""
    known_by: str
    known_at: datetime
    submitted_at: datetime | None = None
    """None if it was not recorded."""


@dataclass(frozen=True, slots=True)
class LostBatch:
    """A known batch whose log no longer has it, and what the log has instead."""

    known: KnownBatch
    detail: str

    @property
    def finding(self) -> Finding:
        """The finding that `verify` reports."""
        known = self.known
        key = layout.entry(layout.batch_log(known.dataset, known.batch), layout.FIRST_SEQ)
        return Finding(State.LOST, ObjectKind.BATCH_ENTRY, key, known.known_by, self.detail)

    def __str__(self) -> str:
        return (
            f"{self.known.known_by} has seen batch {self.known.batch!r}"
            f" ({self.known.digest.short}), which the archive no longer has: {self.detail}"
        )


@dataclass(frozen=True, slots=True)
class Knowledge:
    """The entries and batches that databases know; nothing from a database that does not answer."""

    entries: Sequence[KnownEntry] = ()
    batches: Sequence[KnownBatch] = ()
    submitted_at: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    """Time of submission by (dataset, batch), as far as tables know it."""
    notes: tuple[str, ...] = ()
    """Which databases did not answer, and why."""

    def joined(self, other: "Knowledge") -> "Knowledge":
        """Return the combined knowledge of both."""
        return Knowledge(
            [*self.entries, *other.entries],
            [*self.batches, *other.batches],
            {**self.submitted_at, **other.submitted_at},
            (*self.notes, *other.notes),
        )

    def lost(self, store: BlobStore, scope: Scope) -> list[Finding]:
        """Return what they know of the scope and the logs no longer have, once per log entry."""

        def is_within(dataset: str, hook: str | None, batch: str) -> bool:
            return (
                scope.dataset in {None, dataset}
                and (scope.hook is None or scope.hook == hook)
                and scope.batch in {None, batch}
            )

        entries = [e for e in self.entries if is_within(e.dataset, e.hook, e.batch)]
        batches = [b for b in self.batches if is_within(b.dataset, None, b.batch)]
        lost = find_lost(store, entries)
        numbered = {one.known.artifact for one in lost if one.known.seq is not None}
        lost_entries = [
            one.finding
            for one in lost
            # Dagster knows no numbers: an entry that a table knows too is named by its number.
            if one.known.seq is not None or one.known.artifact not in numbered
        ]
        lost_entries += [one.finding for one in find_lost_batches(store, batches)]
        return list({finding.key: finding for finding in reversed(lost_entries)}.values())

    def add_lost(self, report: VerifyReport, store: BlobStore) -> VerifyReport:
        """Return the report with the lost entries of its scope, which no log can show itself.

        Databases that did not answer are added as notes.
        """
        named = {finding.key for finding in report.findings}
        # A log whose lost entries are named by number.
        named |= {f"{key.rpartition('/')[0]}/" for key in named if key.startswith(layout.LOGS)}
        lost = [one for one in self.lost(store, report.scope) if one.key not in named]
        return replace(
            report,
            findings=(*report.findings, *lost),
            notes=(*report.notes, *self.notes),
        )


def find_lost_batches(store: BlobStore, known: Iterable[KnownBatch]) -> list[LostBatch]:
    """Return the known batches that the logs of batches no longer have, in the order given.

    Batches that were given up are left out, and so are logs that cannot be read: `verify` names
    them.
    """
    accepted = _AcceptedLosses(store)
    by_dataset: dict[str, list[KnownBatch]] = {}
    for one in known:
        by_dataset.setdefault(one.dataset, []).append(one)
    lost: list[LostBatch] = []
    for dataset, ones in by_dataset.items():
        last = log.readable_batches(store, dataset, {one.batch for one in ones})
        for one in ones:
            entry = last.intact.get(one.batch)
            if one.batch in last.damage or (entry is not None and entry.digest == one.digest):
                continue
            if accepted.include(dataset, layout.batch_log(dataset, one.batch), one.known_at):
                continue
            # A redacted batch has an entry for each digest that it had.
            entries = [] if entry is None else log.batch_entries(store, dataset, one.batch)
            if not any(entry.digest == one.digest for entry in entries):
                there = entry.digest.short if entry is not None else None
                detail = f"its log has {there}" if there else "it is in no log"
                lost.append(LostBatch(one, detail))
    return lost


def find_lost(
    store: BlobStore,
    known: Iterable[KnownEntry],
    current: Mapping[str, FeatureEntry] | None = None,
) -> list[LostEntry]:
    """Return the known entries that their logs no longer have, except those that were given up.

    Arguments and costs as for `find_unlogged`.
    """
    return not_given_up(store, find_unlogged(store, known, current))


def find_unlogged(
    store: BlobStore,
    known: Iterable[KnownEntry],
    current: Mapping[str, FeatureEntry] | None = None,
) -> list[LostEntry]:
    """Return the known entries that their logs do not have, lost or given up.

    Logs that cannot be read are left out: their content is not known, and `verify` names them.
    Costs a listing per batch or hook, and the whole log of each batch for which an entry other than
    the current one is known.

    Args:
        store: The archive.
        known: Of any hooks and batches.
        current: The current entries by batch, if everything known is about one hook and they were
            just read.
    """
    by_hook: dict[tuple[str, str], list[KnownEntry]] = {}
    for one in known:
        by_hook.setdefault((one.dataset, one.hook), []).append(one)
    lost: list[LostEntry] = []
    for (dataset, hook), ones in by_hook.items():
        heads = current
        if heads is None:
            batches = {one.batch for one in ones}
            heads = log.readable_heads(store, dataset, hook, batches).intact
        others = [one for one in ones if not _is_current(one, heads)]
        logs = log.readable_feature_logs(store, dataset, hook, {one.batch for one in others})
        for one in others:
            if one.batch in logs.damage:
                continue
            if (detail := _loss(one, logs.intact.get(one.batch, []))) is not None:
                lost.append(LostEntry(one, detail))
    return lost


def not_given_up(store: BlobStore, lost: list[LostEntry]) -> list[LostEntry]:
    """Leave out what was known before the loss of its log's end was accepted."""
    accepted = _AcceptedLosses(store)

    def is_given_up(known: KnownEntry) -> bool:
        prefix = layout.feature_log(known.dataset, known.hook, known.batch)
        return accepted.include(known.dataset, prefix, known.known_at)

    return [one for one in lost if not is_given_up(one.known)]


class _AcceptedLosses:
    """The time of each log's last accepted loss, read on demand."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._accepted: dict[str, dict[str, datetime]] = {}

    def include(self, dataset: str, prefix: str, known_at: datetime) -> bool:
        """Return whether knowledge of the log from that time was given up since."""
        if dataset not in self._accepted:
            self._accepted[dataset] = {
                loss.log: entry.accepted_at
                for entry in losses(self._store, dataset)
                for loss in entry.losses
            }
        accepted_at = self._accepted[dataset].get(prefix)
        return accepted_at is not None and known_at <= accepted_at


def _is_current(one: KnownEntry, heads: Mapping[str, FeatureEntry]) -> bool:
    head = heads.get(one.batch)
    return head is not None and one.is_entry(head)


def _loss(one: KnownEntry, entries: list[FeatureEntry]) -> str | None:
    """Return what the log has instead of the entry; None if it has it."""
    if any(one.is_entry(entry) for entry in entries):
        return None
    for entry in entries:
        if entry.seq == one.seq:
            return f"entry {entry.seq} of the log has manifest {entry.manifest.short}"
    if not entries:
        return "the batch has no log under the hook"
    return f"the log has {counted(len(entries), 'entry')}, but not this one"
