"""Hooks count their own starts over a random history: one for each question that was ever asked."""

import json
import random
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from feature_pipeline.archive import claims
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.maintenance.rebuild_answers import complete
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline_tests.fixtures.asked import DATASET, Asking, lengths, totals
from feature_pipeline_tests.fixtures.stores import Death, FailingStore

STEPS = 200
TEXTS = ("a", "bb", "ccc", "no:", "bad:", "busy:", "none:")
FACTORS = ({}, {"factor": 2}, {"factor": 3})
OFFSETS = ({}, {"offset": 10})


class History:
    """Submissions that overlap, releases to and fro, and workers that die at any moment."""

    def __init__(self, asking: Asking, seed: int) -> None:
        self.asking = asking
        self.draw = random.Random(seed)
        self.batches: dict[str, dict[str, str]] = {}
        self.configs = {"lengths": FACTORS[0], "totals": OFFSETS[0]}
        self.deaths = 0
        self.declare()

    def declare(self) -> None:
        self.asking.hook("lengths", self.configs["lengths"])
        self.asking.hook("totals", self.configs["totals"], inputs=["lengths"])

    def step(self) -> None:
        steps = [self.submit, self.run_upstream, self.run_upstream, self.run_downstream]
        steps += [self.run_downstream, self.change_upstream, self.change_downstream]
        steps += [self.accept, self.complete]
        self.draw.choices(steps, [3, 5, 5, 5, 5, 1, 1, 2, 0.3])[0]()

    def submit(self) -> None:
        ids = self.draw.sample(range(12), self.draw.randint(1, 5))
        # A record has nearly always the same text: batches overlap in questions, not in ids alone.
        texts = {f"r{i}": TEXTS[(i + (self.draw.random() < 0.1)) % len(TEXTS)] for i in ids}
        key = f"b{len(self.batches)}"
        self.batches[key] = texts
        self.asking.submit(key, texts)

    def run_upstream(self) -> None:
        if self.batches:
            self.run(self.draw.choice(list(self.batches)), "lengths")

    def run_downstream(self) -> None:
        known = log.heads(self.asking.store, DATASET, "lengths")
        if known:
            self.run(self.draw.choice(list(known)), "totals")

    def run(self, key: str, name: str) -> None:
        """A run of the asset, and of another worker each time that one dies."""
        while self.draw.random() < 0.3:
            fatal = self.draw.randint(1, 40)
            dying = FailingStore(self.asking.store, fatal, acts_first=self.draw.random() < 0.5)
            if self.draw.random() < 0.2:
                self.asking.runner.before_end = self.die
            try:
                self.asking.run(key, name, store=dying)
            except Death:
                self.deaths += 1
                if self.draw.random() < 0.5:
                    self.asking.round()
            finally:
                self.asking.runner.before_end = lambda: None
        self.asking.run(key, name)

    def die(self) -> None:
        raise Death

    def change_upstream(self) -> None:
        self.configs["lengths"] = self.draw.choice(FACTORS)
        self.declare()

    def change_downstream(self) -> None:
        self.configs["totals"] = self.draw.choice(OFFSETS)
        self.declare()

    def accept(self) -> None:
        self.asking.round()

    def complete(self) -> None:
        for name in self.configs:
            complete(self.asking.store, DATASET, name)

    def check_answers(self) -> None:
        """Every batch has the outcomes that its hooks would compute now."""
        for key, texts in self.batches.items():
            for name in self.configs:
                self.asking.run(key, name)
            upstream = self.asking.values(key)
            downstream = self.asking.values(key, "totals")
            for record_id, text in texts.items():
                record = {"id": record_id, "metadata": {"text": text}}
                answer = lengths(record, self.configs["lengths"], {})
                if "features" not in answer:
                    assert upstream[record_id] == next(iter(answer.values()))
                    assert str(downstream[record_id]).startswith("not asked: ")
                    continue
                values = [row["value"] for row in answer["features"]]
                assert upstream[record_id] == (values[0] if values else None)
                [total] = totals(record, self.configs["totals"], {"lengths": answer})["features"]
                assert downstream[record_id] == total["value"]


@pytest.mark.parametrize("seed", [1, 2])
def test_one_start_for_each_release_record_and_inputs(
    memory_store: MemoryStore, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
):
    # One step after the other: the claims of dead workers have expired.
    monkeypatch.setattr(claims, "LEASE", timedelta())
    history = History(Asking(memory_store, tmp_path), seed)
    for _ in range(STEPS):
        history.step()
    runner = history.asking.runner
    counted = dict(runner.asked)
    twice = {question: n for question, n in counted.items() if n > 1}
    # What ended with a retryable error is asked again: that is the policy.
    assert [json.loads(question)[1] for question in twice if b'"busy:"' not in question] == []
    assert len(counted) > 30
    assert history.deaths > 10
    history.check_answers()
    assert verify(memory_store).is_clean


class DeadStore(FailingStore):
    """A store for a process that is killed: none of its later requests arrives either."""

    def __getattr__(self, name: str) -> object:
        if 0 < self.fatal_call <= len(self.calls):
            raise Death
        return super().__getattr__(name)


class Worker(threading.Thread):
    """Runs a hook over a batch, again each time that it is killed."""

    def __init__(self, asking: Asking, key: str, deaths: list[tuple[int, bool]]) -> None:
        super().__init__()
        self.asking, self.key, self.deaths = asking, key, deaths
        self.died = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            for call, acts_first in self.deaths:
                try:
                    self.asking.run(self.key, store=DeadStore(self.asking.store, call, acts_first))
                except Death:
                    self.died += 1
            self.asking.run(self.key)
        except Exception as error:  # noqa: BLE001 - raised in the test's own thread
            self.error = error


@pytest.mark.parametrize("seed", range(4))
def test_so_it_is_for_overlapping_batches_that_run_at_one_moment(
    memory_store: MemoryStore, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(claims, "_FIRST_BACKOFF_SECONDS", 0.002)
    monkeypatch.setattr(claims, "_LONGEST_BACKOFF_SECONDS", 0.02)
    asking, draw = Asking(memory_store, tmp_path), random.Random(seed)
    asking.hook()
    batches: dict[str, list[int]] = {}
    died = 0
    for step in range(3):
        workers = []
        for number in range(5):
            key = f"b{step}-{number}"
            batches[key] = ids = draw.sample(range(4 * step, 4 * step + 8), draw.randint(2, 5))
            asking.submit(key, {f"r{i}": "1" * (i + 1) for i in ids})
            deaths = [
                (draw.randint(1, 60), draw.random() < 0.5) for _ in range(draw.choice((0, 1, 2)))
            ]
            workers.append(Worker(asking, key, deaths))
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.error is None, worker.error
            died += worker.died
        asking.round()
    for key, ids in batches.items():
        assert asking.values(key) == {f"r{i}": i + 1 for i in ids}
    twice = [json.loads(question)[1] for question, n in asking.runner.asked.items() if n > 1]
    assert twice == []
    assert died > 3
    assert verify(memory_store).is_clean
