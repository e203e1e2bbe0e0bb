"""The embedded servers: what they keep, whom they let in, and what becomes of them in the end."""

import contextlib
import errno
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from botocore.exceptions import ClientError

from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.local import postgres, process, unprivileged
from feature_pipeline.local.environment import environment
from feature_pipeline.local.postgres import PostgresServer, closed_parent, find_binaries
from feature_pipeline.local.seaweedfs import SeaweedServer, find_weed
from feature_pipeline.local.services import LocalServices
from feature_pipeline.local.supervisor import Server, Supervisor
from feature_pipeline_tests.fixtures import missing, server_folder
from feature_pipeline_tests.fixtures.s3 import make_client

pytestmark = [pytest.mark.s3, pytest.mark.postgres]

OWNER = Path(__file__).with_name("own_services.py")
is_root = os.geteuid() == 0


@pytest.fixture(scope="module", autouse=True)
def _wheels() -> None:
    try:
        find_weed()
        find_binaries()
    except NotFoundError as error:
        missing(error)


@pytest.fixture
def folder() -> Iterator[Path]:
    with server_folder() as base:
        yield base / ".feature_pipeline"


@pytest.fixture(scope="module")
def services() -> Iterator[LocalServices]:
    """Running servers, for tests that only ask them something.

    The path is long: that of a Unix socket would have to end at 107 characters.
    """
    with server_folder() as base, LocalServices(base / ("x" * 120)) as running:
        yield running


@pytest.fixture(scope="module")
def used_folder_template() -> Iterator[Path]:
    with server_folder() as base:
        with LocalServices(base / "template") as services:
            put(services, "a/b", b"kept")
            execute(services.database_url, "CREATE TABLE t AS SELECT 42 AS n")
        yield base / "template"


@pytest.fixture
def used_folder(folder: Path, used_folder_template: Path) -> Path:
    """A folder as an earlier run leaves it; object `a/b` is b"kept", table `t` holds 42."""
    # Keeps owners, which shutil does not: as root, the database's files are another user's.
    subprocess.run(["cp", "-a", str(used_folder_template), str(folder)], check=True)
    return folder


def check(services: LocalServices) -> None:
    for server in services.servers().values():
        server.check()


def is_dead(server: Server) -> bool:
    try:
        server.check()
    except StoreUnavailableError:
        return True
    return False


def assert_all_there(services: LocalServices) -> None:
    check(services)
    assert get(services, "a/b") == b"kept"
    assert execute(services.database_url, "SELECT n FROM t") == [(42,)]


def put(services: LocalServices, key: str, body: bytes, **more: Any) -> None:
    client = make_client(services.s3)
    client.put_object(Bucket=services.s3.bucket, Key=key, Body=body, **more)
    client.close()


def get(services: LocalServices, key: str) -> bytes:
    client = make_client(services.s3)
    body = client.get_object(Bucket=services.s3.bucket, Key=key)["Body"].read()
    client.close()
    return body


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []


def recorded_pids(folder: Path) -> list[int]:
    return [
        json.loads((folder / name / "server.json").read_text())["pid"]
        for name in ("seaweedfs", "postgres")
    ]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def owner(folder: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Another process that owns the services on `folder`, and what it says about them."""
    argv = [sys.executable, str(OWNER), str(folder), *more]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as popen:
        try:
            assert popen.stdout is not None
            line = popen.stdout.readline()
            if not line:
                assert popen.stderr is not None
                pytest.fail(popen.stderr.read())
            yield popen, json.loads(line)
        finally:
            if popen.poll() is None:
                popen.send_signal(signal.SIGINT)
            popen.communicate(timeout=60)


def test_a_second_start_finds_everything_at_the_same_addresses(
    folder: Path, tmp_path: Path
) -> None:
    with LocalServices(folder) as services:
        first = environment(services, tmp_path)
        client = make_client(services.s3)
        # What tells whether writes work must not look like part of an archive.
        assert client.list_objects_v2(Bucket=services.s3.bucket)["KeyCount"] == 0
        client.close()
        put(services, "a/b", b"kept")
        execute(services.database_url, "CREATE TABLE t AS SELECT 42 AS n")
        pids = recorded_pids(folder)
    assert not any(map(is_running, pids))
    assert not list(folder.glob("*/server.json"))

    with LocalServices(folder) as services:
        assert environment(services, tmp_path) == first
        assert_all_there(services)


@pytest.mark.parametrize("changed", [{"create_time": 1.0}, {"argv": ["x"]}], ids=str)
def test_an_owner_killed_leaves_orphans_that_the_next_start_ends_without_loss(
    used_folder: Path, changed: dict[str, Any]
) -> None:
    """A clock that was set moves start times, servers may change command lines: either will do."""
    with owner(used_folder) as (popen, facts):
        popen.kill()
        popen.wait()
    assert all(map(is_running, facts["pids"])), "no process was there to stop them"
    for name in ("seaweedfs", "postgres"):
        path = used_folder / name / "server.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    with LocalServices(used_folder) as services:
        assert not any(map(is_running, facts["pids"]))
        assert services.s3.endpoint_url == facts["endpoint_url"]
        assert_all_there(services)


def test_what_was_acknowledged_survives_servers_that_are_killed(used_folder: Path) -> None:
    with LocalServices(used_folder) as services:
        put(services, "a/c", b"new" * 1000)
        execute(services.database_url, "CREATE TABLE u AS SELECT 43 AS n")
        for pid in recorded_pids(used_folder):
            os.kill(pid, signal.SIGKILL)
        # A process whose threads have not ended is a zombie that cannot be waited for.
        wait_until(lambda: all(map(is_dead, services.servers().values())))
        with pytest.raises(
            StoreUnavailableError, match=r"(?s)SIGKILL ended SeaweedFS.*server\.log"
        ):
            check(services)
        lines: list[str] = []
        Supervisor(services.servers(), lines.append).look()
        assert lines == [
            "SIGKILL ended SeaweedFS, from outside: perhaps the machine ran out of memory;"
            " restarting it ...",
            "SeaweedFS runs again.",
            "SIGKILL ended PostgreSQL, from outside: perhaps the machine ran out of memory;"
            " restarting it ...",
            "PostgreSQL runs again.",
        ]
        assert_all_there(services)
        assert get(services, "a/c") == b"new" * 1000
        assert execute(services.database_url, "SELECT n FROM u") == [(43,)]


def test_ctrl_c_ends_the_servers_and_frees_the_folder(folder: Path) -> None:
    with owner(folder) as (popen, facts):
        popen.send_signal(signal.SIGINT)
        popen.wait(30)
    assert not any(map(is_running, facts["pids"]))
    assert not list(folder.glob("*/server.json"))


def test_ctrl_c_during_the_start_leaves_nothing_running(folder: Path) -> None:
    argv = [sys.executable, str(OWNER), str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as popen:
        wait_until(lambda: (folder / "seaweedfs" / "server.json").exists())
        pid = json.loads((folder / "seaweedfs" / "server.json").read_text())["pid"]
        popen.send_signal(signal.SIGINT)
        popen.wait(60)
    assert not is_running(pid)
    ours = str(folder)
    left = [p.pid for p in psutil.process_iter(["cmdline"]) if ours in str(p.info["cmdline"])]
    assert left == []


def test_a_second_start_on_the_same_folder_is_refused(services: LocalServices) -> None:
    with pytest.raises(ConflictError) as caught:
        LocalServices(services.folder).start()
    assert str(services.folder) in str(caught.value)
    assert f"process {os.getpid()}:" in str(caught.value)
    check(services)


def test_conditional_writes_are_honoured(services: LocalServices) -> None:
    put(services, "conditional", b"first", IfNoneMatch="*")
    with pytest.raises(ClientError) as caught:
        put(services, "conditional", b"second", IfNoneMatch="*")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412
    assert get(services, "conditional") == b"first"


@pytest.mark.parametrize("wrong", ["access_key_id", "secret_access_key"])
def test_s3_refuses_wrong_credentials(services: LocalServices, wrong: str) -> None:
    client = make_client(services.s3, **{wrong: "wrong"})
    with pytest.raises(ClientError) as caught:
        client.list_objects_v2(Bucket=services.s3.bucket)
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    client.close()


@pytest.mark.parametrize("user", ["feature_pipeline", "postgres"])
def test_postgres_refuses_wrong_passwords(services: LocalServices, user: str) -> None:
    address = services.database_url.split("@")[1]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(f"postgresql://{user}:wrong@{address}")


def test_an_unknown_bucket_is_an_error_and_a_full_one_stays(services: LocalServices) -> None:
    put(services, "kept", b"kept")
    client = make_client(services.s3)
    with pytest.raises(ClientError) as caught:
        client.put_object(Bucket="unknown", Key="k", Body=b"")
    assert caught.value.response["Error"]["Code"] == "NoSuchBucket"
    with pytest.raises(ClientError) as caught:
        client.delete_bucket(Bucket=services.s3.bucket)
    assert caught.value.response["Error"]["Code"] == "BucketNotEmpty"
    client.close()
    assert get(services, "kept") == b"kept"


def test_servers_listen_on_loopback_only(services: LocalServices) -> None:
    listening = []
    for pid in recorded_pids(services.folder):
        addresses = [
            connection.laddr
            for member in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))
            for connection in member.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
            or (connection.type == socket.SOCK_DGRAM and not connection.raddr)
        ]
        assert addresses, "a server without a port cannot be ours"
        listening += addresses
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert len(listening) >= 6, "the S3 gateway's internal servers are not all seen"


def test_the_databases_role_cannot_leave_the_database(services: LocalServices) -> None:
    """Its password is in `.env`, and PostgreSQL runs programs for superusers."""
    for url in (services.database_url, services.dagster_database_url.replace("+psycopg2", "")):
        assert execute(
            url,
            "SELECT current_user, pg_get_userbyid(datdba) FROM pg_database "
            "WHERE datname = current_database()",
        ) == [("feature_pipeline",) * 2]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(url, "COPY (SELECT 1) TO PROGRAM 'cat'")
        # no "$user", which the schema of the bookkeeping has the name of
        assert execute(url, "SHOW search_path") == [("features, public",)]


def test_server_settings_are_durable_and_utc(services: LocalServices) -> None:
    names = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "TimeZone")
    shown = [execute(services.database_url, f"SHOW {name}")[0][0] for name in names]
    assert shown == ["on", "on", "on", "on", "UTC"]


def test_the_databases_log_names_no_record(services: LocalServices) -> None:
    """An erasure does not reach it: neither the statement of an error is there nor its detail."""
    url, log = services.database_url, services.folder / "postgres" / "server.log"
    execute(url, "CREATE TABLE named (record_id text PRIMARY KEY)")
    for _ in range(2):
        with contextlib.suppress(psycopg.errors.UniqueViolation):
            execute(url, "INSERT INTO named VALUES ('pdb:secret')")
    text = log.read_text()
    assert "duplicate key value" in text
    assert "secret" not in text


def test_secrets_are_for_their_owner_only_and_git_ignores_the_folder(
    services: LocalServices,
) -> None:
    folder = services.folder
    for path in (folder / "credentials.json", folder / "seaweedfs" / "s3.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (folder / ".gitignore").read_text() == "*\n"
    password = services.s3.secret_access_key
    assert password not in repr(services.s3)
    for pid in recorded_pids(folder):
        shown = str(psutil.Process(pid).cmdline())
        assert not any(
            secret in shown
            for secret in json.loads((folder / "credentials.json").read_text()).values()
        )


def test_ports_taken_meanwhile_are_replaced_and_nothing_is_lost(used_folder: Path) -> None:
    taken = [
        port
        for name in ("seaweedfs", "postgres")
        for port in json.loads((used_folder / name / "ports.json").read_text()).values()
    ]
    with contextlib.ExitStack() as stack:
        for port in taken:
            try:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError as error:  # another process may have taken it already
                if error.errno != errno.EADDRINUSE:
                    raise
        with LocalServices(used_folder) as services:
            assert not any(
                f":{port}" in address
                for port in taken
                for address in (services.s3.endpoint_url, services.database_url)
            )
            assert_all_there(services)
            put(services, "a/c", b"more")
            assert get(services, "a/c") == b"more"


def make_server(kind: str, folder: Path) -> SeaweedServer | PostgresServer:
    if kind == "s3":
        return SeaweedServer(folder, access_key_id="A", secret_access_key="B", buckets=["bucket"])
    return PostgresServer(folder, superuser_password="s", password="p", databases=["d"])


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["s3", "postgres"])
def test_a_port_lost_between_choosing_and_binding_is_chosen_again(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that took the port must not be mistaken for our server."""
    folder.mkdir()
    server = make_server(kind, folder)
    with socket.create_server(("127.0.0.1", 0)) as thief:
        port = thief.getsockname()[1]
        (folder / "ports.json").write_text(json.dumps({kind: port}))
        really = process.is_port_free
        monkeypatch.setattr(process, "is_port_free", lambda p: p == port or really(p))
        try:
            server.start()
            assert json.loads((folder / "ports.json").read_text())[kind] != port
            server.check()
        finally:
            server.kill()


@pytest.mark.faults
def test_a_server_that_fails_to_start_gives_the_reason_and_stops_the_other(
    used_folder: Path,
) -> None:
    configuration = used_folder / "postgres" / "data" / "postgresql.conf"
    sound = configuration.read_text()
    configuration.write_text("max_connections = many\n")
    with pytest.raises(StoreUnavailableError, match='invalid value for parameter "max_conn'):
        LocalServices(used_folder).start()
    assert not list(used_folder.glob("*/server.json"))

    configuration.write_text(sound)
    with LocalServices(used_folder) as services:
        assert_all_there(services)


@pytest.mark.faults
def test_a_stranger_with_a_recorded_pid_is_left_alone(used_folder: Path) -> None:
    """Pids come round again, in containers soon."""
    data = used_folder / "postgres" / "data"
    # PostgreSQL looks twice only at processes of its own user.
    user = data.stat().st_uid if is_root else None
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, user=user) as stranger:
        record = {"pid": stranger.pid, "create_time": 1.0, "argv": ["/bin/server"]}
        for name in ("seaweedfs", "postgres"):
            (used_folder / name / "server.json").write_text(json.dumps(record))
        # PostgreSQL's own file would make it refuse to start.
        (data / "postmaster.pid").write_text(f"{stranger.pid}\n{data}\n1\n5432\n\n127.0.0.1\n")
        with LocalServices(used_folder) as services:
            assert_all_there(services)
        assert stranger.poll() is None
        stranger.communicate()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("credentials.json", '{"access_key_id": 1}', CorruptDataError),
        ("seaweedfs/ports.json", "[", CorruptDataError),
        ("seaweedfs/server.json", "{}", CorruptDataError),
        ("postgres/data/PG_VERSION", "9\n", InvalidInputError),
    ],
)
def test_damaged_files_are_named(
    used_folder: Path, name: str, text: str, error: type[Exception]
) -> None:
    (used_folder / name).write_text(text)
    with pytest.raises(error, match=str((used_folder / name).parent)):
        LocalServices(used_folder).start()
    assert (used_folder / name).read_text() == text, "evidence is not ours to change"


@pytest.mark.faults
def test_the_error_of_lost_credentials_names_the_remedy(used_folder: Path) -> None:
    (used_folder / "credentials.json").unlink()
    with pytest.raises(StoreUnavailableError, match=r"Restore the credentials\.json"):
        LocalServices(used_folder).start()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailableError, match=f"{tmp_path}/file/here"):
        LocalServices(tmp_path / "file" / "here").start()


@pytest.mark.skipif(not is_root, reason="only root may enter a folder closed to itself as nobody")
def test_root_may_use_a_folder_below_one_only_root_may_enter(folder: Path) -> None:
    closed = folder / "root"
    closed.mkdir(parents=True)
    closed.chmod(0o700)
    for _ in ("cold", "warm"):
        with LocalServices(closed / ".feature_pipeline") as services:
            assert execute(services.database_url, "SELECT 1") == [(1,)]
            uids = psutil.Process(recorded_pids(services.folder)[1]).uids()
            assert 0 not in uids


@pytest.mark.skipif(not is_root, reason="only root starts PostgreSQL as somebody else")
def test_without_a_way_into_a_closed_folder_the_error_names_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = folder / "root"
    closed.mkdir(parents=True)
    closed.chmod(0o700)
    monkeypatch.setattr(unprivileged, "keepable_capability", lambda: None)
    with pytest.raises(StoreUnavailableError, match=rf"chmod o\+x {closed}'"):
        LocalServices(closed / ".feature_pipeline").start()


@pytest.mark.skipif(not is_root, reason="already an ordinary user")
def test_an_ordinary_user_may_run_them(folder: Path) -> None:
    user = pwd.getpwnam("nobody")
    ids = (user.pw_uid, user.pw_gid)
    if closed := closed_parent(find_weed(), *ids) or closed_parent(find_binaries(), *ids):
        pytest.skip(f"the environment is below {closed}, which {user.pw_name} may not enter")
    home = folder / "home"
    home.mkdir(parents=True)
    os.chown(home, *ids)
    services = home / ".feature_pipeline"
    with owner(services, *map(str, ids), str(folder / "warm-up")) as (_, facts):
        assert facts["uid"] == user.pw_uid
        for pid in facts["pids"]:
            assert set(psutil.Process(pid).uids()) == {user.pw_uid}
        execute(facts["database_url"], "CREATE TABLE t AS SELECT 42 AS n")
    assert stat.S_IMODE(services.stat().st_mode) == 0o700

    # Then root, for whom PostgreSQL must stay with the data's owner.
    with LocalServices(services) as again:
        assert execute(again.database_url, "SELECT n FROM t") == [(42,)]
        assert postgres.SUPERUSER in execute(again.database_url, "SELECT usename FROM pg_user")[0]
