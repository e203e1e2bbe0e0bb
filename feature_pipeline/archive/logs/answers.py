"""The memory of answers: an index from actions to the artifacts that answer them, per hook.

The memory is derived from the logs and is never authoritative: an artifact that it names is read
and checked before it is used, and answers that it lacks are computed again. Acceptance writes an
artifact's answers before the log entry, so that the memory covers everything in a log.

::

    answers/<dataset>/<hook>/<program>/<name>.<part>.<parts>   actions of one or many artifacts
    answers/<dataset>/<hook>/<program>/complete.<instant>      the memory covered all logs then

Each action belongs to one program (`HookRelease.program`), so each of a hook's programs has a
memory of its own, and a plan reads that of its release.

An object never changes. Compaction writes one segment (all of its parts) before it deletes the
segments that it replaces, without a lock: two concurrent compactions leave an action twice, which
is harmless. Object names and formats are described in `docs/format.md`.
"""

import io
import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast
from uuid import uuid4

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.store.base import (
    BYTES_MEDIA_TYPE,
    BlobStore,
    ObjectInfo,
    create_or_read,
)
from feature_pipeline.errors import CorruptDataError, NotFoundError, StoreUnavailableError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Status
from feature_pipeline.parallel import map_threads

logger = logging.getLogger(__name__)

_compute: Final[Any] = pc

SPEC_VERSION: Final = 1
COMPLETE: Final = "complete."
PART_BYTES: Final = 8 << 20
"""Maximum size of a part: eight parts are read at once, each completely."""
FULL_BYTES: Final = 8 * PART_BYTES
"""Segments of this size are not merged again, which would save no request and no byte."""
SMALL_BYTES: Final = 2 * PART_BYTES
"""Most bytes that acceptance merges at once, well under a second; maintenance merges the rest."""
_FAN_IN: Final = 8
"""Number of objects that makes a merge worthwhile. A plan reads at most about this many small
ones.
"""
_ALWAYS_MERGED_BYTES: Final = 1 << 16
_LISTINGS: Final = 5
_ACTION_BITS: Final = 64
_ROW_BYTES: Final = 10
_DIGEST_BYTES: Final = 32

Actions = npt.NDArray[np.uint64]
"""The first eight bytes of actions, most significant first, as numbers."""


@dataclass(frozen=True, slots=True)
class Part:
    """One object of the memory, by its key."""

    info: ObjectInfo
    name: str
    """Name of the segment."""
    number: int
    parts: int

    def concerns(self, actions: Actions) -> bool:
        """Return whether any of the actions would be in this part."""
        if self.parts == 1:
            return bool(len(actions))
        shift = np.uint64(_ACTION_BITS - (self.parts.bit_length() - 1))
        return bool(np.any(actions >> shift == np.uint64(self.number)))


@dataclass(frozen=True, slots=True)
class Segment:
    """The answers of some artifacts: one part, or a power of two of them, divided by action."""

    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(part.info.size for part in self.parts)

    @property
    def is_whole(self) -> bool:
        """Whether all parts exist. Its writer may have died, or may still be writing."""
        return len(self.parts) == self.parts[0].parts

    @property
    def modified_at(self) -> datetime:
        """Time of the last write of a part."""
        return max(part.info.modified_at for part in self.parts)


@dataclass(frozen=True, slots=True)
class Listing:
    """The objects of a program's memory."""

    segments: tuple[Segment, ...]
    completed_at: datetime | None
    """When the memory was last known to cover all logs; None if it never was."""
    marks: tuple[str, ...] = ()
    """Keys of the objects that record this."""

    @property
    def keys(self) -> frozenset[str]:
        """The keys of the parts of all segments."""
        return frozenset(part.info.key for segment in self.segments for part in segment.parts)


NOTHING: Final = Listing((), None)


@dataclass(frozen=True, slots=True)
class Table:
    """The content of a part: parallel arrays, sorted by action, and the artifacts they point to."""

    actions: Actions
    artifacts: npt.NDArray[Any]
    """For each action, the position of its artifact in `manifests`."""
    manifests: tuple[Digest, ...]
    """Every artifact of the segment, with or without an action in this part."""


@dataclass(slots=True)
class Candidates:
    """Artifacts that may answer the requested actions; read and check them before use."""

    artifacts: dict[Digest, set[Digest]] = field(default_factory=dict)
    """By manifest, the actions that it seems to answer."""
    is_complete: bool = False
    """Whether, as far as is known, actions without an artifact were never answered."""
    problems: list[str] = field(default_factory=list)
    """Objects that could not be read: they may have further answers."""
    keys: frozenset[str] = frozenset()
    """See `Listing.keys`."""


def own_answers(outcomes: pa.Table) -> set[Digest]:
    """Return the actions whose answers an artifact computed, by its table of outcomes.

    Carried-over outcomes do not count: the memory names the artifact that computed them. Neither do
    retryable errors. If several records share an action (`scope: batch`), one such error leaves the
    action unanswered.
    """
    is_own = _compute.and_(
        _compute.is_valid(outcomes.column("action")),
        _compute.is_null(outcomes.column("carried_from")),
    )
    own = outcomes.filter(is_own)
    is_open = _compute.and_(
        _compute.equal(own.column("status"), Status.ERRORED.value), own.column("retryable")
    )
    actions = own.column("action")
    answered: set[Any] = set(actions.filter(_compute.invert(is_open)).to_pylist())
    answered.difference_update(actions.filter(is_open).to_pylist())
    return set(map(Digest.parse, answered))


def remember(store: BlobStore, prefix: str, manifest: Digest, actions: Collection[Digest]) -> None:
    """Write the answers of one artifact into the memory, even if there are none. Idempotent.

    Args:
        store: The archive.
        prefix: Prefix of the program that made the artifact: see `layout.answers`.
        manifest: Digest of the artifact's manifest.
        actions: The actions that it answers.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: They may not be written; call again.
    """
    key = f"{prefix}{manifest.hex}.0.1"
    rows = np.sort(_numbers(actions))
    data = encode(Table(rows, np.zeros(len(rows), np.uint16), (manifest,)))
    create_or_read(store, key, data, BYTES_MEDIA_TYPE)


def _numbers(actions: Iterable[Digest]) -> Actions:
    return np.fromiter((int(action.hex[:16], 16) for action in actions), np.uint64)


def find(store: BlobStore, prefix: str, actions: Collection[Digest]) -> Candidates:
    """Find artifacts that answer actions of a program. Reads one listing and the parts concerned.

    Raises:
        StoreUnavailableError: The store did not answer; nothing is known.
    """
    by_number: dict[int, list[Digest]] = {}
    for action in actions:
        by_number.setdefault(int(action.hex[:16], 16), []).append(action)
    wanted = np.array(sorted(by_number), np.uint64)
    result = Candidates()
    done: set[str] = set()
    for _ in range(_LISTINGS):
        listing = list_answers(store, prefix)
        result.is_complete = listing.completed_at is not None
        result.keys = listing.keys
        due = [
            part
            for segment in listing.segments
            for part in segment.parts
            if part.info.key not in done and part.concerns(wanted)
        ]
        read = map_threads(lambda part: _hits(store, part, wanted), due)
        for part, hits in zip(due, read, strict=True):
            if isinstance(hits, str):
                result.problems.append(hits)
            elif hits is not None:
                for number, manifest in hits:
                    result.artifacts.setdefault(manifest, set()).update(by_number[number])
            if hits is not None:
                done.add(part.info.key)
        if all(hits is not None for hits in read):
            return result
        # Merged since the listing, and so in a segment that the next listing has.
    raise StoreUnavailableError(f"{store.identity}: objects below {prefix} are listed but absent")


def _hits(store: BlobStore, part: Part, wanted: Actions) -> list[tuple[int, Digest]] | str | None:
    """Return the wanted actions in the part; why it cannot be read; None if it is gone."""
    try:
        table = read_part(store, part)
    except NotFoundError:
        return None
    except (CorruptDataError, NewerVersionError) as error:
        logger.warning("%s", error)
        return str(error)
    first = np.searchsorted(table.actions, wanted, "left")
    after = np.searchsorted(table.actions, wanted, "right")
    return [
        (int(wanted[position]), table.manifests[int(table.artifacts[row])])
        for position in np.flatnonzero(first < after)
        for row in range(int(first[position]), int(after[position]))
    ]


def list_answers(store: BlobStore, prefix: str) -> Listing:
    """List the objects of a program's memory, in one listing."""
    return _listing(prefix, store.list_objects(prefix))


def list_programs(store: BlobStore, dataset: str, hook: str) -> dict[str, Listing]:
    """Return the memory of each of a hook's programs, by prefix: one listing."""
    every = layout.answers(dataset, hook)
    objects: dict[str, list[ObjectInfo]] = {}
    for info in store.list_objects(every):
        program, _, name = info.key.removeprefix(every).partition("/")
        if name:
            objects.setdefault(f"{every}{program}/", []).append(info)
    return {prefix: _listing(prefix, infos) for prefix, infos in objects.items()}


def _listing(prefix: str, infos: Iterable[ObjectInfo]) -> Listing:
    marks: list[ObjectInfo] = []
    segments: dict[str, list[Part]] = {}
    for info in infos:
        name = info.key.removeprefix(prefix)
        if name.startswith(COMPLETE):
            marks.append(info)
        elif (part := _parse(info, name)) is not None:
            segments.setdefault(part.name, []).append(part)
    return Listing(
        tuple(
            Segment(tuple(sorted(parts, key=lambda part: part.number)))
            for _, parts in sorted(segments.items())
        ),
        max((info.modified_at for info in marks), default=None),
        tuple(info.key for info in marks),
    )


def _parse(info: ObjectInfo, name: str) -> Part | None:
    """Return the part that a key names; None for an unknown key."""
    fields = name.split(".")
    if len(fields) != 3 or not (fields[1].isdecimal() and fields[2].isdecimal()):
        return None
    number, parts = int(fields[1]), int(fields[2])
    is_power = parts > 0 and parts & (parts - 1) == 0
    return Part(info, fields[0], number, parts) if is_power and number < parts else None


def read_part(store: BlobStore, part: Part) -> Table:
    """Return the content of a part.

    Raises:
        NotFoundError: It is gone: merged into another segment since it was listed.
        CorruptDataError: It is damaged.
        NewerVersionError: Its version is newer than this code supports.
    """
    where = f"{part.info.key} in {store.identity}"
    return decode(store.get(part.info.key, part.info.size).data, where)


def encode(table: Table) -> bytes:
    """Return the stored bytes: an Arrow file with one batch, and the artifacts in its metadata."""
    arrays: list[Any] = [pa.array(table.actions), pa.array(table.artifacts)]
    schema = pa.schema(
        [pa.field("action", arrays[0].type), pa.field("artifact", arrays[1].type)],
        metadata={
            b"spec_version": str(SPEC_VERSION).encode(),
            b"manifests": b"".join(bytes.fromhex(digest.hex) for digest in table.manifests),
        },
    )
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, schema) as file:
        file.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
    return sink.getvalue()


def decode(data: bytes, where: str) -> Table:
    """Return the table stored as `data`. Errors as for `read_part`."""
    try:
        with pa.ipc.open_file(pa.BufferReader(data)) as file:
            metadata = file.schema.metadata or {}
            version = int(metadata[b"spec_version"])
            if version > SPEC_VERSION:
                raise NewerVersionError(
                    f"answers {where} have spec_version {version}; this version of"
                    f" feature-pipeline knows up to {SPEC_VERSION}"
                )
            batch = file.get_batch(0)
            names = metadata[b"manifests"].hex()
            actions = batch.column(0).to_numpy()
            artifacts = batch.column(1).to_numpy()
        width = 2 * _DIGEST_BYTES
        manifests = tuple(Digest(names[i : i + width]) for i in range(0, len(names), width))
        is_sorted = bool(np.all(actions[:-1] <= actions[1:]))
        points_outside = bool(len(artifacts)) and int(artifacts.max()) >= len(manifests)
        if actions.dtype != np.uint64 or not is_sorted or points_outside:
            raise ValueError("actions are not sorted, or point to no artifact")
    except NewerVersionError:
        raise
    except (pa.ArrowException, KeyError, ValueError, IndexError) as error:
        raise CorruptDataError(f"answers {where} cannot be read: {error}") from error
    return Table(actions, artifacts, manifests)


# Compaction


def compact(
    store: BlobStore, dataset: str, hook: str, most_bytes: int = SMALL_BYTES, fan_in: int = _FAN_IN
) -> int:
    """Merge each program's small segments if there are many; return how many were merged.

    Costs one listing if there is nothing to do. Every remaining segment is larger than all smaller
    ones together were, so their number grows with the logarithm of the number of answers.

    Args:
        store: The archive.
        dataset: The hook's dataset.
        hook: The hook.
        most_bytes: Merge at most this much.
        fan_in: Merge only if there are this many.
    """
    count = 0
    for prefix, listing in list_programs(store, dataset, hook).items():
        if group := due(listing.segments, most_bytes, fan_in):
            count += merge(store, prefix, group)
    return count


def due(segments: Sequence[Segment], most_bytes: int, fan_in: int) -> list[Segment]:
    """Return the segments to merge, smallest first; none if a merge is not worthwhile yet."""
    group: list[Segment] = []
    size = 0
    for segment in sorted(filter(lambda s: s.is_whole, segments), key=lambda s: s.size):
        is_large = segment.size > max(size, _ALWAYS_MERGED_BYTES)
        if is_large or size + segment.size > most_bytes:
            break
        group.append(segment)
        size += segment.size
    return group if len(group) >= fan_in else []


def merge(
    store: BlobStore,
    prefix: str,
    group: Sequence[Segment],
    forgotten: Collection[Digest] = (),
) -> int:
    """Replace several segments by one; return how many it replaces.

    Args:
        store: The archive.
        prefix: The program's.
        group: Whole segments. One that cannot be read stays, and so do all if one is gone, because
            another process merges them.
        forgotten: Artifacts to leave out.
    """
    tables: list[list[Table]] = []
    merged: list[Segment] = []
    for segment in group:
        try:
            tables.append(map_threads(lambda part: read_part(store, part), segment.parts))
        except NotFoundError:
            return 0
        except (CorruptDataError, NewerVersionError) as error:
            logger.warning("%s", error)
            continue
        merged.append(segment)
    if not merged:
        return 0
    joined = _joined(tables, set(forgotten))
    if joined.manifests:
        write_segment(store, prefix, joined)
    delete(store, merged)
    return len(merged)


def _joined(segments: Sequence[Sequence[Table]], forgotten: set[Digest]) -> Table:
    """Return one table of all segments, each with its parts, without duplicate artifacts."""
    positions: dict[Digest, int] = {}
    actions: list[Actions] = []
    artifacts: list[npt.NDArray[np.uint32]] = []
    for parts in segments:
        # Every part of a segment names all of the segment's artifacts.
        manifests = parts[0].manifests
        is_new = [m not in forgotten and m not in positions for m in manifests]
        for manifest, keeps in zip(manifests, is_new, strict=True):
            if keeps:
                positions[manifest] = len(positions)
        there = np.array([positions.get(manifest, 0) for manifest in manifests], np.uint32)
        for table in parts:
            rows = np.array(is_new, bool)[table.artifacts]
            actions.append(table.actions[rows])
            artifacts.append(there[table.artifacts[rows]])
    joined = np.concatenate(actions)
    order = np.argsort(joined, kind="stable")
    return Table(joined[order], np.concatenate(artifacts)[order], tuple(positions))


def write_segment(store: BlobStore, prefix: str, table: Table) -> None:
    """Write a segment with as many parts as its size requires."""
    width = np.uint16 if len(table.manifests) <= 1 << 16 else np.uint32
    artifacts = table.artifacts.astype(width)
    count = 1
    while _ROW_BYTES * len(table.actions) > count * PART_BYTES:
        count *= 2
    shift = _ACTION_BITS - (count.bit_length() - 1)
    starts = np.array([part << shift for part in range(1, count)], np.uint64)
    bounds = [0, *map(int, np.searchsorted(table.actions, starts)), len(table.actions)]
    name = f"{prefix}{uuid4().hex}"

    def write(part: int) -> None:
        rows = slice(bounds[part], bounds[part + 1])
        data = encode(Table(table.actions[rows], artifacts[rows], table.manifests))
        create_or_read(store, f"{name}.{part}.{count}", data, BYTES_MEDIA_TYPE)

    map_threads(write, range(count))


def delete(store: BlobStore, segments: Iterable[Segment]) -> None:
    """Delete segments whose content is in another one, or is given up."""
    keys = [part.info.key for segment in segments for part in segment.parts]
    map_threads(store.delete, keys)


def table_of(answered: Sequence[tuple[Digest, Collection[Digest]]]) -> Table:
    """Return one table of the answers of several artifacts: (manifest, actions) each."""
    actions = np.concatenate([_numbers(answers_of) for _, answers_of in answered])
    counts = [len(answers_of) for _, answers_of in answered]
    artifacts = np.repeat(np.arange(len(answered), dtype=np.uint32), counts)
    order = np.argsort(actions, kind="stable")
    manifests = tuple(manifest for manifest, _ in answered)
    return Table(cast("Actions", actions[order]), artifacts[order], manifests)
