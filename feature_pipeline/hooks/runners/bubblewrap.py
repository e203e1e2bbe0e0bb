"""Confine a hook on this machine with bubblewrap: no network, no files but its own.

The hook sees the system's programs and libraries, this Python, its inputs and its code, all
read-only, and can write in its output and its scratch only. It has process numbers, interprocess
communication and a network of its own, which nothing else is in, and no capability. When its first
process ends, the kernel ends all others.
"""

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from feature_pipeline.errors import InvalidInputError

_SYSTEM: Final = ("bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr")
_ETC: Final = (
    "alternatives", "fonts", "group", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d",
    "localtime", "mime.types", "nsswitch.conf", "passwd", "ssl", "timezone",
)  # fmt: skip
"""What programs look up; the rest of `/etc` has secrets of the machine."""
_NAMESPACES: Final = ("--unshare-all", "--cap-drop", "ALL", "--die-with-parent")
LEVELS: Final = 2
"""Bubblewrap's processes above the hook; they end at once on SIGTERM, and the hook with them."""
FAILED: Final = "bwrap: "
"""How bubblewrap's own messages begin."""
_INSTALL: Final = "install bubblewrap (Debian's package of that name)"


@dataclass(frozen=True, slots=True)
class Confinement:
    """How hooks are confined.

    `readable` are files and folders that hooks can read beside those of the system.
    """

    program: str
    readable: tuple[Path, ...] = ()

    @classmethod
    def find(cls, readable: Sequence[str] = ()) -> "Confinement":
        """Return the confinement by the machine's bubblewrap, after trying it.

        Raises:
            InvalidInputError: There is none, the kernel does not let it work, or a readable path is
                not absolute or not there.
        """
        paths = tuple(Path(path) for path in readable)
        for path in paths:
            if not path.is_absolute() or not path.exists():
                raise InvalidInputError(
                    f"runner settings: readable {str(path)!r} must be the absolute path of a"
                    " file or folder that exists"
                )
        program = shutil.which("bwrap")
        if program is None:
            raise InvalidInputError(
                f"runner settings: confined hooks need the program bwrap: {_INSTALL}, or set"
                " confined: false"
            )
        _try(program)
        return cls(program, paths)

    def command(
        self,
        command: Sequence[str],
        *,
        readable: Sequence[Path],
        writable: Sequence[Path],
        scratch: Path,
        folder: Path,
    ) -> list[str]:
        """Return the command that runs `command` confined.

        Args:
            command: The hook's, its program as an absolute path.
            readable: Folders that the hook can read.
            writable: Folders that the hook can write in, beside `scratch`.
            scratch: A folder of the hook's own; its `tmp` and `shm` are `/tmp` and `/dev/shm`.
            folder: The working folder.
        """
        arguments = [self.program, *_NAMESPACES, "--dev", "/dev", "--proc", "/proc"]
        # On disk, where they are measured.
        arguments += ["--bind", str(scratch / "shm"), "/dev/shm"]  # noqa: S108  (the hook's own)
        arguments += ["--bind", str(scratch / "tmp"), "/tmp"]  # noqa: S108  (the hook's own)
        arguments += [word for path in _system() for word in path]
        interpreter = (Path(sys.base_prefix), Path(sys.prefix))
        for path in (*interpreter, *self.readable, *readable):
            arguments += ["--ro-bind", str(path), str(path)]
        for path in (*writable, scratch):
            arguments += ["--bind", str(path), str(path)]
        # Both are in memory that no limit counts.
        arguments += ["--remount-ro", "/", "--remount-ro", "/dev"]
        return [*arguments, "--chdir", str(folder), "--", *command]


@functools.cache
def _try(program: str) -> None:
    """Start an empty program in the way that hooks are started; once per process.

    Raises:
        InvalidInputError: The kernel does not let it work.
    """
    trial = [program, *_NAMESPACES, "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev"]
    done = subprocess.run([*trial, "true"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InvalidInputError(
            f"runner settings: bwrap cannot confine hooks here: {done.stderr.strip()}; allow"
            " user namespaces and mounts of proc within them, or set confined: false"
        )


def _system() -> Iterator[tuple[str, ...]]:
    for name in _SYSTEM:
        path = Path("/", name)
        if path.is_symlink():
            yield "--symlink", str(path.readlink()), str(path)
        elif path.exists():
            yield "--ro-bind", str(path), str(path)
    for name in _ETC:
        path = Path("/etc", name)
        if path.is_symlink():
            target = path.resolve()
            if target.exists():
                yield "--ro-bind", str(target), str(path)
        elif path.exists():
            yield "--ro-bind", str(path), str(path)
