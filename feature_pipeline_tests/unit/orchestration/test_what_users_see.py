"""What Dagster's UI shows of a project: names, groups, descriptions, and the launchpad."""

import importlib
import warnings
from typing import Any

import dagster as dg
import pytest

import feature_pipeline.orchestration
from feature_pipeline.definitions import build_defs
from feature_pipeline.orchestration.component import FeatureHook
from feature_pipeline.orchestration.keys import features_key, records_key, table_key


@pytest.fixture
def defs(monkeypatch: pytest.MonkeyPatch) -> dg.Definitions:
    monkeypatch.setenv("FEATURE_PIPELINE_S3_BUCKET", "bucket")
    monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", "postgresql://u@127.0.0.1/d")
    hook = FeatureHook.model_validate(
        {
            "name": "size",
            "dataset": "letters",
            "release": {"version": "1", "command": ["size"], "image": f"sha256:{'0' * 64}"},
            "feature": {"columns": [{"name": "size", "type": "integer"}]},
        }
    )
    return build_defs(hook.definitions())


def test_jobs_schedules_and_sensors_have_descriptions(defs: dg.Definitions) -> None:
    repository = defs.get_repository_def()
    jobs = [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    graph = defs.resolve_asset_graph()
    checks = [graph.get_check_spec(key) for key in graph.asset_check_keys]
    shown = [*repository.sensor_defs, *repository.schedule_defs, *jobs, *checks]
    assert {"outcomes", "archive_integrity", "equals_archive"} <= {each.name for each in checks}
    assert {each.name for each in repository.sensor_defs} == {
        *("compute_features", "load_tables", "inbox", "fail_dead_runs", "repeat_after_outages"),
        "webhook",
    }
    assert [each.name for each in shown if len(each.description or "") < 60] == []


def test_features_and_tables_are_distinguished(defs: dg.Definitions) -> None:
    """The sidebar shows an asset by the last part of its key, below its group."""
    graph = defs.resolve_asset_graph()
    keys = [records_key("letters"), features_key("letters", "size"), table_key("letters", "size")]
    assert [graph.get(key).group_name for key in keys] == ["letters", "letters", "letters_tables"]


def test_an_asset_shows_its_columns_once(defs: dg.Definitions) -> None:
    """The page draws the column schema below the description."""
    graph = defs.resolve_asset_graph()
    for key in (features_key("letters", "size"), table_key("letters", "size")):
        schema = graph.get(key).metadata["dagster/column_schema"]
        assert "size" in {column.name for column in schema.columns}
        assert "| size" not in (graph.get(key).description or "")
        assert "`size` |" not in (graph.get(key).description or "")


def test_a_run_configures_only_what_is_a_runs_to_decide(defs: dg.Definitions) -> None:
    schema = defs.resolve_implicit_global_asset_job_def().run_config_schema.run_config_schema_type

    def fields(type_: Any, *path: str) -> dict[str, Any]:
        for name in path:
            type_ = type_.fields[name].config_type
        return dict(type_.fields)

    for name in ("archive", "s3", "database", "hook_runner", "features_io_manager"):
        assert fields(schema, "resources", name, "config") == {}
    offered = fields(schema, "ops", "letters__features__size")["config"].default_value
    assert offered == {"force": False, "force_records": [], "preview": True}


def test_what_the_deployment_decides_is_made_and_ended_with_the_run(
    defs: dg.Definitions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the IO manager, which has something to end."""
    monkeypatch.setenv("FEATURE_PIPELINE_S3_BUCKET", "later")
    with dg.build_resources(dict(defs.resources or {})) as made:
        assert made.archive.uri == "s3://later"
        assert made.features_io_manager.archive.uri == "s3://later"
        assert made.hook_runner.kind == "subprocess"


def test_definitions_load_without_warnings_of_dagsters() -> None:
    """Each command that loads them would print dozens of lines before its answer."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        importlib.reload(feature_pipeline.orchestration)  # sets its filters
        build_defs()
    wanted = (dg.BetaWarning, dg.PreviewWarning)
    assert [str(each.message) for each in caught if issubclass(each.category, wanted)] == []
