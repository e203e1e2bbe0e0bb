"""The policies of `deploy/iam`, as roles of a server that enforces them.

Each bucket has a user for each policy. An archive has no prefix there: the policies name its
folders.
"""

import dataclasses
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final

import boto3
import pytest
import requests
from botocore.config import Config
from botocore.exceptions import ClientError

from feature_pipeline.archive import accept, blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import MAX_CENSUSES, write_census
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.logs.known_lengths import known_logs
from feature_pipeline.archive.maintenance.erase import erase, finish_erasing
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.store.s3 import open_store
from feature_pipeline.archive.store.s3_sign import S3Signer
from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline.local.process import ServerCommand
from feature_pipeline.local.seaweedfs import S3Address, SeaweedServer
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.preview import plan_table
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline_tests.fixtures.care import CareScene, everything, holds
from feature_pipeline_tests.fixtures.commands import CommandLine
from feature_pipeline_tests.fixtures.dagster import Pipeline
from feature_pipeline_tests.fixtures.s3 import make_client, s3_settings, seaweed_server
from feature_pipeline_tests.fixtures.stores import COLUMNS, DATASET, HOOK, archive_client, connect

POLICIES = Path(__file__).parents[2] / "deploy/iam"
ROLES = ("archive-writer", "archive-collector", "archive-reader", "pod-signer")


class PolicedServer(SeaweedServer):
    """A server with users and policies, through the API that AWS has for them."""

    def _command(self, weed: Path) -> ServerCommand:
        command = super()._command(weed)
        argv = [each for each in command.argv if each != "-s3.iam=false"]
        return dataclasses.replace(command, argv=(*argv, "-s3.iam=true", "-s3.iam.readOnly=false"))


@pytest.fixture(scope="module")
def server() -> Iterator[S3Address]:
    with seaweed_server(PolicedServer, "policed") as address:
        yield address


Roles = Mapping[str, S3Address]


def new_bucket(server: S3Address) -> Roles:
    """A new bucket's address for each role, and for the `admin`, who may do anything."""
    bucket = f"archive-{secrets.token_hex(6)}"
    admin = dataclasses.replace(server, bucket=bucket)
    make_client(admin).create_bucket(Bucket=bucket)
    iam = boto3.session.Session().client(
        "iam",
        endpoint_url=server.endpoint_url,
        region_name=server.region,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        config=Config(proxies={}),
    )
    addresses = {"admin": admin}
    for role in ROLES:
        name = f"{role}-of-{bucket}"
        text = (POLICIES / f"{role}.json").read_text().replace("EXAMPLE-ARCHIVE", bucket)
        iam.create_user(UserName=name)
        policy = iam.create_policy(PolicyName=name, PolicyDocument=text)["Policy"]
        iam.attach_user_policy(UserName=name, PolicyArn=policy["Arn"])
        key = iam.create_access_key(UserName=name)["AccessKey"]
        addresses[role] = dataclasses.replace(
            admin, access_key_id=key["AccessKeyId"], secret_access_key=key["SecretAccessKey"]
        )
    return addresses


@pytest.fixture(scope="module")
def roles(server: S3Address) -> Roles:
    """The bucket of `filled`."""
    return new_bucket(server)


@pytest.fixture
def own_roles(server: S3Address) -> Roles:
    """A bucket that a test may change."""
    return new_bucket(server)


@pytest.fixture
def s3_address(own_roles: Roles) -> S3Address:
    """That of `pipeline`."""
    return own_roles["archive-writer"]


@pytest.fixture
def s3_prefix() -> str:
    return ""


@contextmanager
def filled_by_writer(roles: Roles, folder: Path) -> Iterator[CareScene]:
    """An archive that its writer filled: logs of every kind, something waiting and quarantined."""
    with connect(roles["archive-writer"]) as store:
        scene = CareScene(store, folder)
        everything(scene)
        write_census(store)
        yield scene


@pytest.fixture(scope="module")
def filled(roles: Roles, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CareScene]:
    """One for all tests that change nothing."""
    with filled_by_writer(roles, tmp_path_factory.mktemp("filled")) as scene:
        yield scene


@pytest.fixture
def archive(own_roles: Roles, tmp_path: Path) -> Iterator[CareScene]:
    with filled_by_writer(own_roles, tmp_path) as scene:
        yield scene


def test_every_policy_is_tested_here() -> None:
    policies = {each.stem for each in POLICIES.glob("*.json")} - {"lifecycle"}
    assert policies == set(ROLES)


def test_the_writer_does_what_dagster_asks_of_it(pipeline: Pipeline) -> None:
    pipeline.add_hook()
    pipeline.load_all()
    assert pipeline.rows("select count(*) from features.counts") == [(6,)]


def test_the_writer_takes_censuses_and_accepts_what_waits(archive: CareScene) -> None:
    store = archive.store
    for number in range(MAX_CENSUSES):
        archive.submit(archive.batch_of(f"more-{number}", (f"more{number}",)))
        write_census(store)
    before = [info.key for info in store.list_objects(layout.CENSUS)]
    [waiting] = inbox.waiting(store)
    [accepted] = accept.accept_entries(store, [waiting])
    assert isinstance(accepted, accept.Accepted)
    accept.remove(store, waiting.id)
    assert write_census(store).is_clean
    after = [info.key for info in store.list_objects(layout.CENSUS)]
    assert after != before
    assert len(after) == MAX_CENSUSES
    assert verify(store).is_clean


def test_the_writer_neither_deletes_nor_replaces_what_is_archived(filled: CareScene) -> None:
    kept = (layout.BLOBS, layout.LOGS)
    keys = [info.key for prefix in kept for info in filled.store.list_objects(prefix)]
    assert keys
    for key in keys:
        with pytest.raises(StoreUnavailableError, match="AccessDenied"):
            filled.store.delete(key)
    with pytest.raises(StoreUnavailableError, match=r"PUT .*/gc/.* AccessDenied"):
        collect_garbage(filled.store, GcScope.everything(), is_dry_run=False)
    assert [info.key for prefix in kept for info in filled.store.list_objects(prefix)] == keys


READING: Final = (
    ("read", HOOK),
    ("history", HOOK),
    ("compare", HOOK, "--from", "1", "--to", "2"),
    ("verify",),
    ("gc", "--all"),
    ("repair",),
    ("quarantine",),
)


@pytest.mark.parametrize("arguments", READING, ids=lambda arguments: arguments[0])
def test_the_reader_runs_what_changes_nothing(
    arguments: tuple[str, ...],
    filled: CareScene,
    roles: Roles,
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name, value in s3_settings(roles["archive-reader"], "").items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    status, out, error = command_line(*arguments)
    assert (status, error) == (0, ""), out


def test_the_reader_compares_logs_with_the_census(filled: CareScene, roles: Roles) -> None:
    store = Archive.open(environment=s3_settings(roles["archive-reader"], "")).store
    known = known_logs(store)
    assert known.census is not None
    assert not known.damage


def test_the_readers_role_is_enough_to_plan_rebuild_and_prove_a_table(
    filled: CareScene, roles: Roles, database_url: str
) -> None:
    database = Database(database_url)
    spec = TableSpec(dataset=DATASET, hook=HOOK, name="read_only", columns=COLUMNS)
    store = Archive.open(environment=s3_settings(roles["archive-reader"], "")).store
    plan_table(store, database, spec)
    assert plan_table(store, database, spec).batches
    list(fill(store, database, begin_rebuild(store, database, spec)))
    assert prove(store, database, spec).is_equal


def test_the_reader_writes_nothing(filled: CareScene, roles: Roles) -> None:
    client = make_client(roles["archive-reader"])
    bucket = roles["archive-reader"].bucket
    admin = make_client(roles["admin"])
    keys = [item["Key"] for item in admin.list_objects_v2(Bucket=bucket)["Contents"]]
    for key in keys:
        with pytest.raises(ClientError, match="AccessDenied"):
            client.put_object(Bucket=bucket, Key=key, Body=b"")
        with pytest.raises(ClientError, match="AccessDenied"):
            client.delete_object(Bucket=bucket, Key=key)


def test_the_collector_erases_and_collects(
    archive: CareScene, own_roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "GRACE", timedelta())
    with connect(own_roles["archive-collector"]) as store:
        assert holds(store, b"about r2")
        erase(store, DATASET, ["r2"], "asked for")
        finish_erasing(store, DATASET)
        assert not holds(store, b"about r2")
        assert not collect_garbage(store, GcScope.everything(), is_dry_run=False).obstacles
    assert log.head(archive.store, DATASET, HOOK, "b1") is not None
    assert verify(archive.store).is_clean


def test_the_signer_grants_inputs_and_uploads_and_nothing_else(
    filled: CareScene, roles: Roles
) -> None:
    address = roles["pod-signer"]
    signer = S3Signer(archive_client(address), address.bucket)
    blob = next(filled.store.list_objects(layout.BLOBS)).key
    upload = f"{layout.UPLOADS}run/features.jsonl"
    entry = next(filled.store.list_objects(layout.LOGS)).key
    with requests.Session() as client:
        client.trust_env = False
        assert client.get(signer.sign_get(blob, 60)).content == filled.store.get(blob).data
        assert client.put(signer.sign_put(upload, 60), data=b"x").ok
        assert client.get(signer.sign_get(upload, 60)).content == b"x"
        refused = [
            client.get(signer.sign_get(entry, 60)),
            client.put(signer.sign_put(blob, 60), data=b"x"),
            client.put(signer.sign_put(entry, 60), data=b"x"),
            client.put(signer.sign_put(f"{layout.INBOX}x", 60), data=b"x"),
        ]
    assert [each.status_code for each in refused] == [403] * len(refused)
    with pytest.raises(ClientError, match="AccessDenied"):
        make_client(address).list_objects_v2(Bucket=address.bucket)


def test_a_refusal_names_the_key_and_what_s3_answered(filled: CareScene, roles: Roles) -> None:
    with pytest.raises(StoreUnavailableError) as error:
        filled.store.stat(layout.GC_MARKS + "x")
    assert ": 403 Forbidden (endpoint" in str(error.value)
    address = roles["archive-reader"]
    with pytest.raises(StoreUnavailableError) as error:
        open_store(archive_client(address), address.bucket)
    assert str(error.value) == (
        f"PUT s3://{address.bucket}/{layout.PROBE}: 403 AccessDenied: Access Denied."
    )
