"""The file of a hook's log: of a long log, only the beginning and the end are stored.

The pod's wrapper (`pod/wrapper.c`) does the same, with the same text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

LOG_HEAD_BYTES: Final = 48 << 20
LOG_TAIL_BYTES: Final = 16 << 20
"""Stored bytes of a long log's beginning and end; the end is held in memory."""


def left_out(size_bytes: int) -> bytes:
    """Return the line that replaces the omitted part of a log."""
    return f"[feature_pipeline] {size_bytes} bytes of the log are left out here\n".encode()


class CappedLog:
    """A log's file: all of a short log; of a longer one the first and last bytes.

    Args:
        file: Receives the stored part. The end of a long log is written by `end`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._room = LOG_HEAD_BYTES
        self._end = bytearray()
        self._left_out = 0

    def write(self, data: bytes) -> None:
        """Take bytes; discard those between the beginning and the end."""
        head = data[: self._room]
        self._file.write(head)
        self._room -= len(head)
        self._end += data[len(head) :]
        if (excess := len(self._end) - LOG_TAIL_BYTES) > 0:
            del self._end[:excess]
            self._left_out += excess

    def flush(self) -> None:
        """Make the file's content visible to readers."""
        self._file.flush()

    def end(self) -> None:
        """Write the end of the log, starting at the beginning of a line if it has one."""
        if self._left_out:
            cut = self._end.find(b"\n") + 1
            self._file.write(b"\n" + left_out(self._left_out + cut))
            del self._end[:cut]
        self._file.write(self._end)
        self._file.flush()


@contextmanager
def open_log(path: Path) -> Iterator[CappedLog]:
    """Open a new log at `path`; it is complete when the block is left."""
    with path.open("wb") as file:
        log = CappedLog(file)
        try:
            yield log
        finally:
            log.end()
