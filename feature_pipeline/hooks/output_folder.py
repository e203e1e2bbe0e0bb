"""Check the output folder of an ended attempt: whether it can be read, and is not too large.

Sizes are lengths. A sparse file takes less room than it is long, and is read to its end.
"""

import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.model.text.quantities import format_size
from feature_pipeline.regular_files import open_regular

FEATURES: Final = "features.jsonl"
SINGLE_FEATURES: Final = "features.json"
REJECTIONS: Final = "rejections.jsonl"
ERRORS: Final = "errors.jsonl"
PROGRESS: Final = "progress.jsonl"
RAW_FILES: Final = (FEATURES, SINGLE_FEATURES, REJECTIONS, ERRORS, PROGRESS)
"""The files of a hook that are stored byte for byte."""


def problem_of(output: Path, limit_bytes: int) -> tuple[FailureKind, str] | None:
    """Return why the output cannot be used; None if it can.

    Args:
        output: The hook's output folder.
        limit_bytes: Maximum total length of its files.
    """
    if (problem := folder_problem(output)) is not None:
        return FailureKind.INVALID_OUTPUT, problem
    length = 0
    for name in RAW_FILES:
        path = output / name
        try:
            length += _readable_size(path)
        except (FileNotFoundError, InvalidInputError):
            continue
        except OSError as error:
            return FailureKind.INVALID_OUTPUT, f"{name}: cannot be read: {error.strerror}"
    if length > limit_bytes:
        return FailureKind.OUT_OF_SPACE, excess("output", length, limit_bytes)
    return None


def excess(subject: str, size_bytes: int, limit_bytes: int) -> str:
    """Return the message for a hook's folder that exceeds its limit."""
    limit = format_size(limit_bytes)
    return f"its {subject} has {format_size(size_bytes)}, and limits.scratch is {limit}"


def folder_problem(output: Path) -> str | None:
    """Return why the output is not a folder with readable files; None if it is."""
    try:
        info = output.lstat()
        if not stat.S_ISDIR(info.st_mode):
            kinds = {stat.S_IFLNK: "link", stat.S_IFREG: "file"}
            kind = kinds.get(stat.S_IFMT(info.st_mode), "special file")
            return f"the output folder was replaced by a {kind}"
        with os.scandir(output):
            return None
    except FileNotFoundError:
        return None  # removed: nothing was left
    except OSError as error:
        return f"the output folder cannot be read: {error.strerror}"


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """What is in an output folder, by what can be copied of it.

    `files` are files of the contract, by name, within the limit together. `too_large` are those
    beyond it, with their lengths. `irregular` are names of the contract that are not regular files,
    `others` the remaining names.
    """

    files: Mapping[str, Path]
    too_large: Mapping[str, int]
    irregular: tuple[str, ...]
    others: tuple[str, ...]

    @classmethod
    def of(cls, output: Path, limit_bytes: int) -> Self:
        """List an output folder.

        Raises:
            OSError: It is not a folder, or a file cannot be read.
        """
        if (problem := folder_problem(output)) is not None:
            raise OSError(problem)
        names = {path.name for path in output.iterdir()} if output.exists() else set()
        files: dict[str, Path] = {}
        too_large: dict[str, int] = {}
        irregular = []
        left = limit_bytes
        for name in RAW_FILES:
            try:
                size = _readable_size(output / name)
            except FileNotFoundError:
                continue
            except InvalidInputError:
                irregular.append(name)
                continue
            if size > left:
                too_large[name] = size
                continue
            files[name] = output / name
            left -= size
        return cls(files, too_large, tuple(irregular), tuple(sorted(names - set(RAW_FILES))))

    def copy_to(self, folder: Path) -> None:
        """Make a folder's content equal in all that is looked at, with the bytes of `files`.

        A file that is too large gets its length only: it may be sparse, and larger than the disk.
        """
        for name, path in self.files.items():
            with open_regular(path, follow_links=False) as source, (folder / name).open("wb") as to:
                shutil.copyfileobj(source, to)
        for name, size in self.too_large.items():
            with (folder / name).open("wb") as to:
                to.truncate(size)
        for name in self.irregular:
            (folder / name).symlink_to(name)
        for name in self.others:
            with suppress(OSError):
                (folder / name).touch()


def storable_files(
    output: Path, most_bytes: int | None = None
) -> tuple[dict[str, Path], list[str]]:
    """Return the files that can be stored byte for byte, by name, and the others' problems.

    Links are not followed, since a container's link would name a file of this machine.

    Args:
        output: The hook's output folder.
        most_bytes: Maximum total length of the stored files; any length if None.
    """
    if folder_problem(output) is not None:
        return {}, []
    files: dict[str, Path] = {}
    left_out: list[str] = []
    left = most_bytes
    for name in RAW_FILES:
        path = output / name
        try:
            size = _readable_size(path)
        except (FileNotFoundError, InvalidInputError):
            continue
        except OSError as error:
            left_out.append(f"{name} ({error.strerror})")
            continue
        if left is not None and size > left:
            left_out.append(f"{name} ({format_size(size)})")
            continue
        files[name] = path
        left = None if left is None else left - size
    return files, left_out


def _readable_size(path: Path) -> int:
    """Return the length of a file in bytes, after opening it.

    Raises:
        FileNotFoundError: There is none.
        OSError: It cannot be opened.
        InvalidInputError: It is not a regular file.
    """
    with open_regular(path, follow_links=False) as file:
        return os.fstat(file.fileno()).st_size
