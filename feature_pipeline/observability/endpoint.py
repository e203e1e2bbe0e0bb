"""The text endpoint that Prometheus reads, and where processes leave their counts."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from prometheus_client import CollectorRegistry, generate_latest

from feature_pipeline.errors import InvalidInputError, StoreUnavailableError
from feature_pipeline.observability import otlp
from feature_pipeline.observability.meters import CARDINALITY, Meters

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_TIMEOUT_SECONDS: Final = 10
_SHOWN: Final = 3


class TextReader:
    """Renders all instruments as Prometheus reads them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self.reader = PrometheusMetricReader(
            registry=self._registry,
            scope_info_enabled=False,
            disable_target_info=True,
            cardinality_limits=CARDINALITY,
        )

    def text(self, meters: Meters) -> bytes:
        """Return the series, all of one time."""
        with meters.lock:
            text: bytes = generate_latest(self._registry)
        return text


class Endpoint:
    """An HTTP server in threads of its own. Ended by `stop`.

    `GET /metrics` is the text for Prometheus; `POST /v1/metrics` takes counts by OTLP.

    Raises:
        StoreUnavailableError: The address is taken, or does not belong to this machine.
    """

    def __init__(self, host: str, port: int, text: TextReader, meters: Meters) -> None:
        handler = type("Handler", (_Handler,), {"source": text, "meters": meters})
        try:
            self._server = ThreadingHTTPServer((host, port), handler)
        except OSError as error:
            raise StoreUnavailableError(
                f"metrics cannot be served at {host}:{port}: {error}; choose another with --host"
                " and --port"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def stop(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    source: TextReader
    meters: Meters
    protocol_version = "HTTP/1.1"
    server_version = "feature-pipeline"
    sys_version = ""
    timeout = _TIMEOUT_SECONDS

    def do_GET(self) -> None:
        """Answer Prometheus."""
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, b"GET /metrics, POST /v1/metrics\n")
            return
        self._answer(200, self.source.text(self.meters), TEXT)

    def do_POST(self) -> None:
        """Take counts."""
        if self.path != otlp.PATH:
            self._answer(404, b"GET /metrics, POST /v1/metrics\n")
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > otlp.MOST_BYTES:
            self.close_connection = True
            self._answer(413, f"at most {otlp.MOST_BYTES} bytes\n".encode())
            return
        body = self.rfile.read(int(length))
        if self.headers.get("Content-Type", "").partition(";")[0] != otlp.MEDIA_TYPE:
            self._answer(415, f"send {otlp.MEDIA_TYPE}\n".encode())
            return
        try:
            counts, refused = otlp.decode_counts(body, self.headers.get("Content-Encoding", ""))
        except InvalidInputError as error:
            self._answer(400, f"{error}\n".encode())
            return
        with self.meters.lock:
            for one in counts:
                self.meters.count(one.instrument, one.value, dict(one.labels))
        self._answer(200, otlp.answer(refused, _SHOWN), otlp.MEDIA_TYPE)

    def _answer(self, status: int, body: bytes, media_type: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a request every few seconds."""
