"""What the databases that the environment names know of the archive, for commands that compare."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import click

from feature_pipeline import settings
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.maintenance.known import (
    KnownBatch,
    KnownEntry,
    find_lost,
    find_lost_batches,
)
from feature_pipeline.archive.objects import Finding, Scope
from feature_pipeline.cli.instance import dagster_instance
from feature_pipeline.cli.output import Output
from feature_pipeline.errors import InvalidInputError, ProjectionError
from feature_pipeline.projections.database import Database
from feature_pipeline.projections.known import known_by_tables, submission_times


@dataclass
class DatabaseKnowledge:
    """What PostgreSQL's tables and Dagster know of an archive; nothing of one that is away."""

    entries: Sequence[KnownEntry] = ()
    batches: Sequence[KnownBatch] = ()
    submitted_at: Mapping[tuple[str, str], datetime] = field(default_factory=dict)

    def lost(self, store: BlobStore, scope: Scope) -> list[Finding]:
        """What they know and the archive's logs no longer have, once per log entry."""

        def is_within(dataset: str, hook: str | None, batch: str) -> bool:
            return (
                scope.dataset in {None, dataset}
                and (scope.hook is None or scope.hook == hook)
                and scope.batch in {None, batch}
            )

        entries = [e for e in self.entries if is_within(e.dataset, e.hook, e.batch)]
        batches = [b for b in self.batches if is_within(b.dataset, None, b.batch)]
        found = [one.finding for one in find_lost(store, entries)]
        found += [one.finding for one in find_lost_batches(store, batches)]
        return list({finding.key: finding for finding in reversed(found)}.values())


def ask_databases(output: Output, dataset: str | None) -> DatabaseKnowledge:
    """Ask the tables' database and Dagster, where they are configured.

    One that does not answer is named on standard error: the archive can be looked at without it.
    """
    known = DatabaseKnowledge()
    if os.environ.get(settings.DATABASE_URL):
        try:
            database = Database(settings.database_url())
            known.entries = known_by_tables(database, dataset)
            known.submitted_at = submission_times(database)
        except (ProjectionError, InvalidInputError) as error:
            output.warn(f"what the tables know is not compared: {error}")
    if os.environ.get("DAGSTER_HOME"):
        from feature_pipeline.orchestration.known import knowledge_of

        try:
            with dagster_instance() as instance:
                told = knowledge_of(instance, dataset)
        except click.ClickException as error:
            output.warn(f"what Dagster knows is not compared: {error.message}")
        else:
            known.entries = [*known.entries, *told.entries]
            known.batches = told.batches
    return known
