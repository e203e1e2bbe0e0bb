"""Recovery: Dagster's knowledge and the tables come back from S3 and the code alone.

Belongs here: the order of it. Not here: what each step does (`reconcile`, `projections`).
"""

import contextlib
from collections.abc import Collection, Iterator, Sequence

import dagster as dg

from feature_pipeline.archive import log
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.errors import FeaturePipelineError, NotFoundError
from feature_pipeline.hooks.definition import HookDefinition, Materialize
from feature_pipeline.orchestration.events import report_events
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.pools import set_pools
from feature_pipeline.orchestration.provenance import latest_events
from feature_pipeline.orchestration.reconcile import Drift, reconcile
from feature_pipeline.orchestration.tables import table_event, table_spec
from feature_pipeline.projections.database import Database
from feature_pipeline.projections.load import LoadReport, load_batches
from feature_pipeline.projections.proof import Proof, prove

_REPORTS_AT_ONCE = 64
"""Loaded batches whose events are stored together; few enough that progress is seen."""


def recover_dagster(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    hooks: Sequence[HookDefinition],
) -> Drift:
    """Dagster has every partition, record, artifact and pool of the archive; what it lacked.

    Resumable: what Dagster knows already is not reported again.
    """
    set_pools(instance, hooks)
    return reconcile(store, archive_uri, instance, None, hooks)


def tables_to_recover(
    hooks: Sequence[HookDefinition], named: Collection[str]
) -> list[HookDefinition]:
    """The hooks whose tables are rebuilt: every `always` table, and those named.

    Raises:
        NotFoundError: A name is no table's.
    """
    tables = {hook.table_name: hook for hook in hooks if hook.has_table}
    if unknown := set(named) - tables.keys():
        raise NotFoundError(f"no table {min(unknown)!r}; there are {', '.join(sorted(tables))}")
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
    """The table holds every current artifact and Dagster knows it; a report per batch."""
    spec = table_spec(definition)
    key = table_key(definition.dataset, spec.name)
    heads = log.heads(store, definition.dataset, definition.name)
    features = latest_events(instance, features_key(definition.dataset, definition.name), heads)
    known = latest_events(instance, key, heads)
    with contextlib.closing(load_batches(store, database, spec, workers=workers)) as loads:
        for reports in _chunks(loads):
            events = [table_event(definition, r, features.get(r.batch)) for r in reports]
            report_events(
                instance,
                [
                    event
                    for report, event in zip(reports, events, strict=True)
                    if report.batch not in known or known[report.batch].tags != event.tags
                ],
            )
            yield from reports


def _chunks(reports: Iterator[LoadReport]) -> Iterator[list[LoadReport]]:
    """Some reports at a time; those that came before an error come before it too."""
    chunk: list[LoadReport] = []
    try:
        for report in reports:
            chunk.append(report)
            if len(chunk) == _REPORTS_AT_ONCE:
                yield chunk
                chunk = []
    except FeaturePipelineError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def prove_tables(
    store: BlobStore, database: Database, hooks: Sequence[HookDefinition]
) -> dict[str, Proof]:
    """Per table, its digest beside the archive's."""
    return {hook.table_name: prove(store, database, table_spec(hook)) for hook in hooks}
