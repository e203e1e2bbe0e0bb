"""What the launchpad of a feature asset offers and takes, as Dagster's UI asks for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster_graphql.test.utils import execute_dagster_graphql

FEATURES = ["letters", "features", "size"]
OP = "__".join(FEATURES)
DEFINITION = {
    "type": "feature_pipeline.FeatureHook",
    "attributes": {
        "name": "size",
        "dataset": "letters",
        "release": {"version": "1", "command": ["size"], "image": f"sha256:{'0' * 64}"},
        "feature": {"columns": [{"name": "size", "type": "integer"}]},
    },
}
OFFERED = """
query Offered($job: PipelineSelector!, $asset: AssetKeyInput!) {
  runConfigSchemaOrError(selector: $job) { ... on RunConfigSchema { rootDefaultYaml } }
  assetNodes(assetKeys: [$asset]) {
    configField { configType { ... on CompositeConfigType { fields { name description } } } }
  }
}
"""
TAKEN = """
query Taken($job: PipelineSelector!, $config: RunConfigData) {
  isPipelineConfigValid(pipeline: $job, runConfigData: $config, mode: "default") {
    __typename
    ... on RunConfigValidationInvalid { errors { message } }
  }
}
"""


class Launchpad:
    """The launchpad of one asset, in a code location that a server of Dagster's loads."""

    def __init__(self, workspace: WorkspaceProcessContext) -> None:
        self._request = workspace.create_request_context()
        (location,) = self._request.code_locations
        (repository,) = location.get_repositories()
        self._job = {
            "repositoryLocationName": location.name,
            "repositoryName": repository,
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": FEATURES}],
        }

    def ask(self, query: str, **variables: object) -> Any:
        params = {"job": self._job, **variables}
        return execute_dagster_graphql(self._request, query, params).data

    def refusals(self, config: object) -> list[str]:
        answer = self.ask(TAKEN, config=config)["isPipelineConfigValid"]
        if answer["__typename"] == "PipelineConfigValidationValid":
            return []
        return [error["message"] for error in answer["errors"]]


@pytest.fixture(scope="module")
def launchpad(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launchpad]:
    folder: Path = tmp_path_factory.mktemp("defs")
    (folder / "size").mkdir()
    (folder / "size" / "defs.yaml").write_text(yaml.safe_dump(DEFINITION))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEATURE_PIPELINE_DEFS", str(folder))
        patch.setenv("FEATURE_PIPELINE_S3_BUCKET", "none")
        patch.setenv("FEATURE_PIPELINE_DATABASE_URL", "postgresql://reader@127.0.0.1/none")
        target = ModuleTarget("feature_pipeline.definitions", None, None, "feature_pipeline")
        with (
            dg.instance_for_test() as instance,
            WorkspaceProcessContext(instance, target) as workspace,
        ):
            yield Launchpad(workspace)


@pytest.mark.dagster
def test_it_offers_what_the_docs_name(launchpad: Launchpad) -> None:
    offered = launchpad.ask(OFFERED, asset={"path": FEATURES})
    assert yaml.safe_load(offered["runConfigSchemaOrError"]["rootDefaultYaml"]) == {
        "ops": {OP: {"config": {"force": False, "force_records": [], "preview": True}}},
        "resources": {},
    }
    (node,) = offered["assetNodes"]
    described = {
        field["name"]: field["description"] for field in node["configField"]["configType"]["fields"]
    }
    assert described["force_records"] == "Ids of records to compute again."
    assert all(described.values())
    config = {"ops": {OP: {"config": {"force_records": ["r1"]}}}}
    assert launchpad.refusals(config) == []


@pytest.mark.dagster
@pytest.mark.parametrize(
    ("resource", "config"),
    [
        ("archive", {"uri": "s3://another"}),
        ("archive", {"bucket": "another"}),
        ("database", {"url": "postgresql://another"}),
        ("hook_runner", {"kind": "container"}),
    ],
)
def test_it_takes_nothing_that_the_deployment_decides(
    launchpad: Launchpad, resource: str, config: object
) -> None:
    (refusal,) = launchpad.refusals({"resources": {resource: {"config": config}}})
    assert "unexpected config entry" in refusal
