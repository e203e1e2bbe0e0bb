"""Check rows that were decoded again under renamed columns.

An earlier decoder looked for a column under its own name first, whatever was declared when the hook
ran. If another column had that name then, it took the wrong one's values, so that batches of one
table had different things in one column.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.arrow_values import text_array
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.read import read_manifest, read_rows
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, NotFoundError
from feature_pipeline.model.column_sources import pair_columns
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest
from feature_pipeline.projections.rows.upcast import CannotEvolveError


def check_carried(store: BlobStore, manifest: Manifest, outcomes: pa.Table) -> None:
    """Check that rows carried from artifacts with other columns were read as declared.

    Reads nothing if no column was renamed, or no record was carried.

    Args:
        store: The archive.
        manifest: Of the artifact.
        outcomes: The artifact's.

    Raises:
        CannotEvolveError: A column has the values of another one; the message names both.
    """
    if not manifest.counts.carried or not any(c.former_names for c in manifest.columns):
        return
    sources: list[Any] = outcomes["carried_from"].drop_null().unique().to_pylist()
    for source in sources:
        try:
            origin = read_manifest(store, Digest.parse(source))
            suspects = list(_suspects(origin.columns, manifest.columns))
            if not suspects:
                continue
            rows, before = read_rows(store, manifest), read_rows(store, origin)
        except (NotFoundError, CorruptDataError):
            # `verify` names what is lost. The rows themselves are whole.
            continue
        is_from = _is_in(outcomes["carried_from"], [source])
        ids: list[Any] = outcomes["record_id"].filter(is_from).to_pylist()
        for name, former in suspects:
            if _is_misread(_values(rows, name, ids), before, former, name):
                raise CannotEvolveError(
                    f"column {name!r} has the values written as {name!r}, but by its declaration"
                    f" it is the former {former!r}: derive the rows again with"
                    f" `feature-pipeline rebuild {manifest.hook} --from-raw`"
                )


def _suspects(written: tuple[Column, ...], now: tuple[Column, ...]) -> Iterator[tuple[str, str]]:
    """Return renamed columns whose name another column had before: name and former name."""
    kinds = {column.name: column.kind for column in written}
    for column, source in zip(now, pair_columns(written, now).sources, strict=True):
        if (
            source is not None
            and source.name != column.name
            and kinds.get(column.name) == source.kind == column.kind
        ):
            yield column.name, source.name


def _is_misread(values: dict[Any, str], before: pa.Table, right: str, wrong: str) -> bool:
    ids = list(dict.fromkeys(record_id for record_id, _ in values))
    expected, other = (_values(before, name, ids) for name in (right, wrong))
    return any(
        value != expected.get(key, value) and value == other.get(key)
        for key, value in values.items()
    )


def _values(rows: pa.Table, column: str, ids: Collection[str]) -> dict[Any, str]:
    """Return the values by record and ordinal as text, because NaN differs from itself."""
    chosen = rows.filter(_is_in(rows["record_id"], ids))
    keys = zip(chosen["record_id"].to_pylist(), chosen["ordinal"].to_pylist(), strict=True)
    return dict(zip(keys, map(repr, chosen[column].to_pylist()), strict=True))


def _is_in(values: pa.ChunkedArray[Any], chosen: Collection[str]) -> Any:
    return pc.is_in(values, text_array(sorted(chosen)))
