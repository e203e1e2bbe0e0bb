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


def _evaluate(code: str) -> Any:
    """Evaluate code in a new process; the last line that it prints is JSON."""
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        # a definition that cannot be used is an error
        env={**os.environ, "DAGSTER_IS_DEFS_VALIDATION_CLI": "1"},
    )
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    """Modules that are imported once the packaged definitions are built."""
    code = (
        "import json, sys; from feature_pipeline.definitions import defs; defs();"
        " print(json.dumps(list(sys.modules)))"
    )
    return frozenset(_evaluate(code))


@pytest.mark.parametrize("module", NEEDED_LATER)
def test_definitions_load_without(module: str, loaded: frozenset[str]) -> None:
    assert module not in loaded


def test_the_code_location_documents_its_own_component_type() -> None:
    code = (
        "import json; from feature_pipeline.definitions import defs;"
        " print(json.dumps(defs().metadata['plugin_component_types_json'].value))"
    )
    (namespace,) = _evaluate(code)
    (component,) = namespace["componentTypes"]
    assert namespace["name"] == "feature_pipeline"
    assert component["name"] == "feature_pipeline.FeatureHook"
    assert "dataset" in component["schema"]
