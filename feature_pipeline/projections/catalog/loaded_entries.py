"""The log entries that tables were loaded from, as evidence about the archive."""

from collections.abc import Collection
from datetime import UTC, datetime

from feature_pipeline.archive.maintenance.compare_databases import Knowledge, KnownEntry
from feature_pipeline.errors import ProjectionError
from feature_pipeline.model.digest import Digest
from feature_pipeline.projections.catalog.bookkeeping import Progress, has_bookkeeping
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec

_KNOWN_ENTRIES = """
select t.dataset, t.hook, p.batch, p.seq, p.manifest, t.name, max(p.loaded_at)
from feature_pipeline.progress p
join feature_pipeline.generations g on g.id = p.generation
join feature_pipeline.tables t on t.name = g.table_name
where (%(dataset)s::text is null or t.dataset = %(dataset)s)
and (%(hook)s::text is null or t.hook = %(hook)s)
and (%(batches)s::text[] is null or p.batch = any(%(batches)s))
group by t.dataset, t.hook, p.batch, p.seq, p.manifest, t.name
order by t.dataset, t.hook, p.batch, p.seq"""
"""Every log entry that some generation, live, being built or kept, was loaded from."""

_SUBMISSIONS = """
select distinct t.dataset, o.batch, o.submitted_at
from feature_pipeline.outcomes o
join feature_pipeline.generations g on g.id = o.generation
join feature_pipeline.tables t on t.name = g.table_name"""
"""When each batch was submitted that owns a record in some generation."""


def query_tables(
    database: Database,
    dataset: str | None = None,
    hook: str | None = None,
    batches: Collection[str] | None = None,
) -> Knowledge:
    """Return the tables' evidence about the archive; a note if PostgreSQL does not answer.

    Arguments as for `known_by_tables`.
    """
    try:
        return Knowledge(
            entries=known_by_tables(database, dataset, hook, batches),
            submitted_at=submission_times(database) if hook is None else {},
        )
    except ProjectionError as error:
        return Knowledge(notes=(f"the tables are not compared with the archive: {error}",))


def known_by_tables(
    database: Database,
    dataset: str | None = None,
    hook: str | None = None,
    batches: Collection[str] | None = None,
) -> list[KnownEntry]:
    """Return every log entry that a table was loaded from; none if nothing was ever loaded.

    Args:
        database: The tables' database. Nothing is created in it.
        dataset: Only entries of this dataset.
        hook: Only entries of this hook.
        batches: Only entries of these batches.

    Raises:
        ProjectionError: PostgreSQL refused, or could not be reached.
    """
    with database.connect("what the tables were loaded from") as connection:
        if not has_bookkeeping(connection):
            return []
        names = None if batches is None else sorted(batches)
        chosen = {"dataset": dataset, "hook": hook, "batches": names}
        rows = connection.execute(_KNOWN_ENTRIES, chosen)
        return [
            KnownEntry(of, hook, batch, seq, Digest.parse(manifest), f"table {table}", loaded_at)
            for of, hook, batch, seq, manifest, table, loaded_at in rows
        ]


def submission_times(database: Database) -> dict[tuple[str, str], datetime]:
    """Return when batches were submitted, by (dataset, batch), as far as the tables know.

    Raises:
        ProjectionError: PostgreSQL refused, or could not be reached.
    """
    with database.connect("when batches were submitted") as connection:
        if not has_bookkeeping(connection):
            return {}
        rows = connection.execute(_SUBMISSIONS)
        return {(dataset, batch): at.astimezone(UTC) for dataset, batch, at in rows}


def known_entry(spec: TableSpec, loaded: Progress) -> KnownEntry:
    """Return the log entry that a batch of a table was loaded from."""
    return KnownEntry(
        spec.dataset,
        spec.hook,
        loaded.batch,
        loaded.seq,
        loaded.manifest,
        f"table {spec.name}",
        loaded.loaded_at,
    )
