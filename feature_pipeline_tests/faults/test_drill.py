"""The drill's short form: everything breaks once, and what can be done is done, once."""

import json
from collections import Counter
from pathlib import Path

import pytest

from feature_pipeline.local.supervisor import MAX_DEATHS, WITHIN_SECONDS
from feature_pipeline_tests.faults.drill import TOTALS, WORDS, Drill, Plan


@pytest.mark.parametrize("seconds", [45, 600, 3600])
def test_everything_happens_and_no_server_dies_too_often(seconds: float) -> None:
    plan = Plan.of(seconds)
    for seed in range(20):
        events = plan.events(seed)
        assert events == plan.events(seed)
        assert Counter(kind for _, kind in events) == plan.times
        assert all(plan.times.values())
        assert 0 <= events[0][0] <= events[-1][0] <= seconds
        kills = [(at, each.replace("parent_of_", "")) for at, each in events if "kill_" in each]
        for server in {server for _, server in kills}:
            times = [at for at, each in kills if each == server]
            crowds = [sum(0 <= at - first <= WITHIN_SECONDS for at in times) for first in times]
            assert max(crowds, default=0) <= MAX_DEATHS
    assert plan.events(1) != plan.events(2)


def test_starts_are_counted_by_what_hooks_wrote(tmp_path: Path) -> None:
    drill = Drill(tmp_path / "drill", Plan.of(45), seed=0)
    drill.submitted.batches["b0"] = {"b0/r0": "text"}
    drill.killed = [7]

    def problems(*starts: tuple[str, str, str | None, int]) -> list[str]:
        """The problems, if hooks wrote this: hook, attempt, how it ended, its worker."""
        lines = [
            {
                "hook": hook,
                "attempt": attempt,
                "event": event,
                "processes": [worker],
                "records": ["b0/r0"],
            }
            for hook, attempt, end, worker in starts
            for event in ("begin", end)
            if event is not None
        ]
        drill.ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return list(drill._problems_of_starts())

    others = [(TOTALS, "t", "end", 1), (drill.labels, "l", "end", 1)]
    assert problems((WORDS, "a", "end", 1), *others) == []
    # a worker was killed, or Dagster ended the run, and another asked again
    assert problems((WORDS, "a", "end", 7), (WORDS, "b", "end", 1), *others) == []
    assert problems((WORDS, "a", None, 1), (WORDS, "b", "end", 1), *others) == []
    assert problems((WORDS, "a", "end", 1), (WORDS, "b", "end", 1), *others) == [
        "words, b0/r0: computed 2 times, 2 starts"
    ]
    assert problems((WORDS, "a", None, 7), *others) == ["words, b0/r0: no start of the hook ended"]
    failed = problems((WORDS, "a", "end", 1), *((TOTALS, a, "crash", 1) for a in "xy"), others[1])
    assert "totals, b0/r0: 2 starts failed by themselves" in failed


@pytest.mark.faults
@pytest.mark.dagster
@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_what_breaks_costs_what_depends_on_it_and_no_more(tmp_path: Path) -> None:
    drill = Drill(tmp_path / "drill", Plan.of(45), seed=3, hook_seconds=0.5)
    assert drill.run() == []
