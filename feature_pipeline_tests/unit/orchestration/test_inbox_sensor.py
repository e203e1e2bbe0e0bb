"""Which of the entries that wait a tick looks at."""

from datetime import UTC, datetime

import pytest

from feature_pipeline.archive.accept import is_batch
from feature_pipeline.archive.blob_store import ObjectInfo
from feature_pipeline.archive.inbox import BATCH_ID, RUN_ID
from feature_pipeline.orchestration.inbox_sensor import choose


def waiting(batches: int, completions: int) -> list[ObjectInfo]:
    names = [f"{BATCH_ID}d.b{n:03d}" for n in range(batches)]
    names += [f"{RUN_ID}r{n:03d}" for n in range(completions)]
    return [ObjectInfo(f"inbox/{name}", 1, datetime.now(UTC), "e") for name in names]


@pytest.mark.parametrize(("batches", "completions"), [(0, 0), (3, 7), (10, 0), (0, 10)])
def test_all_that_a_tick_can_take(batches: int, completions: int):
    infos = waiting(batches, completions)
    assert choose(infos, 10) == infos


@pytest.mark.parametrize(
    ("batches", "completions", "taken"),
    [(4, 100, 4), (10, 100, 10), (11, 100, 10), (100, 100, 10)],
)
def test_no_completion_is_looked_at_before_its_batch(batches: int, completions: int, taken: int):
    chosen = choose(waiting(batches, completions), 10)
    assert len(chosen) == 10
    assert sum(map(is_batch, chosen)) == taken


def test_both_ends_are_taken():
    infos = waiting(0, 100)
    assert choose(infos, 10) == [*infos[:5], *infos[-5:]]
    assert choose(infos, 3) == [infos[0], *infos[-2:]]
