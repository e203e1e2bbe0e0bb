"""Reconcile one table with the archive and with Dagster."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.definition import HookDefinition, Materialize
from feature_pipeline.orchestration.assets.equality_check import EQUALITY_CHECK
from feature_pipeline.orchestration.assets.tables import (
    PROGRESS_CHECK,
    report_loads,
    report_shown,
    table_spec,
)
from feature_pipeline.orchestration.events.check_history import report_named
from feature_pipeline.orchestration.events.reported_entries import known_partitions
from feature_pipeline.orchestration.keys import table_key

if TYPE_CHECKING:
    from feature_pipeline.projections.catalog.database import Database

_CHANGED = "changed_by_hand"
_UNLOADED = "unloaded"


@dataclass(frozen=True, slots=True)
class TableDrift:
    """Differences between a table, the archive and Dagster; batches in the order of keys."""

    to_load: Sequence[str] = ()
    """Batches that an `always` table lacks or has in an older version."""
    unloaded: Sequence[str] = ()
    """Batches that Dagster shows as loaded and an `on_request` table lacks."""
    reported: Sequence[str] = ()
    """Loaded batches without an event in Dagster, or with one of other rows; reported now."""
    changed: Sequence[str] = ()
    """Batches whose rows or outcomes differ from those that were loaded."""
    is_rebuilt: bool = False
    """Whether a generation that will replace the changed rows is being built already."""
    unfounded: Sequence[str] = ()
    """Partitions that Dagster shows as loaded, that are not, and that have no artifact to load."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """Batches that were loaded from log entries that the archive no longer has."""


def reconcile_table(
    store: BlobStore,
    archive_uri: str,
    database: "Database",
    instance: dg.DagsterInstance,
    definition: HookDefinition,
    heads: Mapping[str, FeatureEntry],
) -> TableDrift:
    """Compare a table with the archive, and report missing events to Dagster.

    Rows are read back only if something was written since they were last proved.

    Args:
        store: The archive.
        archive_uri: Its address, for display.
        database: The table's database.
        instance: The Dagster instance.
        definition: The table's hook.
        heads: The hook's current log entries.
    """
    from feature_pipeline.projections.load import fed_loads
    from feature_pipeline.projections.proof.missing_batches import check_progress
    from feature_pipeline.projections.switch.finalize import batches_to_load, table_report

    spec = table_spec(definition)
    is_always = definition.table.materialize is Materialize.ALWAYS
    to_load = batches_to_load(store, database, spec) if is_always else []
    unloaded = [] if is_always else _unloaded(store, database, instance, definition)
    known = known_partitions(instance, table_key(definition.dataset, spec.name))
    loads = fed_loads(database, spec)
    unreported = [
        load
        for batch, load in loads.items()
        if batch not in known.events or known.events[batch].data_version != load.data_version
    ]
    reported = list(report_loads(instance, definition, unreported, database, archive_uri))
    report_shown(instance, definition, database, archive_uri)
    table = table_report(store, database, spec)
    return TableDrift(
        to_load=to_load,
        unloaded=unloaded,
        reported=[load.batch for load in reported],
        changed=[]
        if table is None or table.live is None
        else _changed(store, database, instance, definition),
        is_rebuilt=table is not None and table.building is not None,
        unfounded=sorted(known.events.keys() - heads.keys() - loads.keys()),
        lost={b: str(one) for b, one in check_progress(store, database, spec).lost.items()},
    )


def _changed(
    store: BlobStore, database: "Database", instance: dg.DagsterInstance, definition: HookDefinition
) -> list[str]:
    """Return the batches whose rows differ from those that were loaded.

    If the check `equals_archive` names others, it is evaluated again with these.
    """
    from feature_pipeline.projections.proof.proof import AlteredTableError, prove

    spec = table_spec(definition)
    try:
        proof = prove(store, database, spec, may_reuse=True)
    except AlteredTableError:
        return []  # the next load rebuilds it, which is among those that are requested
    changed = sorted(set(proof.unequal_batches) - proof.unreadable.keys())
    report_named(
        instance,
        dg.AssetCheckKey(table_key(definition.dataset, spec.name), EQUALITY_CHECK),
        _CHANGED,
        changed,
        (
            f"of features.{spec.name} have rows that differ from those that were loaded: they were"
            " changed by hand, and a rebuild replaces them",
            "every row equals the one that was loaded",
        ),
    )
    return changed


def _unloaded(
    store: BlobStore, database: "Database", instance: dg.DagsterInstance, definition: HookDefinition
) -> list[str]:
    """Return the batches that Dagster shows as loaded and the table lacks; name them in `progress`.

    A table that is materialized on request is not loaded again automatically, and Dagster cannot
    revoke a materialization. The check passes again once there are none.
    """
    from feature_pipeline.projections.proof.missing_batches import check_progress

    spec = table_spec(definition)
    key = table_key(definition.dataset, spec.name)
    loaded = instance.get_materialized_partitions(key)
    unloaded: list[str] = []
    if loaded:
        progress = check_progress(store, database, spec)
        unloaded = sorted(loaded.intersection(progress.missing) if progress.is_shown else loaded)
    report_named(
        instance,
        dg.AssetCheckKey(key, PROGRESS_CHECK),
        _UNLOADED,
        unloaded,
        (
            f"that Dagster shows as loaded: not in features.{spec.name}: materialize them, if the"
            " table is still wanted",
            "every batch that Dagster shows as loaded is in the table",
        ),
    )
    return unloaded
