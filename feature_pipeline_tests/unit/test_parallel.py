"""Calls in another thread beside the one that produces what they are given."""

import threading
from collections.abc import Iterator

import pytest

from feature_pipeline.parallel import call_beside


def test_items_are_handled_in_order_in_one_other_thread() -> None:
    handled: list[int] = []
    threads: set[threading.Thread] = set()

    def handle(item: int) -> None:
        threads.add(threading.current_thread())
        handled.append(item)

    call_beside(handle, range(100))
    assert handled == list(range(100))
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_no_more_items_are_produced_than_may_wait() -> None:
    may_go_on = threading.Event()
    produced: list[int] = []

    def items() -> Iterator[int]:
        for item in range(5):
            produced.append(item)
            if item == 2:
                may_go_on.set()
            yield item

    def handle(item: int) -> None:
        if item == 0:
            # Waits for ever if none is produced meanwhile.
            may_go_on.wait()
            assert produced == [0, 1, 2]

    call_beside(handle, items(), ahead=2)
    assert produced == list(range(5))


def test_an_error_of_a_call_is_raised_and_ends_the_work() -> None:
    handled: list[int] = []

    def handle(item: int) -> None:
        handled.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        call_beside(handle, range(100))
    assert len(handled) < 5


def test_an_error_of_what_produces_items_is_raised_once_no_call_is_under_way() -> None:
    finished: list[int] = []
    has_begun, may_finish = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 0
        has_begun.wait()
        may_finish.set()
        raise ValueError("no more")

    def handle(item: int) -> None:
        has_begun.set()
        may_finish.wait()
        finished.append(item)

    with pytest.raises(ValueError, match="no more"):
        call_beside(handle, items())
    assert finished == [0]
