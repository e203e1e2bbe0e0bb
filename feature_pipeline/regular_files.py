"""Open files that others wrote: links, pipes and devices are refused, without waiting for them.

The kind is that of the opened file. A check of the path before opening it would be about a file
that can be replaced in between, and opening a pipe waits for a writer.
"""

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from feature_pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a regular file to read its bytes.

    Args:
        path: The file.
        follow_links: Whether a link to a regular file is one. The folders that lead to the file may
            be links in any case.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be opened.
        InvalidInputError: It is something else. The message continues a sentence that begins with
            its name.
    """
    # Opening a device may already do something, so its kind is looked at before as well.
    _check_regular(path.stat() if follow_links else path.lstat())
    descriptor = os.open(path, _FLAGS if follow_links else _FLAGS | os.O_NOFOLLOW)
    try:
        _check_regular(os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


class DigestingReader(io.RawIOBase):
    """Read a file, and take the digest of exactly the bytes that were read.

    Use it through `io.BufferedReader`: whatever it reads ahead is digested once.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hasher = hashlib.sha256()

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Read up to a buffer's length of bytes; return how many."""
        view = memoryview(buffer)
        data = self._file.read(len(view))
        view[: len(data)] = data
        self._hasher.update(data)
        return len(data)

    def hexdigest(self) -> str:
        """Return the SHA-256 of the bytes that were read so far."""
        return self._hasher.hexdigest()


def _check_regular(info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise InvalidInputError(f"is not a regular file ({stat.filemode(info.st_mode)})")
