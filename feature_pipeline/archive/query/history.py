"""Read the logs as of a time or an entry: the history of batches.

An erasure applies to the past: if the log names an erased artifact, its successor is returned, so
that the state at any time can still be read, without the withdrawn records.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError, instant_text
from feature_pipeline.archive.format.manifest import Manifest, shown_notes
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.damage import Damage, Readable
from feature_pipeline.archive.logs.erasures import Erased, erased
from feature_pipeline.archive.logs.known_lengths import KnownLogs, known_logs
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.parallel import map_threads

RELEASES: Final = "(releases)"
"""Represents the log of a hook's releases among batch names; no batch has this key."""

AsOf = datetime | int
"""A time, with its offset; or the seq of an entry, where one batch is looked at."""


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """One entry of a batch's log, with details of its artifact."""

    entry: FeatureEntry
    is_head: bool
    """Whether its artifact is the batch's current one."""
    is_erased: bool
    """Whether the artifact was replaced because a record was withdrawn."""
    release: ReleaseEntry | None
    """The release registered as its `release_seq`; None if its log has no such release."""
    manifest: Manifest | None
    """None if erased, or if it cannot be read: `problem` then gives the reason."""
    problem: str | None = None

    def to_json(self) -> dict[str, object]:
        """Return the line for programs."""
        entry, manifest = self.entry, self.manifest
        return {
            "dataset": entry.dataset,
            "hook": entry.hook,
            "batch": entry.batch,
            "seq": entry.seq,
            "verdict": entry.verdict.value,
            "is_head": self.is_head,
            "is_erased": self.is_erased,
            "accepted_at": instant_text(entry.accepted_at),
            "completion": entry.completion,
            "manifest": str(entry.manifest),
            "content_digest": None if entry.content_digest is None else str(entry.content_digest),
            "release_seq": entry.release_seq,
            "version": None if self.release is None else self.release.release.document.version,
            "base": entry.base,
            "dagster_run_id": entry.dagster_run_id,
            "counts": None
            if manifest is None
            else {name: getattr(manifest.counts, name) for name in manifest.counts.__slots__},
            "duration_seconds": None if manifest is None else manifest.run.duration_seconds,
            "attempts": None if manifest is None else manifest.run.attempts,
            "failure": None
            if manifest is None or manifest.failure is None
            else {
                **manifest.failure.model_dump(mode="json"),
                "reason": quoted(manifest.failure.reason, MOST_REASON),
            },
            "notes": [] if manifest is None else shown_notes(manifest),
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class History:
    """The history of batches, as far as their logs can be read."""

    lines: Sequence[HistoryLine]
    """Every entry of the readable logs, by batch and seq."""
    damage: Mapping[str, str]
    """By batch whose log cannot be read, the reason; under `RELEASES`, that of the hook's
    releases.
    """


def readable_history(
    store: BlobStore, dataset: str, hook: str, batch: str | None = None
) -> History:
    """Return every entry of a hook's logs, of one batch or all, with its manifest.

    Raises:
        NotFoundError: The hook has no release in the dataset, or the batch has no entry.
    """
    damage: dict[str, str] = {}
    releases: dict[int, ReleaseEntry] = {}
    known_ends = known_logs(store)
    try:
        releases = {entry.seq: entry for entry in log.releases(store, dataset, hook, known_ends)}
    except (CorruptDataError, NewerVersionError) as error:
        damage[RELEASES] = str(error)
    if not releases and not damage:
        raise NotFoundError(
            f"dataset {dataset!r} has no hook {hook!r}; it has"
            f" {', '.join(log.hooks(store, dataset)) or 'none'}"
        )
    names = None if batch is None else [batch]
    readable = log.readable_feature_logs(store, dataset, hook, names, known_ends)
    logs = readable.intact
    damage |= {key: str(one.error) for key, one in readable.damage.items()}
    if batch is not None and batch not in logs and batch not in damage:
        raise NotFoundError(f"no run of hook {hook!r} over batch {batch!r} has been accepted yet")
    known = erased(store, dataset)
    heads = {key: log.last_current(entries) for key, entries in logs.items()}

    def line(entry: FeatureEntry) -> HistoryLine:
        is_erased = entry.manifest in known.manifests
        release = releases.get(entry.release_seq)
        manifest, problem = None, None
        if release is not None:
            problem = log.release_disagreement(entry, release.release.digest)
        if not is_erased and problem is None:
            try:
                manifest = read.manifest_of(store, entry)
            except (NotFoundError, CorruptDataError, InvalidInputError) as error:
                problem = str(error)
        return HistoryLine(
            entry=entry,
            is_head=entry is heads[entry.batch],
            is_erased=is_erased,
            release=release,
            manifest=manifest,
            problem=problem,
        )

    lines = map_threads(line, [entry for entries in logs.values() for entry in entries])
    return History(lines, damage)


def readable_heads_as_of(
    store: BlobStore,
    dataset: str,
    hook: str,
    as_of: AsOf,
    batches: Collection[str] | None = None,
    known: KnownLogs | None = None,
) -> Readable[FeatureEntry]:
    """Return each batch's current entry at a time, in batch order, and the damage of other logs.

    Args:
        store: The archive.
        dataset: The hook's dataset.
        hook: The hook.
        as_of: A time, or the seq of the last entry of each batch's log to consider.
        batches: Read only these.
        known: As for `log.readable_heads`.

    Raises:
        InvalidInputError: A time without its offset.
    """
    check_as_of(as_of)
    erased_now = erased(store, dataset)
    logs = log.readable_feature_logs(store, dataset, hook, batches, known)
    heads: dict[str, FeatureEntry] = {}
    damage = dict(logs.damage)
    for batch, entries in logs.intact.items():
        try:
            head = _head(entries, as_of, erased_now)
        except CorruptDataError as error:
            damage[batch] = Damage.of(layout.feature_log(dataset, hook, batch), error)
        else:
            if head is not None:
                heads[batch] = head
    return Readable(heads, damage)


def check_as_of(as_of: AsOf) -> AsOf:
    """Return `as_of` if it is unambiguous.

    Raises:
        InvalidInputError: It is not.
    """
    if isinstance(as_of, datetime):
        if as_of.tzinfo is None:
            raise InvalidInputError(f"as of {as_of}: write a time with a UTC offset, such as Z")
    elif as_of < layout.FIRST_SEQ:
        raise InvalidInputError(
            f"as of {as_of}: log entries are numbered from {layout.FIRST_SEQ}; give such a"
            " number, or a time with a UTC offset"
        )
    return as_of


def _head(entries: Sequence[FeatureEntry], as_of: AsOf, known: Erased) -> FeatureEntry | None:
    if isinstance(as_of, datetime):
        # In the log's order, not by clocks: an entry stands before all that follow it.
        then = []
        for entry in entries:
            if entry.accepted_at > as_of:
                break
            then.append(entry)
    else:
        then = [entry for entry in entries if entry.seq <= as_of]
    head = log.last_current(then)
    if head is None or head.manifest not in known.manifests:
        return head
    successor = known.manifest_now(head.manifest)
    for entry in entries:
        if entry.manifest == successor:
            return entry
    raise CorruptDataError(
        f"batch {head.batch!r} under hook {head.hook!r}: the artifact of entry {head.seq} was"
        f" erased, and its successor {successor} is in no entry"
    )
