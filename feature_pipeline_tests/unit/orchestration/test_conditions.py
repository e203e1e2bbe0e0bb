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


def test_what_failed_is_asked_for_again_once_an_input_changed_however_soon():
    """Also before the next evaluation; what the failed run computed itself is no change."""
    batches = batches_partitions("letters")
    condition = condition_of(Compute.AUTOMATICALLY)
    source, key = features_key("letters", "size"), features_key("letters", "after")

    @dg.asset(key=source, partitions_def=batches, automation_condition=condition)
    def size() -> None: ...

    @dg.asset(key=key, deps=[source], partitions_def=batches, automation_condition=condition)
    def after() -> None:
        raise ValueError("it fails")

    defs = dg.Definitions(assets=[size, after])

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("letters", ["b1"])
        cursor = None

        def asked() -> set[dg.AssetKey]:
            nonlocal cursor
            result = dg.evaluate_automation_conditions(defs, instance, cursor=cursor)
            cursor = result.cursor
            return {each for each in (source, key) if result.get_requested_partitions(each)}

        def run(*keys: dg.AssetKey) -> None:
            job = defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=set(keys))
            done = job.execute_in_process(
                instance=instance, partition_key="b1", raise_on_error=False
            )
            assert not done.success

        assert asked() == {source, key}
        run(source, key)
        assert asked() == set()
        for version in ("1", "2"):
            tags = {"dagster/data_version": version}
            instance.report_runless_asset_event(
                dg.AssetMaterialization(source, partition="b1", tags=tags)
            )
            assert asked() == {key}
            run(key)
        assert asked() == set()
        assert asked() == set()
