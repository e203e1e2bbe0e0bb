"""Records on this machine: read a folder or a .jsonl file into records with paths to their files.

Each entry of a folder is taken, excluded at the user's request, or refused by name; none is skipped
silently. File names are UTF-8 in any locale.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.json_lines import MOST_LINE_BYTES, excess
from feature_pipeline.hooks.runner import LONGEST_NAME_BYTES
from feature_pipeline.model.records import check_file_name, check_record_id
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.json_text import (
    BYTE_ORDER_MARK,
    WHITE_SPACE,
    check_object,
    read_json,
)
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.regular_files import open_regular

COMPRESSED: Final = frozenset({".gz", ".bz2", ".xz", ".zst", ".lz4", ".z"})
"""Suffixes that tell how a file is compressed, not what it contains."""

_MEMBERS: Final = frozenset({"id", "metadata", "files"})


@dataclass(frozen=True, slots=True)
class LocalRecord:
    """A record whose files are on this machine: name in the archive to path here."""

    id: str
    metadata: Mapping[str, Any]
    files: Mapping[str, Path]
    place: str = ""
    """Where it is declared, for messages: an entry of a folder, or a line of a file."""


@dataclass(frozen=True, slots=True)
class LocalRecords:
    """The records of a folder or a file, in order, and the entries excluded on request."""

    records: tuple[LocalRecord, ...]
    left_out: tuple[str, ...] = ()


def read_records(path: Path, exclude: Sequence[str] = ()) -> LocalRecords:
    """Return the records of a folder or a .jsonl file.

    Args:
        path: In a folder, each file is a record whose id is the file's name without its suffixes
            (`record_id_of`), and each subfolder a record of that name with its files.
        exclude: Shell patterns of names to exclude from a folder.

    Raises:
        InvalidInputError: An entry is not a record, or cannot be read; names the line or entry.
    """
    if path.is_dir():
        records = _Folder(path, exclude).read()
    elif path.suffix == ".jsonl":
        if exclude:
            raise InvalidInputError(f"--exclude is for folders, and {path} is a file")
        records = LocalRecords(tuple(_read_lines(path)))
    else:
        raise InvalidInputError(f"{path}: a folder or a .jsonl file is needed")
    if not records.records:
        raise InvalidInputError(f"{path} has no records")
    _check_ids(records.records)
    return records


def record_id_of(file_name: str) -> str:
    """Return the id of a one-file record: `1ubi` for `1ubi`, `1ubi.pdb` and `1ubi.pdb.gz`."""
    name = Path(file_name)
    return Path(name.stem).stem if name.suffix.lower() in COMPRESSED else name.stem


def _check_ids(records: Sequence[LocalRecord]) -> None:
    seen: dict[str, LocalRecord] = {}
    for record in records:
        if (first := seen.setdefault(record.id, record)) is not record:
            raise InvalidInputError(
                f"record {record.id!r} is given twice: {first.place} and {record.place}; give each"
                " an id of its own, or put the files of one record into one folder"
            )


@dataclass
class _Folder:
    """Read a folder, and collect all its problems rather than stop at the first."""

    path: Path
    exclude: Sequence[str]
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def read(self) -> LocalRecords:
        records = list(self.records())
        if self.problems:
            raise InvalidInputError(
                f"{self.path}: {first_few(self.problems, separator='; ')}. Nothing was submitted:"
                " move or rename these, leave them out by --exclude PATTERN, or list the records in"
                " a .jsonl file"
            )
        return LocalRecords(tuple(records), tuple(self.left_out))

    def records(self) -> Iterator[LocalRecord]:
        for name, path in self.entries(self.path, ""):
            if stat.S_ISDIR(path.stat().st_mode):
                files = {
                    file_name: file
                    for file_name, file in self.entries(path, f"{name}/")
                    if self.is_usable(f"{name}/{file_name}", file)
                }
                record_id = name
            elif self.is_usable(name, path):
                files, record_id = {name: path}, record_id_of(name)
            else:
                continue
            try:
                check_folder_name(record_id, has_files=bool(files))
            except InvalidInputError as error:
                self.problems.append(f"{name!r}: {error}")
            else:
                yield LocalRecord(record_id, {}, files, f"{name!r} in {self.path}")

    def entries(self, folder: Path, prefix: str) -> Iterator[tuple[str, Path]]:
        """Return names and paths of the entries of `folder`, except those refused by name."""
        try:
            paths = sorted(folder.iterdir(), key=lambda path: os.fsencode(path.name))
        except OSError as error:
            self.problems.append(f"{prefix or folder}: {error.strerror}")
            return
        for path in paths:
            raw = os.fsencode(path.name)
            shown = f"{prefix}{raw.decode('utf-8', 'backslashreplace')}"
            if any(fnmatchcase(shown.removeprefix(prefix), each) for each in self.exclude):
                self.left_out.append(shown)
                continue
            try:
                name = raw.decode()
                check_file_name(name)
                path.stat()
            except UnicodeDecodeError:
                self.problems.append(f"{shown!r}: the name is not UTF-8")
            except InvalidInputError as error:
                self.problems.append(f"{shown!r}: {error}")
            except OSError as error:
                problem = "is a broken link" if path.is_symlink() else f"{error.strerror}"
                self.problems.append(f"{shown!r} {problem}")
            else:
                if name.startswith("."):
                    self.problems.append(f"{shown!r} is hidden")
                else:
                    yield name, path

    def is_usable(self, shown: str, path: Path) -> bool:
        """Return whether it is a readable file; record the reason if it is not."""
        try:
            check_readable(path)
        except InvalidInputError as error:
            self.problems.append(f"{shown!r} {error}")
            return False
        return True


def check_readable(path: Path) -> None:
    """Check that `path` is a readable regular file, or a link to one.

    Raises:
        InvalidInputError: It is not. The message continues a sentence that begins with its name.
    """
    try:
        if path.is_dir():
            raise InvalidInputError("is a folder: put all files of a record into one folder")
        with open_regular(path) as file:
            file.read(1)
    except OSError as error:
        raise InvalidInputError(f"cannot be read: {error.strerror}") from error


def check_folder_name(record_id: str, *, has_files: bool) -> None:
    """Check that a record with files can have a folder of that name.

    Raises:
        InvalidInputError: It cannot name a record, or a part of it cannot name a folder.
    """
    check_record_id(record_id)
    longest = max(record_id.split("/"), key=lambda part: len(part.encode()))
    if has_files and len(longest.encode()) > LONGEST_NAME_BYTES:
        raise InvalidInputError(
            f"record id {quoted(record_id, 40)!r} has a part of {len(longest.encode())} bytes; a"
            f" record with files has a folder of that name, of at most {LONGEST_NAME_BYTES} bytes"
        )


def _read_lines(path: Path) -> Iterator[LocalRecord]:
    with _open_lines(path) as file:
        for number, raw in enumerate(_lines(path, file), 1):
            line = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
            if line.strip(WHITE_SPACE.encode()):
                place = f"{path}, line {number}"
                if (problem := excess(line)) is not None:
                    raise InvalidInputError(f"{place}: {problem}")
                item = read_json(line.rstrip(b"\r\n"), str(path), number)
                try:
                    yield _record(item, path.parent, place)
                except InvalidInputError as error:
                    raise InvalidInputError(f"{place}: {error}") from error


def _open_lines(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except InvalidInputError as error:
        raise InvalidInputError(f"{path} {error}") from error


def _lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines; one that is too long to be parsed is cut where it is still refused."""
    try:
        while line := file.readline(MOST_LINE_BYTES + 1):
            yield line
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> InvalidInputError:
    return InvalidInputError(f"{path} cannot be read: {error.strerror}")


def _record(item: object, folder: Path, place: str) -> LocalRecord:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        raise InvalidInputError('a record is {"id": text, "metadata": {...}, "files": {...}}')
    if unknown := sorted(item.keys() - _MEMBERS):
        raise InvalidInputError(f"unknown keys {first_few(map(repr, unknown))}")
    metadata, files = (
        _member(item, name) if item.get(name) is not None else {} for name in ("metadata", "files")
    )
    paths: dict[str, Path] = {}
    for name, target in files.items():
        check_file_name(name)
        if not isinstance(target, str) or not target or "\x00" in target:
            raise InvalidInputError(f"file {name!r}: expected a path as text")
        paths[name] = folder / os.fsdecode(target.encode())
        try:
            check_readable(paths[name])
        except InvalidInputError as error:
            shown = quoted(str(folder / target))
            raise InvalidInputError(f"file {quoted(name)!r}: {shown} {error}") from error
    check_folder_name(item["id"], has_files=bool(paths))
    return LocalRecord(item["id"], metadata, paths, place)


def _member(item: dict[str, Any], name: str) -> dict[str, Any]:
    try:
        return check_object(item[name])
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from error
