"""Recover Dagster's storage and the tables from S3 and the code alone."""

import contextlib
from collections.abc import Collection, Iterator, Sequence

import dagster as dg

from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import NotFoundError
from feature_pipeline.model.definition import HookDefinition, Materialize
from feature_pipeline.orchestration.assets.tables import report_loads, table_spec
from feature_pipeline.orchestration.operations.reconcile import Drift, reconcile
from feature_pipeline.orchestration.pools import set_pools
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import LoadReport, load_batches
from feature_pipeline.projections.proof.proof import Proof, prove


def recover_dagster(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    hooks: Sequence[HookDefinition],
) -> Drift:
    """Report every partition, record, artifact and pool to Dagster; return what it lacked.

    Resumable: what Dagster knows already is not reported again.
    """
    set_pools(instance, hooks)
    return reconcile(store, archive_uri, instance, None, hooks)


def tables_to_recover(
    hooks: Sequence[HookDefinition], named: Collection[str]
) -> list[HookDefinition]:
    """Return the hooks whose tables are rebuilt: every `always` table, and the named ones.

    Raises:
        NotFoundError: No table has one of the names.
    """
    tables = {hook.table_name: hook for hook in hooks if hook.has_table}
    if unknown := set(named) - tables.keys():
        raise NotFoundError(
            f"no table {min(unknown)!r}; the tables are {', '.join(sorted(tables))}"
        )
    return [
        hook
        for name, hook in tables.items()
        if hook.table.materialize is Materialize.ALWAYS or name in named
    ]


def recover_table(
    store: BlobStore,
    instance: dg.DagsterInstance,
    database: Database,
    definition: HookDefinition,
    *,
    workers: int = 2,
) -> Iterator[LoadReport]:
    """Load every current artifact into the table and report it to Dagster, batch by batch."""
    loads = load_batches(store, database, table_spec(definition), workers=workers)
    with contextlib.closing(loads):
        yield from report_loads(instance, definition, loads, database)


def prove_tables(
    store: BlobStore, database: Database, hooks: Sequence[HookDefinition]
) -> dict[str, Proof]:
    """Return the proof of each table; what a switch has proved is not read again."""
    return {
        hook.table_name: prove(store, database, table_spec(hook), may_reuse=True) for hook in hooks
    }
