"""`feature-pipeline history`: what it says of each entry."""

from feature_pipeline.archive import accept
from feature_pipeline.archive.format.manifest import FailureInfo
from feature_pipeline.cli.commands.archive import history
from feature_pipeline_tests.fixtures.care import CareScene
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK

REASON = "the Dagster run was cancelled before the hook ended, after two of its three parts"


def test_the_reason_of_a_failed_run_is_shown_whole(
    monkeypatch, memory_store, command_line, tmp_path
):
    scene = CareScene(memory_store, tmp_path)
    batch = scene.submit(scene.batch_of("b1", ("r1",)))
    failed = scene.artifact(
        batch, scene.release(), failure=FailureInfo(kind="cancelled", reason=REASON)
    )
    accept.accept(memory_store, scene.completion(failed))
    monkeypatch.setattr(history, "open_archive", lambda **_: memory_store)
    status, printed, _ = command_line("history", HOOK, "--dataset", DATASET)
    assert status == 0
    assert f"cancelled: {REASON}" in printed
