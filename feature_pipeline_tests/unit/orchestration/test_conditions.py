"""What automation conditions ask for."""

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from feature_pipeline.model.definition import Compute
from feature_pipeline.orchestration import conditions
from feature_pipeline.orchestration.assets.tables import request_load
from feature_pipeline.orchestration.conditions import condition_of, tables
from feature_pipeline.orchestration.events.data_versions import InputVersion, event_tags
from feature_pipeline.orchestration.keys import batches_partitions, features_key, table_key


def test_the_first_batch_alone_is_computed_unless_compute_is_automatic():
    def asked(compute: Compute) -> set[str]:
        @dg.asset(
            key=features_key("letters", "size"),
            partitions_def=batches_partitions("letters"),
            automation_condition=condition_of(compute),
        )
        def size() -> None: ...

        result = dg.evaluate_automation_conditions([size], instance)
        return set(result.get_requested_partitions(size.key))

    with dg.DagsterInstance.ephemeral() as instance:
        assert asked(Compute.FIRST_BATCH) == set()
        instance.add_dynamic_partitions("letters", ["b2", "b1", "b3"])
        assert asked(Compute.FIRST_BATCH) == {"b2"}
        assert asked(Compute.AUTOMATICALLY) == {"b1", "b2", "b3"}
        assert asked(Compute.ON_REQUEST) == set()


def test_batches_that_end_one_after_the_other_are_loaded_together(monkeypatch: pytest.MonkeyPatch):
    """While a run of the table goes on, others gather; none waits longer than a minute."""
    batches = batches_partitions("letters")
    source, key = features_key("letters", "size"), table_key("letters", "size")

    @dg.asset(key=key, deps=[source], partitions_def=batches, automation_condition=tables())
    def table() -> None: ...

    defs = dg.Definitions(assets=[dg.AssetSpec(source, partitions_def=batches), table])

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("letters", ["b1", "b2", "b3", "b4"])
        cursor = None

        def computed(batch: str) -> None:
            tags = {"dagster/data_version": batch}
            instance.report_runless_asset_event(
                dg.AssetMaterialization(source, partition=batch, tags=tags)
            )

        def asked() -> set[str]:
            nonlocal cursor
            result = dg.evaluate_automation_conditions(defs, instance, cursor=cursor)
            cursor = result.cursor
            return set(result.get_requested_partitions(key))

        assert asked() == set()
        computed("b1")
        assert asked() == {"b1"}
        load = instance.get_backfill(request_load(instance, key, ["b1"], "fill"))
        assert load is not None
        computed("b2")
        assert asked() == set()
        computed("b3")
        assert asked() == set()
        tags = event_tags("b1", "code", {source: InputVersion("b1", None)})
        instance.report_runless_asset_event(dg.AssetMaterialization(key, partition="b1", tags=tags))
        instance.update_backfill(load.with_status(BulkActionStatus.COMPLETED_SUCCESS))
        assert asked() == {"b2", "b3"}
        request_load(instance, key, ["b2"], "fill")
        computed("b4")
        assert "b4" not in asked()
        monkeypatch.setattr(conditions, "GATHER_SECONDS", 0.0)
        assert "b4" in asked()
