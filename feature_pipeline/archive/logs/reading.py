"""Read the entries of logs of any kind, and append to them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.logs.cache import LruCache
from feature_pipeline.archive.logs.damage import Damage, Readable, State
from feature_pipeline.archive.logs.entries import (
    LogEntry,
    StoredEntry,
    chained,
    check_follows,
    decode_entry,
    misfits,
)
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo, create_or_read
from feature_pipeline.errors import CorruptDataError, NotFoundError, StoreUnavailableError
from feature_pipeline.model.records import check_batch_key
from feature_pipeline.parallel import map_threads

_CACHED_ENTRIES: Final = 1 << 17
"""More than the batches of a full dataset; about 2 KB each."""
_LIST_ALL_FROM: Final = 20
"""Number of logs from which all are listed at once, if there are not too many others."""
_OBJECTS_PER_LOG: Final = 20
"""Listing so many objects, a thousand a request, takes as long as a request for one log."""

E = TypeVar("E", bound=LogEntry)
T = TypeVar("T")


_entries: LruCache[StoredEntry[Any]] = LruCache(_CACHED_ENTRIES)


def forget() -> None:
    """Clear the cache of entries, as if the process began. For measuring."""
    _entries.clear()


def trim(entries: int) -> None:
    """Keep at most so many entries in the cache."""
    _entries.trim(entries)


def read_entries(store: BlobStore, prefix: str, model: type[E]) -> list[E]:
    """Return every entry of one log, in order.

    Raises:
        CorruptDataError: An entry cannot be read, is stored under the wrong key, or does not name
            the digest of the one before it; or a number is missing.
    """
    return [stored.entry for stored in read_stored(store, prefix, model)]


def read_stored(store: BlobStore, prefix: str, model: type[E]) -> list[StoredEntry[E]]:
    """Return the entries as `read_entries` does, with the digests of the stored bytes."""
    infos = list(store.list_objects(prefix))
    return read_all(store, {prefix: infos} if infos else {}, model).whole().get(prefix, [])


def read_all(
    store: BlobStore, logs: Mapping[str, Sequence[ObjectInfo]], model: type[E]
) -> Readable[list[StoredEntry[E]]]:
    """Return every entry of each of these logs."""
    flat = [info for infos in logs.values() for info in infos]
    read = iter(map_threads(lambda info: try_read(store, info, model), flat))
    entries_by_log: dict[str, list[StoredEntry[E]]] = {}
    damage: dict[str, Damage] = {}
    for name, infos in logs.items():
        entries, problem = _in_order(store, infos, [next(read) for _ in infos])
        if problem is None:
            entries_by_log[name] = entries
        else:
            damage[name] = problem
    return Readable(entries_by_log, damage)


def _in_order(
    store: BlobStore, infos: Sequence[ObjectInfo], read: Sequence[StoredEntry[E] | Damage]
) -> tuple[list[StoredEntry[E]], Damage | None]:
    """Return the entries of one log, or the first problem with it."""
    entries: list[StoredEntry[E]] = []
    for info, one in zip(infos, read, strict=True):
        if isinstance(one, Damage):
            return [], one
        wanted = entries[-1].entry.seq + 1 if entries else layout.FIRST_SEQ
        if one.entry.seq != wanted:
            return [], gap(store, layout.entry(one.entry.log_prefix, wanted), info.key)
        entries.append(one)
    for misfit, problem in misfits(entries):
        key = layout.entry(misfit.entry.log_prefix, misfit.entry.seq)
        error = CorruptDataError(f"log entry {key} in {store.identity}: {problem}")
        return [], Damage.of(key, error)
    return entries, None


def link(store: BlobStore, before: StoredEntry[E], after: StoredEntry[E]) -> Damage | None:
    """Return the damage shown by two neighbours; None if `after` follows `before`."""
    try:
        check_follows(before, after, store.identity)
    except CorruptDataError as error:
        return Damage.of(layout.entry(after.entry.log_prefix, after.entry.seq), error)
    return None


def gap(store: BlobStore, absent: str, later: str) -> Damage:
    """Return the damage of a missing entry: it may be the current one, so no older one is used."""
    message = f"the log has a gap: {absent} in {store.identity} is missing, and {later} is there"
    return Damage(absent, State.MISSING, CorruptDataError(message))


def try_read(store: BlobStore, info: ObjectInfo, model: type[E]) -> StoredEntry[E] | Damage:
    """Read one entry, or return its damage."""
    try:
        return _read_entry(store, info, model)
    except (CorruptDataError, NotFoundError, StoreUnavailableError, NewerVersionError) as error:
        return Damage.of(info.key, error)


def _read_entry(store: BlobStore, info: ObjectInfo, model: type[E]) -> StoredEntry[E]:
    # The etag makes a log that was deleted and begun again a different one.
    cache_key = (store.identity, info.key, info.etag)
    stored = _entries.get(cache_key)
    if stored is None or not isinstance(stored.entry, model):
        data = store.get(info.key).data
        stored = decode_entry(model, info.key, data, store.identity)
        _entries.put(cache_key, stored)
    return stored


def append(
    store: BlobStore,
    prefix: str,
    model: type[E],
    decide: Callable[[list[E]], E],
    known: Sequence[E] | None = None,
) -> tuple[E, bool]:
    """Append the entry that `decide` returns; return it, and whether this call appended it.

    The entry is written in the newest version and names the one before it, whatever `decide` sets.

    Args:
        store: The archive.
        prefix: The log's prefix.
        model: The log's kind of entry.
        decide: Called with the log's entries. Returns one of them (nothing to append) or a new one
            whose `seq` follows the last. Called again each time another writer was faster.
        known: The log's entries, if they were just read.

    Raises:
        CorruptDataError: The object in the place of the next entry does not follow the last.
        OutcomeUnknownError: The store did not answer and a read-back could not settle it.
    """
    entries = read_entries(store, prefix, model) if known is None else list(known)
    while True:
        decided = decide(entries)
        if any(decided is entry for entry in entries):
            return decided, False
        last = StoredEntry.of(entries[-1]) if entries else None
        appended = chained(decided, last)
        key = layout.entry(prefix, appended.seq)
        data = appended.encode()
        stored = create_or_read(store, key, data)
        if stored == data:
            return appended, True
        other = decode_entry(model, key, stored, store.identity)
        if last is not None:
            check_follows(last, other, store.identity)
        entries.append(other.entry)


def next_seq(entries: Sequence[LogEntry]) -> int:
    """Return the number that follows the last entry."""
    return entries[-1].seq + 1 if entries else layout.FIRST_SEQ


def list_logs(
    store: BlobStore, every: str, names: Collection[str] | None
) -> dict[str, list[ObjectInfo]]:
    """List each of the named logs that has an entry; all below `every` if None.

    The cost of named logs depends on their number, not on that of all logs.

    Args:
        store: The archive.
        every: The prefix of the logs.
        names: Which logs: the last parts of their prefixes.
    """
    if names is None:
        return by_log(every, store.list_objects(every))
    ordered = sorted({check_batch_key(name) for name in names})
    if len(ordered) >= _LIST_ALL_FROM:
        limit = _OBJECTS_PER_LOG * len(ordered)
        objects = list(store.list_objects(every, limit))
        if len(objects) <= limit:
            logs = by_log(every, objects)
            return {name: logs[name] for name in ordered if name in logs}
    listings = map_threads(lambda name: list(store.list_objects(f"{every}{name}/")), ordered)
    return {name: infos for name, infos in zip(ordered, listings, strict=True) if infos}


def by_log(every: str, infos: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    """Return the objects below `every`, by the folder that they are in."""
    logs: dict[str, list[ObjectInfo]] = {}
    for info in infos:
        logs.setdefault(info.key.removeprefix(every).rpartition("/")[0], []).append(info)
    return logs


def read_each(
    logs: Mapping[str, Sequence[ObjectInfo]],
    read: Callable[[Sequence[ObjectInfo]], T | Damage | None],
) -> Readable[T]:
    """Read each of these logs; a log for which `read` returns None is left out."""
    values: dict[str, T] = {}
    damage: dict[str, Damage] = {}
    for name, one in zip(logs, map_threads(read, logs.values()), strict=True):
        if isinstance(one, Damage):
            damage[name] = one
        elif one is not None:
            values[name] = one
    return Readable(values, damage)


def entries_of(read: Readable[list[StoredEntry[E]]]) -> Readable[list[E]]:
    """Return the entries without the digests of their stored bytes."""
    entries_by_log = {
        name: [stored.entry for stored in entries] for name, entries in read.intact.items()
    }
    return Readable(entries_by_log, read.damage)
