"""Measure the disk usage of a hook's folders periodically, without file system quotas.

An open file without a name is not seen.
"""

import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from feature_pipeline.hooks.output_folder import excess

_INTERVAL_SECONDS: Final = 1.0
_PAUSE_RATIO: Final = 20
"""A slow measurement is followed by a pause this many times as long."""
_BLOCK_BYTES: Final = 512


class DiskWatch:
    """Compares each of `folders`, which have names for messages, with `limit_bytes`."""

    def __init__(self, folders: Mapping[str, Path], limit_bytes: int) -> None:
        self._folders = folders
        self._limit_bytes = limit_bytes
        self._next_look = 0.0

    def excess(self) -> str | None:
        """Return the folder that exceeds the limit; None if none does, or between measurements."""
        begun = time.monotonic()
        if begun < self._next_look:
            return None
        used = {name: _folder_bytes(folder) for name, folder in self._folders.items()}
        ended = time.monotonic()
        self._next_look = ended + max(_INTERVAL_SECONDS, _PAUSE_RATIO * (ended - begun))
        for name, size in used.items():
            if size > self._limit_bytes:
                return excess(name, size, self._limit_bytes)
        return None


def _folder_bytes(folder: Path) -> int:
    """Return the bytes below `folder`: the larger of length and disk usage, per file.

    A sparse file takes little room, but is read and stored at its full length. Files that disappear
    meanwhile do not count.
    """
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                info = os.lstat(os.path.join(parent, name))  # noqa: PTH118
                length = info.st_size if stat.S_ISREG(info.st_mode) else 0
                total += max(info.st_blocks * _BLOCK_BYTES, length)
            except OSError:
                continue  # the hook has removed it
    return total
