"""Metrics of a pipeline in which things fail, as a real Prometheus has scraped them."""

import http.server
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.remote_origin import (
    InProcessCodeLocationOrigin,
    RemoteInstigatorOrigin,
    RemoteRepositoryOrigin,
)
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SensorInstigatorData,
    TickData,
    TickStatus,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._utils.error import SerializableErrorInfo

from feature_pipeline import measure
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import inbox
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.archive.store.s3_client import make_client
from feature_pipeline.definitions import hooks_of
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.model.instruments import INSTRUMENTS, Origin
from feature_pipeline.observability.endpoint import Endpoint, TextReader
from feature_pipeline.observability.meters import Meters
from feature_pipeline.observability.otlp import pushing_reader
from feature_pipeline.observability.state import Defined, StateReader
from feature_pipeline.orchestration.checks.integrity import INTEGRITY_CHECK
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline_tests.fixtures.dagster import DATASET, Pipeline
from feature_pipeline_tests.fixtures.http import serving
from feature_pipeline_tests.fixtures.prometheus import (
    OPENER,
    RULES,
    START_SECONDS,
    Prometheus,
)
from feature_pipeline_tests.fixtures.s3 import s3_settings
from feature_pipeline_tests.unit.test_observability_files import expressions

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.dagster]

FAILING = "import time; time.sleep(1); raise SystemExit(3)"
"""It runs long enough for its memory to be sampled, every 0.1 seconds."""
SECRET = "hunter2-is-in-a-record"
VARIABLES = {"$dataset": ".*", "$hook": ".*"}


class Flaky(http.server.BaseHTTPRequestHandler):
    """A store that fails every other time."""

    count = 0

    def do_HEAD(self) -> None:
        type(self).count += 1
        self.send_response(503 if self.count % 2 else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


def repeat_a_request() -> None:
    """One request of boto3 is answered at its second attempt."""
    with serving(Flaky) as url:
        client = make_client(
            endpoint_url=url,
            region="us-east-1",
            access_key_id="a",
            secret_access_key="b",
        )
        with suppress(FeaturePipelineError):
            S3Store(client, "bucket").check_bucket()
        client.close()


def tick_of(instance: dg.DagsterInstance, status: TickStatus) -> None:
    """A tick of the inbox sensor that took three seconds, as the daemon writes it."""
    location = InProcessCodeLocationOrigin(LoadableTargetOrigin(module_name="m"), location_name="l")
    origin = RemoteInstigatorOrigin(RemoteRepositoryOrigin(location, "r"), "inbox")
    running = InstigatorStatus.DECLARED_IN_CODE
    kind = InstigatorType.SENSOR
    state = InstigatorState(origin, kind, running, SensorInstigatorData())
    if not instance.all_instigator_state():
        instance.add_instigator_state(state)
    now = time.time()
    ids = (state.instigator_origin_id, "inbox", kind)
    error = SerializableErrorInfo(SECRET, [], None) if status is TickStatus.FAILURE else None
    tick = instance.create_tick(
        TickData(*ids, TickStatus.STARTED, now - 3, selector_id=state.selector_id)
    )
    instance.update_tick(tick.with_status(status, end_timestamp=now, error=error))


def reader_of(pipeline: Pipeline, store: Callable[[], S3Store] | None = None) -> StateReader:
    def defined() -> Defined:
        checks = pipeline.defs.resolve_asset_graph().asset_check_keys
        return Defined(hooks_of(pipeline.defs), 0, checks)

    return StateReader(
        defined, store or (lambda: pipeline.store), pipeline.database, pipeline.instance
    )


@contextmanager
def counted(url: str) -> Iterator[None]:
    """What a run worker does inside is pushed at its end."""
    reader = pushing_reader(url, is_delta=True, every_seconds=600, timeout_seconds=10)
    meters = Meters([reader], [one for one in INSTRUMENTS.values() if one.origin is Origin.WORK])
    measure.connect(meters.count)
    try:
        yield
    finally:
        measure.connect(None)
        meters.shutdown(10)


def verify(pipeline: Pipeline, check: dg.AssetCheckKey) -> None:
    """The check is executed alone, of all batches."""
    job = pipeline.defs.resolve_implicit_global_asset_job_def()
    subset = job.get_subset(asset_selection=set(), asset_check_selection={check})
    assert subset.execute_in_process(instance=pipeline.instance).success


def run_into_trouble(pipeline: Pipeline, apply: Callable[[], None]) -> None:
    """One batch is well; the others fail, wait, are refused, stale, and damaged.

    Args:
        apply: Reads the state, as it does every few seconds.
    """
    counts, failing = features_key(DATASET, "counts"), features_key(DATASET, "failing")
    table = table_key(DATASET, "counts")
    half = {"rejection_rate": {"fail": 0.4}}
    pipeline.add_hook(checks=half)
    pipeline.add_hook("failing", FAILING)
    apply()
    for key in ("b1", "b2", "b3", "b4"):
        pipeline.submit(key, {f"{key}-{SECRET}": "abc", f"{key}-none": ""})
    pipeline.tick()
    assert pipeline.run(counts, "b1").success
    assert pipeline.run(table, "b1").success
    apply()
    assert not pipeline.run(failing, "b1").success
    for key in ("b2", "b3"):
        assert pipeline.run(counts, key).success
    assert pipeline.run(table, "b2").success  # b3 lags

    # the log of b4 is damaged once it has an entry
    assert pipeline.run(counts, "b4").success
    key = layout.entry(layout.feature_log(DATASET, "counts", "b4"), 1)
    stored = pipeline.store.get(key)
    assert pipeline.store.replace(key, b"damaged", stored.info.etag)
    assert not pipeline.run(counts, "b4").success

    # a later release: what is there is of an older one
    pipeline.add_hook(checks=half, release={"version": "2"})
    verify(pipeline, dg.AssetCheckKey(counts, INTEGRITY_CHECK))

    pipeline.store.create(layout.inbox("run.refused"), b"not an entry")
    [entry] = [one for one in inbox.waiting(pipeline.store) if one.id == "run.refused"]
    inbox.quarantine(pipeline.store, entry, f"it is not JSON: {SECRET}")
    pipeline.submit("waits", {"r": "a"})
    tick_of(pipeline.instance, TickStatus.SUCCESS)
    tick_of(pipeline.instance, TickStatus.FAILURE)
    repeat_a_request()


QUIET = {
    # the reader is there and reads
    "MetricsDown",
    "ReadingStopped",
    "SourceAway",
    "DefinitionsWrong",
    # time has to pass
    "InboxWaits",
    "SensorStandsStill",
    "TableLags",
    "StoreFails",
    # one of many runs failed
    "HookFailsMostly",
}
"""Alerts whose conditions do not hold after this trouble."""


def test_every_query_shows_what_happened(
    pipeline: Pipeline, prometheus: Callable[[str], Prometheus]
) -> None:
    text = TextReader()
    meters = Meters([text.reader])
    endpoint = Endpoint("127.0.0.1", 0, text, meters)
    try:
        reader = reader_of(pipeline)

        server = prometheus(f"127.0.0.1:{endpoint.port}")

        def apply() -> None:
            reading = reader.read()
            meters.apply(reading.added, reading.state)
            # What is counted later is shown as an increase if what was before is scraped.
            server.wait_for(f"timestamp(up) > {time.time()}")

        with counted(f"http://127.0.0.1:{endpoint.port}"):
            run_into_trouble(pipeline, apply)
        apply()
        scraped = text.text(meters).decode()
        # Two scrapes from now, at whatever pace: what is shown as an increase needs both.
        server.wait_for(f"timestamp(feature_pipeline_s3_retries_total) > {time.time() + 1}")
        empty = [
            expression
            for expression in map(without_variables, expressions())
            if expression not in rules() and not shown(server, expression)
        ]
        assert empty == []
        holding = {alert for expression, alert in rules().items() if server.query(expression)}
        assert holding == set(rules().values()) - QUIET

        check_values(server)
        check_labels(scraped, pipeline)
        # A reader that begins anew comes to the same counts.
        again = TextReader()
        other = Meters([again.reader])
        fresh = reader_of(pipeline).read()
        other.apply(fresh.added, fresh.state)
        # Sums of durations depend on the order of their additions in the last digit.
        assert runs_in(again.text(other).decode()) == pytest.approx(runs_in(scraped))
    finally:
        endpoint.stop()
        meters.shutdown(5)


def shown(server: Prometheus, expression: str) -> bool:
    """Whether a panel has something to draw."""
    return any(not math.isnan(value) for _, value in server.query(expression))


def rules() -> dict[str, str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["expr"]: rule["alert"] for group in groups for rule in group["rules"]}


def without_variables(expression: str) -> str:
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    assert "$" not in expression
    return expression


def check_values(server: Prometheus) -> None:
    def by(metric: str, label: str, hook: str | None = "counts") -> dict[str, float]:
        chosen = "" if hook is None else f'{{hook="{hook}"}}'
        return {
            labels[label]: value
            for labels, value in server.query(f"feature_pipeline_{metric}{chosen}")
        }

    assert by("hook_batches", "state") == {
        "archived": 3,
        "missing": 0,
        "failed": 0,
        "stale": 3,
        "old_release": 3,
        "running": 0,
        "damaged": 1,
        "lost": 0,
    }
    failed = by("hook_batches", "state", "failing")
    assert (failed["missing"], failed["failed"]) == (4, 1)
    ran = server.query('feature_pipeline_hook_runs_total{hook="counts"} > 0')
    assert [(labels["status"], value) for labels, value in ran] == [("current", 3)]
    ran = server.query('feature_pipeline_hook_runs_total{hook="failing"} > 0')
    assert [(labels["error_type"], value) for labels, value in ran] == [("non_zero_exit", 1)]
    # begun at zero: the first failure is seen
    expression = 'sum(increase(feature_pipeline_hook_runs_total{status="failed"}[1h])) > 0'
    assert server.query(expression)
    assert by("hook_records", "outcome") == {"passed": 3, "rejected": 3, "errored": 0}
    tables = {
        labels["state"]: value
        for labels, value in server.query('feature_pipeline_table_batches{table="counts"}')
    }
    # with the damaged one nothing is known of that batch
    assert tables == {"loaded": 2, "to_load": 1, "failed": 0, "stale": 0}
    assert by("table_rows", "table", None)["counts"] == 6
    waiting = by("inbox_entries", "kind", None)
    assert (waiting["batch"] > 0, waiting["unreadable"]) == (True, 0)
    assert by("quarantine_entries", "kind", None)["unreadable"] == 1
    assert by("table_loaded_rows_total", "table", None) == {"counts": 6, "failing": 0}
    done = server.query('feature_pipeline_table_operations_total{table="counts"} > 0')
    assert {labels["operation"] for labels, _ in done} == {"load", "index", "proof", "switch"}
    assert by("sensor_tick_failures", "sensor", None) == {"inbox": 1}
    assert by("source_up", "source", None) == dict.fromkeys(
        ("definitions", "archive", "tables", "dagster", "objects"), 1
    )
    [(_, lag)] = server.query('feature_pipeline_table_lag_seconds{table="counts"}')
    assert lag > 0
    [(_, loads)] = server.query('feature_pipeline_table_load_lag_seconds_count{table="counts"}')
    assert loads == 1  # of b2: b1 was there when the reader began
    [(_, retries)] = server.query("sum(feature_pipeline_s3_retries_total)")
    assert retries >= 1


def check_labels(scraped: str, pipeline: Pipeline) -> None:
    """Nothing that a record says, and no batch, is in any of them."""
    assert SECRET not in scraped
    values = set(re.findall(r'="([^"]*)"', scraped))
    assert not values & {"b1", "b2", "b3", "b4", "waits", "run.refused"}
    with pipeline.database.connect("test") as connection:
        assert connection.info.password not in scraped
    assert pipeline.archive_uri not in scraped
    known = {name.replace(".", "_") for one in INSTRUMENTS.values() for name in one.labels} | {"le"}
    assert set(re.findall(r'([a-z_]+)="', scraped)) <= known


def runs_in(scraped: str) -> dict[str, float]:
    """Read the series of hook runs that are not zero, by name and labels."""
    series = (line.rsplit(" ", 1) for line in scraped.splitlines())
    return {
        name: float(value)
        for name, value in series
        if name.startswith("feature_pipeline_hook_run") and float(value) != 0
    }


def test_a_source_that_is_away_is_not_empty(pipeline: Pipeline) -> None:
    """Its metrics are left out, the others stay, and the next reading finds it again."""
    pipeline.add_hook()
    pipeline.submit("b1", {"r1": "abc"})
    pipeline.tick()
    assert pipeline.run(features_key(DATASET, "counts"), "b1").success
    assert pipeline.run(table_key(DATASET, "counts"), "b1").success
    reader = reader_of(pipeline)
    # where nothing listens
    there, reader.database = reader.database, Database("postgresql://u:hunter2@127.0.0.1:9/none")
    states = values_of(reader)
    assert states["source.up", "tables"] == 0
    assert states["source.up", "archive"] == 1
    assert states["hook.batches", "archived"] == 1
    assert not [name for name, _ in states if name.startswith("table.")]
    reader.database = there

    def away() -> S3Store:
        raise FeaturePipelineError("away")

    store, reader.store = reader.store, away
    states = values_of(reader)
    assert (states["source.up", "archive"], states["source.up", "tables"]) == (0, 1)
    assert not [name for name, _ in states if name.startswith(("hook.", "inbox.", "archive."))]
    reader.store = store
    states = values_of(reader)
    assert states["table.batches", "loaded"] == states["source.up", "archive"] == 1


PROGRAM = [sys.executable, "-W", "ignore", "-m", "feature_pipeline.cli.app"]


def test_the_command_serves_and_a_short_process_loses_nothing(
    s3_address: S3Address, s3_store: S3Store, s3_prefix: str, database_url: str, tmp_path: Path
) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        **s3_settings(s3_address, s3_prefix),
        "FEATURE_PIPELINE_DATABASE_URL": database_url,
        # neither of them is to be used on this machine
        "HTTP_PROXY": "http://127.0.0.1:9",
        "OTEL_RESOURCE_ATTRIBUTES": f"secret={SECRET}",
    }
    s3_store.create(layout.inbox("run.waits"), b"not an entry")
    with subprocess.Popen(
        [*PROGRAM, "metrics", "--port", "0", "--every", "1"],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1].removesuffix("/metrics")
            text = scraped_with(url, "feature_pipeline_inbox_entries")
            assert 'feature_pipeline_inbox_entries{kind="unreadable"} 1.0' in text
            assert 'source_up{source="dagster"}' not in text
            assert "feature_pipeline_s3_requests_total" not in text
            done = subprocess.run(
                [*PROGRAM, "quarantine"],
                env={**environment, "FEATURE_PIPELINE_METRICS_URL": url},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                check=False,
            )
            assert (done.returncode, done.stderr) == (0, "")
            text = scraped_with(url, "feature_pipeline_s3_requests_total")
            matches = re.findall(r's3_requests_total.*code="(\d+)",operation="(\w+)"} (\S+)', text)
            assert {name for _, name, _ in matches} >= {"ListObjectsV2", "HeadBucket"}
            assert SECRET not in text
            assert s3_address.secret_access_key not in text
        finally:
            process.terminate()
        assert process.wait(30) == 0


def scraped_with(url: str, name: str) -> str:
    """The series, once this one is among them."""
    end = time.monotonic() + START_SECONDS
    while True:
        with OPENER.open(f"{url}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
        if f"\n{name}" in text:
            return text
        assert time.monotonic() < end, text
        time.sleep(0.1)


def values_of(reader: StateReader) -> dict[tuple[str, str], float]:
    """By name and the last label's value."""
    values = {}
    for one in reader.read().state:
        name = one.instrument.name.removeprefix("feature_pipeline.")
        values[name, [*one.labels.values(), ""][len(one.labels) - 1]] = one.value
    return values
