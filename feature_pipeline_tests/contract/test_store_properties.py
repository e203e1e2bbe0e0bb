"""The command that tries what a store can, on real servers and on stores that lack something."""

import json
from collections.abc import Iterator

import boto3
import pytest
from botocore.config import Config

from feature_pipeline.archive.store import s3_check
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.archive.store.s3_check import StoreProperty, check_store
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline_tests.fixtures.commands import CommandLine
from feature_pipeline_tests.fixtures.s3 import s3_settings
from feature_pipeline_tests.fixtures.stores import archive_client

pytestmark = pytest.mark.s3
BUCKET = "bucket"
MAY_RACE = {"one creator"}
"""The server looks and writes in two steps: of writers that meet, two may succeed."""


@pytest.fixture
def moto() -> Iterator[S3Address]:
    """A server that checks neither signatures nor checksums."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = S3Address(f"http://{host}:{port}", BUCKET, "us-east-1", "key", "secret")
        client = boto3.client(
            "s3",
            endpoint_url=address.endpoint_url,
            region_name=address.region,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            config=Config(proxies={}),
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()
        yield address
    finally:
        server.stop()


def checked(address: S3Address, prefix: str) -> dict[str, StoreProperty]:
    client = archive_client(address)
    try:
        properties = check_store(client, address.bucket, prefix)
        left = client.list_objects_v2(Bucket=address.bucket, Prefix=f"{prefix}/")
        assert left["KeyCount"] == 0
    finally:
        client.close()
    return {each.name: each for each in properties}


def lacking(properties: dict[str, StoreProperty]) -> set[str]:
    return {name for name, each in properties.items() if not each.is_present}


def test_a_server_that_has_every_property(s3_address: S3Address, s3_prefix: str) -> None:
    properties = checked(s3_address, s3_prefix)
    assert len(properties) == len(s3_check._CHECKS)
    assert {name: each.failure for name, each in properties.items() if not each.is_present} == {}


def test_the_command_names_what_a_server_lacks(
    moto: S3Address, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server checks neither signatures nor checksums."""
    for name, value in s3_settings(moto, "").items():
        monkeypatch.setenv(name, value)
    status, printed, _ = command_line("check-store", "--json")
    assert status == 2
    document = json.loads(printed)
    assert document["is_usable"] is False
    properties = {each["name"]: each for each in document["properties"]}
    lacks = {name for name, each in properties.items() if each["failure"]}
    assert lacks - MAY_RACE == {"signatures end", "checksums"}
    assert "after the address had expired" in properties["signatures end"]["failure"]
    assert properties["signatures end"]["is_required"]
    assert not properties["checksums"]["is_required"]


def _unconditionally(self: S3Store, key: str, data: bytes, *_: object) -> bool:
    return self._put(key, data, "text/plain", {})


@pytest.mark.parametrize(
    ("method", "names"),
    [
        ("create", {"conditional creation", "one creator"}),
        ("replace", {"conditional replacement"}),
    ],
)
def test_a_store_that_ignores_conditions(
    s3_address: S3Address,
    s3_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    names: set[str],
) -> None:
    monkeypatch.setattr(s3_check, "_CHECKS", s3_check._CHECKS[:3])
    monkeypatch.setattr(S3Store, method, _unconditionally)
    assert lacking(checked(s3_address, s3_prefix)) == names


def test_a_store_whose_listings_are_behind(
    s3_address: S3Address, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [check] = [each for each in s3_check._CHECKS if each[0] == "reads after writes"]
    monkeypatch.setattr(s3_check, "_CHECKS", (check,))
    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "list_objects", lambda *_: iter(()))
        client = archive_client(s3_address)
        properties = check_store(client, s3_address.bucket, s3_prefix)
        client.close()
    assert [each.failure for each in properties] == [
        "LIST did not name an object that was just written"
    ]
