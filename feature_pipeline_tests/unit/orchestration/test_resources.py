"""What the environment says reaches the resources of runs and ticks."""

import dagster as dg
import pytest

from feature_pipeline.orchestration.resources import default_resources, without_run_config


def test_the_work_folder_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PIPELINE_WORK_FOLDER", "/somewhere/work")
    assert default_resources()["hook_runner"].work_folder == "/somewhere/work"


def test_without_one_it_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATURE_PIPELINE_WORK_FOLDER", raising=False)
    assert default_resources()["hook_runner"].work_folder is None


@pytest.fixture
def settled_resources() -> dict[str, dg.ResourceDefinition]:
    return {name: without_run_config(resource) for name, resource in default_resources().items()}


def test_the_environment_is_read_when_a_run_starts(settled_resources, monkeypatch) -> None:
    monkeypatch.setenv("FEATURE_PIPELINE_S3_BUCKET", "letters")
    monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", "postgresql://somewhere/tables")
    with dg.build_resources(settled_resources) as resources:
        assert resources.archive.bucket == "letters"
        assert resources.archive.s3 == resources.s3
        assert resources.database.url == "postgresql://somewhere/tables"


def test_a_variable_that_is_not_set_is_named(settled_resources, monkeypatch) -> None:
    monkeypatch.delenv("FEATURE_PIPELINE_DATABASE_URL", raising=False)
    with (
        pytest.raises(dg.DagsterInvalidConfigError, match="FEATURE_PIPELINE_DATABASE_URL"),
        dg.build_resources({"database": settled_resources["database"]}),
    ):
        pass


def test_a_tick_makes_no_dagster_instance(settled_resources, monkeypatch) -> None:
    """One costs a tenth of a second, for each resource of each tick and run."""
    monkeypatch.setenv("FEATURE_PIPELINE_S3_BUCKET", "letters")
    monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", "postgresql://somewhere/tables")
    with dg.DagsterInstance.ephemeral() as instance:
        monkeypatch.delattr(dg.DagsterInstance, "ephemeral")
        with dg.build_resources(settled_resources, instance=instance) as resources:
            assert resources.archive.bucket == "letters"
