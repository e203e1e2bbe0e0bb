"""A container's output as a pipe that can be waited on with a time-out."""

import os
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

from feature_pipeline.hooks.runners.shared.log_stream import LogStream

_JOIN_SECONDS: Final = 2.0
_MAX_READ_BYTES: Final = 1 << 16


class ContainerLog:
    """A thread copies the engine's stream into a pipe; the caller pumps the pipe into a log.

    The stream has no time-out of its own, and a hook may print nothing for hours.
    """

    def __init__(self, api: Any, container: str) -> None:
        self._api = api
        self._container = container
        self._reader, self._writer = os.pipe()
        self._thread: threading.Thread | None = None
        self._stream: Any = None

    def attach(self) -> None:
        """Take every byte printed from now on. The container may be started."""
        from docker.utils.socket import frames_iter

        parameters = {"stdout": 1, "stderr": 1, "stream": 1, "logs": 0}
        # a file over a local socket, or the socket itself
        self._stream = self._api.attach_socket(self._container, params=parameters)
        getattr(self._stream, "_sock", self._stream).settimeout(None)
        self._copy(whole_lines(frames_iter(self._stream, tty=False)))

    def replay(self) -> None:
        """Take the output since the start, and what follows.

        It is the engine's copy: Docker stores text, so bytes that are not text come as U+FFFD.
        """
        self._copy(
            self._api.logs(self._container, stdout=True, stderr=True, stream=True, follow=True)
        )

    def _copy(self, chunks: Iterable[bytes]) -> None:
        self._thread = threading.Thread(
            target=_copy, args=(iter(chunks), self._writer), name="container-log", daemon=True
        )
        self._thread.start()

    def pump(self, log: LogStream, timeout_seconds: float) -> bool:
        """Forward the available output, waiting for at most `timeout_seconds`; False at the end."""
        return log.pump(self._reader, timeout_seconds)

    def drain(self, log: LogStream, timeout_seconds: float) -> None:
        """Hand on the rest."""
        log.drain(self._reader, timeout_seconds)

    def close(self) -> None:
        """Stop reading."""
        os.close(self._reader)
        raw = getattr(self._stream, "_sock", self._stream)
        if raw is not None:
            with suppress(OSError):
                raw.shutdown(socket.SHUT_RDWR)
        if self._thread is None:
            os.close(self._writer)
        else:
            # it ends with its stream; one that replays a silent container ends with that
            self._thread.join(_JOIN_SECONDS)
        # the socket stays open until the file over it is closed as well
        for opened in (raw, self._stream):
            if opened is not None:
                with suppress(OSError):
                    opened.close()


def whole_lines(frames: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """Return the bytes of several streams without breaking any line of another.

    Standard output and error are two pipes, which an engine reads in turns.
    """
    begun: dict[int, bytes] = {}
    for stream, data in frames:
        pending = begun.get(stream, b"") + data
        end = len(pending) if len(pending) > _MAX_READ_BYTES else pending.rfind(b"\n") + 1
        begun[stream] = pending[end:]
        if end:
            yield pending[:end]
    yield from filter(None, begun.values())


def _copy(chunks: Iterator[bytes], writer: int) -> None:
    # the other end may be closed, and an engine's stream ends in many ways: all mean its end, and
    # the container's state is asked for elsewhere
    with open(writer, "wb", buffering=0) as pipe, suppress(Exception):
        for chunk in chunks:
            pipe.write(chunk)
