"""Take a census: record the length of every log, so that a lost end is detected later.

A census never hides a loss. For a log that is shorter than known, the new census repeats the
previous census's line, until the entries are restored or their loss is accepted.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError, utc_now
from feature_pipeline.archive.inspection.log_kinds import kind_of
from feature_pipeline.archive.logs.damage import State
from feature_pipeline.archive.logs.entries import decode_entry
from feature_pipeline.archive.logs.known_lengths import (
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
from feature_pipeline.model.text.counted import counted
from feature_pipeline.parallel import WORKERS, map_threads

MAX_CENSUSES: Final = 3
"""Number of newest censuses that are kept: if one is damaged, the one before it is used."""


@dataclass(frozen=True, slots=True)
class CensusReport:
    """The result of a census."""

    known: KnownLogs
    """What the logs were compared with."""
    shortfalls: tuple[Shortfall, ...]
    """Logs that are shorter than known; the census keeps their known length."""
    census: Census | None
    """The newest census now; None if the archive has no log."""
    is_new: bool
    """Whether it was written; otherwise it would equal the newest one."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is lost, and every census and loss could be read."""
        return not self.shortfalls and not self.known.damage

    def summary(self) -> str:
        """Return a one-line summary."""
        logs = 0 if self.census is None else self.census.table.num_rows
        problems = [str(shortfall.damage.error) for shortfall in self.shortfalls]
        problems += [str(damage.error) for damage in self.known.damage.values()]
        return f"{counted(logs, 'log')}: {'; '.join(problems) or 'no log has lost its end'}"


def write_census(store: BlobStore, workers: int = WORKERS) -> CensusReport:
    """List all logs, compare them with what is known, and write their current lengths.

    Reads only the last entries of logs that grew since the newest census.

    Raises:
        StoreUnavailableError: The store could not list, or did not answer; nothing was written.
        NewerVersionError: A census has a newer version than this code supports.
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
    """Write a census of all logs, unless it would equal the newest one.

    Args:
        store: The archive.
        known: Read before the logs were listed.
        seen: The entries of all logs that exist, with the digests of those that were read.
        shortfalls: The result of `compare`.
        workers: Concurrent requests.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: The store did not take it.
        NewerVersionError: A census has a newer version than this code supports.
    """
    for damage in known.damage.values():
        if damage.state is State.NEWER:
            raise damage.error
    before = known.below(layout.LOGS)
    short = {shortfall.log for shortfall in shortfalls}
    logs = [log for log in seen if log not in short and not log.startswith(layout.LOSS_LOGS)]
    census_lines = map_threads(
        lambda log: _line(store, log, seen[log], before.get(log)), logs, workers
    )
    # First what is known of logs that `seen` is not about: of a kind that this code does not read.
    lines = {**before, **dict(zip(logs, census_lines, strict=True))}
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
    """Return how many accepted losses the census has seen: those read before the logs were.

    Later ones count against it, as does every one of a log of losses that could not be read.
    """
    lines = {log: line for log, line in before.items() if log.startswith(layout.LOSS_LOGS)}
    for dataset, entries in known.losses.items():
        lines[layout.loss_log(dataset)] = Line(len(entries), entries[-1].digest)
    return {log: line for log, line in lines.items() if log not in short}


def _after(known: KnownLogs) -> datetime:
    """Return the time, moved past the previous censuses' if the clock went back."""
    earlier = [] if known.census is None else [known.census.taken_at]
    for key in known.damage:
        with suppress(InvalidInputError):
            earlier.append(layout.parse_census(key)[0])
    return max([utc_now(), *(instant + timedelta(microseconds=1) for instant in earlier)])


def _read(store: BlobStore, key: str) -> Digest | None:
    """Return the digest of an entry's bytes; None if they are not one, which `verify` reports."""
    try:
        data = store.get(key).data
        model, _ = kind_of(key)
        return decode_entry(model, key, data, store.identity).digest
    except (NotFoundError, CorruptDataError, NewerVersionError, InvalidInputError):
        return None


def _remove_old(store: BlobStore, known: KnownLogs) -> None:
    """Remove all but the newest censuses, and damaged ones that this one replaces."""
    keys = [info.key for info in store.list_objects(layout.CENSUS)]
    corrupt = {key for key, damage in known.damage.items() if damage.state is State.CORRUPT}
    for key in keys:
        if key in corrupt or key not in keys[-MAX_CENSUSES:]:
            store.delete(key)
