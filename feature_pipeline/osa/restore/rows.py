"""The rows of one batch as the server's own table has them.

Values are those of the archive. Arrays and objects are the text that the server's JSON writer makes
of the raw output, stored as a JSON string; an explicit null of theirs is JSON null if the record's
first row has the column, and an absent one NULL. Ids are those that history knows, or else those of
the server's present rows of the record; the others are given later.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.hooks.output import FEATURES, SINGLE_FEATURES
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import HookDefinition, UpcasterDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.osa.history.reconstructed import (
    is_reconstructed,
    reconstructed_run,
    server_row_ids,
)
from feature_pipeline.osa.restore.runs import server_run_id
from feature_pipeline.osa.restore.shape import Shape, check_columns
from feature_pipeline.osa.server.database import Reader
from feature_pipeline.osa.server.ids import has_successor
from feature_pipeline.osa.tally import Tally
from feature_pipeline.projections.rows import copy_format, evolve
from feature_pipeline.projections.rows.prepare import one_array

_JSON_NULL: Final = "null"
_compute: Final[Any] = pc

Cells = Mapping[str, Any]
Ids = Mapping[str, Sequence[tuple[int, int]]]
"""Per record, `id` and `created_at` of each row, the latter in microseconds since 1970."""

_INSTANT: Final = pa.timestamp("us", "UTC")


def _list(values: Any) -> list[Any]:
    # The published stubs of pyarrow take every value for one that may be null.
    return values.to_pylist()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Part:
    """The rows that one dataset contributes to a table of the server."""

    convention: str
    dataset: str
    hook: str
    columns: tuple[Column, ...]
    """The server's columns, as the definition here declares them."""
    upcasters: tuple[UpcasterDefinition, ...]

    @classmethod
    def of(cls, convention: str, definition: HookDefinition, shape: Shape) -> "Part":
        """Return the part of a convention.

        Raises:
            InvalidInputError: The definition does not declare one of the server's columns.
        """
        where = f"the definition of {definition.dataset}/{definition.name}"
        return cls(
            convention,
            definition.dataset,
            definition.name,
            check_columns(shape, definition.feature.columns, where),
            definition.table.upcasters,
        )


@dataclass(frozen=True, slots=True, order=True)
class Head:
    """The current artifact of a batch; sorted by the end of its hook run."""

    finished_at: datetime
    dataset: str
    batch: str
    entry: FeatureEntry = field(compare=False)
    part: Part = field(compare=False)


@dataclass
class Content:
    """What the archive has for a table of the server, apart from the rows themselves."""

    heads: list[Head] = field(default_factory=list)
    runs: dict[str, Digest] = field(default_factory=dict)
    """The hook runs whose rows the table has, and a manifest of each."""
    known_runs: set[str] = field(default_factory=set)
    """Every hook run of which a log knows."""
    history: dict[str, Digest] = field(default_factory=dict)
    """By hook run, the artifact that was reconstructed of its rows, current or not."""
    ids: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """The ids that history knows, sorted."""

    @classmethod
    def of(cls, store: BlobStore, parts: Sequence[Part]) -> "Content":
        """Read the logs and manifests of these parts.

        Where the output of a hook run and rows reconstructed of it are both current, in batches of
        their own, the output counts.
        """
        content = cls()
        outputs: set[str] = set()
        reconstructed: dict[str, list[Head]] = {}
        for part in parts:
            logs = log.feature_logs(store, part.dataset, part.hook)
            for entries in logs.values():
                content.known_runs.update(map(_run_of, entries))
                content.history |= {
                    _run_of(entry): entry.manifest
                    for entry in entries
                    if reconstructed_run(entry.completion) is not None
                }
            heads = {batch: log.last_current(entries) for batch, entries in logs.items()}
            current = {batch: entry for batch, entry in heads.items() if entry is not None}
            for batch, entry in current.items():
                if has_successor(batch, current):
                    continue
                manifest = read.manifest_of(store, entry)
                head = Head(manifest.run.finished_at, part.dataset, batch, entry, part)
                if is_reconstructed(manifest):
                    reconstructed.setdefault(server_run_id(manifest.run.id), []).append(head)
                    continue
                content.heads.append(head)
                outputs.add(server_run_id(manifest.run.id))
                if manifest.counts.rows:
                    for source, digest in _sources(store, manifest, entry.manifest).values():
                        content.runs[server_run_id(source.run.id)] = digest
        for run, of_run in reconstructed.items():
            if run not in outputs:
                content.heads += of_run
                content.runs[run] = of_run[0].entry.manifest
        content.heads.sort()
        tables = [
            server_row_ids(store, read.read_manifest(store, digest))
            for digest in content.history.values()
        ]
        ids = [np.asarray(table["id"]) for table in tables if len(table)]
        content.ids = np.sort(np.concatenate([content.ids, *ids]))
        return content

    def has_id(self, number: int) -> bool:
        """Return whether history gives this id to a row."""
        at = int(np.searchsorted(self.ids, number))
        return at < len(self.ids) and int(self.ids[at]) == number


def _run_of(entry: FeatureEntry) -> str:
    return server_run_id(reconstructed_run(entry.completion) or entry.completion)


@dataclass
class WantedRows:
    """The rows of one batch."""

    where: str
    """Dataset and batch, for messages."""
    rows: pa.Table
    """In the order of `Shape.names`; `id` is null where none is known. A record's rows are side by
    side, in the hook's order.
    """
    srns: list[str]
    """The batch's records that the server has, with and without rows."""
    left_out: Tally
    """Rows of records that the server does not have; the examples are records."""

    def records(self) -> Iterator[tuple[str, int, int]]:
        """Yield each record with rows, the number of its first row, and that after its last one."""
        srns = _list(self.rows["record_srn"])
        start = 0
        for at in range(1, len(srns) + 1):
            if at == len(srns) or srns[at] != srns[start]:
                yield srns[start], start, at
                start = at

    def runs(self) -> set[str]:
        """Return the hook runs of the rows."""
        return set(_list(self.rows["run_id"].unique()))

    def take_ids(self, present: Ids, is_free: Callable[[int], bool] = lambda _: True) -> None:
        """Give rows without id those of a table that has as many rows of the record.

        Args:
            present: Ids and times by record, in order.
            is_free: Whether no other row has an id.
        """
        if not self.without_id:
            return
        ids: list[int | None] = _list(self.rows["id"])
        times: list[int] = _list(self.rows["created_at"].cast(pa.int64()))
        for srn, start, end in self.records():
            known = present.get(srn, ())
            if (
                ids[start] is None
                and len(known) == end - start
                and all(is_free(number) for number, _ in known)
            ):
                for at, (number, created_at) in enumerate(known, start):
                    ids[at], times[at] = number, created_at
        self._set("id", pa.array(ids, pa.int64()))
        self._set("created_at", pa.array(times, pa.int64()).cast(_INSTANT))

    @property
    def without_id(self) -> int:
        """The number of rows that have no id."""
        return int(self.rows["id"].null_count)

    def give_ids(self, fresh: Iterator[int]) -> None:
        """Give every row an id."""
        if self.without_id:
            ids = [next(fresh) if each is None else each for each in _list(self.rows["id"])]
            self._set("id", pa.array(ids, pa.int64()))

    def without(self, srns: set[str]) -> None:
        """Leave out the rows of these records."""
        if srns:
            is_out = _compute.is_in(self.rows["record_srn"], pa.array(sorted(srns), pa.string()))
            self.rows = self.rows.filter(_compute.invert(is_out))

    def _set(self, name: str, values: Any) -> None:
        at = self.rows.column_names.index(name)
        self.rows = self.rows.set_column(at, name, values)


def encode_tuples(shape: Shape, rows: pa.Table) -> list[bytes]:
    """Return each row as binary COPY has it; a missing id, which no row has, as -1."""
    if not len(rows):
        return []
    rows = rows.set_column(0, "id", _compute.fill_null(rows["id"], -1))
    columns = [
        (kind, one_array(rows[name])) for name, kind in zip(shape.names, shape.kinds, strict=True)
    ]
    tuples: list[bytes] = _list(copy_format.encode_copy_tuples(columns))
    return tuples


def wanted_rows(
    store: BlobStore,
    reader: Reader,
    shape: Shape,
    content: Content,
    head: Head,
    domains: Sequence[str],
    ambiguous: set[str],
) -> WantedRows:
    """Return the rows of a batch's current artifact.

    Args:
        store: The archive.
        reader: The server's database, for records.
        shape: The table.
        content: What the archive has for it.
        head: The artifact.
        domains: Those of depositions (`Reader.deposition_domains`).
        ambiguous: Records that do not name their batch and are taken already; this batch's are
            added.

    Raises:
        NotFoundError, CorruptDataError: The artifact is missing or damaged.
        CannotEvolveError: Its values do not fit the columns.
    """
    part, batch = head.part, head.batch
    manifest = read.manifest_of(store, head.entry)
    archived = read.read_rows(store, manifest)
    known = server_row_ids(store, manifest)
    srns = (
        _known_records(reader, known)
        if len(known)
        else _own_records(store, reader, manifest, part, domains, ambiguous)
    )
    evolved = evolve.artifact_rows(manifest, archived, part.columns, part.upcasters)
    place = _compute.index_in(evolved["record_id"], pa.array(list(srns), pa.string()))
    is_there = _compute.is_valid(place)
    absent = evolved.filter(_compute.invert(is_there))["record_id"]
    evolved = evolved.filter(is_there)
    table_srns = pa.array(list(srns.values()), pa.string())
    record_srn = _compute.take(table_srns, one_array(place.filter(is_there)))
    arrays: dict[str, Any] = {"record_srn": record_srn}
    used = _run_columns(store, manifest, head.entry.manifest, evolved, arrays)
    arrays["id"] = pa.nulls(len(evolved), pa.int64())
    if len(known):
        arrays |= _known_columns(known, archived, is_there, evolved)
    json_columns = [column for column in shape.columns if column.kind == "json"]
    texts: dict[str, list[str | None]] = {}
    if json_columns and len(evolved):
        is_upcast = evolve.upcaster_for(manifest, part.columns, part.upcasters) is not None
        raw = {} if is_upcast else _raw_rows(store, used)
        texts = _json_texts(json_columns, evolved, raw)
    for column in shape.columns:
        arrays[column.name] = (
            pa.array(texts[column.name], pa.string())
            if column.name in texts
            else one_array(evolved[column.name])
        )
    left_out = Tally()
    left_out.add_all(len(absent), (f"{batch} {each}" for each in sorted(set(_list(absent)))))
    wanted = WantedRows(
        where=f"{part.dataset}/{batch}",
        rows=pa.table({name: arrays[name] for name in shape.names}),
        srns=list(dict.fromkeys(srns.values())),
        left_out=left_out,
    )
    earlier = content.history.get(server_run_id(manifest.run.id))
    if earlier is not None and not len(known):
        wanted.take_ids(_ids_by_record(store, earlier))
    return wanted


def _ids_by_record(store: BlobStore, digest: Digest) -> Ids:
    table = server_row_ids(store, read.read_manifest(store, digest))
    ids_by_srn: dict[str, list[tuple[int, int]]] = {}
    times = _list(table["created_at"].cast(pa.int64()))
    for srn, number, created_at in zip(
        _list(table["record_srn"]), _list(table["id"]), times, strict=True
    ):
        ids_by_srn.setdefault(srn, []).append((number, created_at))
    return ids_by_srn


def _own_records(
    store: BlobStore,
    reader: Reader,
    manifest: Manifest,
    part: Part,
    domains: Sequence[str],
    ambiguous: set[str],
) -> dict[str, str]:
    """Return the SRNs of the batch's records that the server published from it, by id."""
    batch = manifest.batch
    ids = _list(read.read_outcomes(store, manifest)["record_id"])
    records = reader.records_of(part.convention, ids, batch, domains)
    srns = {}
    for record_id, record in records.items():
        if not record.is_of(batch) or record.srn in ambiguous:
            continue
        if record.ingest_run is not None and record.batch_index is None:
            ambiguous.add(record.srn)
        srns[record_id] = record.srn
    return srns


def _known_records(reader: Reader, known: pa.Table) -> dict[str, str]:
    """Return the SRNs that rows of a reconstructed artifact had, as far as the server has them."""
    srns = dict(zip(_list(known["record"]), _list(known["record_srn"]), strict=True))
    present = reader.present_records(list(srns.values()))
    return {record: srn for record, srn in srns.items() if srn in present}


def _run_columns(
    store: BlobStore, manifest: Manifest, digest: Digest, rows: pa.Table, arrays: dict[str, Any]
) -> list[Manifest]:
    """Add `run_id` and `created_at` by the hook runs of the rows; return their manifests.

    A new row's time is the end of its hook run.
    """
    sources = _sources(store, manifest, digest)
    made = list({id(each): each for each, _ in sources.values()}.values())
    runs = pa.array([server_run_id(each.run.id) for each in made], pa.string())
    times = pa.array([each.run.finished_at for each in made], _INSTANT)
    if len(made) == 1:
        place: Any = pa.repeat(pa.scalar(0), len(rows))
    else:
        numbers = {id(each): at for at, each in enumerate(made)}
        default = sources.get(None)
        place = pa.array(
            [numbers[id((sources.get(r) or default or (manifest,))[0])] for r in _list(rows[0])]
        )
    arrays["run_id"], arrays["created_at"] = _compute.take(runs, place), times.take(place)
    return made


def _known_columns(
    known: pa.Table, archived: pa.Table, is_there: Any, rows: pa.Table
) -> dict[str, Any]:
    """Return `id` and `created_at` of the rows of a reconstructed artifact."""
    names = ("id", "created_at")
    if (
        len(known) == len(archived)
        and known["record"].equals(archived["record_id"])
        and known["row"].equals(archived["ordinal"])
    ):
        return {name: one_array(known[name].filter(is_there)) for name in names}
    places = {
        key: at
        for at, key in enumerate(zip(_list(known["record"]), _list(known["row"]), strict=True))
    }
    keys = zip(_list(rows["record_id"]), _list(rows["ordinal"]), strict=True)
    place = pa.array([places[key] for key in keys], pa.int64())
    return {name: one_array(known[name].take(place)) for name in names}


def _sources(
    store: BlobStore, manifest: Manifest, digest: Digest
) -> dict[str | None, tuple[Manifest, Digest]]:
    """Return the artifacts that computed the rows: of carried records another, by record id.

    The manifest itself is that of None, unless every record was carried over.
    """
    if not manifest.counts.carried:
        return {None: (manifest, digest)}
    outcomes = read.read_outcomes(store, manifest)
    carried = _compute.is_valid(outcomes["carried_from"])
    sources: dict[str | None, tuple[Manifest, Digest]] = {}
    others: dict[str, tuple[Manifest, Digest]] = {}
    for record_id, text in zip(
        _list(outcomes["record_id"].filter(carried)),
        _list(outcomes["carried_from"].filter(carried)),
        strict=True,
    ):
        if text not in others:
            other = Digest.parse(text)
            others[text] = read.read_manifest(store, other), other
        sources[record_id] = others[text]
    if len(sources) < len(outcomes):
        sources[None] = manifest, digest
    return sources


def _raw_rows(store: BlobStore, manifests: Sequence[Manifest]) -> dict[str, list[Cells]]:
    """Return the rows of each record in raw output as the server's JSON reader reads them."""
    cells_by_record: dict[str, list[Cells]] = {}
    for manifest in manifests:
        names = read.raw_names(manifest)
        if FEATURES in names:
            for line in read.read_raw(store, manifest, FEATURES).split(b"\n"):
                content = _loads(line)
                if isinstance(content, dict) and isinstance(content.get("id"), str):
                    cells_by_record[content["id"]] = _cells(content.get("features"))
        if SINGLE_FEATURES in names:
            outcomes = read.read_outcomes(store, manifest)
            for record_id in _list(outcomes["record_id"]):
                content = _loads(read.read_raw(store, manifest, SINGLE_FEATURES))
                cells_by_record.setdefault(record_id, _cells(content))
    return cells_by_record


def _loads(text: bytes) -> Any:
    # A line that cannot be read is no record's rows: its record is an error, without rows.
    try:
        return json.loads(text)
    except ValueError:
        return None


def _cells(features: Any) -> list[Cells]:
    rows = features if isinstance(features, list) else [features]
    return [row for row in rows if isinstance(row, dict)]


def _json_texts(
    columns: Sequence[Column], evolved: pa.Table, raw: Mapping[str, Sequence[Cells]]
) -> dict[str, list[str | None]]:
    """Return the cells of arrays and objects as the server stores them.

    Where raw output does not have the row, the archive's text is written as the server would write
    it, with sorted keys.
    """
    record_ids: list[str] = _list(evolved["record_id"])
    ordinals: list[int] = _list(evolved["ordinal"])
    counts: dict[str, int] = {}
    for record_id in record_ids:
        counts[record_id] = counts.get(record_id, 0) + 1
    texts: dict[str, list[str | None]] = {}
    encode = json.JSONEncoder().encode
    for column in columns:
        archived: list[str | None] = _list(evolved[column.name])
        cells: list[str | None] = []
        for record_id, ordinal, text in zip(record_ids, ordinals, archived, strict=True):
            rows = raw.get(record_id, ())
            if len(rows) != counts[record_id]:
                rows = ()
            value = rows[ordinal].get(column.name) if rows else None
            if text is None:
                # only the keys of a record's first row count for the server
                is_null = bool(rows) and column.name in rows[ordinal] and column.name in rows[0]
                cells.append(_JSON_NULL if is_null else None)
            else:
                written = encode(json.loads(text) if value is None else value)
                # that text has no other character that a JSON string escapes
                cells.append('"' + written.replace("\\", "\\\\").replace('"', '\\"') + '"')
        texts[column.name] = cells
    return texts
