"""What the demo leaves in Dagster."""

import dagster as dg

from feature_pipeline.cli.commands.projects.demo import Demo
from feature_pipeline.orchestration.keys import batches_partitions, features_key


def test_a_run_of_the_demo_names_the_assets_that_it_is_of() -> None:
    """The UI shows them as the run's target; it was empty."""
    key, other = features_key("d", "hook"), features_key("d", "other")
    specs = {"partitions_def": batches_partitions("d")}

    @dg.asset(key=key, **specs)
    def hook() -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(metadata={"computed": 3})

    @dg.asset(key=other, **specs)
    def another() -> None: ...

    demo = Demo.__new__(Demo)  # without servers
    demo._defs = dg.Definitions(assets=[hook, another], executor=dg.in_process_executor)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("d", ["b1"])
        assert demo._run(instance, [key], "b1") == 3
        (run,) = instance.get_runs()
    assert run.asset_selection == {key}
