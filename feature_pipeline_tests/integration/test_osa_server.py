"""The recorded server's database, and its storage in a bucket."""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import (
    InvalidInputError,
    NotFoundError,
    ProjectionError,
    StoreUnavailableError,
)
from feature_pipeline.osa.definitions import followed_hooks
from feature_pipeline.osa.server.database import OpenBatch, Server
from feature_pipeline.osa.server.schema import COMPLETIONS
from feature_pipeline.osa.server.storage import (
    BucketStorage,
    FolderStorage,
    ServerStorage,
    batch_place,
    deposition_place,
    output_place,
)
from feature_pipeline.osa.settings import OsaSettings
from feature_pipeline.osa.sync.follower import Follower
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline_tests.fixtures import osa_server as recorded
from feature_pipeline_tests.fixtures.s3 import S3Address

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = pytest.mark.postgres


def test_the_server_is_read_without_writing(osa_server: Server) -> None:
    with osa_server.session(COMPLETIONS) as reader:
        definitions = reader.definitions()
        assert sorted(definitions.hooks) == ["alignment", "pockets", "qc"]
        assert [release.version for release in definitions.hooks["qc"].releases] == [1, 2]
        assert definitions.hooks["qc"].live_release().version == 2
        assert definitions.conventions["pdb-structures"].hooks == ("pockets", "qc")
        runs = reader.ingest_runs(definitions.conventions)
        assert {run.id: run.has_ended for run in runs} == {
            recorded.HISTORY: True,
            recorded.ABORTED: True,
            recorded.RUNNING: False,
        }
        depositions = reader.validated_depositions(["protein-designs"])
        assert len(depositions) == 4  # neither the draft nor the one whose server was killed
        claimed = {at: batch for batch, at in reader.open_batches().items()}
        assert list(claimed.values()) == [(recorded.RUNNING, 4)]
        assert OpenBatch(None) not in claimed
        ids = [row["id"] for row in recorded.rows("public.hook_runs")]
        assert len(reader.hook_runs([*ids, "00000000-0000-0000-0000-000000000000"])) == 24
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.connection.execute("delete from public.hook_runs")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("drop table public.conventions", "there is no table public.conventions"),
        (
            "alter table public.hook_releases rename column source_ref to source",
            "public.hook_releases has no column 'source_ref'",
        ),
    ],
)
def test_another_schema_version_is_named_with_the_tables_examined(
    osa_url: str, change: str, expected: str
) -> None:
    with psycopg.connect(osa_url) as connection:
        connection.execute("update alembic_version set version_num = 'abc123'")
        connection.execute(change)
    with pytest.raises(InvalidInputError) as caught, Server(Database(osa_url)).session():
        pass
    message = str(caught.value)
    assert expected in message
    assert "its schema version is abc123" in message
    assert "looked at public.hooks, public.hook_releases" in message


def test_a_table_without_access_is_named_with_the_grant(osa_url: str) -> None:
    with psycopg.connect(osa_url, autocommit=True) as connection:
        role = f"follower_{secrets.token_hex(4)}"
        name = sql.Identifier(role)
        connection.execute(sql.SQL("create role {} login password 'x'").format(name))
        connection.execute(sql.SQL("grant select on public.hooks to {}").format(name))
        try:
            other = psycopg.conninfo.conninfo_to_dict(osa_url) | {
                "user": role,
                "password": "x",
            }
            url = psycopg.conninfo.make_conninfo(**other)
            with pytest.raises(InvalidInputError) as caught, Server(Database(url)).session():
                pass
        finally:
            connection.execute(sql.SQL("revoke all on public.hooks from {}").format(name))
            connection.execute(sql.SQL("drop role {}").format(name))
    message = str(caught.value)
    assert "has no access to public.hook_releases, public.conventions" in message
    assert "grant select on public.hook_releases, public.conventions" in message


def test_completions_need_more_than_definitions(osa_url: str) -> None:
    with psycopg.connect(osa_url) as connection:
        connection.execute("alter table public.deliveries rename to jobs")
    server = Server(Database(osa_url))
    with server.session():
        pass
    with (
        pytest.raises(InvalidInputError, match=r"there is no table public\.deliveries"),
        server.session(COMPLETIONS),
    ):
        pass


def test_a_database_that_is_not_there_is_an_error() -> None:
    with (
        pytest.raises(ProjectionError, match="Open Science Archive server's database"),
        Server(Database("postgresql://reader@127.0.0.1:1/none")).session(),
    ):
        pass


def digests(server: Server, storage: ServerStorage) -> dict[str, object]:
    """What a pass over this storage publishes, by output."""
    settings = OsaSettings()
    with server.session() as reader:
        followed = followed_hooks(reader.definitions(), settings)
    definitions = {(f.definition.dataset, f.definition.name): f.definition for f in followed}
    store = MemoryStore()
    result = Follower(store, server, storage, settings, definitions).follow()
    assert len(result.published) == 20, result
    return {key: stored.info.size for key, stored in store._objects.items() if "blobs/" in key}


@pytest.mark.s3
def test_a_bucket_gives_the_same_artifacts_as_a_folder(
    osa_server: Server,
    s3_address: S3Address,
    s3_client: "S3Client",
    s3_prefix: str,
    osa_storage: FolderStorage,
) -> None:
    for file in recorded.lines("storage.jsonl"):
        s3_client.put_object(
            Bucket=s3_address.bucket,
            Key=f"{s3_prefix}/{recorded.bucket_key(file['path'])}",
            Body=file["text"].encode(),
        )
    bucket = BucketStorage(s3_client, s3_address.bucket, s3_prefix)
    assert digests(osa_server, bucket) == digests(osa_server, osa_storage)
    batch = batch_place(recorded.HISTORY, 0)
    output = output_place(deposition_place("archive.example.org_a1eabcc6-449f-465f-9"), "qc")
    assert {n: s.size for n, s in bucket.files(output).items()} == {
        n: s.size for n, s in osa_storage.files(output).items()
    }
    assert bucket.files(output_place(batch, "none")) == {}
    with pytest.raises(NotFoundError, match=r"hooks/none/output/run\.json"):
        bucket.read(output_place(batch, "none") / "run.json")
    with pytest.raises(NotFoundError, match="has no object"):
        BucketStorage(s3_client, s3_address.bucket, f"{s3_prefix}/other").check()


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_an_error_and_no_absent_file(s3_client: "S3Client") -> None:
    storage = BucketStorage(s3_client, "a-bucket-that-was-never-made")
    place = batch_place(recorded.HISTORY, 0) / "ingester" / "records.jsonl"
    asked: list[Callable[[], object]] = [
        lambda: storage.files(place),
        lambda: storage.read(place),
        storage.check,
    ]
    for ask in asked:
        with pytest.raises(StoreUnavailableError, match="a-bucket-that-was-never-made"):
            ask()


@pytest.mark.s3
def test_a_fetched_file_is_equal(
    s3_address: S3Address, s3_client: "S3Client", s3_prefix: str, tmp_path: Path
) -> None:
    place = batch_place("run", 0) / "ingester" / "files" / "r1" / "big.bin"
    data = bytes(range(256)) * 10_000
    s3_client.put_object(Bucket=s3_address.bucket, Key=f"{s3_prefix}/data/{place}", Body=data)
    BucketStorage(s3_client, s3_address.bucket, s3_prefix).fetch(place, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
