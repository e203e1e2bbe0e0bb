"""What a pod says when the store refuses it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from feature_pipeline.pod.transfers import TransferError, upload_bytes

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
    server = HTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/key"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_refusal_of_several_lines_is_one_line(refusing: str) -> None:
    """The end of a pod's log is what an operator sees."""
    with pytest.raises(TransferError) as caught:
        upload_bytes(refusing, b"data", "result.json")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("result.json: HTTP 403 Forbidden")
    assert "<Code>AccessDenied</Code>" in message
    assert message.endswith("(attempt 1)")
