"""What a pod says when the store refuses it."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from feature_pipeline.pod.signed_urls import TransferError, upload_bytes
from feature_pipeline_tests.fixtures.http import serving

BODY = b"<?xml version='1.0'?>\n<Error>\n  <Code>AccessDenied</Code>\n</Error>\n"


class Refusing(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(403, "Forbidden")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def refusing() -> Iterator[str]:
    with serving(Refusing) as url:
        yield f"{url}/key"


def test_a_refusal_of_several_lines_is_one_line(refusing: str) -> None:
    """The end of a pod's log is what an operator sees."""
    with pytest.raises(TransferError) as caught:
        upload_bytes(refusing, b"data", "result.json")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("result.json: HTTP 403 Forbidden")
    assert "<Code>AccessDenied</Code>" in message
    assert message.endswith("(attempt 1)")
