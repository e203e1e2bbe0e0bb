"""What every process of Dagster pays for before it does anything: imports of the code location."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

# Each is needed by a step, a tick or a page, and by none of the definitions.
NEEDED_LATER = (
    "alembic",
    "boto3",
    "botocore",
    "dagster._daemon",
    "dagster_aws",
    "dagster_k8s",
    "matplotlib",
    "numpy",
    "obstore",
    "opentelemetry",
    "pandas",
    "psycopg",
    "pyarrow",
    "sqlalchemy",
)


@pytest.fixture(scope="module")
def loaded() -> dict[str, Any]:
    """What a new process has after it built the packaged definitions."""
    code = (
        "import json, sys; from feature_pipeline.definitions import defs;"
        " types = defs().metadata['plugin_component_types_json'].value;"
        " print(json.dumps({'modules': list(sys.modules), 'types': types}))"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        # a definition that cannot be used is an error
        env={**os.environ, "DAGSTER_IS_DEFS_VALIDATION_CLI": "1"},
    )
    document: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return document


@pytest.mark.parametrize("module", NEEDED_LATER)
def test_definitions_load_without(module: str, loaded: dict[str, Any]) -> None:
    assert module not in loaded["modules"]


def test_the_code_location_documents_its_own_component_type(loaded: dict[str, Any]) -> None:
    (namespace,) = loaded["types"]
    (component,) = namespace["componentTypes"]
    assert namespace["name"] == "feature_pipeline"
    assert component["name"] == "feature_pipeline.FeatureHook"
    assert "dataset" in component["schema"]
