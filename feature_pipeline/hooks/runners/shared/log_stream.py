"""A hook's standard output and error: bytes into a file, lines to the monitor.

A hook that prints without end fills neither a disk (`hooks.runners.shared.log_file`) nor Dagster's
captured output, since the number of shown bytes is limited.
"""

import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from feature_pipeline.hooks.failure import LOG_TAIL_LINES
from feature_pipeline.hooks.runners.shared.log_file import CappedLog
from feature_pipeline.model.text.printable import printable

SHOWN_BYTES: Final = 16 << 20
"""How much of a log is shown."""
MAX_LINE_BYTES: Final = 4096
_CHUNK_BYTES: Final = 1 << 16
_TAIL_LINE_CHARACTERS: Final = 500


class LogStream:
    """Copies a pipe to `file` as it comes, and shows its lines, up to `SHOWN_BYTES` of them.

    A shown line has no line end, is valid text whatever the bytes were, with escaped control
    characters, and is cut off after `MAX_LINE_BYTES`. Of a line that overwrites itself (progress
    bars) the last state is shown.

    Args:
        file: Receives the bytes, unchanged.
        show: Receives the lines.
    """

    def __init__(self, file: CappedLog, show: Callable[[str], None]) -> None:
        self._file = file
        self._show = show
        self._shown_bytes = 0
        self._line = bytearray()
        self._cut_bytes = 0
        self._tail: deque[str] = deque(maxlen=LOG_TAIL_LINES)

    def pump(self, descriptor: int, timeout_seconds: float) -> bool:
        """Take what can be read without blocking; False at the end of the pipe.

        Waits for at most `timeout_seconds` for the first byte, also at the end.
        """
        if not select.select([descriptor], [], [], timeout_seconds)[0]:
            return True
        chunk = os.read(descriptor, _CHUNK_BYTES)
        if not chunk:
            # an ended pipe is always readable: without the pause a caller would spin
            time.sleep(timeout_seconds)
            return False
        self.feed(chunk)
        return True

    def drain(self, descriptor: int, timeout_seconds: float) -> None:
        """Take the rest up to the pipe's end, or what arrives in time if it stays open."""
        end = time.monotonic() + timeout_seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([descriptor], [], [], left)[0]:
                return
            if not (chunk := os.read(descriptor, _CHUNK_BYTES)):
                return
            self.feed(chunk)

    def note(self, text: str) -> None:
        """Add a line of our own to the log."""
        self.finish()
        for line in f"[feature_pipeline] {text}".split("\n"):
            self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
            self._tail.append(printable(line))
            self._show(printable(line))
        self._file.flush()

    def finish(self) -> None:
        """End the last line."""
        if self._line:
            self._file.write(b"\n")
            self._end_line()
        self._file.flush()

    def tail(self) -> tuple[str, ...]:
        """Return the last lines, oldest first, each shortened."""
        return tuple(line[:_TAIL_LINE_CHARACTERS] for line in self._tail)

    def feed(self, chunk: bytes) -> None:
        """Take bytes that the caller has read."""
        self._file.write(chunk)
        self._file.flush()
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            self._extend(part)
            self._end_line()
        self._extend(rest)

    def _extend(self, part: bytes) -> None:
        room = MAX_LINE_BYTES - len(self._line)
        if b"\r" in part.rstrip(b"\r"):
            self._line.clear()
            self._cut_bytes, room = 0, MAX_LINE_BYTES
            part = part.rstrip(b"\r").rpartition(b"\r")[2]
        self._line += part[:room]
        self._cut_bytes += max(0, len(part) - room)

    def _end_line(self) -> None:
        # What is shown is not obeyed: a terminal would take colours, titles and worse from a hook.
        line = self._line.rstrip(b"\r").decode("utf-8", "replace").replace("\x00", "\ufffd")
        text = printable(line)
        if self._cut_bytes:
            text += f"... ({self._cut_bytes} more bytes)"
        self._line.clear()
        self._cut_bytes = 0
        self._tail.append(text)
        was_shown = self._shown_bytes <= SHOWN_BYTES
        self._shown_bytes += len(text) + 1
        if self._shown_bytes <= SHOWN_BYTES:
            self._show(text)
        elif was_shown:
            self._show("[feature_pipeline] the log continues, but the rest is not shown here")
