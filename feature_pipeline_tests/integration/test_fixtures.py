"""The fixtures keep tests apart."""

import os
from typing import TYPE_CHECKING

import psycopg
import pytest

from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline_tests.fixtures.postgres import PostgresAddress

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.s3, pytest.mark.postgres]


def test_ambient_settings_do_not_reach_a_test() -> None:
    allowed = {"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_EC2_METADATA_DISABLED"}
    ambient = ("AWS_", "PG", "DAGSTER_", "FEATURE_PIPELINE_")
    assert {name for name in os.environ if name.startswith(ambient)} <= allowed


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_gets_an_empty_database(database_url: str, turn: int) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE SCHEMA features")
        connection.execute("CREATE TABLE features.t (n int)")


def test_a_dropped_database_cuts_its_connections(postgres_server: PostgresAddress) -> None:
    url = postgres_server.create_database()
    connection = psycopg.connect(url)
    postgres_server.drop_database(url)
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_gets_an_unused_prefix(
    s3_client: "S3Client", s3_address: S3Address, s3_prefix: str, turn: int
) -> None:
    bucket = s3_address.bucket
    assert s3_client.list_objects_v2(Bucket=bucket, Prefix=s3_prefix)["KeyCount"] == 0
    s3_client.put_object(Bucket=bucket, Key=f"{s3_prefix}/key", Body=b"x")
    assert s3_client.list_objects_v2(Bucket=bucket, Prefix=s3_prefix)["KeyCount"] == 1
