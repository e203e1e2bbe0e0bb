"""Dagster's own tools without `feature-pipeline dev`: one code location, by one name."""

import uuid
from pathlib import Path

import pytest
from dagster_dg_core.utils.telemetry import get_telemetry_enabled_for_cli
from dagster_shared.utils.config import get_dg_config_path

from feature_pipeline.archive.accept import accept_batch, remove
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.publish import submit_batch
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.cli.commands.runs.submit import submit_records
from feature_pipeline.cli.local_records import LocalRecord
from feature_pipeline.examples.records import STRUCTURES
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.model.records import Source
from feature_pipeline_tests.acceptance.own_project import (
    LOCATION,
    OwnProject,
    locations,
    running,
    wait_for,
)
from feature_pipeline_tests.acceptance.readme import README, one_block

HOOK = "has_protein"
FEATURES = f"structures/features/{HOOK}"

pytestmark = [
    pytest.mark.dagster,
    pytest.mark.s3,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]


class Tools:
    """A project whose settings are variables, as in a deployment, and an archive of one batch."""

    def __init__(
        self, root: Path, address: S3Address, prefix: str, store: S3Store, database_url: str
    ) -> None:
        self.store = store
        self.project = OwnProject(
            root,
            hooks=[HOOK],
            shell={
                "DAGSTER_HOME": str(root),
                "DAGSTER_DATABASE_URL": database_url.replace("://", "+psycopg2://"),
                "FEATURE_PIPELINE_S3_BUCKET": address.bucket,
                "FEATURE_PIPELINE_S3_PREFIX": prefix,
                "FEATURE_PIPELINE_S3_ENDPOINT_URL": address.endpoint_url,
                "FEATURE_PIPELINE_S3_REGION": address.region,
                "FEATURE_PIPELINE_S3_ACCESS_KEY_ID": address.access_key_id,
                "FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY": address.secret_access_key,
                "FEATURE_PIPELINE_DATABASE_URL": database_url,
            },
        )
        records = [LocalRecord("1ubi", {}, {"1ubi.pdb": STRUCTURES / "1ubi.pdb"})]
        batch = submit_records(store, "structures", Source.IMPORT, records, "first")
        submission = submit_batch(store, batch, {})
        accept_batch(store, submission)
        remove(store, submission.inbox_id)

    def computed(self) -> bool:
        return log.head(self.store, "structures", HOOK, "first") is not None


@pytest.fixture
def tools(
    tmp_path: Path, s3_address: S3Address, s3_prefix: str, s3_store: S3Store, database_url: str
) -> Tools:
    return Tools(tmp_path, s3_address, s3_prefix, s3_store, database_url)


def test_dagster_without_our_dev(tools: Tools) -> None:
    project = tools.project
    assert "code location feature_pipeline." in project.tool("dagster", "definitions", "validate")
    # The daemon of `dagster dev` runs it later, under the name of the location that it knows.
    run = str(uuid.uuid4())
    project.tool("dagster", "job", "launch", "-j", "reconcile", "--run-id", run)
    with running(project, "dagster") as port:
        assert wait_for(lambda: locations(port), 500) == [LOCATION]
        project.url = f"http://127.0.0.1:{port}"
        wait_for(lambda: project.run_status(run) == "SUCCESS", 500)
    chosen = ("--select", FEATURES, "--partition", "first")
    project.tool("dagster", "asset", "materialize", *chosen, "-m", "feature_pipeline.definitions")
    assert tools.computed()


def test_dg_without_our_dev(tools: Tools) -> None:
    """What it checks and lists is in `test_authoring.py`."""
    project = tools.project
    project.tool("dg", "launch", "--job", "reconcile")
    project.tool("dg", "launch", "--assets", f"key:{FEATURES}", "--partition", "first")
    assert tools.computed()
    with running(project, "dg") as port:
        assert wait_for(lambda: locations(port), 500) == [LOCATION]


def test_telemetry_of_dg_is_off_where_the_readme_sets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dg` reads no `.env`: without its own file it announces what `dagster.yaml` turns off."""
    for name in ("DG_CLI_CONFIG", "XDG_CONFIG_HOME", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert get_telemetry_enabled_for_cli()
    path = tmp_path / ".config" / "dg.toml"
    path.parent.mkdir()
    path.write_text(one_block("toml", "telemetry"))
    assert get_dg_config_path() == path
    assert "`~/.config/dg.toml`" in README
    assert not get_telemetry_enabled_for_cli()
