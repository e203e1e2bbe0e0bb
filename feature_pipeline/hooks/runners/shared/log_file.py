"""The file that a hook's log is kept in: of a log without end, the beginning and the end.

The pod's wrapper (`pod/wrapper.c`) keeps the same of it, and says so in the same words.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

LOG_HEAD_BYTES: Final = 48 << 20
LOG_TAIL_BYTES: Final = 16 << 20
"""What is kept of a log, from its beginning and from its end; the end is held in memory."""


def left_out(size_bytes: int) -> bytes:
    """The line that stands in a log for what was left out of it."""
    return f"[feature_pipeline] {size_bytes} bytes of the log are left out here\n".encode()


class CappedLog:
    """A log's file: all of a short log; of a longer one its first and its last bytes.

    Args:
        file: Takes what is kept. The end of a long log comes with `end`.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._room = LOG_HEAD_BYTES
        self._end = bytearray()
        self._left_out = 0

    def write(self, data: bytes) -> None:
        """Take bytes, and forget those between the beginning and the end."""
        head = data[: self._room]
        self._file.write(head)
        self._room -= len(head)
        self._end += data[len(head) :]
        if (excess := len(self._end) - LOG_TAIL_BYTES) > 0:
            del self._end[:excess]
            self._left_out += excess

    def flush(self) -> None:
        """What is in the file can be read by others."""
        self._file.flush()

    def end(self) -> None:
        """The end is in the file as well, from the beginning of a line if there is one in it."""
        if self._left_out:
            cut = self._end.find(b"\n") + 1
            self._file.write(b"\n" + left_out(self._left_out + cut))
            del self._end[:cut]
        self._file.write(self._end)
        self._file.flush()


@contextmanager
def open_log(path: Path) -> Iterator[CappedLog]:
    """The log at `path`, new; complete when it is left."""
    with path.open("wb") as file:
        log = CappedLog(file)
        try:
            yield log
        finally:
            log.end()
