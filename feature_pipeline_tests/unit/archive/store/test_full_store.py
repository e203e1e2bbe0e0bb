"""A server whose disk is full: it refuses every write with a server error."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest

from feature_pipeline.archive import blobs
from feature_pipeline.archive.store.base import create_or_read
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.archive.store.s3_client import make_client
from feature_pipeline.errors import OutcomeUnknownError
from feature_pipeline.model.digest import Digest
from feature_pipeline_tests.fixtures.http import serving

ANSWER = (
    b"<?xml version='1.0'?><Error><Code>InternalError</Code>"
    b"<Message>We encountered an internal error, please try again.</Message></Error>"
)


class Full(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    puts: ClassVar[list[str]]

    def do_PUT(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        self.rfile.read(int(self.headers["Content-Length"]))
        self.puts.append(self.path)
        self.answer(500, ANSWER)

    def do_GET(self) -> None:
        missing = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>"
        self.answer(404, missing)

    def do_HEAD(self) -> None:
        self.answer(404, b"")

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def full() -> Iterator[tuple[S3Store, list[str]]]:
    class Server(Full):
        puts: ClassVar[list[str]] = []

    with serving(Server) as url:
        client = make_client(
            endpoint_url=url,
            region="us-east-1",
            access_key_id="key",
            secret_access_key="secret",
        )
        yield S3Store(client, "archive"), Server.puts


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a publisher would have waited between its attempts."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def test_a_write_is_tried_four_times_and_no_longer_than_seconds(
    full: tuple[S3Store, list[str]], pauses: list[float]
) -> None:
    store, puts = full
    with pytest.raises(OutcomeUnknownError, match="a store with a full disk") as caught:
        blobs.put_blob(store, b"an answer")
    assert len(puts) == 4
    assert sum(pauses) < 5
    assert str(caught.value).count("\n") == 0


def test_so_is_a_file(full: tuple[S3Store, list[str]], pauses: list[float], tmp_path: Path) -> None:
    store, puts = full
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_000)
    digest = Digest.of(path.read_bytes())
    with pytest.raises(OutcomeUnknownError, match="a store with a full disk"):
        store.create_file("file", path, digest, 100_000)
    assert len(puts) == 4
    assert sum(pauses) < 5


def test_so_is_an_entry_of_a_log(full: tuple[S3Store, list[str]], pauses: list[float]) -> None:
    store, puts = full
    with pytest.raises(OutcomeUnknownError, match="a store with a full disk"):
        create_or_read(store, "log/releases/structures/pockets/0000000001", b"{}")
    assert len(puts) == 4
    assert sum(pauses) < 5
