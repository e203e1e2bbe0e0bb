"""What Dagster's processes are started with."""

import pytest

from feature_pipeline.cli.project import TEMPLATES
from feature_pipeline.local.dagster_processes import DagsterProcesses


@pytest.mark.parametrize(("configured", "expected"), [(None, "600"), ("30", "30")])
def test_a_busy_machine_has_ten_minutes_to_start_a_run(monkeypatch, tmp_path, configured, expected):
    monkeypatch.delenv("DAGSTER_GRPC_TIMEOUT_SECONDS", raising=False)
    if configured:
        monkeypatch.setenv("DAGSTER_GRPC_TIMEOUT_SECONDS", configured)
    dagster = DagsterProcesses(tmp_path, tmp_path, TEMPLATES / "workspace.yaml", {})
    assert dagster.environment["DAGSTER_GRPC_TIMEOUT_SECONDS"] == expected
