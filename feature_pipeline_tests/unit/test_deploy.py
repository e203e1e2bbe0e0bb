"""What `deploy/` ships is valid, agrees with itself and with what a single machine is told."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from feature_pipeline.archive import layout
from feature_pipeline.hooks.runners.kubernetes_job import JobSettings

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.mark.parametrize("version", ["1.31", "1.34"])
def test_manifests(version):
    for document in documents("kubernetes/hooks.yaml"):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_hooks_service_account_is_the_runners_default_and_is_bound_to_nothing():
    found = documents("kubernetes/hooks.yaml")
    [account] = [d for d in found if d["kind"] == "ServiceAccount"]
    assert account["metadata"]["name"] == JobSettings("n", "i").service_account
    assert account["automountServiceAccountToken"] is False
    subjects = [s["name"] for d in found if d["kind"] == "RoleBinding" for s in d["subjects"]]
    assert subjects == [
        yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())["global"]["serviceAccountName"]
    ]


def test_the_role_is_what_the_runner_calls_and_no_more():
    """Each call of the client in `kubernetes_api.py`, as RBAC names it."""
    source = (REPOSITORY / "feature_pipeline/hooks/runners/kubernetes_api.py").read_text()
    verbs = {"read": "get", "replace": "update"}
    calls = set()
    for verb, what in re.findall(r"\b([a-z]+)_namespaced_([a-z_]+)", source):
        resource = {"pod_log": "pods/log"}.get(what, f"{what}s")
        calls.add((resource, verbs.get(verb, verb)))
    [role] = [d for d in documents("kubernetes/hooks.yaml") if d["kind"] == "Role"]
    granted = {(r, v) for rule in role["rules"] for r in rule["resources"] for v in rule["verbs"]}
    assert granted == calls


def test_the_network_policy_refuses_the_metadata_services():
    import ipaddress

    [policy] = [d for d in documents("kubernetes/hooks.yaml") if d["kind"] == "NetworkPolicy"]
    assert policy["spec"]["ingress"] == []
    for rule in policy["spec"]["egress"]:
        assert rule["to"], "an empty list allows every address"
        for peer in rule["to"]:
            if "ipBlock" in peer:
                network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
                assert ipaddress.ip_address("169.254.169.254") not in network


def snake(name: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()


def test_helm_values_say_what_dagster_yaml_says():
    values = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
    instance = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    monitoring = {snake(k): v for k, v in values["dagsterDaemon"]["runMonitoring"].items()}
    extra = values["additionalInstanceConfig"]
    said = {
        "storage": {"postgres": values["postgresql"]["postgresqlScheme"]},
        "concurrency": values["concurrency"],
        "run_coordinator": values["dagsterDaemon"]["runCoordinator"]["config"],
        "run_monitoring": monitoring,
        "telemetry": values["telemetry"],
        "retention": {"sensor": values["retention"]["sensor"]},
    } | extra
    assert set(instance) <= set(said), "dagster.yaml says something that the chart is not told"
    assert said["storage"]["postgres"] == "postgresql+psycopg2"
    assert instance["storage"]["custom"]["class"] == "EnvironmentStorage"
    pools = instance["concurrency"]["pools"]
    assert {snake(k): v for k, v in values["concurrency"]["pools"].items()} == pools
    assert values["concurrency"]["enabled"] is True
    for key, value in instance["run_monitoring"].items():
        assert monitoring[key] == value, key
    for key in ("telemetry", "nux"):
        assert said[key] == instance[key]
    queue = said["run_coordinator"]["queuedRunCoordinator"]
    assert {snake(k): v for k, v in queue.items()} == instance["run_coordinator"]["config"]
    # the chart refuses limits in both places
    assert not {"maxConcurrentRuns", "tagConcurrencyLimits"} & set(queue)


def test_helm_images_are_one():
    values = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
    [deployment] = values["dagster-user-deployments"]["deployments"]
    assert deployment["dagsterApiGrpcArgs"] == ["-m", "feature_pipeline.definitions"]
    images = [
        deployment["image"],
        values["dagsterDaemon"]["image"],
        values["dagsterWebserver"]["image"],
    ]
    assert images[0] == images[1] == images[2]


def statements(name: str) -> dict[str, tuple[set[str], set[str]]]:
    document = json.loads((DEPLOY / "iam" / name).read_text())
    found = {}
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        listed = [
            {statement[k]} if isinstance(statement[k], str) else set(statement[k])
            for k in ("Action", "Resource")
        ]
        found[statement["Sid"]] = (listed[0], listed[1])
    return found


BUCKET = "arn:aws:s3:::EXAMPLE-ARCHIVE/"


def test_the_signer_can_read_inputs_and_write_uploads_only():
    granted = {
        (action, resource.removeprefix(BUCKET))
        for actions, resources in statements("pod-signer.json").values()
        for action in actions
        for resource in resources
    }
    assert granted == {
        ("s3:GetObject", f"{layout.BLOBS.split('/')[0]}/*"),
        ("s3:GetObject", f"{layout.UPLOADS}*"),
        ("s3:PutObject", f"{layout.UPLOADS}*"),
    }


def test_the_writer_reaches_every_prefix_of_the_layout_and_deletes_nothing_of_the_archive():
    granted = statements("archive-writer.json")
    prefixes = {r.removeprefix(BUCKET).split("/")[0] for r in granted["ReadAndAppend"][1]}
    keys = (
        layout.BLOBS, layout.LOGS, layout.INBOX, layout.QUARANTINE, layout.UPLOADS,
        layout.EXPECTED, layout.PROBE,
    )  # fmt: skip
    assert {key.split("/")[0] for key in keys} <= prefixes
    deleted = {
        resource.removeprefix(BUCKET)
        for actions, resources in granted.values()
        if "s3:DeleteObject" in actions
        for resource in resources
    }
    assert deleted == {"inbox/*", "quarantine/*", "expected/*", "probe/*"}


def test_lifecycle_rules_reach_nothing_that_is_archived():
    rules = json.loads((DEPLOY / "iam/lifecycle.json").read_text())["Rules"]
    for rule in rules:
        if "Expiration" in rule:
            assert rule["Filter"]["Prefix"] in (layout.UPLOADS, "dagster-logs/")


def test_the_image_compiles_the_wrapper_where_stage_looks_for_it():
    from feature_pipeline.pod import stage

    text = (DEPLOY / "Dockerfile").read_text()
    assert f"/wrapper {stage.WRAPPER}" in text
    source = re.search(r"COPY (\S+wrapper\.c)", text)
    assert source is not None
    assert (REPOSITORY / source[1]).is_file()


@pytest.mark.parametrize("name", ["daemon", "webserver"])
def test_units(name):
    text = (DEPLOY / f"systemd/feature-pipeline-{name}.service").read_text()
    assert "User=feature-pipeline" in text
    assert "NoNewPrivileges=true" in text
    assert f"dagster-{name}" in text
