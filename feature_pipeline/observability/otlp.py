"""OTLP over HTTP, as this project speaks it: sending to an address, and taking counts."""

import math
import zlib
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

import requests
from google.protobuf.message import DecodeError
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsPartialSuccess,
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AGGREGATION_TEMPORALITY_DELTA,
    Metric,
    NumberDataPoint,
)
from opentelemetry.sdk.metrics import Counter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    PeriodicExportingMetricReader,
)

from feature_pipeline import settings
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.instruments import INSTRUMENTS, Origin
from feature_pipeline.observability.meters import CARDINALITY
from feature_pipeline.observability.samples import Sample

PATH: Final = "/v1/metrics"
MEDIA_TYPE: Final = "application/x-protobuf"
MOST_BYTES: Final = 4 << 20
_LONGEST_LABEL: Final = 200


def pushing_reader(
    url: str, *, is_delta: bool, every_seconds: float, timeout_seconds: float
) -> PeriodicExportingMetricReader:
    """Return a reader that sends everything to an OTLP endpoint.

    Args:
        url: Without the path of metrics.
        is_delta: Send what was counted since the last time, for an endpoint that adds up what many
            processes count.
        every_seconds: Between two sendings; infinite: only when it is flushed.
        timeout_seconds: For one sending, its repetitions included.
    """
    session = requests.Session()
    # Proxies are the project's own rule: a server on this machine is reached directly.
    session.trust_env = False
    proxy = settings.proxy_for(url)
    if proxy is not None:
        session.proxies = {urlsplit(url).scheme: proxy}
    session.verify = settings.ca_bundle() or True
    exporter = OTLPMetricExporter(
        endpoint=url.rstrip("/") + PATH,
        timeout=timeout_seconds,
        session=session,
        preferred_temporality={Counter: AggregationTemporality.DELTA} if is_delta else None,
    )
    return PeriodicExportingMetricReader(
        exporter,
        every_seconds * 1000 if math.isfinite(every_seconds) else math.inf,
        timeout_seconds * 1000,
        cardinality_limits=CARDINALITY,
    )


def decode_counts(body: bytes, encoding: str) -> tuple[list[Sample], list[str]]:
    """Return the counts in a request, and why others in it are refused.

    Only counters that processes report of their work are taken, with their own labels and as what
    was counted since the last request: any process that reaches the endpoint can send anything.

    Args:
        body: Of the request.
        encoding: Its Content-Encoding.

    Raises:
        InvalidInputError: It is not an OTLP request.
    """
    try:
        request = ExportMetricsServiceRequest.FromString(_decompressed(body, encoding))
    except (DecodeError, zlib.error) as error:
        raise InvalidInputError(f"the body is not an OTLP request: {error}") from error
    counts: list[Sample] = []
    refused: list[str] = []
    for metric in _metrics(request):
        instrument = INSTRUMENTS.get(metric.name)
        if instrument is None or instrument.origin is not Origin.WORK:
            refused.append(f"{metric.name[:_LONGEST_LABEL]!r} is not a metric that is accepted")
            continue
        if metric.sum.aggregation_temporality != AGGREGATION_TEMPORALITY_DELTA:
            refused.append(f"{metric.name} is not a sum with delta temporality")
            continue
        for point in metric.sum.data_points:
            try:
                counts.append(Sample(instrument, _value(point), _labels(point)))
            except InvalidInputError as error:
                refused.append(str(error))
    return counts, refused


def answer(refused: list[str], shown: int) -> bytes:
    """Return the answer to a request of which these were refused."""
    partial = ExportMetricsPartialSuccess(
        rejected_data_points=len(refused), error_message="; ".join(refused[:shown])
    )
    response = ExportMetricsServiceResponse(partial_success=partial if refused else None)
    encoded: bytes = response.SerializeToString()
    return encoded


def _metrics(request: ExportMetricsServiceRequest) -> Iterator[Metric]:
    for of_resource in request.resource_metrics:
        for of_scope in of_resource.scope_metrics:
            yield from of_scope.metrics


def _value(point: NumberDataPoint) -> float:
    value: float = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
    if not math.isfinite(value) or value < 0:
        raise InvalidInputError(f"a counter is increased by {value}")
    return value


def _labels(point: NumberDataPoint) -> dict[str, str]:
    return {pair.key: _label(pair) for pair in point.attributes}


def _label(pair: KeyValue) -> str:
    text: str = pair.value.string_value
    if not text or len(text) > _LONGEST_LABEL or not text.isprintable():
        raise InvalidInputError(f"label {pair.key[:_LONGEST_LABEL]!r} is not a short text")
    return text


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "deflate"}:
        raise InvalidInputError(f"Content-Encoding {encoding!r}: send gzip, deflate or none")
    stream = zlib.decompressobj(wbits=47)
    data = stream.decompress(body, MOST_BYTES)
    if stream.unconsumed_tail or not stream.eof:
        raise InvalidInputError(f"the body is cut short, or has more than {MOST_BYTES} bytes")
    return data
