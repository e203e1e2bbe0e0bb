"""The folder that a hook is given."""

import json
import math
from datetime import UTC, date, datetime
from pathlib import Path
from types import SimpleNamespace

from feature_pipeline.archive.stores.memory import MemoryStore
from feature_pipeline.columns import Column
from feature_pipeline.compute.stage import stage_inputs
from feature_pipeline.hooks.runner import Workspace
from feature_pipeline.outcomes import Outcome, Status
from feature_pipeline.records import Record

COLUMNS = (
    Column(name="score", type="number"),
    Column(name="parts", type="array"),
    Column(name="day", type="string", format="date"),
    Column(name="at", type="string", format="date-time"),
)


def test_input_features_are_json_that_every_language_reads(tmp_path: Path) -> None:
    rows = (
        (math.nan, None, None, None),
        (math.inf, "[1]", date(2026, 1, 2), datetime(2026, 1, 2, tzinfo=UTC)),
        (-math.inf, None, None, None),
        (-0.0, None, None, None),
    )
    source = SimpleNamespace(
        hook="upstream",
        manifest=SimpleNamespace(columns=COLUMNS),
        outcomes={"r1": Outcome("r1", Status.PASSED, rows=rows)},
    )
    release = SimpleNamespace(document=SimpleNamespace(config={}, code=()))
    plan = SimpleNamespace(
        compute=(Record(id="r1"),), inputs=(source,), release=SimpleNamespace(release=release)
    )
    workspace = Workspace(tmp_path)
    workspace.create()

    stage_inputs(MemoryStore(), plan, workspace)

    def refuse(token: str) -> None:
        raise AssertionError(token)

    [line] = (workspace.inputs / "features" / "upstream.jsonl").read_text().splitlines()
    features = json.loads(line, parse_constant=refuse)["features"]
    assert [feature["score"] for feature in features] == ["NaN", "Infinity", "-Infinity", 0.0]
    assert math.copysign(1, features[3]["score"]) == -1
    assert features[1] == {
        "score": "Infinity",
        "parts": [1],
        "day": "2026-01-02",
        "at": "2026-01-02T00:00:00Z",
    }
