"""Taking a census: how far every log went, written down so that a lost end is noticed later.

What belongs here: when a census may be written, what it says, and which ones are kept. Not here:
its form, and comparing logs with it (`known`).

A census never hides a loss. Where a log is not what it is known to have been, the new census says
of it what the one before it said, until the entries are back or their loss is accepted.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError, utc_now
from feature_pipeline.archive.inspection.kinds import kind_of
from feature_pipeline.archive.logs.damage import State
from feature_pipeline.archive.logs.entries import decode_entry
from feature_pipeline.archive.logs.known import (
    Census,
    KnownLogs,
    Line,
    Shortfall,
    Sighting,
    Sightings,
    compare,
    decode_census,
    encode_census,
    known_logs,
    sightings,
)
from feature_pipeline.archive.store.base import BYTES_MEDIA_TYPE, BlobStore, create_or_read
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest
from feature_pipeline.parallel import WORKERS, map_threads

KEPT: Final = 3
"""Newest censuses that stay: one that is damaged is stood in for by the one before it."""


@dataclass(frozen=True, slots=True)
class CensusReport:
    """What a census found."""

    known: KnownLogs
    """What it was compared with."""
    shortfalls: tuple[Shortfall, ...]
    """Logs that are not what they are known to have been; the census says what they were."""
    census: Census | None
    """The newest now; None if the archive has no log."""
    is_new: bool
    """Whether it was written; otherwise it says the same as the newest one did."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is lost, and every census and loss could be read."""
        return not self.shortfalls and not self.known.damage

    def summary(self) -> str:
        """Return one line for people."""
        logs = 0 if self.census is None else self.census.table.num_rows
        problems = [str(shortfall.damage.error) for shortfall in self.shortfalls]
        problems += [str(damage.error) for damage in self.known.damage.values()]
        return f"{logs} logs: {'; '.join(problems) or 'each is at least what it was'}"


def take_census(store: BlobStore, workers: int = WORKERS) -> CensusReport:
    """List all logs, compare them with what is known, and write how far they go now.

    Reads only the last entries of logs that went on since the newest census.

    Raises:
        StoreUnavailableError: The store could not list, or did not answer; nothing was written.
        NewerVersionError: There is a census of a version that only later code knows.
    """
    known = known_logs(store)
    seen = sightings(store.list_objects(layout.LOGS))
    shortfalls = compare(store, known, layout.LOGS, seen, workers)
    return record(store, known, seen, shortfalls, workers)


def record(
    store: BlobStore,
    known: KnownLogs,
    seen: Sightings,
    shortfalls: tuple[Shortfall, ...],
    workers: int = WORKERS,
) -> CensusReport:
    """Write a census of all logs, if it says anything that the newest one does not.

    Args:
        store: The archive.
        known: Read before the logs were listed.
        seen: What is there of all logs, with the digests of what was read.
        shortfalls: What `compare` found.
        workers: Requests at once.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: The store did not take it.
        NewerVersionError: There is a census of a version that only later code knows.
    """
    for damage in known.damage.values():
        if damage.state is State.NEWER:
            raise damage.error
    before = known.below(layout.LOGS)
    short = {shortfall.log for shortfall in shortfalls}
    logs = [log for log in seen if log not in short and not log.startswith(layout.LOSS_LOGS)]
    found = map_threads(lambda log: _line(store, log, seen[log], before.get(log)), logs, workers)
    # First what is known of logs that `seen` is not about: of a kind that this code does not read.
    lines = {**before, **dict(zip(logs, found, strict=True))}
    lines |= {shortfall.log: shortfall.line for shortfall in shortfalls}
    lines |= _loss_lines(known, before, short)
    if not lines or (not known.damage and lines == before):
        return CensusReport(known, shortfalls, known.census, is_new=False)
    data = encode_census(lines)
    taken_at = _after(known)
    key = layout.census(taken_at, Digest.of(data))
    stored = create_or_read(store, key, data, BYTES_MEDIA_TYPE)
    census = decode_census(key, stored, store.identity)
    _remove_old(store, known)
    return CensusReport(known, shortfalls, census, is_new=True)


def _line(store: BlobStore, log: str, seen: Mapping[int, Sighting], before: Line | None) -> Line:
    last = max(seen)
    sighting = seen[last]
    if sighting.digest is not None:
        return Line(last, sighting.digest, sighting.etag)
    is_same = before is not None and (before.entries, before.etag) == (last, sighting.etag)
    if before is not None and is_same and before.digest is not None:
        return before
    return Line(last, _read(store, layout.entry(log, last)), sighting.etag)


def _loss_lines(
    known: KnownLogs, before: Mapping[str, Line], short: Collection[str]
) -> dict[str, Line]:
    """How many accepted losses the census has seen: those that were read before the logs were.

    Later ones count against it, as do all of a log of losses that could not be read.
    """
    lines = {log: line for log, line in before.items() if log.startswith(layout.LOSS_LOGS)}
    for dataset, entries in known.losses.items():
        lines[layout.loss_log(dataset)] = Line(len(entries), entries[-1].digest)
    return {log: line for log, line in lines.items() if log not in short}


def _after(known: KnownLogs) -> datetime:
    """The time; a clock that went back does not put a census before those that it follows."""
    earlier = [] if known.census is None else [known.census.taken_at]
    for key in known.damage:
        with suppress(InvalidInputError):
            earlier.append(layout.parse_census(key)[0])
    return max([utc_now(), *(instant + timedelta(microseconds=1) for instant in earlier)])


def _read(store: BlobStore, key: str) -> Digest | None:
    """The digest of an entry's bytes; None if there is no entry in them, which `verify` names."""
    try:
        data = store.get(key).data
        model, _ = kind_of(key)
        return decode_entry(model, key, data, store.identity).digest
    except (NotFoundError, CorruptDataError, NewerVersionError, InvalidInputError):
        return None


def _remove_old(store: BlobStore, known: KnownLogs) -> None:
    """Remove all but the newest censuses, and those that this one stands in for."""
    keys = [info.key for info in store.list_objects(layout.CENSUS)]
    corrupt = {key for key, damage in known.damage.items() if damage.state is State.CORRUPT}
    for key in keys:
        if key in corrupt or key not in keys[-KEPT:]:
            store.delete(key)
