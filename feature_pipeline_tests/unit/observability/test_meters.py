"""What readers of the endpoint get, and what they can send."""

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

from feature_pipeline.errors import InvalidInputError, StoreUnavailableError
from feature_pipeline.model.instruments import (
    HOOK_BATCHES,
    HOOK_RUNS,
    INSTRUMENTS,
    S3_REQUESTS,
    TABLE_LOADED_ROWS,
    Origin,
)
from feature_pipeline.observability.endpoint import Endpoint, TextReader
from feature_pipeline.observability.meters import Meters
from feature_pipeline.observability.otlp import MOST_BYTES, decode_counts, pushing_reader
from feature_pipeline.observability.samples import Sample, sample

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def text() -> TextReader:
    return TextReader()


@pytest.fixture
def meters(text: TextReader) -> Iterator[Meters]:
    meters = Meters([text.reader])
    yield meters
    meters.shutdown(1)


@pytest.fixture
def endpoint(text: TextReader, meters: Meters) -> Iterator[str]:
    served = Endpoint("127.0.0.1", 0, text, meters)
    yield f"http://127.0.0.1:{served.port}"
    served.stop()


def series(text: bytes) -> dict[str, float]:
    lines = [line for line in text.decode().splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def missing(count: int, hook: str = "pockets") -> Sample:
    return sample(HOOK_BATCHES, count, dataset="s", hook=hook, state="missing")


def ran(release: str = "0") -> Sample:
    labels = {"dataset": "s", "hook": "pockets", "release": release, "status": "current"}
    return Sample(HOOK_RUNS, 1, labels)


def test_names_and_units_are_prometheus_own(text: TextReader, meters: Meters) -> None:
    meters.apply([ran(), ran()], [missing(3)])
    runs = 'dataset="s",hook="pockets",release="0",status="current"'
    assert series(text.text(meters)) == {
        'feature_pipeline_hook_batches{dataset="s",hook="pockets",state="missing"}': 3,
        f"feature_pipeline_hook_runs_total{{{runs}}}": 2,
    }


def test_what_is_not_read_any_more_is_not_shown(text: TextReader, meters: Meters) -> None:
    """A hook that is gone, or a source that is away, must not look as it was."""
    meters.apply([], [missing(3), missing(1, "gone")])
    text.text(meters)
    meters.apply([ran()], [missing(2)])
    shown = series(text.text(meters))
    assert [name for name in shown if "gone" in name] == []
    assert sorted(shown.values()) == [1.0, 2.0]


def test_values_have_the_labels_of_their_instrument(meters: Meters) -> None:
    with pytest.raises(
        InvalidInputError, match=r"hook\.batches has the labels dataset, hook, state"
    ):
        sample(HOOK_BATCHES, 1, dataset="s", hook="pockets", batch="b1")
    with pytest.raises(InvalidInputError, match="dataset, hook, state"):
        meters.count(HOOK_BATCHES, 1, {"dataset": "s"})


def test_the_instruments_are_named_by_the_conventions() -> None:
    for one in INSTRUMENTS.values():
        assert one.name.startswith("feature_pipeline.")
        assert one.name == one.name.lower()
        assert not one.name.endswith(("total", "seconds", "bytes"))
        # "1" would be a ratio
        assert one.unit in {"s", "By"} or one.unit.startswith("{"), one.name
        assert one.description.endswith("."), one.name
        forbidden = {"batch", "record", "run", "id", "url", "reason", "path"}
        assert not forbidden & set(one.labels), one.name


def post(url: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(
        url, body, {"Content-Type": "application/x-protobuf", **headers}
    )
    try:
        with OPENER.open(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_counts_of_processes_are_added_up(endpoint: str) -> None:
    """Each process sends what it counted since its last sending, and ends."""
    work = [one for one in INSTRUMENTS.values() if one.origin is Origin.WORK]
    for rows in (2, 3):
        reader = pushing_reader(endpoint, is_delta=True, every_seconds=60, timeout_seconds=5)
        process = Meters([reader], work)
        process.count(TABLE_LOADED_ROWS, rows, {"table": "pockets"})
        process.flush(5)
        process.count(TABLE_LOADED_ROWS, 10, {"table": "pockets"})
        process.count(
            S3_REQUESTS, 1, {"operation": "GetObject", "http.response.status_code": "none"}
        )
        process.shutdown(5)
    with OPENER.open(f"{endpoint}/metrics", timeout=10) as answer:
        samples = series(answer.read())
    assert samples['feature_pipeline_table_loaded_rows_total{table="pockets"}'] == 25
    name = (
        'feature_pipeline_s3_requests_total{http_response_status_code="none",operation="GetObject"}'
    )
    assert samples[name] == 2


def request(name: str, labels: dict[str, str], value: float, temporality: int = 1) -> bytes:
    body = ExportMetricsServiceRequest()
    metric = body.resource_metrics.add().scope_metrics.add().metrics.add()
    metric.name = name
    metric.sum.aggregation_temporality = temporality
    point = metric.sum.data_points.add()
    point.as_double = value
    for key, text in labels.items():
        attribute = point.attributes.add()
        attribute.key = key
        attribute.value.string_value = text
    return body.SerializeToString()


ROWS = TABLE_LOADED_ROWS.name


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (request("process.cpu.time", {}, 1), "is not a metric that is accepted"),
        (request(HOOK_RUNS.name, dict(ran().labels), 1), "is not a metric that is accepted"),
        (request(ROWS, {"table": "t"}, 1, temporality=2), "delta"),
        (request(ROWS, {"table": "t", "record": "1ubi"}, 1), "has the labels table"),
        (request(ROWS, {"table": "t" * 201}, 1), "is not a short text"),
        (request(ROWS, {"table": "t\n"}, 1), "is not a short text"),
        (request(ROWS, {"table": "t"}, -1), "increased by -1"),
        (request(ROWS, {"table": "t"}, float("nan")), "increased by nan"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_nothing_else_is_taken(endpoint: str, body: bytes, why: str) -> None:
    status, answer = post(f"{endpoint}/v1/metrics", body)
    partial = ExportMetricsServiceResponse.FromString(answer).partial_success
    assert (status, partial.rejected_data_points) == (200, 1)
    assert why in partial.error_message
    with OPENER.open(f"{endpoint}/metrics", timeout=10) as text:
        assert series(text.read()) == {}


def test_requests_that_are_none(endpoint: str) -> None:
    url = f"{endpoint}/v1/metrics"
    assert post(url, b"\xff\xff")[0] == 400
    assert post(url, b"x" * 10, **{"Content-Encoding": "gzip"})[0] == 400
    assert post(url, b"x" * 10, **{"Content-Encoding": "br"})[0] == 400
    assert post(url, b"{}", **{"Content-Type": "application/json"})[0] == 415
    assert post(f"{endpoint}/other", b"")[0] == 404
    with pytest.raises(urllib.error.HTTPError, match="404"):
        OPENER.open(f"{endpoint}/other", timeout=10)


def test_a_body_that_unfolds_is_cut() -> None:
    import gzip

    with pytest.raises(InvalidInputError, match="more than"):
        decode_counts(gzip.compress(bytes(MOST_BYTES + 1)), "gzip")


def test_an_address_that_is_taken(endpoint: str, text: TextReader, meters: Meters) -> None:
    port = int(endpoint.rpartition(":")[2])
    with pytest.raises(StoreUnavailableError, match=f"cannot be served at 127.0.0.1:{port}"):
        Endpoint("127.0.0.1", port, text, meters)
