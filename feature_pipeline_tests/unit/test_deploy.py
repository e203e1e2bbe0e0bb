"""What `deploy/` ships is valid, agrees with itself and with what a single machine is told."""

import configparser
import itertools
import json
import re
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from feature_pipeline.archive.format import layout
from feature_pipeline.cli.app import FOLDERS
from feature_pipeline.cli.options.other_systems import PORT
from feature_pipeline.hooks.runners.kubernetes.job import JobSettings
from feature_pipeline.orchestration.run_queue import COMPUTE, WORK_TAG

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
CI = REPOSITORY / ".ci"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def pinned(text: str) -> dict[str, str]:
    """The version that each line of a list of requirements names."""
    lines = (Requirement(line.rstrip("\\ ")) for line in text.splitlines() if line[:1].isalnum())
    return {canonicalize_name(each.name): str(each.specifier) for each in lines}


def needed(extras: set[str]) -> set[str]:
    """What the package needs with these extras, and what that needs, on this machine."""
    seen: set[tuple[str, str]] = set()
    ahead = [("feature-pipeline", extra) for extra in ("", *extras)]
    while ahead:
        name, extra = each = ahead.pop()
        if each in seen:
            continue
        seen.add(each)
        for text in requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                ahead += [
                    (canonicalize_name(requirement.name), e) for e in ("", *requirement.extras)
                ]
    return {name for name, _ in seen} - {"feature-pipeline"}


def test_the_image_has_what_it_needs_and_each_file_has_a_digest():
    text = (DEPLOY / "requirements.txt").read_text()
    [extras] = re.findall(r"--extra (\w+) --extra (\w+) --extra (\w+)", (CI / "lock").read_text())
    assert pinned(text).keys() >= needed(set(extras)) | {"setuptools"}
    for entry in re.split(r"\n(?=\w)", text):
        assert "--hash=sha256:" in entry, entry


def test_the_image_has_the_versions_that_are_tested():
    tested = pinned((REPOSITORY / "constraints.txt").read_text())
    assert pinned((DEPLOY / "requirements.txt").read_text()).items() <= tested.items()


@pytest.mark.parametrize("version", ["1.31", "1.34"])
@pytest.mark.parametrize("name", ["hooks", "metrics"])
def test_manifests(name, version):
    for document in documents(f"kubernetes/{name}.yaml"):
        kubernetes_validate.validate(document, version, strict=True)


def test_the_metrics_are_where_rules_and_processes_expect_them():
    deployment, service, policy = documents("kubernetes/metrics.yaml")
    values = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    assert container["command"][:2] == ["feature-pipeline", "metrics"]
    [port] = container["ports"]
    [served], [[allowed]] = (
        service["spec"]["ports"],
        [r["ports"] for r in policy["spec"]["ingress"]],
    )
    assert {port["containerPort"], served["port"], allowed["port"]} == {PORT}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    [password] = container["env"]
    secret = password["valueFrom"]["secretKeyRef"]["name"]
    assert secret == values["global"]["postgresqlSecretName"]
    assert FOLDERS["metrics"]


def test_the_hooks_service_account_is_the_runners_default_and_is_bound_to_nothing():
    manifests = documents("kubernetes/hooks.yaml")
    [account] = [d for d in manifests if d["kind"] == "ServiceAccount"]
    assert account["metadata"]["name"] == JobSettings("n", "i").service_account
    assert account["automountServiceAccountToken"] is False
    subjects = [s["name"] for d in manifests if d["kind"] == "RoleBinding" for s in d["subjects"]]
    assert subjects == [
        yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())["global"]["serviceAccountName"]
    ]


def test_the_role_is_what_the_runner_calls_and_no_more():
    """Each call of the client in `runners/kubernetes/api.py`, as RBAC names it."""
    source = (REPOSITORY / "feature_pipeline/hooks/runners/kubernetes/api.py").read_text()
    verbs = {"read": "get", "replace": "update"}
    calls = set()
    for verb, name in re.findall(r"\b([a-z]+)_namespaced_([a-z_]+)", source):
        resource = {"pod_log": "pods/log"}.get(name, f"{name}s")
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


def snaked(values: dict[str, Any]) -> dict[str, Any]:
    return {snake(key): value for key, value in values.items()}


ONLY_IN_HELM = {
    "retention": "a single machine keeps Dagster's history as long as its database has room",
}
"""What the chart is told and dagster.yaml does not say, and why."""
OTHERWISE_IN_HELM = {
    ("run_monitoring", "max_resume_run_attempts"): "the launcher of a single machine cannot resume",
}


def test_helm_values_match_dagster_yaml():
    values = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
    instance = yaml.safe_load((REPOSITORY / "dagster.yaml").read_text())
    daemon = values["dagsterDaemon"]
    outcomes = {
        "run_monitoring": snaked(daemon["runMonitoring"]),
        "run_retries": snaked(daemon["runRetries"]),
        "sensors": snaked(daemon["sensors"]),
        "run_coordinator": daemon["runCoordinator"]["config"]["customRunCoordinator"],
        "concurrency": snaked(values["concurrency"]),
        "telemetry": values["telemetry"],
        "retention": values["retention"],
        **values["additionalInstanceConfig"],
    }
    storage, coordinator = instance.pop("storage"), instance.pop("run_coordinator")
    # A cluster's code server is a deployment of its own, which the cluster starts.
    assert instance.pop("code_servers").keys() == {"local_startup_timeout", "reload_timeout"}
    assert storage["custom"]["class"] == "EnvironmentStorage"
    assert values["postgresql"]["postgresqlScheme"] == "postgresql+psycopg2"
    # The launcher of a cluster starts runs without a code server.
    own = {k: v for k, v in coordinator["config"].items() if "user_code" not in k}
    assert outcomes.pop("run_coordinator") == coordinator | {"config": own}
    for name in outcomes:
        if name in ONLY_IN_HELM:
            assert name not in instance
            continue
        here, there = dict(instance.pop(name)), dict(outcomes[name])
        for part in [part for of, part in OTHERWISE_IN_HELM if of == name]:
            assert part in there
            assert part not in here
            del there[part]
        if name == "concurrency":
            assert there.pop("enabled") is True
            # a core each on a single machine, pods that wait for Jobs in a cluster
            runs, own_runs = snaked(there.pop("runs")), here.pop("runs")
            assert runs.keys() == own_runs.keys()
            for limits in (runs, own_runs):
                (limit,) = limits["tag_concurrency_limits"]
                assert (limit["key"], limit["value"]) == (WORK_TAG, COMPUTE)
                assert limit["limit"] < limits["max_concurrent_runs"]
            assert snaked(there.pop("pools")) == here.pop("pools")
        assert there == here, name
    assert not instance, "dagster.yaml says something that the chart is not told"


def test_the_compute_log_manager_gets_valid_settings():
    """The chart passes keys on by name; one that it does not know vanishes without a word."""
    from dagster_aws.s3.compute_log_manager import S3ComputeLogManager

    text = (DEPLOY / "helm/values.yaml").read_text()
    known = set(S3ComputeLogManager.config_type())
    section = text[text.index("    s3ComputeLogManager:") :]
    lines = itertools.takewhile(lambda line: line.startswith("      "), section.splitlines()[1:])
    keys = re.findall(r"(?m)^ *(?:# )?(\w+): ", "\n".join(lines))
    assert "endpointUrl" in keys
    assert {snake(key) for key in keys} <= known
    guide = (REPOSITORY / "docs/deploy.md").read_text()
    named = re.findall(r"s3ComputeLogManager\.(\w+)", guide)
    assert named
    assert {snake(key) for key in named} <= known


def test_the_webserver_binds_a_port_that_its_user_may_bind():
    values = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
    assert "65534" in (DEPLOY / "Dockerfile").read_text()
    assert values["dagsterWebserver"]["service"]["port"] >= 1024


def test_namespaces_are_made_before_they_are_used():
    guide = (REPOSITORY / "docs/deploy.md").read_text()
    assert guide.index("create namespace dagster") < guide.index(" -n dagster")


def test_what_the_chart_needs_beforehand_is_named():
    values = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
    guide = " ".join((REPOSITORY / "docs/deploy.md").read_text().split())
    assert values["generatePostgresqlPasswordSecret"] is False
    secret = values["global"]["postgresqlSecretName"]
    assert f"create secret generic {secret} -n dagster --from-literal=postgresql-password" in guide
    [deployment] = values["dagster-user-deployments"]["deployments"]
    for reads_the_store in (deployment, values["dagsterWebserver"]):
        assert reads_the_store["envSecrets"] == [{"name": "feature-pipeline"}]
    # run pods have it from the code location: twice would be no pod
    assert deployment["includeConfigInLaunchedRuns"]["enabled"] is True
    assert [volume["name"] for volume in deployment["volumes"]] == ["work"]
    run = values["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    assert "volumes" not in run["podSpecConfig"]
    assert "volumeMounts" not in run["containerConfig"]


def test_no_quota_counts_what_is_over():
    [quota] = [d for d in documents("kubernetes/hooks.yaml") if d["kind"] == "ResourceQuota"]
    assert not [name for name in quota["spec"]["hard"] if name.startswith("count/")]


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
    by_sid = {}
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow"
        listed = [
            {statement[k]} if isinstance(statement[k], str) else set(statement[k])
            for k in ("Action", "Resource")
        ]
        by_sid[statement["Sid"]] = (listed[0], listed[1])
    return by_sid


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
    keys = {value for name, value in vars(layout).items() if name.isupper() and "/" in str(value)}
    collectors = {layout.GC_LEASE, layout.GC_MARKS}
    assert {key.split("/")[0] for key in keys - collectors} <= prefixes
    deleted = {
        resource.removeprefix(BUCKET)
        for actions, resources in granted.values()
        if "s3:DeleteObject" in actions
        for resource in resources
    }
    assert deleted == {
        "inbox/*", "quarantine/*", "expected/*", "answers/*", "claims/*", "census/*", "probe/*",
        "uploads/*",
    }  # fmt: skip


def test_lifecycle_rules_reach_nothing_that_is_archived():
    rules = json.loads((DEPLOY / "iam/lifecycle.json").read_text())["Rules"]
    for rule in rules:
        if "Expiration" in rule:
            assert rule["Filter"]["Prefix"] in (layout.UPLOADS, "dagster-logs/")


def test_the_image_compiles_the_wrapper_where_stage_reads_it():
    from feature_pipeline.pod import stage

    text = (DEPLOY / "Dockerfile").read_text()
    assert f"/wrapper {stage.WRAPPER}" in text
    source = re.search(r"COPY (\S+wrapper\.c)", text)
    assert source is not None
    assert (REPOSITORY / source[1]).is_file()


@pytest.mark.parametrize("name", ["daemon", "webserver", "metrics"])
def test_units(name):
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / f"systemd/feature-pipeline-{name}.service")
    service = unit["Service"]
    assert service["User"] == service["Group"] == "feature-pipeline"
    program = "feature-pipeline" if name == "metrics" else f"dagster-{name}"
    assert service["ExecStart"].split()[0] == f"/opt/feature-pipeline/bin/{program}"
    assert service["EnvironmentFile"] == "/etc/feature-pipeline/environment"
    if name != "metrics":
        # a stop must not look like a hook that failed: worker and hook are killed together
        assert service["KillMode"] == "mixed"
        assert service["Environment"] == "DAGSTER_GRPC_TIMEOUT_SECONDS=600"
    for protection in ("NoNewPrivileges", "ProtectHome", "PrivateTmp"):
        assert service[protection] == "true"
    assert service["ProtectSystem"] == "strict"
    # the only place that may be written to, and where docs/deploy.md puts the work folder
    assert service["WorkingDirectory"] == f"/var/lib/{service['StateDirectory']}"


def test_the_image_is_built_from_what_the_ignore_file_lets_through():
    kept = [
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line[:1] == "!"
    ]
    copied = re.findall(
        r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE
    )
    for path in " ".join(copied).split():
        assert (REPOSITORY / path).exists(), path
        assert {path, Path(path).parts[0]} & set(kept), path
