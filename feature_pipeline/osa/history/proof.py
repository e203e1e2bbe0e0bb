"""Prove that rows in the archive equal those of the server's table, value by value.

The server's values are read with their types, not as the JSON text that was stored: a mistake in
writing that text shows. Columns are compared as a whole first. Only if something differs, or a
record was refused, rows are compared one by one, to name what differs.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Value
from feature_pipeline.model.outcomes import Outcome, OutcomeKind
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.osa.history.reconstructed import Ids, row_ids_by_record, server_row_ids
from feature_pipeline.osa.history.table_rows import HookTable, TypedRow
from feature_pipeline.osa.server.values import SHOWN, shown, shown_ids, typed

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Difference:
    """The result for one record with rows on the server, or in the artifact."""

    rows: int
    """Its rows on the server."""
    problem: str | None
    """None if they are equal."""
    is_refused: bool = False
    """Whether they differ because a value cannot be that of an outcome."""


def equal_rows(
    store: BlobStore, manifest: Manifest, table: HookTable, records: Mapping[str, str]
) -> int | None:
    """Return the number of rows of a reconstructed artifact, if all of them equal the server's.

    None if they may differ: `differences` shows how.

    Args:
        store: The archive.
        manifest: The artifact.
        table: The hook's table.
        records: SRNs of the records with rows, by their ids here.

    Raises:
        NotFoundError, CorruptDataError: A blob of the artifact is missing or damaged.
    """
    import numpy as np
    import pyarrow as pa

    places, columns = _shared(manifest, table)
    ours, ids = read.read_rows(store, manifest), server_row_ids(store, manifest)
    try:
        theirs = table.arrow_rows(manifest.run.id, columns)
    except ValueError:
        return None
    if not theirs.num_rows == ours.num_rows == ids.num_rows:
        return None
    # in the order of the artifact: a record's rows by id
    record_ids: list[Any] = ours.column("record_id").unique().to_pylist()
    order = {records.get(each): number for number, each in enumerate(record_ids)}
    at = [order.get(srn, -1) for srn in theirs.column("record_srn").to_pylist()]
    theirs = theirs.take(np.argsort(np.array(at, np.int64), kind="stable"))
    pairs = [(ids.column(name), theirs.column(name)) for name in ("id", "record_srn", "created_at")]
    of_rows: list[Any] = ours.column("record_id").to_pylist()
    srns: Any = pa.array([records.get(each) for each in of_rows], pa.string())
    pairs += [(pa.chunked_array([srns]), theirs.column("record_srn"))]
    pairs += [(ids.column("record"), ours.column("record_id"))]
    pairs += [(ids.column("row"), ours.column("ordinal"))]
    pairs += [
        (ours.column(2 + place), theirs.column(str(number))) for number, place in enumerate(places)
    ]
    is_equal = all(_is_same_column(here, there) for here, there in pairs)
    return ours.num_rows if is_equal else None


def _is_same_column(here: "pa.ChunkedArray[Any]", there: "pa.ChunkedArray[Any]") -> bool:
    """Return whether two columns are equal, numbers bit for bit; any NaN is equal to any other."""
    import numpy as np
    import pyarrow as pa

    if not pa.types.is_floating(here.type):
        return bool(here.equals(there))
    bits: list[Any] = []
    for column in (here, there):
        numbers = column.to_numpy().copy()  # NULL becomes NaN
        numbers[np.isnan(numbers)] = np.nan
        bits.append(numbers.view(np.int64))
    return bool(here.is_null().equals(there.is_null()) and np.array_equal(bits[0], bits[1]))


def _shared(manifest: Manifest, table: HookTable) -> tuple[list[int], list[Column]]:
    """Return the artifact's columns that the server's table has, and their places."""
    declared = {column.name for column in table.columns}
    places = [i for i, column in enumerate(manifest.columns) if column.name in declared]
    return places, [manifest.columns[i] for i in places]


def differences(
    store: BlobStore, manifest: Manifest, table: HookTable, records: Mapping[str, str]
) -> Iterator[Difference]:
    """Compare a reconstructed artifact with the server's rows of its hook run, record by record.

    Args:
        store: The archive.
        manifest: The artifact.
        table: The hook's table.
        records: SRNs of the records with rows, by their ids here.

    Raises:
        NotFoundError, CorruptDataError: A blob of the artifact is missing or damaged.
    """
    places, columns = _shared(manifest, table)
    theirs = table.typed_rows(manifest.run.id, columns, records.values())
    ids = row_ids_by_record(server_row_ids(store, manifest))
    for outcome in read.read_artifact_outcomes(store, manifest):
        srn = records.get(outcome.record_id)
        there = theirs.pop(srn, []) if srn is not None else []
        if not there and not outcome.rows:
            continue
        name = f"record {quoted(outcome.record_id, SHOWN)}"
        if outcome.kind is OutcomeKind.INVALID_OUTPUT:
            reason = quoted(outcome.reason or "", 200)
            yield Difference(len(there), f"{name}: {reason}", is_refused=True)
            continue
        problem = _difference(columns, places, outcome, there, ids.get(outcome.record_id, []))
        yield Difference(len(there), None if problem is None else f"{name}: {problem}")
    for srn, rows in theirs.items():
        yield Difference(len(rows), f"{srn}: {counted(len(rows), 'row')} there, none here")


def _difference(
    columns: Sequence[Column],
    places: Sequence[int],
    outcome: Outcome,
    theirs: Sequence[TypedRow],
    ids: Ids,
) -> str | None:
    if len(outcome.rows) != len(theirs):
        return f"{counted(len(outcome.rows), 'row')} here, {len(theirs)} there"
    for number, (ours, row) in enumerate(zip(outcome.rows, theirs, strict=True), 1):
        for place, column, there in zip(places, columns, typed(columns, row.values), strict=True):
            if not _is_same(ours[place], there):
                here = shown(ours[place])
                return f"row {number}, {column.name}: {here} here, {shown(there)} there"
    if ids != (there_ids := [(row.id, row.created_at) for row in theirs]):
        return f"id and created_at: {shown_ids(ids)} here, {shown_ids(there_ids)} there"
    return None


def _is_same(a: Value, b: Value) -> bool:
    """Return whether two values are equal, bit for bit; any NaN is equal to any other."""
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack(">d", a) == struct.pack(">d", b) or (a != a and b != b)
    return type(a) is type(b) and a == b
