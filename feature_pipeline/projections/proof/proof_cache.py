"""Store the last proof of a generation, and check whether it still holds.

Instead of rows, a state is compared: it identifies the versions of rows that PostgreSQL shows. Any
write, by loads or otherwise, changes the state, and computing it costs a scan without reading a
value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from feature_pipeline.model.digest import ContentSum, Digest, document_bytes
from feature_pipeline.projections.catalog.bookkeeping import Progress, has_table
from feature_pipeline.projections.catalog.database import Connection, fetch_one
from feature_pipeline.projections.catalog.generation import Generation


@dataclass(frozen=True, slots=True)
class KeptProof:
    """A stored full proof of a generation that equalled the archive."""

    rows_digest: ContentSum
    rows: int
    batches: int


def content_state(
    connection: Connection,
    generation: Generation,
    progress: Mapping[str, Progress],
    withdrawn: Iterable[str],
) -> Digest:
    """Return a state that is equal for the same row versions of the same artifacts.

    Args:
        connection: To the table.
        generation: The generation.
        progress: Its progress.
        withdrawn: Records that must not appear.
    """
    batches = [[one.batch, one.seq, str(one.manifest), one.rows] for one in progress.values()]
    tables = [_row_versions(connection, t) for t in (generation.identifier, generation.outcomes)]
    columns = [column.model_dump(mode="json") for column in generation.columns]
    parts = [str(generation.digest), columns, batches, sorted(withdrawn), tables]
    return Digest.of(document_bytes(parts))


def find_proof(connection: Connection, generation: Generation, state: Digest) -> KeptProof | None:
    """Return the proof of exactly this state; None if there is none."""
    if not has_table(connection, "proofs"):
        return None
    row = fetch_one(
        connection,
        "select rows_digest, rows, batches from feature_pipeline.proofs"
        " where generation = %s and state = %s",
        [generation.id, str(state)],
    )
    return None if row is None else KeptProof(ContentSum.parse(row[0]), row[1], row[2])


def keep_proof(
    connection: Connection, generation: Generation, state: Digest, proof: KeptProof
) -> None:
    """Store the generation's proof.

    Args:
        connection: To the table.
        generation: The generation.
        state: Its state before the proof began, so that a change meanwhile invalidates the proof.
        proof: The result.
    """
    if not has_table(connection, "proofs"):
        return  # dropped by hand; the next load makes it again
    connection.execute(
        "insert into feature_pipeline.proofs (generation, state, rows_digest, rows, batches)"
        " values (%s, %s, %s, %s, %s) on conflict (generation) do update set"
        " state = excluded.state, rows_digest = excluded.rows_digest, rows = excluded.rows,"
        " batches = excluded.batches, proven_at = now()",
        [generation.id, str(state), str(proof.rows_digest), proof.rows, proof.batches],
    )


def _row_versions(connection: Connection, table: sql.Identifier) -> list[Any]:
    """Return the number of rows, and a hash of their locations and writing transactions."""
    row = fetch_one(
        connection,
        sql.SQL(
            # A sum of bigint has no limit: PostgreSQL adds in 128 bits, and returns a numeric.
            "select count(*), coalesce(sum(hashtidextended(ctid, xmin::text::bigint)), 0)::text"
            " from {}"
        ).format(table),
    )
    return list(row or ())
