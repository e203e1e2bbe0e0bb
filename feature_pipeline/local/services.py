"""Both servers together: one folder, one owner at a time, one set of credentials.

The folder::

    lock               held by the process that runs the servers; contains its pid
    credentials.json   made once, readable by its owner only
    seaweedfs/         the canonical data: what is lost here is lost
    postgres/          tables and Dagster's storage
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from feature_pipeline.errors import ConflictError, CorruptDataError, StoreUnavailableError
from feature_pipeline.local.postgres import PostgresServer
from feature_pipeline.local.process import write_private
from feature_pipeline.local.seaweedfs import S3Address, SeaweedServer
from feature_pipeline.local.supervisor import Server

DEFAULT_FOLDER = Path(".feature_pipeline")
BUCKET = "feature-pipeline"
DATABASE = "feature_pipeline"
DAGSTER_DATABASE = "dagster"


class Credentials(BaseModel):
    """Secrets of one data folder: letters and digits only, so that URLs can contain them."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    access_key_id: str
    secret_access_key: str
    postgres_superuser_password: str
    postgres_password: str


class FolderLock:
    """Marks a folder as used by one process; the kernel releases it however that process ends."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            ConflictError: Another process (or another object of this one) has it; names its pid.
        """
        # Not inherited, as all of Python's: the servers do not hold the lock after their owner.
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise ConflictError(
                f"{self._path.parent} is in use by process {holder or '(unknown)'}: its servers "
                "run already. Use them, stop that process, or choose another folder."
            ) from error
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._descriptor = descriptor

    def release(self) -> None:
        """Release the lock. Its file stays: removing it would let two processes lock two files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class LocalServices:
    """SeaweedFS and PostgreSQL on loopback, with all their data below `folder`.

    Use as a context manager, or call `start` and `stop`. Not inherited by forked children.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._lock = FolderLock(self.folder)
        self._servers: tuple[SeaweedServer, PostgresServer] | None = None

    def start(self) -> None:
        """Start both servers; create bucket, databases and credentials if missing.

        If one does not start, or on Ctrl-C, neither is left running.

        Raises:
            ConflictError: The folder is in use; names the process.
            NotFoundError: The `local` extra is not installed.
            StoreUnavailableError: A server does not start; with its log's last lines.
            CorruptDataError: A file of ours in the folder cannot be read.
        """
        with self._translated():
            prepare_folder(self.folder)
            self._lock.acquire()
        try:
            with self._translated():
                servers = self._make_servers()
                self._start_both(servers)
        except BaseException:
            self._lock.release()
            raise
        self._servers = servers

    def stop(self) -> None:
        """Stop both servers and release the folder. Does nothing if they do not run."""
        servers, self._servers = self._servers, None
        if servers is None:
            return
        try:
            _stop_both(servers)
        finally:
            self._lock.release()

    def servers(self) -> dict[str, Server]:
        """Return the servers for a supervisor, by the name that users know."""
        seaweedfs, postgres = self._running()
        return {
            "SeaweedFS": _SameAddress(seaweedfs, self._addresses),
            "PostgreSQL": _SameAddress(postgres, self._addresses),
        }

    def _addresses(self) -> tuple[str, str]:
        return self.s3.endpoint_url, self.database_url

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def free_bytes(self) -> int:
        """Return the free bytes on the disk of `folder`; without any, S3 answers InternalError."""
        return shutil.disk_usage(self.folder).free

    @property
    def s3(self) -> S3Address:
        """Address of the bucket."""
        return self._running()[0].address

    @property
    def database_url(self) -> str:
        """The tables' database, `postgresql://…`, without a driver's name."""
        return self._running()[1].url(DATABASE)

    @property
    def dagster_database_url(self) -> str:
        """Dagster's storage. Names psycopg2: dagster-postgres does not work with psycopg 3."""
        return self._running()[1].url(DAGSTER_DATABASE, driver="psycopg2")

    def _running(self) -> tuple[SeaweedServer, PostgresServer]:
        if self._servers is None:
            raise StoreUnavailableError(f"The servers of {self.folder} have not been started")
        return self._servers

    def _make_servers(self) -> tuple[SeaweedServer, PostgresServer]:
        credentials = load_or_make_credentials(self.folder / "credentials.json")
        return (
            SeaweedServer(
                self.folder / "seaweedfs",
                access_key_id=credentials.access_key_id,
                secret_access_key=credentials.secret_access_key,
                buckets=[BUCKET],
            ),
            PostgresServer(
                self.folder / "postgres",
                superuser_password=credentials.postgres_superuser_password,
                password=credentials.postgres_password,
                databases=[DATABASE, DAGSTER_DATABASE],
            ),
        )

    def _start_both(self, servers: tuple[SeaweedServer, PostgresServer]) -> None:
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="start") as pool:
            try:
                # Inside: the first server may run, and Ctrl-C come, before the second is begun.
                futures = [pool.submit(server.start) for server in servers]
                wait(futures, return_when=FIRST_EXCEPTION)
                for future in futures:
                    if future.done():
                        future.result()
            except BaseException:
                # Before the pool waits for its threads: a stop request ends a server's start.
                _stop_both(servers)
                raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailableError(
                f"The servers' folder {self.folder} cannot be used: {error}. It must be on a local "
                "disk, have room, and belong to the user who starts them."
            ) from error


class _SameAddress:
    """A server whose address is in use by others, so that it must not change."""

    def __init__(
        self, server: SeaweedServer | PostgresServer, addresses: Callable[[], tuple[str, str]]
    ) -> None:
        self._server = server
        self._addresses = addresses

    def check(self) -> None:
        """Raise StoreUnavailableError, with the log's last lines, if it has died."""
        self._server.check()

    def start(self) -> None:
        """Start it again.

        Raises:
            ConflictError: Another program has taken its port meanwhile.
            StoreUnavailableError: It does not start.
        """
        before = self._addresses()
        self._server.start()
        if self._addresses() != before:
            raise ConflictError(
                f"Another program has taken a port of {before[0]}, so the server now has another"
                " address: start everything again"
            )


def prepare_folder(folder: Path) -> None:
    """Create `folder`, closed to other users and ignored by git."""
    if not folder.exists():
        # As root, PostgreSQL is another user, who must pass through.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        folder.mkdir(parents=True)
        folder.chmod(mode)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n", encoding="ascii")


def load_or_make_credentials(path: Path) -> Credentials:
    """Return the credentials in `path`; if there are none, create random ones."""
    try:
        return Credentials.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except ValidationError as error:
        raise CorruptDataError(
            f"{path} is damaged: {error}. Restore it; the database was made with its passwords."
        ) from error
    made = Credentials(
        access_key_id=f"FP{secrets.token_hex(9).upper()}",
        secret_access_key=secrets.token_hex(20),
        postgres_superuser_password=secrets.token_hex(16),
        postgres_password=secrets.token_hex(16),
    )
    write_private(path, json.dumps(made.model_dump(), indent=1))
    return made


def _stop_both(servers: tuple[SeaweedServer, PostgresServer]) -> None:
    for server in servers:
        server.request_stop()
    with contextlib.ExitStack() as stack:
        # The second is stopped even if the first raises.
        for server in servers:
            stack.callback(server.stop)
