"""The known lengths of all logs: the newest census and the losses accepted since.

A log alone cannot show that its end is missing, so its length is recorded beside it. Logs only
grow, so a census's line about a log stays true of every later state of it, unless the loss of its
end was accepted. That makes two rules for comparing: read what is known before listing the logs,
and let accepted losses override a census that had not seen them.
"""

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.logs.cache import LruCache
from feature_pipeline.archive.logs.damage import Damage, State
from feature_pipeline.archive.logs.entries import StoredEntry
from feature_pipeline.archive.logs.losses import LossEntry, readable_losses
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.parallel import WORKERS, map_threads

if TYPE_CHECKING:  # Dagster's code location imports this module and reads no census
    import pyarrow as pa

CENSUS_VERSION: Final = 1
_LISTINGS: Final = 3
"""How often censuses are listed again because one was removed before it was read."""
_MAX_REQUESTED: Final = 1_000
"""Number of absent entries that are requested by key: beyond it the listing is not at fault."""


@dataclass(frozen=True, slots=True)
class Line:
    """The length of one log."""

    entries: int
    """The number of its last entry."""
    digest: Digest | None
    """Of that entry's stored bytes; None if it could not be read as an entry."""
    etag: str | None = None
    """Of that entry, as the store listed it: while it is the same, so are the bytes."""
    is_shortened: bool = False
    """Whether it comes from an accepted loss and not from a census."""


@dataclass(frozen=True, slots=True)
class Sighting:
    """The object of one entry, as it was listed or read."""

    etag: str
    digest: Digest | None = None
    """Of its bytes; None if they were not read, or are not an entry in its place."""


Sightings = Mapping[str, Mapping[int, Sighting]]
"""The existing entries, by log and number."""


def sightings(infos: Iterable[ObjectInfo]) -> dict[str, dict[int, Sighting]]:
    """Return the entries in a listing of logs. Keys that are not an entry's are left out."""
    seen: dict[str, dict[int, Sighting]] = {}
    for info in infos:
        try:
            key = layout.parse_entry(info.key)
        except InvalidInputError:
            continue
        seen.setdefault(key.log, {})[key.seq] = Sighting(info.etag)
    return seen


@dataclass(frozen=True, slots=True)
class Census:
    """The length of every log at some time."""

    key: str
    taken_at: datetime
    table: "pa.Table"

    def below(self, prefix: str) -> dict[str, Line]:
        """Return the lines of the logs below `prefix`, by log, in order."""
        import pyarrow.compute as pc

        table = self.table.filter(pc.starts_with(self.table.column("log"), prefix))
        columns = (table.column(name).to_pylist() for name in census_schema().names)
        return {
            log: Line(entries, None if digest is None else Digest(digest.hex()), etag)
            for log, entries, digest, etag in zip(*columns, strict=True)
        }


@functools.cache
def census_schema() -> "pa.Schema":
    """Return the columns of a census: a line per log."""
    import pyarrow as pa

    fields: list[pa.Field[Any]] = [
        pa.field("log", pa.string(), nullable=False),
        pa.field("entries", pa.int64(), nullable=False),
        pa.field("digest", pa.binary(32)),
        pa.field("etag", pa.string()),
    ]
    return pa.schema(fields)


def encode_census(lines: Mapping[str, Line]) -> bytes:
    """Return the stored bytes of a census with these lines."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    logs = sorted(lines)
    digests = [lines[log].digest for log in logs]
    table = pa.table(
        {
            "log": logs,
            "entries": [lines[log].entries for log in logs],
            "digest": [None if d is None else bytes.fromhex(d.hex) for d in digests],
            "etag": [lines[log].etag for log in logs],
        },
        schema=census_schema().with_metadata({"spec_version": str(CENSUS_VERSION)}),
    )
    sink = pa.BufferOutputStream()
    # Names of logs have long common beginnings, digests have none.
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"log": "DELTA_BYTE_ARRAY", "entries": "DELTA_BINARY_PACKED"},
        store_schema=True,
    )
    return bytes(sink.getvalue())


def decode_census(key: str, data: bytes, store: str) -> Census:
    """Return the census stored as `data` under `key`.

    Raises:
        CorruptDataError: Its bytes do not match its name, or are not a census.
        NewerVersionError: Its version is newer than this code supports.
    """
    import pyarrow as pa

    from feature_pipeline.archive.format.parquet_bounds import check_texts, open_parquet

    where = f"census {key} in {store}"
    try:
        taken_at, digest = layout.parse_census(key)
    except InvalidInputError as error:
        raise CorruptDataError(f"{where}: {error}") from error
    if (actual := Digest.of(data)) != digest:
        raise CorruptDataError(f"{where} has bytes whose digest is {actual}")
    try:
        file = open_parquet(data, where)
        schema = file.schema_arrow
        version = (schema.metadata or {}).get(b"spec_version", b"").decode(errors="replace")
        table = file.read(use_threads=False)
    except InvalidInputError as error:
        raise CorruptDataError(str(error)) from error
    except (pa.ArrowException, OSError) as error:
        raise CorruptDataError(f"{where} is not Parquet: {error}") from error
    check_texts(table, where)
    if re.fullmatch(r"[1-9][0-9]{0,8}", version) and int(version) > CENSUS_VERSION:
        raise NewerVersionError(
            f"{where} has spec_version {version}; this version of feature-pipeline knows up to"
            f" {CENSUS_VERSION}: upgrade it to read the archive"
        )
    is_census = table.schema.equals(census_schema(), check_metadata=False)
    if version != str(CENSUS_VERSION) or not is_census:
        raise CorruptDataError(f"{where} is not a census: {quoted(str(table.schema))}")
    return Census(key, taken_at, table)


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A log that is shorter than known, or changed."""

    log: str
    line: Line
    """The known length."""
    entries: int
    """Number of its last entry now; 0 if it has none."""
    damage: Damage


@dataclass(frozen=True, slots=True)
class KnownLogs:
    """The entries that must exist."""

    census: Census | None
    """The newest readable one; None if there is none."""
    losses: Mapping[str, Sequence[StoredEntry[LossEntry]]] = field(default_factory=dict)
    """By dataset."""
    damage: Mapping[str, Damage] = field(default_factory=dict)
    """By key or log, the censuses and losses that cannot be read."""

    def below(self, prefix: str) -> dict[str, Line]:
        """Return the known lengths of the logs below `prefix`, by log."""
        lines = {} if self.census is None else self.census.below(prefix)
        for dataset, entries in self.losses.items():
            for stored in entries[self._seen_losses(dataset) :]:
                for loss in stored.entry.losses:
                    if not loss.log.startswith(prefix):
                        continue
                    if loss.entries:
                        lines[loss.log] = Line(loss.entries, loss.last, is_shortened=True)
                    else:
                        lines.pop(loss.log, None)
        return lines

    def only(self, logs: Collection[str]) -> "KnownLogs":
        """Return what is known of these logs, and of accepted losses."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if self.census is None:
            return self
        column = self.census.table.column("log")
        wanted = pc.or_(
            pc.is_in(column, pa.array(sorted(logs), pa.string())),
            pc.starts_with(column, layout.LOSS_LOGS),
        )
        return replace(self, census=replace(self.census, table=self.census.table.filter(wanted)))

    def _seen_losses(self, dataset: str) -> int:
        """Return how many of a dataset's losses the census had seen when it was taken.

        None, if the log of losses no longer matches the census: then each loss counts, which
        requires less of the other logs. It hides nothing, because this log itself is reported.
        """
        entries, log = self.losses[dataset], layout.loss_log(dataset)
        line = None if self.census is None else self.census.below(log).get(log)
        if line is None or line.entries > len(entries):
            return 0
        return line.entries if entries[line.entries - 1].digest == line.digest else 0

    def shortfalls(
        self, store: BlobStore, prefix: str, seen: Sightings, workers: int = WORKERS
    ) -> list[Shortfall]:
        """Return the logs below `prefix` that are shorter than known, or changed.

        Args:
            store: The archive.
            prefix: Which logs.
            seen: The existing entries, listed after this was read.
            workers: Concurrent requests.
        """
        lines = self.below(prefix)
        short_logs = [log for log, line in lines.items() if line.entries not in seen.get(log, {})]
        # All of them are gone, or the listing is at fault: a few keys tell.
        requested = short_logs[:_MAX_REQUESTED]
        there = map_threads(
            lambda log: store.stat(layout.entry(log, lines[log].entries)), requested, workers
        )
        unlisted = {log for log, info in zip(requested, there, strict=True) if info is not None}
        absent = {log: self._absent(store, log, lines[log], log in unlisted) for log in short_logs}
        unsure = [
            log
            for log, line in lines.items()
            if log not in absent and not _is_known(line, seen[log][line.entries])
        ]
        read = map_threads(lambda log: self._differs(store, log, lines[log]), unsure, workers)
        absent.update((log, d) for log, d in zip(unsure, read, strict=True) if d is not None)
        return [
            Shortfall(log, lines[log], max(seen.get(log, {}), default=0), absent[log])
            for log in sorted(absent)
        ]

    def _absent(self, store: BlobStore, log: str, line: Line, is_unlisted: bool) -> Damage:
        key = layout.entry(log, line.entries)
        if is_unlisted:
            unlisted = f"{key} is in {store.identity}, and the store's listing leaves it out"
            return Damage(key, State.UNREADABLE, StoreUnavailableError(unlisted))
        lost = (
            f"the log has lost its end: by {self._source(log, line)} it had"
            f" {counted(line.entries, 'entry')}, and {key} is not in {store.identity}"
        )
        return Damage(key, State.LOST, CorruptDataError(lost))

    def _differs(self, store: BlobStore, log: str, line: Line) -> Damage | None:
        key = layout.entry(log, line.entries)
        try:
            data = store.get(key).data
        except (NotFoundError, CorruptDataError, StoreUnavailableError) as error:
            return Damage.of(key, error)
        if (actual := Digest.of(data)) == line.digest:
            return None
        replaced = (
            f"log entry {key} in {store.identity} is {actual}, and by {self._source(log, line)} it"
            f" was {line.digest}: another entry is in its place"
        )
        return Damage(key, State.LOST, CorruptDataError(replaced))

    def _source(self, log: str, line: Line) -> str:
        if self.census is None or line.is_shortened:
            losses = layout.loss_log(layout.dataset_of(log))
            return f"the accepted loss of what followed (in {losses.rstrip('/')})"
        return f"the census of {self.census.taken_at:%Y-%m-%d %H:%M} UTC"

    def with_losses_now(self, store: BlobStore) -> "KnownLogs":
        """Return the same census with the losses accepted by now."""
        read = readable_losses(store)
        return replace(self, losses=read.intact)


def _is_known(line: Line, sighting: Sighting) -> bool:
    """Return whether a sighting matches the known line without reading bytes."""
    if line.digest is None:
        return True
    if sighting.digest is not None:
        return sighting.digest == line.digest
    return sighting.etag == line.etag


def compare(
    store: BlobStore, known: KnownLogs, prefix: str, seen: Sightings, workers: int = WORKERS
) -> tuple[Shortfall, ...]:
    """Return the logs below `prefix` that are shorter than known, or changed.

    Args:
        store: The archive.
        known: Read before the logs were listed.
        prefix: Which logs.
        seen: The existing entries.
        workers: Concurrent requests.
    """
    shortfalls = known.shortfalls(store, prefix, seen, workers)
    if shortfalls:
        # A loss may have been accepted since `known` was read.
        shortfalls = known.with_losses_now(store).shortfalls(store, prefix, seen, workers)
    return tuple(shortfalls)


def check_complete(store: BlobStore, known: KnownLogs, prefix: str) -> None:
    """Check that no log below `prefix` is shorter than known, or changed.

    Args:
        store: The archive.
        known: Read before the entries that are about to be used.
        prefix: Which logs.

    Raises:
        CorruptDataError: One has lost entries.
        StoreUnavailableError: An entry is not listed, or was not returned.
    """
    for shortfall in compare(store, known, prefix, sightings(store.list_objects(prefix))):
        raise shortfall.damage.error


_censuses: LruCache[Census] = LruCache(2)


def known_logs(store: BlobStore) -> KnownLogs:
    """Read the known lengths of all logs. Call it before listing them, not after.

    Costs two listings, and the newest census once per process.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    census, damage = _newest(store)
    read = readable_losses(store)
    damaged_losses = {f"{layout.LOSS_LOGS}{name}/": d for name, d in read.damage.items()}
    return KnownLogs(census, read.intact, {**damage, **damaged_losses})


def _newest(store: BlobStore) -> tuple[Census | None, dict[str, Damage]]:
    """Return the newest readable census, and the problems of newer ones."""
    for _ in range(_LISTINGS):
        damage: dict[str, Damage] = {}
        try:
            return _first_readable(store, damage), damage
        except NotFoundError:
            continue  # removed since the listing, because newer ones were written
    raise StoreUnavailableError(
        f"{store.identity}: the store lists censuses but does not return them: try again"
    )


def _first_readable(store: BlobStore, damage: dict[str, Damage]) -> Census | None:
    for info in reversed(list(store.list_objects(layout.CENSUS))):
        cache_key = (store.identity, info.key, info.etag)
        census = _censuses.get(cache_key)
        if census is None:
            try:
                census = decode_census(info.key, store.get(info.key).data, store.identity)
            except (CorruptDataError, StoreUnavailableError, NewerVersionError) as error:
                damage[info.key] = Damage.of(info.key, error)
                continue
            _censuses.put(cache_key, census)
        return census
    return None
