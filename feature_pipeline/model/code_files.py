"""The files that a definition may name as a hook's code.

A release stores the bytes of its code files permanently, and every hook run gets them. So a
definition, which may come from another person, may name only files of its own project: no file of
the machine, no hidden one (`.env` contains credentials), no link that leads out.
"""

from pathlib import Path
from typing import Final

from feature_pipeline.errors import InvalidInputError

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_MARKS: Final = ("workspace.yaml", ".git", "pyproject.toml")
"""Files that mark a project's folder, the most certain first."""


def find_code_file(folder: Path, name: str) -> Path:
    """Return the file that a definition names, links resolved.

    Args:
        folder: The definition's folder.
        name: The path in the definition, relative to the folder.

    Raises:
        InvalidInputError: There is none, or it is not a file of the project or of this package.
    """
    path = folder / name
    if Path(name).is_absolute():
        raise InvalidInputError(f"{name!r} is absolute: write a path relative to the definition")
    target = path.resolve()
    root = project_of(folder)
    inside = next((each for each in (root, _PACKAGE) if target.is_relative_to(each)), None)
    if inside is None:
        link = f", through a link to {target}" if path.is_symlink() else ""
        raise InvalidInputError(f"{path} is outside of the project {root}{link}: copy it there")
    hidden = [part for part in target.relative_to(inside).parts if part.startswith(".")]
    if hidden:
        raise InvalidInputError(
            f"{path}: {hidden[0]!r} is hidden and may contain credentials: move the code to"
            " another file"
        )
    if not target.is_file():
        problem = "is a folder: list its files" if target.is_dir() else "does not exist"
        raise InvalidInputError(f"{path} {problem}")
    return target


def project_of(folder: Path) -> Path:
    """Return the folder of the project that a definition's folder is in.

    The nearest one with a `workspace.yaml`; else with `.git`; else with a `pyproject.toml`; else
    the folder itself. In this package it is the package.
    """
    folder = folder.resolve()
    if folder.is_relative_to(_PACKAGE):
        return _PACKAGE
    for mark in _MARKS:
        for each in (folder, *folder.parents):
            if (each / mark).exists():
                return each
    return folder
