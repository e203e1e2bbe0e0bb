"""Counting costs nothing, and imports nothing, unless a process is told where to report."""

import subprocess
import sys

import pytest

from feature_pipeline import measure, settings
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.instruments import TABLE_LOADED_ROWS, Instrument

LOADED = """
import sys
{block}
from feature_pipeline import measure
measure.report_counts()
heavy = ("opentelemetry", "prometheus_client", "feature_pipeline.observability")
print(sorted(name for name in sys.modules if name.startswith(heavy)), measure.is_connected())
"""
BLOCK = """
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("opentelemetry", "prometheus_client"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def loaded(block: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOADED.format(block=block)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


def test_nothing_of_it_is_imported_without_the_setting() -> None:
    modules = loaded(
        "import feature_pipeline.definitions, feature_pipeline.cli.project,"
        " feature_pipeline.pod.publish, feature_pipeline.projections.rebuild"
    )
    assert modules.stdout == "[] False\n"


def test_without_the_extra_a_process_warns_and_continues() -> None:
    modules = loaded(BLOCK, FEATURE_PIPELINE_METRICS_URL="http://127.0.0.1:9")
    assert modules.stdout.endswith("False\n")
    assert "'opentelemetry" not in modules.stdout
    assert "pip install 'feature-pipeline[otel]'" in modules.stderr


def test_a_process_ends_although_nothing_listens() -> None:
    """And with the extra it is connected: the same lines say True."""
    modules = loaded("", FEATURE_PIPELINE_METRICS_URL="http://127.0.0.1:9")
    assert modules.stdout.endswith("True\n")
    assert "opentelemetry.sdk" in modules.stdout


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:9464", "ftp://h", "http://user:hunter2@h", "http://h?token=hunter2", "http://"],
)
def test_wrong_addresses_are_named_and_not_shown(url: str) -> None:
    for name, read in (
        (settings.METRICS_URL, settings.metrics_url),
        (settings.OTLP_URL, settings.otlp_url),
    ):
        with pytest.raises(InvalidInputError) as refused:
            read({name: url})
        assert name in str(refused.value)
        assert "hunter2" not in str(refused.value)
    assert settings.metrics_url({}) is None


def test_operations_are_counted_when_they_end_well() -> None:
    measured: list[tuple[str, float, dict[str, str]]] = []

    def sink(instrument: Instrument, value: float, labels: dict[str, str]) -> None:
        measured.append((instrument.name.removeprefix("feature_pipeline."), value, labels))

    measure.connect(sink)
    try:
        with measure.timed("t", "load"):
            measure.count(TABLE_LOADED_ROWS, 2, table="t")
        with pytest.raises(ZeroDivisionError), measure.timed("t", "load"):
            raise ZeroDivisionError
    finally:
        measure.connect(None)
    names = [name for name, _, _ in measured]
    assert names == ["table.loaded.rows", "table.operations", "table.operation.time"]
    assert measured[1][1:] == (1, {"table": "t", "operation": "load"})
