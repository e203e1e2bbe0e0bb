"""What lies in the output folder of an attempt that ended: may it be read, and is it too much?

Sizes are lengths. A file with a hole takes less room than it is long, and is read to its end.
"""

import os
import stat
from pathlib import Path
from typing import Final

from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.model.quantities import format_size

FEATURES: Final = "features.jsonl"
SINGLE_FEATURES: Final = "features.json"
REJECTIONS: Final = "rejections.jsonl"
ERRORS: Final = "errors.jsonl"
PROGRESS: Final = "progress.jsonl"
RAW_FILES: Final = (FEATURES, SINGLE_FEATURES, REJECTIONS, ERRORS, PROGRESS)
"""The files of a hook that are kept exactly as they came."""


def problem_of(output: Path, limit_bytes: int) -> tuple[FailureKind, str] | None:
    """Say why the output cannot be taken for what the hook was to leave; None if it can.

    Args:
        output: The folder that the hook was given.
        limit_bytes: How long its files may be together.
    """
    if (problem := folder_problem(output)) is not None:
        return FailureKind.INVALID_OUTPUT, problem
    length = 0
    for name in RAW_FILES:
        path = output / name
        try:
            info = path.lstat()
            if stat.S_ISREG(info.st_mode):
                length += info.st_size
                with path.open("rb"):
                    pass
        except FileNotFoundError:
            continue
        except OSError as error:
            return FailureKind.INVALID_OUTPUT, f"{name}: cannot be read: {error.strerror}"
    if length > limit_bytes:
        return FailureKind.OUT_OF_SPACE, excess("output", length, limit_bytes)
    return None


def excess(what: str, size_bytes: int, limit_bytes: int) -> str:
    """Say that a hook's folder holds more than it may."""
    limit = format_size(limit_bytes)
    return f"its {what} holds {format_size(size_bytes)}, and limits.scratch is {limit}"


def folder_problem(output: Path) -> str | None:
    """Say why the output is not a folder whose files can be read; None if it is one."""
    try:
        info = output.lstat()
        if not stat.S_ISDIR(info.st_mode):
            kinds = {stat.S_IFLNK: "link", stat.S_IFREG: "file"}
            found = kinds.get(stat.S_IFMT(info.st_mode), "special file")
            return f"the output folder was replaced by a {found}"
        with os.scandir(output):
            return None
    except FileNotFoundError:
        return None  # removed: nothing was left
    except OSError as error:
        return f"the output folder cannot be read: {error.strerror}"


def files_to_keep(output: Path, most_bytes: int | None = None) -> tuple[dict[str, Path], list[str]]:
    """Return the files that can be kept exactly, by name, and what is not kept of the others.

    Links are not followed, since a container's link would name a file of this machine.

    Args:
        output: The folder that the hook was given.
        most_bytes: How long the files that are kept may be together; any length if None.
    """
    if folder_problem(output) is not None:
        return {}, []
    files: dict[str, Path] = {}
    left_out: list[str] = []
    left = most_bytes
    for name in RAW_FILES:
        path = output / name
        try:
            info = path.lstat()
            if not stat.S_ISREG(info.st_mode):
                continue
            with path.open("rb"):
                pass
        except FileNotFoundError:
            continue
        except OSError as error:
            left_out.append(f"{name} ({error.strerror})")
            continue
        if left is not None and info.st_size > left:
            left_out.append(f"{name} ({format_size(info.st_size)})")
            continue
        files[name] = path
        left = None if left is None else left - info.st_size
    return files, left_out
