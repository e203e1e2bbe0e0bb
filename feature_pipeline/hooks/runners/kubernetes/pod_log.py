"""The output of a pod's container, followed over broken connections and replaced pods."""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from feature_pipeline.hooks.runners.shared import log_file
from feature_pipeline.hooks.runners.shared.log_stream import LogStream

_CHUNK_BYTES: Final = 1 << 14
_JOIN_SECONDS: Final = 2.0
_DRAIN_SECONDS: Final = 3.0


class PodLog:
    """Threads copy the API's streams into a pipe; the caller pumps the pipe into a log.

    Args:
        open_stream: Follows a container of a pod from its beginning: `(pod, container)`.
        container: Name of the container.
    """

    def __init__(self, open_stream: Callable[[str, str], Any], container: str) -> None:
        self._open_stream = open_stream
        self._container = container
        self._reader, self._writer = os.pipe()
        self._thread: threading.Thread | None = None
        self._answer: Any = None
        self._pod: str | None = None
        self._copied_bytes = 0
        self._is_ended = False
        self._is_closed = False

    def follow(self, uid: str, pod: str) -> None:
        """Follow this pod unless it is being followed, from where an earlier stream broke off."""
        if self._thread is not None and self._thread.is_alive():
            return
        if uid != self._pod:
            # another pod begins the hook again
            self._pod, self._copied_bytes, self._is_ended = uid, 0, False
        if self._is_ended:
            return
        self._thread = threading.Thread(target=self._copy, args=(pod,), name="pod-log", daemon=True)
        self._thread.start()

    def _copy(self, pod: str) -> None:
        # a stream ends in many ways, all of which mean: look again whether the container is running
        with suppress(Exception):
            answer = self._answer = self._open_stream(pod, self._container)
            skip = self._copied_bytes
            for chunk in answer.stream(_CHUNK_BYTES):
                new = chunk[min(skip, len(chunk)) :]
                skip -= len(chunk) - len(new)
                os.write(self._writer, new)
                self._copied_bytes += len(new)
            self._is_ended = True

    def pump(self, log: LogStream, timeout_seconds: float) -> None:
        """Hand on the available output, waiting for at most `timeout_seconds`."""
        log.pump(self._reader, timeout_seconds)

    def drain(self, log: LogStream) -> None:
        """Hand on the rest of a container that has ended."""
        thread = self._thread
        if thread is None:
            return
        # the pipe is emptied while the thread fills it
        waiting = _DRAIN_SECONDS
        while thread.is_alive() and waiting > 0:
            log.pump(self._reader, 0.05)
            waiting -= 0.05
        log.drain(self._reader, 0.05)

    def show_rest(self, log: LogStream, whole: bytes) -> None:
        """Hand on the part of the published log that has not been followed."""
        if self._copied_bytes > log_file.LOG_HEAD_BYTES:
            return  # behind its beginning, what was kept is not what was printed
        rest = whole[self._copied_bytes :]
        if not rest:
            return
        writer = threading.Thread(target=self._write, args=(rest,), daemon=True)
        writer.start()
        while writer.is_alive():
            log.pump(self._reader, 0.05)
        log.drain(self._reader, 0.05)

    def _write(self, data: bytes) -> None:
        with suppress(OSError):
            view = memoryview(data)
            while view:
                view = view[os.write(self._writer, view) :]

    def close(self) -> None:
        """Stop following."""
        if self._is_closed:
            return
        self._is_closed = True
        os.close(self._reader)
        if self._answer is not None:
            with suppress(Exception):
                # closing it would wait for the thread that reads it
                self._answer.shutdown()
        if self._thread is not None:
            self._thread.join(_JOIN_SECONDS)
            if self._thread.is_alive():
                # it may still write, and the number may be another process's by then
                return
        os.close(self._writer)
