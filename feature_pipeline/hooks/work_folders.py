"""Where the hook runs of one archive keep their folders on this machine, and whose worker is gone.

    <root>/<archive>/runs/<hook>-<random>/   one worker's workspace; it holds `lock` while it lives
    <root>/<archive>/attempts/<run id>/      attempts that have ended: see `ended_attempts`

Both hold a `question.json`: what the run asks, by which others determine whether it is over. The
kernel lets go of a lock when its process dies, so that no process number needs to be believed.
"""

import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from feature_pipeline.errors import FULL_DISK, InvalidInputError, RuntimeFailure
from feature_pipeline.model.digest import Digest

_LOCK: Final = "lock"
_QUESTION: Final = "question.json"
_LEFT: Final = "left"
_PRIVATE: Final = 0o700
_BEGINNING_SECONDS: Final = 60.0
"""A folder younger than this may not have its lock yet."""


@dataclass(frozen=True, slots=True)
class Question:
    """The request of a hook run: finished once its batch's log has its id, or goes past `base`."""

    run_id: str
    dataset: str
    hook: str
    batch: str
    base: int
    runner: str


@dataclass(frozen=True, slots=True)
class LeftFolder:
    """A folder that no living worker uses.

    `question` is None if the folder has none. `is_left` is set if a message referred users to
    the folder.
    """

    path: Path
    question: Question | None
    modified_at: float
    """Seconds since 1970."""
    is_left: bool = False


class WorkFolder:
    """One worker's folder, removed by `cleanup` unless a message told users to look there."""

    def __init__(self, folders: "WorkFolders", path: Path, lock: int, run_id: str | None) -> None:
        self.path = path
        self._folders = folders
        self._lock: int | None = lock
        self._run_id = run_id

    def cleanup(self) -> None:
        """Remove the folder, as far as this user may."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def detach(self) -> Path:
        """Leave the folder where it is until its hook run is finished."""
        with suppress(OSError):
            (self.path / _LEFT).touch()
        self._release()
        return self.path

    def forget_attempts(self) -> None:
        """Remove the hook run's ended attempts: its batch's log has their result.

        They stay while another worker works on the same run, which would repeat them.
        """
        run_id = self._run_id
        if run_id is not None and self._folders.living().count(run_id) < 2:
            shutil.rmtree(self._folders.attempts / run_id, ignore_errors=True)

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class WorkFolders:
    """The folders of the hook runs of one archive.

    Args:
        root: Their parent folder; a folder of this user's in the system's temporary folder if None.
        archive: The store's identity: archives on one machine are kept apart.
    """

    def __init__(self, root: Path | None, archive: str) -> None:
        self._root = root or Path(tempfile.gettempdir()) / f"feature-pipeline-{os.geteuid()}"
        self._is_shared = root is None
        self._folder = self._root / Digest.of(archive.encode()).hex[:12]

    @property
    def attempts(self) -> Path:
        """The folder of ended attempts."""
        return self._folder / "attempts"

    @contextmanager
    def naming_full_disk(self) -> Iterator[None]:
        """Name these folders if the block fails because no space is left.

        Raises:
            RuntimeFailure: No space is left, or the user's quota is used up.
        """
        try:
            yield
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            raise RuntimeFailure(
                f"{error.strerror} (work folder {self._folder}): free space there, or set"
                " FEATURE_PIPELINE_WORK_FOLDER to a folder with more"
            ) from error

    @property
    def _runs(self) -> Path:
        return self._folder / "runs"

    def open(self, prefix: str, question: Question | None = None) -> WorkFolder:
        """Create the folder of a worker that is starting.

        Args:
            prefix: Prefix of the folder's name.
            question: The request of the worker's hook run.

        Raises:
            InvalidInputError: Another user owns the parent folder.
            OSError: The folder cannot be created.
        """
        self._make(self._runs)
        path = Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=self._runs))
        # its name comes when it is held: a lock that is not held means that its worker is gone
        unnamed = path / f".{_LOCK}"
        lock = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                raise
        unnamed.rename(path / _LOCK)
        if question is None:
            return WorkFolder(self, path, lock, None)
        text = json.dumps(asdict(question))
        (path / _QUESTION).write_text(text, encoding="utf-8")
        attempts = self.attempts / question.run_id
        self._make(attempts)
        (attempts / _QUESTION).write_text(text, encoding="utf-8")
        return WorkFolder(self, path, lock, question.run_id)

    def living(self) -> list[str]:
        """Return the id of the hook run of each living worker of this machine."""
        return [
            question.run_id
            for path in _folders(self._runs)
            if not _is_abandoned(path) and (question := _read_question(path)) is not None
        ]

    def left_runs(self) -> list[LeftFolder]:
        """Return the folders of dead workers."""
        return [
            LeftFolder(path, _read_question(path), _modified_at(path), (path / _LEFT).exists())
            for path in _folders(self._runs)
            if _is_abandoned(path)
        ]

    def left_attempts(self) -> list[LeftFolder]:
        """Return the folders of ended attempts of hook runs without a living worker."""
        living = set(self.living())
        return [
            LeftFolder(path, _read_question(path), _modified_at(path))
            for path in _folders(self.attempts)
            if path.name not in living
        ]

    def _make(self, folder: Path) -> None:
        if self._is_shared:
            # another program may have made a folder of that name
            with suppress(FileExistsError):
                self._root.mkdir(mode=_PRIVATE)
            status = self._root.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                raise InvalidInputError(
                    f"{self._root} is not a folder of this user: remove it, or set"
                    " FEATURE_PIPELINE_WORK_FOLDER"
                )
        folder.mkdir(parents=True, exist_ok=True)


def _folders(parent: Path) -> Iterator[Path]:
    with suppress(FileNotFoundError):
        yield from sorted(path for path in parent.iterdir() if path.is_dir())


def _is_abandoned(folder: Path) -> bool:
    """Return whether no process holds the folder's lock; False if that cannot be determined."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return time.time() - _modified_at(folder) > _BEGINNING_SECONDS
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(lock)
    return True


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _read_question(folder: Path) -> Question | None:
    try:
        return Question(**json.loads((folder / _QUESTION).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
