"""Thresholds, and who is told when they are passed, over a real archive and instance."""

import json
from http.server import BaseHTTPRequestHandler

import dagster as dg
import pytest

from feature_pipeline.orchestration.checks.outcomes import OUTCOMES_CHECK
from feature_pipeline.orchestration.sensors.webhook import WebhookState, tick
from feature_pipeline_tests.fixtures.dagster import COUNTS, Pipeline, check_of
from feature_pipeline_tests.fixtures.http import serving

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.dagster]


# Errors for a text of "!", one row a letter for others; a release may keep fewer.
HOOK = """
import json, os
from pathlib import Path

given, out = Path(os.environ["OSA_IN"]), Path(os.environ["OSA_OUT"])
most = json.loads((given / "config.json").read_text())["most"]
with (out / "features.jsonl").open("w") as features, (out / "errors.jsonl").open("w") as errors:
    for line in (given / "records.jsonl").open():
        record = json.loads(line)
        text = record["metadata"]["text"]
        if text == "!":
            errors.write(json.dumps({"id": record["id"], "error": "!", "retryable": False}) + "\\n")
        else:
            rows = [{"letter": letter, "count": 1} for letter in text[:most]]
            features.write(json.dumps({"id": record["id"], "features": rows}) + "\\n")
"""
CHECKS = {
    "error_rate": {"warn": 0.2, "fail": 0.6},
    "row_count_change": {"warn": 0.3},
}


def define(pipeline: Pipeline, version: str = "1", most: int = 9) -> None:
    pipeline.add_hook(
        code=HOOK,
        release={"version": version, "config": {"most": most}},
        checks=CHECKS,
    )


def outcomes(pipeline: Pipeline, batch: str) -> dg.AssetCheckEvaluation:
    result = pipeline.run(COUNTS, batch)
    assert result.success
    return check_of(result, OUTCOMES_CHECK)


@pytest.fixture
def receiver():
    posted = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with serving(Handler) as url:
        yield f"{url}/hook", posted


def test_exceeding_a_threshold_fails_the_check_and_is_posted_once(pipeline: Pipeline, receiver):
    url, posted = receiver
    state = WebhookState()

    def tell() -> list[dict]:
        """Two ticks: an event is looked at once the next look has begun."""
        before = len(posted)
        for _ in range(2):
            assert tick(state, pipeline.instance, pipeline.store, url, None).problem is None
        return posted[before:]

    tell()
    define(pipeline)
    pipeline.submit("b1", {"r1": "abcd", "r2": "efgh", "r3": "ij", "r4": "!"})
    pipeline.submit("b2", {"s1": "!", "s2": "!", "s3": "k"})
    pipeline.submit("b3", {"t1": "lmno"})
    pipeline.tick()

    fine = outcomes(pipeline, "b3")
    assert fine.passed
    assert fine.metadata["failing_batches"].value == {}
    assert tell() == []

    warned = outcomes(pipeline, "b1")
    assert (warned.passed, warned.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert warned.metadata["failing_batches"].value == {"b1": {"error_rate": 0.25}}
    failed = outcomes(pipeline, "b2")
    assert (failed.passed, failed.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert list(failed.metadata["failing_batches"].value) == ["b2", "b1"], "the worst first"
    assert "above a threshold: 2 of 3 batches" in failed.description
    posts = tell()
    assert [each["where"]["batches"] for each in posts] == [["b1"], ["b1", "b2"]]
    assert [each["where"]["severity"] for each in posts] == ["warn", "error"]

    # the same batches again: nothing new to tell
    assert not outcomes(pipeline, "b2").passed
    assert tell() == []

    # a release that keeps fewer rows: 10 became 3 in b1, and b3 is still under the old one
    define(pipeline, "2", most=1)
    changed = outcomes(pipeline, "b1")
    assert (changed.metadata["rows_before"].value, changed.metadata["rows_now"].value) == (10, 3)
    assert "10 rows became 3 (-70.0%) in 1 batch" in changed.description
    assert tell() == []

    # a failed run, and an entry that cannot be accepted
    pipeline.add_hook(code="import sys; sys.exit(3)", checks=CHECKS)
    assert not pipeline.run(COUNTS, "b3").success
    pipeline.store.create("inbox/run.odd", b"not an entry")
    pipeline.tick()
    posts = sorted(tell(), key=lambda each: each["kind"])
    assert [each["kind"] for each in posts] == ["quarantined", "run_failed"]
    assert posts[0]["where"]["entry"] == "run.odd"
    assert posts[1]["what"] == "run of letters/features/counts failed for batch b3"
    assert "non_zero_exit" in posts[1]["why"]
    assert tell() == []


def test_a_run_judges_its_own_batches_and_those_that_failed_before(pipeline: Pipeline) -> None:
    """A run of one batch must not read what a hundred thousand others say."""
    rates = {"error_rate": CHECKS["error_rate"]}
    config = {"most": 9}
    pipeline.add_hook(code=HOOK, release={"config": config}, checks=rates)
    pipeline.submit("b1", {"r1": "!", "r2": "ab"})
    pipeline.submit("b2", {"s1": "cd"})
    pipeline.submit("b3", {"t1": "ef"})
    pipeline.tick()

    failed = outcomes(pipeline, "b1")
    assert (failed.passed, failed.metadata["batches"].value) == (False, 1)
    still = outcomes(pipeline, "b2")
    assert (still.passed, still.metadata["batches"].value) == (False, 2)
    assert list(still.metadata["failing_batches"].value) == ["b1"]

    mended = HOOK.replace('if text == "!"', 'if text == "!!"')
    assert mended != HOOK
    pipeline.add_hook(code=mended, release={"version": "2", "config": config}, checks=rates)
    assert outcomes(pipeline, "b1").passed
    assert outcomes(pipeline, "b3").passed

    alone = pipeline.defs.resolve_job_def("check_outcomes").execute_in_process(
        instance=pipeline.instance
    )
    (of_all,) = alone.get_asset_check_evaluations()
    assert (of_all.passed, of_all.metadata["batches"].value) == (True, 3)
