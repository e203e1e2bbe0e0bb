"""Convert an artifact's columns to a generation's, by the declaration it was written with.

======================  ==========================================================
change                  what happens to older batches
======================  ==========================================================
new column              its default, else NULL
column dropped          the values are not loaded
`renamed_from`          read under the old name
required to optional    nothing
optional to required    refused if there is a null
integer to number       decoded as raw output: refused if a digit is lost
anything else           refused, unless an upcaster (`upcast`) takes the release's rows
======================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from feature_pipeline.archive.format import align_columns
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.model import column_sources
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import UpcasterDefinition
from feature_pipeline.projections.rows.upcast import CannotEvolveError, find_upcaster, upcast_rows


def artifact_rows(
    manifest: Manifest,
    rows: pa.Table,
    columns: Sequence[Column],
    upcasters: Sequence[UpcasterDefinition],
) -> pa.Table:
    """Return the artifact's rows with `record_id`, `ordinal` and these columns.

    Args:
        manifest: Of the artifact.
        rows: The artifact's rows, or some of them.
        columns: The generation's.
        upcasters: The generation's; if one names the artifact's release, it alone is used.

    Raises:
        CannotEvolveError: The rows do not fit; the message names columns, records and values.
    """
    upcaster = upcaster_for(manifest, columns, upcasters)
    if upcaster is not None:
        return upcast_rows(manifest, rows, columns, upcaster)
    return evolve_rows(rows, map_columns(manifest.columns, columns))


def upcaster_for(
    manifest: Manifest, columns: Sequence[Column], upcasters: Sequence[UpcasterDefinition]
) -> UpcasterDefinition | None:
    """Return the upcaster that the artifact's rows go through.

    None for an artifact that has these columns already, because its raw output was decoded again
    under them. Here, a column's unit and whether it may be null are part of its meaning.
    """
    upcaster = find_upcaster(manifest, upcasters)
    if upcaster is None:
        return None
    written = {column.name: _meaning(column) for column in manifest.columns}
    is_current = all(written.get(column.name) == _meaning(column) for column in columns)
    return None if is_current else upcaster


def contradictions(
    manifests: Mapping[str, Manifest],
    columns: Sequence[Column],
    upcasters: Sequence[UpcasterDefinition],
) -> dict[str, str]:
    """Return, by batch, why its rows must not be in a table with the others': see `column_sources`.

    Rows that an upcaster converts do not count: its author is responsible for their meaning.
    """
    written = {
        batch: manifest.columns
        for batch, manifest in manifests.items()
        if upcaster_for(manifest, columns, upcasters) is None
    }
    return column_sources.contradictions(written, columns)


def _meaning(column: Column) -> tuple[object, ...]:
    # Not the kind: arrays and objects have one.
    return column.type, column.format, column.required, column.unit


def map_columns(
    written: Sequence[Column], wanted: Sequence[Column]
) -> tuple[align_columns.ColumnSource, ...]:
    """Return the source of each wanted column, found by declarations alone.

    Raises:
        CannotEvolveError: A column's type or format changed in a way that is not allowed, or a
            written column may be either of two wanted ones.
    """
    try:
        return align_columns.map_columns(written, wanted)
    except align_columns.MisfitError as error:
        raise CannotEvolveError(str(error)) from error


def evolve_rows(rows: pa.Table, mappings: Sequence[align_columns.ColumnSource]) -> pa.Table:
    """Return the rows with `record_id`, `ordinal` and the wanted columns, in their order.

    Raises:
        CannotEvolveError: A required column would have a null, or an integer loses a digit as a
            number; the message names the column and some of the values or records.
    """
    try:
        return align_columns.select_columns(rows, mappings, is_strict=True)
    except align_columns.MisfitError as error:
        raise CannotEvolveError(str(error)) from error
