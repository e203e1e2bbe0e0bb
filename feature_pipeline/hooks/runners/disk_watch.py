"""How much disk a hook's folders hold, looked at now and then: no quota of a file system is needed.

What belongs here: measuring. A file that is open and has no name any more is not seen.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from feature_pipeline.hooks.quantities import format_size

_LOOK_SECONDS: Final = 1.0
_LOOK_SHARE: Final = 20
"""A look that took long is followed by a pause so many times as long."""
_BLOCK_BYTES: Final = 512


class DiskWatch:
    """Holds each of `folders`, which are named by what they are to a hook, to `limit_bytes`."""

    def __init__(self, folders: Mapping[str, Path], limit_bytes: int) -> None:
        self._folders = folders
        self._limit_bytes = limit_bytes
        self._next_look = 0.0

    def excess(self) -> str | None:
        """Which folder holds more than the limit; None if none does, or between two looks."""
        begun = time.monotonic()
        if begun < self._next_look:
            return None
        used = {name: _held_bytes(folder) for name, folder in self._folders.items()}
        ended = time.monotonic()
        self._next_look = ended + max(_LOOK_SECONDS, _LOOK_SHARE * (ended - begun))
        for name, size in used.items():
            if size > self._limit_bytes:
                limit = format_size(self._limit_bytes)
                return f"its {name} holds {format_size(size)}, and limits.scratch is {limit}"
        return None


def _held_bytes(folder: Path) -> int:
    """Bytes on disk below `folder`: a hole in a file takes none. What goes meanwhile counts not."""
    held = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                held += os.lstat(os.path.join(parent, name)).st_blocks * _BLOCK_BYTES  # noqa: PTH118
            except OSError:
                continue  # the hook has removed it
    return held
