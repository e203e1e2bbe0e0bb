"""Convert rows of older releases with a function of the hook's author, where no rule can."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from importlib import import_module
from typing import Any

import pyarrow as pa

from feature_pipeline.archive.format.encode import iter_record_rows, rows_table
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.errors import InvalidInputError, ProjectionError
from feature_pipeline.model.columns import Column, decode_row
from feature_pipeline.model.definition import UpcasterDefinition
from feature_pipeline.model.digest import Value
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.model.text.json_values import json_instant

Upcaster = Callable[[dict[str, Any]], Mapping[str, Any]]


class CannotEvolveError(ProjectionError):
    """An artifact's rows cannot become rows of a generation; the message gives the reasons."""


def find_upcaster(
    manifest: Manifest, upcasters: Sequence[UpcasterDefinition]
) -> UpcasterDefinition | None:
    """Return the upcaster that names the artifact's release."""
    version = manifest.release.version
    return next((upcaster for upcaster in upcasters if version in upcaster.releases), None)


def load_upcaster(upcaster: UpcasterDefinition) -> Upcaster:
    """Return the function.

    Raises:
        CannotEvolveError: It cannot be imported.
    """
    module, _, name = upcaster.function.partition(":")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CannotEvolveError(
            f"upcaster {upcaster.function} cannot be imported: {error}; its module must be"
            " importable wherever tables are loaded"
        ) from error
    if not callable(function):
        raise CannotEvolveError(f"upcaster {upcaster.function} is not a function")
    called: Upcaster = function
    return called


def upcast_rows(
    manifest: Manifest, rows: pa.Table, columns: Sequence[Column], upcaster: UpcasterDefinition
) -> pa.Table:
    """Return the upcaster's rows, typed by `columns`; records and ordinals stay.

    Raises:
        CannotEvolveError: The function raised, or its result violates the declared columns; names
            the record.
    """
    function = load_upcaster(upcaster)
    upcasted = []
    for record_id, record_rows in iter_record_rows(rows, manifest.columns):
        converted = []
        for ordinal, row in enumerate(record_rows):
            try:
                feature = function(as_feature(manifest.columns, row))
                converted.append(decode_row(columns, dict(feature)))
            except InvalidInputError as error:
                raise _refusal(upcaster, record_id, ordinal, str(error)) from error
            except Exception as error:  # whatever a foreign function does, the record is named
                what = f"{type(error).__name__}: {error}"
                raise _refusal(upcaster, record_id, ordinal, what) from error
        upcasted.append(Outcome(record_id, Status.PASSED, rows=tuple(converted)))
    return rows_table(columns, upcasted)


def as_feature(columns: Sequence[Column], row: Sequence[Value]) -> dict[str, Any]:
    """Return one row in the form in which the hook could have written it."""
    return {
        column.name: _as_json(column, value) for column, value in zip(columns, row, strict=True)
    }


def _as_json(column: Column, value: Value) -> Any:
    if isinstance(value, datetime):
        return json_instant(value)
    if isinstance(value, date):
        return value.isoformat()
    if column.kind == "json" and isinstance(value, str):
        return json.loads(value)
    return value


def _refusal(
    upcaster: UpcasterDefinition, record_id: str, ordinal: int, what: str
) -> CannotEvolveError:
    return CannotEvolveError(
        f"upcaster {upcaster.function}: record {record_id!r}, row {ordinal}: {what}"
    )
