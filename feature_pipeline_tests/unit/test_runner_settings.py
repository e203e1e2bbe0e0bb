"""From configuration to a runner."""

import boto3
import pytest
from pydantic import TypeAdapter, ValidationError

from feature_pipeline.archive.stores.memory import MemoryStore
from feature_pipeline.archive.stores.s3_sign import S3Signer
from feature_pipeline.compute.runners import RunnerSettings, open_runner
from feature_pipeline.errors import InvalidInputError

PARSE = TypeAdapter(RunnerSettings).validate_python
CLUSTER = {"kind": "kubernetes", "namespace": "hooks", "support_image": "r/s@sha256:0"}


def signer(signature: str = "s3v4") -> S3Signer:
    from botocore.config import Config

    client = boto3.session.Session().client(
        "s3",
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
        config=Config(signature_version=signature),
    )
    return S3Signer(client, "bucket", "/prefix/")


@pytest.mark.parametrize(
    "config",
    [
        {"kind": "subprocess"},
        {"kind": "container", "engine_url": "unix:///nowhere", "code_image": "sha256:0"},
        CLUSTER | {"k8s": {"pod_spec_config": {"priority_class_name": "low"}}},
    ],
)
def test_every_kind(config):
    assert open_runner(PARSE(config), MemoryStore(), signer()).name == config["kind"]


def test_an_unknown_kind_names_those_there_are():
    with pytest.raises(ValidationError, match=r"'subprocess', 'container', 'kubernetes'"):
        PARSE({"kind": "docker"})


def test_kubernetes_needs_somebody_who_signs():
    with pytest.raises(InvalidInputError, match="sign"):
        open_runner(PARSE(CLUSTER), MemoryStore())


def test_wrong_additions_fail_before_anything_runs():
    with pytest.raises(InvalidInputError, match="host_networks"):
        open_runner(PARSE(CLUSTER | {"k8s": {"pod_spec_config": {"host_networks": 1}}}),
                    MemoryStore(), signer())  # fmt: skip


def test_addresses_are_of_one_object_for_a_time():
    url = signer().sign_get("blobs/x", 60)
    assert "prefix/blobs/x?" in url
    assert "X-Amz-Expires=60" in url
    assert "X-Amz-Signature=" in url


@pytest.mark.parametrize("seconds", [0, 7 * 86_400 + 1])
def test_nothing_is_signed_for_longer_than_s3_takes(seconds):
    with pytest.raises(InvalidInputError, match="604800"):
        signer().sign_put("uploads/x", seconds)


def test_a_client_that_signs_the_old_way_is_refused():
    with pytest.raises(InvalidInputError, match="s3v4"):
        signer("s3").sign_get("blobs/x", 60)
