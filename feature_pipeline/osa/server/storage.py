"""Read the server's storage, which is a folder or a bucket; nothing is written to it.

The two layouts differ in their roots alone: `Place` names what is read, and each layout maps it to
a path or a key. An error of the storage is never treated as absence.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from feature_pipeline.errors import InvalidInputError, NotFoundError, StoreUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MOST_BYTES: Final = 1 << 30
"""The largest file of the server that is read into memory."""
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder of the server, independent of the layout."""

    root: str
    """`ingests` or `depositions`."""
    path: str
    """Below it, with parts between single slashes."""

    def __post_init__(self) -> None:
        if any(part in {"", ".", ".."} or "\x00" in part for part in self.path.split("/")):
            raise InvalidInputError(
                f"{self.root}/{self.path!r}: a part of this path is empty, '.' or '..', or has a"
                " NUL character"
            )

    def __str__(self) -> str:
        return f"{self.root}/{self.path}"

    def __truediv__(self, name: str) -> "Place":
        return Place(self.root, f"{self.path}/{name}")


def batch_place(ingest_run_id: str, batch_index: int) -> Place:
    """Return the folder of one batch of an ingest."""
    return Place("ingests", f"{ingest_run_id}/batches/{batch_index}")


def deposition_place(folder: str) -> Place:
    """Return the folder of a deposition, by its name."""
    return Place("depositions", folder)


def output_place(parent: Place, hook: str) -> Place:
    """Return a hook's output folder below a batch's or a deposition's folder."""
    return parent / "hooks" / hook / "output"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a file was when it was looked at: equal values mean an unchanged file."""

    size: int
    version: str
    """Its entity tag, or inode and times."""


class ServerStorage(Protocol):
    """The server's files. Thread-safe."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        ...

    def files(self, place: Place) -> dict[str, Seen]:
        """Return the state of each file directly in a folder, by name.

        Empty only if the storage answers that there is none: a bucket has no folders.
        """
        ...

    def read(self, place: Place) -> bytes:
        """Return the bytes of a file.

        Raises:
            NotFoundError: There is none.
            InvalidInputError: It is not a regular file, or larger than `MOST_BYTES`.
            StoreUnavailableError: The storage refused or could not be reached.
        """
        ...

    def fetch(self, place: Place, target: Path) -> None:
        """Copy a file to `target`, in bounded memory; errors as for `read`."""
        ...

    def local(self, place: Place, target: Path) -> Path:
        """Return the path of a file on this machine: `target` if it had to be copied there."""
        ...

    def check(self) -> None:
        """Check that the storage is there and can be listed.

        Raises:
            NotFoundError: A root of the layout is not there.
            StoreUnavailableError: It refused, or could not be reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class FolderStorage:
    """The data folder of a server on a file system: `$OSA_DATA_DIR/data`."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    def files(self, place: Place) -> dict[str, Seen]:
        """See `ServerStorage.files`. Links are left out: a container's could lead anywhere."""
        files: dict[str, Seen] = {}
        with self._translated(place):
            try:
                with os.scandir(self._path(place)) as entries:
                    for entry in entries:
                        info = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(info.st_mode):
                            version = f"{info.st_ino}-{info.st_mtime_ns}-{info.st_ctime_ns}"
                            files[entry.name] = Seen(info.st_size, version)
            except (FileNotFoundError, NotADirectoryError):
                self._check_root(place)
        return files

    def read(self, place: Place) -> bytes:
        """See `ServerStorage.read`."""
        with self._translated(place):
            path = self._regular(place)
            return path.read_bytes()

    def fetch(self, place: Place, target: Path) -> None:
        """See `ServerStorage.fetch`."""
        with (
            self._translated(place),
            self._regular(place, is_bounded=False).open("rb") as source,
        ):
            _copy(iter(lambda: source.read(_CHUNK_BYTES), b""), target)

    def local(self, place: Place, target: Path) -> Path:
        """See `ServerStorage.local`."""
        with self._translated(place):
            return self._regular(place, is_bounded=False)

    def check(self) -> None:
        """See `ServerStorage.check`."""
        for root in ("ingests", "depositions"):
            self._check_root(Place(root, "any"))

    def _root(self, place: Place) -> Path:
        return self.folder / ("ingests" if place.root == "ingests" else "files/depositions")

    def _path(self, place: Place) -> Path:
        return self._root(place) / place.path

    def _check_root(self, place: Place) -> None:
        """Check that the parent of an absent file is the server's folder at all.

        A server without ingests, or without depositions, has made only the other root.
        """
        if not self.folder.is_dir():
            raise NotFoundError(
                f"storage {self.folder}: there is no such folder; give the server's"
                " $OSA_DATA_DIR/data"
            )
        if not any((self.folder / name).is_dir() for name in ("ingests", "files")):
            raise NotFoundError(
                f"storage {self.folder} has neither ingests/ nor files/: give the server's"
                " $OSA_DATA_DIR/data"
            )

    def _regular(self, place: Place, *, is_bounded: bool = True) -> Path:
        path = self._path(place)
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise InvalidInputError(f"{place} in {self.name} is not a regular file")
        # A link that a container left would name another file of this machine.
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise InvalidInputError(f"{place} in {self.name} is a link out of the storage")
        if is_bounded and info.st_size > MOST_BYTES:
            raise _too_large(place, self.name, info.st_size)
        return path

    @contextmanager
    def _translated(self, place: Place) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            self._check_root(place)
            raise NotFoundError(f"{place} is not in {self.name}") from error
        except OSError as error:
            raise StoreUnavailableError(
                f"{place} in {self.name} cannot be read: {os.strerror(error.errno or 0)}"
            ) from error


@dataclass(frozen=True, slots=True)
class BucketStorage:
    """The bucket of a server in a cluster."""

    client: "S3Client"
    bucket: str
    prefix: str = ""

    @property
    def name(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def files(self, place: Place) -> dict[str, Seen]:
        """See `ServerStorage.files`."""
        prefix = f"{self._key(place)}/"
        with self._translated(place):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix, Delimiter="/"
            )
            return {
                item["Key"].removeprefix(prefix): Seen(item["Size"], item["ETag"])
                for page in pages
                for item in page.get("Contents", ())
                if item["Key"] != prefix
            }

    def read(self, place: Place) -> bytes:
        """See `ServerStorage.read`."""
        with self._translated(place):
            answer = self.client.get_object(Bucket=self.bucket, Key=self._key(place))
            if answer["ContentLength"] > MOST_BYTES:
                answer["Body"].close()
                raise _too_large(place, self.name, answer["ContentLength"])
            return answer["Body"].read()

    def fetch(self, place: Place, target: Path) -> None:
        """See `ServerStorage.fetch`."""
        with self._translated(place):
            answer = self.client.get_object(Bucket=self.bucket, Key=self._key(place))
            _copy(answer["Body"].iter_chunks(_CHUNK_BYTES), target)

    def local(self, place: Place, target: Path) -> Path:
        """See `ServerStorage.local`."""
        self.fetch(place, target)
        return target

    def check(self) -> None:
        """See `ServerStorage.check`."""
        place = Place("ingests", "any")
        with self._translated(place):
            listing = self.client.list_objects_v2(
                Bucket=self.bucket, Prefix=self._prefixed(""), MaxKeys=1, Delimiter="/"
            )
        if not listing.get("KeyCount"):
            raise NotFoundError(
                f"storage {self.name} has no object: give the bucket of the server's"
                " runner.k8s.s3_bucket, and the prefix if it has one"
            )

    def _key(self, place: Place) -> str:
        root = "data/ingests" if place.root == "ingests" else "depositions"
        return self._prefixed(f"{root}/{place.path}")

    def _prefixed(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextmanager
    def _translated(self, place: Place) -> Iterator[None]:
        import botocore.exceptions as boto_errors

        from feature_pipeline.archive.store.s3_responses import NO_ANSWER_ERRORS

        try:
            yield
        except boto_errors.ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code == "NoSuchKey":
                raise NotFoundError(f"{place} is not in {self.name}") from error
            raise StoreUnavailableError(f"{place} in {self.name}: {error}") from error
        except (*NO_ANSWER_ERRORS, OSError) as error:
            raise StoreUnavailableError(f"{place} in {self.name}: {error}") from error


def _copy(chunks: Iterator[bytes], target: Path) -> None:
    with target.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)


def _too_large(place: Place, name: str, size: int) -> InvalidInputError:
    return InvalidInputError(
        f"{place} in {name} has {size:,} bytes; at most {MOST_BYTES:,} are read"
    )
