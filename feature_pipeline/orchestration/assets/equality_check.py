"""The check that a table equals the archive."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dagster as dg

from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.text.counted import counted
from feature_pipeline.orchestration.events.check_history import NAMED_BATCHES, previously_named
from feature_pipeline.orchestration.keys import table_key

if TYPE_CHECKING:
    from feature_pipeline.projections.catalog.database import Database
    from feature_pipeline.projections.catalog.spec import TableSpec

EQUALITY_CHECK = "equals_archive"


@dataclass(frozen=True, slots=True)
class Equality:
    """The result of the check."""

    passed: bool
    description: str
    metadata: dict[str, Any]


def equality_key(spec: "TableSpec") -> dg.AssetCheckKey:
    """Return the key of the table's check."""
    return dg.AssetCheckKey(table_key(spec.dataset, spec.name), EQUALITY_CHECK)


def is_selected(context: dg.AssetExecutionContext, key: dg.AssetCheckKey) -> bool:
    """Return whether the run executes the check as a step of its own.

    Runs that automation requests execute only the checks that belong to the load.
    """
    return any(key in each.assets_def.check_keys for each in context.job_def.asset_layer.data)


def judge_equality(
    store: BlobStore,
    database: "Database",
    instance: dg.DagsterInstance,
    spec: "TableSpec",
    batches: Collection[str] | None,
) -> Equality:
    """Compare rows read back from PostgreSQL with the archive.

    Args:
        store: The archive.
        database: The tables' database.
        instance: Has earlier evaluations: batches that differed are checked again.
        spec: The table.
        batches: Check only these; if None, the whole table, by reading all of it.
    """
    from feature_pipeline.projections.proof.missing_batches import check_progress
    from feature_pipeline.projections.proof.proof import AlteredTableError, prove
    from feature_pipeline.projections.switch.finalize import table_report

    if batches is not None:
        batches = sorted({*batches, *previously_named(instance, equality_key(spec), "batches")})
    report = table_report(store, database, spec)
    if report is None or report.live is None:
        progress = check_progress(store, database, spec, batches)
        return Equality(
            passed=not progress.missing,
            description=(
                f"features.{spec.name} does not exist, and"
                f" {counted(len(progress.missing), 'batch')} of the archive can be loaded: run the"
                " job `reconcile`, or materialize the table"
            ),
            metadata={
                "rows": 0,
                "batches": dg.MetadataValue.json(list(progress.missing[:NAMED_BATCHES])),
                "progress": dg.MetadataValue.json(progress.to_json()),
            },
        )
    try:
        proof = prove(store, database, spec, batches)
    except AlteredTableError as error:
        return Equality(False, str(error), {"rows": 0, "batches": dg.MetadataValue.json([])})
    progress = proof.progress
    sentences = [proof.summary(), *([] if progress.is_complete else [progress.summary()])]
    wrong = sorted({*proof.unequal_batches, *progress.missing, *progress.behind})
    return Equality(
        passed=proof.is_equal,
        description="; ".join(sentences),
        metadata={
            "rows": proof.rows,
            "table_digest": str(proof.table_digest),
            "archive_digest": str(proof.archive_digest),
            "batches": dg.MetadataValue.json(wrong[:NAMED_BATCHES]),
            "left_out": dg.MetadataValue.json(dict(list(proof.left_out.items())[:NAMED_BATCHES])),
            "progress": dg.MetadataValue.json(progress.to_json()),
        },
    )
