"""From configuration to a runner."""

import boto3
import pytest

from feature_pipeline import settings
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.archive.store.s3_sign import S3Signer
from feature_pipeline.compute.runner_settings import open_runner
from feature_pipeline.compute.runner_settings import parse_settings as parse
from feature_pipeline.errors import InvalidInputError

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
    assert open_runner(parse(config), MemoryStore(), signer()).name == config["kind"]


def test_an_unknown_kind_names_those_there_are():
    with pytest.raises(InvalidInputError, match=r"'subprocess', 'container', 'kubernetes'"):
        parse({"kind": "docker"})


def test_kubernetes_needs_signing_keys():
    with pytest.raises(InvalidInputError, match="sign"):
        open_runner(parse(CLUSTER), MemoryStore())


def test_wrong_additions_fail_before_anything_runs():
    with pytest.raises(InvalidInputError, match="host_networks"):
        open_runner(parse(CLUSTER | {"k8s": {"pod_spec_config": {"host_networks": 1}}}),
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


def test_from_the_environment():
    environment = {
        settings.RUNNER: "container",
        settings.RUNNER_SETTINGS: "{code_image: 'sha256:0', pids: 64}",
    }
    config = {"kind": settings.runner_name(environment)} | settings.runner_settings(environment)
    assert open_runner(parse(config), MemoryStore()).name == "container"
    assert settings.runner_settings({}) == {}


@pytest.mark.parametrize("text", ["a: [", "[1]", "text", "{pids: 010}"])
def test_settings_that_are_no_mapping(text):
    with pytest.raises(InvalidInputError, match=settings.RUNNER_SETTINGS):
        settings.runner_settings({settings.RUNNER_SETTINGS: text})


def test_settings_of_another_kind():
    with pytest.raises(InvalidInputError, match="engine_url"):
        parse({"kind": "subprocess", "engine_url": "x"})


def test_a_runner_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidInputError) as error:
        settings.runner_name({settings.RUNNER: "{confined: true}"})
    assert str(error.value) == (
        "FEATURE_PIPELINE_RUNNER is '{confined: true}': write one of subprocess, container,"
        " kubernetes; how it runs hooks is in FEATURE_PIPELINE_RUNNER_SETTINGS"
    )
