"""Hooks written with the Open Science Archive's SDK run unmodified under every runner."""

import json
from pathlib import Path

import pytest

from feature_pipeline.hooks.output import decode_output
from feature_pipeline.hooks.runner import HookRunner, RunRequest, Workspace
from feature_pipeline.hooks.runners.container.runner import ContainerRunner
from feature_pipeline.hooks.runners.subprocess import SubprocessRunner
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import Cardinality, Limits
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.model.records import RecordFile
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline_tests.contract.hook_runner import Monitor
from feature_pipeline_tests.contract.test_kubernetes_runner import KubernetesTests
from feature_pipeline_tests.fixtures.container import Engine
from feature_pipeline_tests.fixtures.kubernetes import HOOK_IMAGE, Cluster
from feature_pipeline_tests.fixtures.osa import HERE, Osa

COLUMNS = tuple(
    Column.model_validate(column)
    for column in (
        {"name": "name", "type": "string", "required": True},
        {"name": "length", "type": "integer", "required": True},
        {"name": "weight", "type": "number"},
        {"name": "tags", "type": "array"},
        {"name": "seen", "type": "string", "format": "date"},
    )
)
RECORDS = {"r 1": "fine", "r2": "bad", "r3": "broken"}


def make_workspace(folder: Path) -> Workspace:
    workspace = Workspace(folder)
    workspace.create()
    lines = [json.dumps({"id": i, "metadata": {"title": t}}) for i, t in RECORDS.items()]
    (workspace.inputs / "records.jsonl").write_text("\n".join(lines) + "\n")
    # The SDK's hooks read no input features: a line's verdict is nothing to them.
    (workspace.inputs / "features").mkdir()
    others = [json.dumps({"id": i, "status": "passed", "features": []}) + "\n" for i in RECORDS]
    (workspace.inputs / "features" / "other.jsonl").write_text("".join(others))
    (workspace.files / "r 1").mkdir()
    (workspace.files / "r 1" / "b.txt").write_text("four")
    (workspace.files / "r 1" / "a.txt").write_text("")
    return workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "run")


def outcomes(runner: HookRunner, release: HookRelease, workspace: Workspace) -> list[Outcome]:
    request = RunRequest("osa-1", release, Limits(memory="1Gi", timeout="60s"), workspace)
    result = runner.run(request, Monitor())
    assert result.failure is None, result.failure.describe()
    assert "HOOK DONE 3 total, 1 passed, 1 rejected, 1 errored" in result.log.read_text()
    is_table = release.document.hook == "chain_lengths"
    columns = COLUMNS if is_table else ()
    decoded = decode_output(workspace.output, list(RECORDS), columns, Cardinality.MANY, {})
    assert decoded.unknown_ids == ()
    return list(decoded.outcomes)


def check(judged: list[Outcome]) -> None:
    fine, bad, broken = judged
    assert fine.status is Status.PASSED
    assert fine.rows == (("a.txt", 0, 0.0, "[]", None), ("b.txt", 4, 1.0, "[]", None))
    assert (bad.status, bad.reason) == (Status.REJECTED, "title is bad\nin two lines")
    assert (broken.status, broken.reason) == (Status.ERRORED, "no such chain")


def image_release(image: str) -> HookRelease:
    return HookRelease.of(
        ReleaseDocument(
            dataset="d",
            hook="chain_lengths",
            version="1",
            image=image,
            command=("osa-run-hook",),
        )
    )


def test_subprocess(osa: Osa, workspace: Workspace, tmp_path: Path):
    """As code files: the convention as it is, and three lines that name it."""
    code = {
        "osa_probe.py": (HERE / "osa_probe.py").read_bytes(),
        "run.py": b"import osa_probe\nfrom osa.runtime.entrypoint import main\n\nmain()\n",
    }
    for name, data in code.items():
        (workspace.code / name).write_bytes(data)
    files = tuple(
        RecordFile(name=name, digest=str(Digest.of(data)), size=len(data))
        for name, data in code.items()
    )
    document = ReleaseDocument(
        dataset="d",
        hook="chain_lengths",
        version="1",
        command=(str(osa.python), "run.py"),
        code=files,
    )
    check(outcomes(SubprocessRunner(), HookRelease.of(document), workspace))


@pytest.mark.container
def test_container(osa_image: str, container_engine: Engine, workspace: Workspace):
    runner = ContainerRunner(container_engine.url)
    check(outcomes(runner, image_release(osa_image), workspace))


@pytest.mark.container
@pytest.mark.kubernetes
@pytest.mark.s3
class TestKubernetes(KubernetesTests):
    def test_kubernetes(self, runner, osa_image: str, cluster: Cluster, tmp_path: Path):
        workspace = make_workspace(tmp_path / "osa")
        cluster.images[HOOK_IMAGE] = osa_image
        check(outcomes(runner, image_release(HOOK_IMAGE), workspace))
