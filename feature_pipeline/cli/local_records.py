"""Records on this machine: a folder, or a .jsonl file, read into records with paths to their files.

What belongs here: what counts as a record, its id and its files, and every way to get them wrong.
Not here: batches, and what is stored (`submit`).

Each entry of a folder is taken, left out because the user said so, or refused by its name; nothing
is passed over. File names are UTF-8 whatever the locale says.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.runner import LONGEST_NAME_BYTES
from feature_pipeline.model.first_few import first_few
from feature_pipeline.model.json_text import BYTE_ORDER_MARK, WHITE_SPACE, check_object, read_json
from feature_pipeline.model.records import check_file_name, check_record_id

COMPRESSED: Final = frozenset({".gz", ".bz2", ".xz", ".zst", ".lz4", ".z"})
"""Suffixes that say how a file is packed, not what it is."""

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
    """The records of a folder or a file, in order; the entries left out by request."""

    records: tuple[LocalRecord, ...]
    left_out: tuple[str, ...] = ()


def read_records(path: Path, exclude: Sequence[str] = ()) -> LocalRecords:
    """Return the records of a folder or a .jsonl file.

    Args:
        path: Of a folder, each file is a record whose id is the file's name without its suffixes
            (`record_id_of`), and each folder a record of that name with its files.
        exclude: Patterns of names to leave out of a folder, as a shell has them.

    Raises:
        InvalidInputError: Something there is no record, or cannot be read; names the line or entry.
    """
    if path.is_dir():
        found = _Folder(path, exclude).read()
    elif path.suffix == ".jsonl":
        if exclude:
            raise InvalidInputError(f"--exclude is for folders, and {path} is a file")
        found = LocalRecords(tuple(_read_lines(path)))
    else:
        raise InvalidInputError(f"{path}: a folder or a .jsonl file is needed")
    if not found.records:
        raise InvalidInputError(f"{path} holds no records")
    _check_ids(found.records)
    return found


def record_id_of(file_name: str) -> str:
    """The id of a record that is one file: `1ubi` of `1ubi`, `1ubi.pdb` and `1ubi.pdb.gz`."""
    name = Path(file_name)
    return Path(name.stem).stem if name.suffix.lower() in COMPRESSED else name.stem


def _check_ids(records: Sequence[LocalRecord]) -> None:
    seen: dict[str, LocalRecord] = {}
    for record in records:
        if (first := seen.setdefault(record.id, record)) is not record:
            raise InvalidInputError(
                f"record {record.id!r} is there twice: {first.place} and {record.place}; give each"
                " an id of its own, or put the files of one record into one folder"
            )


@dataclass
class _Folder:
    """Reads a folder, and gathers what is wrong with it rather than stop at the first."""

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
        """Names and paths of what is in `folder`, but for what is refused by its name alone."""
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
                what = "is a broken link" if path.is_symlink() else f"{error.strerror}"
                self.problems.append(f"{shown!r} {what}")
            else:
                if name.startswith("."):
                    self.problems.append(f"{shown!r} is hidden")
                else:
                    yield name, path

    def is_usable(self, shown: str, path: Path) -> bool:
        """Return whether it is a file that can be read; the reason is noted if it is not."""
        try:
            check_readable(path)
        except InvalidInputError as error:
            self.problems.append(f"{shown!r} {error}")
            return False
        return True


def check_readable(path: Path) -> None:
    """Return if `path` is a regular file, or a link to one, and its first byte can be read.

    Raises:
        InvalidInputError: It is not; the message goes on after the file's name.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InvalidInputError("is a folder: the files of a record lie side by side")
        if not stat.S_ISREG(mode):
            raise InvalidInputError(f"is not a regular file ({stat.filemode(mode)})")
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise InvalidInputError(f"cannot be read: {error.strerror}") from error


def check_folder_name(record_id: str, *, has_files: bool) -> None:
    """Return if hooks can be given a folder of that name, which a record with files needs.

    Raises:
        InvalidInputError: It cannot name a record, or a part of it cannot name a folder.
    """
    check_record_id(record_id)
    longest = max(record_id.split("/"), key=lambda part: len(part.encode()))
    if has_files and len(longest.encode()) > LONGEST_NAME_BYTES:
        raise InvalidInputError(
            f"record id {record_id[:40]!r}... has a part of {len(longest.encode())} bytes; a record"
            f" with files has a folder of that name, of at most {LONGEST_NAME_BYTES} bytes"
        )


def _read_lines(path: Path) -> Iterator[LocalRecord]:
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            line = raw.removeprefix(BYTE_ORDER_MARK) if number == 1 else raw
            if line.strip(WHITE_SPACE.encode()):
                place = f"{path}, line {number}"
                item = read_json(line.rstrip(b"\r\n"), str(path), number)
                try:
                    yield _record(item, path.parent, place)
                except InvalidInputError as error:
                    raise InvalidInputError(f"{place}: {error}") from error


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
            raise InvalidInputError(f"file {name!r}: {folder / target} {error}") from error
    check_folder_name(item["id"], has_files=bool(paths))
    return LocalRecord(item["id"], metadata, paths, place)


def _member(item: dict[str, Any], name: str) -> dict[str, Any]:
    try:
        return check_object(item[name])
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from error
