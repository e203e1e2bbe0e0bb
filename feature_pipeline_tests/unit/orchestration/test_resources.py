"""What the environment says about hook runs reaches the resource that starts them."""

import pytest

from feature_pipeline.orchestration.resources import default_resources


def test_the_work_folder_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATURE_PIPELINE_WORK_FOLDER", "/somewhere/work")
    assert default_resources()["hook_runner"].work_folder == "/somewhere/work"


def test_without_one_it_is_the_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEATURE_PIPELINE_WORK_FOLDER", raising=False)
    assert default_resources()["hook_runner"].work_folder is None
