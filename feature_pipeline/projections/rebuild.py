"""Rebuild a table from the archive alone, beside the one that is read."""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from feature_pipeline import measure
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.projections.catalog.bookkeeping import all_progress
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.ddl import truncate_identifier
from feature_pipeline.projections.catalog.generation import (
    adopt_definition,
    is_discarded,
    request_rebuild,
    require_table,
)
from feature_pipeline.projections.catalog.spec import MAX_IDENTIFIER_BYTES, TableSpec
from feature_pipeline.projections.load import LoadReport, load_batches
from feature_pipeline.projections.proof.missing_batches import compare_progress, current_entries

_NAME_DIGITS: Final = 8


@dataclass(frozen=True, slots=True)
class Rebuild:
    """A generation to be filled: its name, what it lacks, whether it was begun earlier."""

    spec: TableSpec
    generation: str
    batches: tuple[str, ...]
    is_resumed: bool


def begin_rebuild(store: BlobStore, database: Database, spec: TableSpec) -> Rebuild:
    """Request a generation for `spec` without loading anything; readers are not affected.

    A generation that is being built for these columns is continued, whichever process began it,
    unless its rows were found to be wrong. Otherwise there is a new one, unless the table is empty.
    The table follows this definition from now on, even if a later one was seen.

    Raises:
        ConflictError: Another hook's table has this name.
        ProjectionError: PostgreSQL refused something, or could not be reached.
    """
    with database.connect(f"table {spec.name!r}") as connection:
        state = adopt_definition(connection, spec)
        is_wrong = is_discarded(connection, spec, state.wanted)
        if is_wrong or (state.building is None and all_progress(connection, state.wanted.id)):
            state = request_rebuild(connection, spec, uuid.uuid4().hex)
        progress = all_progress(connection, state.wanted.id)
        read = {} if state.live is None else all_progress(connection, state.live.id)
    current = current_entries(store, spec, None)
    compared = compare_progress(current, progress)
    # What is damaged or lost is given to the load, which names it.
    unusable = {*compared.damaged, *compared.lost, *current.find_lost(read)}
    lacking = sorted({*compared.batches_to_load(), *unusable})
    return Rebuild(spec, state.wanted.relation, tuple(lacking), bool(progress))


def fill(
    store: BlobStore, database: Database, rebuild: Rebuild, *, workers: int = 1
) -> Iterator[LoadReport]:
    """Load what the generation lacks, then index, verify and switch to it (`load_batches`).

    If it has wrong rows, which an earlier run may have left there, another one is filled in its
    place.
    """
    with measure.timed(rebuild.spec.name, "rebuild"):
        yield from load_batches(store, database, rebuild.spec, rebuild.batches, workers=workers)
        with database.connect(f"table {rebuild.spec.name!r}") as connection:
            state = require_table(connection, rebuild.spec)
        if state.building is not None and state.building.relation != rebuild.generation:
            yield from load_batches(store, database, rebuild.spec, workers=workers)


def past_spec(spec: TableSpec, time: datetime) -> TableSpec:
    """Return the spec of a separate table of what was current at a time.

    Its name has the table's name and the instant, with microseconds if there are any, in lower
    case, which needs no quotes in SQL. A name that is too long is cut, and gets a digest of the
    full name.

    Raises:
        InvalidInputError: The time has no offset, or is in the future.
    """
    if time.tzinfo is None:
        raise InvalidInputError(f"as of {time.isoformat()}: the time needs a UTC offset")
    instant = time.astimezone(UTC)
    if instant > datetime.now(UTC):
        raise InvalidInputError(
            f"as of {instant.isoformat()}: that is in the future, so its state is"
            " unknown; give a time that has passed"
        )
    suffix = f"_as_of_{instant:%Y%m%dt%H%M%S}"
    if instant.microsecond:
        suffix += f"_{instant:%f}"
    name, room = spec.name, MAX_IDENTIFIER_BYTES - len(suffix)
    if len(name.encode()) > room:
        digest = Digest.of(name.encode()).hex[:_NAME_DIGITS]
        name = f"{truncate_identifier(name, room - len(digest) - 1)}_{digest}"
    return replace(spec, name=name + suffix, as_of=instant)
