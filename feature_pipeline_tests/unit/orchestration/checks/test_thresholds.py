"""Thresholds of a hook's outcomes: what a definition may say, and what is made of counts."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from feature_pipeline.model.definition import CheckDefinition, HookDefinition
from feature_pipeline.model.outcomes import OutcomeCounts
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.checks.thresholds import Level, RowChange, judge
from feature_pipeline.orchestration.events.data_versions import feature_code_version


def define(folder: Path, **changes: object) -> HookDefinition:
    (folder / "hook.py").write_text("pass")
    return HookDefinition.model_validate(
        {
            "name": "pockets",
            "dataset": "structures",
            "release": {"version": "1", "command": ["python", "hook.py"], "code": ["hook.py"]},
            "feature": {"columns": [{"name": "score", "type": "number"}]},
        }
        | changes
    )


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"error_rate": {"warn": 0.2, "fail": 0.1}}, "warn 0.2 is above fail 0.1"),
        ({"error_rate": {"fail": 10}}, "less than or equal to 1"),
        ({"rejection_rate": {"warn": -0.1}}, "greater than or equal to 0"),
        ({"row_count_change": {"warn": float("nan")}}, "finite"),
        ({"error_rates": {"warn": 0.1}}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_threshold_is_refused(tmp_path: Path, checks: object, message: str):
    with pytest.raises(ValidationError, match=message):
        define(tmp_path, checks=checks)


def test_thresholds_change_neither_release_nor_versions(tmp_path: Path):
    plain = define(tmp_path)
    strict = define(tmp_path, checks={"error_rate": {"fail": 0}, "row_count_change": {"warn": 2}})
    assert plain.checks != strict.checks
    releases = [hook.hook_release(tmp_path) for hook in (plain, strict)]
    assert releases[0] == releases[1]
    feature = plain.feature
    versions = [
        feature_code_version(release, feature.columns, feature.cardinality.value)
        for release in releases
    ]
    assert versions[0] == versions[1]
    assert table_spec(plain) == table_spec(strict)


COUNTS = {
    "fine": OutcomeCounts(records=100, passed=100),
    "one": OutcomeCounts(records=100, passed=99, errored=1),
    "many": OutcomeCounts(records=10, passed=3, errored=2, rejected=5),
    "empty": OutcomeCounts(),
}


@pytest.mark.parametrize(
    ("checks", "level", "failing"),
    [
        ({}, Level.WARN, {"many": {"error_rate": 0.2}, "one": {"error_rate": 0.01}}),
        ({"error_rate": {}}, Level.FINE, {}),
        # a rate that equals its threshold is within it
        ({"error_rate": {"warn": 0.01, "fail": 0.2}}, Level.WARN, {"many": {"error_rate": 0.2}}),
        ({"error_rate": {"warn": 0.01, "fail": 0.1}}, Level.FAIL, {"many": {"error_rate": 0.2}}),
        ({"error_rate": {"fail": 0.3}}, Level.FINE, {}),
        (
            {"error_rate": {"warn": 0.1}, "rejection_rate": {"fail": 0.4}},
            Level.FAIL,
            {"many": {"error_rate": 0.2, "rejection_rate": 0.5}},
        ),
    ],
)
def test_rates_are_judged_batch_by_batch(checks: dict, level: Level, failing: dict):
    judgement = judge(CheckDefinition.model_validate(checks), COUNTS, None)
    assert judgement.level is level
    assert judgement.failing == failing
    assert list(judgement.failing) == list(failing), "the worst first"


@pytest.mark.parametrize(
    ("before", "now", "level"),
    [
        (100, 100, Level.FINE),
        (100, 110, Level.FINE),
        (100, 89, Level.WARN),
        (100, 111, Level.WARN),
        (100, 49, Level.FAIL),
        (0, 1, Level.FAIL),
        (0, 0, Level.FINE),
    ],
)
def test_a_changed_number_of_rows_is_judged_either_way(before: int, now: int, level: Level):
    checks = CheckDefinition.model_validate({"row_count_change": {"warn": 0.1, "fail": 0.5}})
    assert judge(checks, {}, RowChange(3, before, now)).level is level
