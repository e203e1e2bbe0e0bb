"""Concurrent requests: S3 answers in milliseconds that add up."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Final, Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORKERS: Final = 8
"""More threads gain nothing: boto3 is bound by its own CPU, and its default pool has 10
connections.
"""

_pools: dict[int, ThreadPoolExecutor] = {}
"""Kept between calls: starting threads takes as long as a request or two."""
_in_pool = threading.local()

# A forked child has the pools and none of their threads.
os.register_at_fork(after_in_child=_pools.clear)


def map_threads(function: Callable[[T], R], items: Iterable[T], workers: int = WORKERS) -> list[R]:
    """Return `function` of every item, in the items' order, computed in threads.

    With several workers every call is made; then the first error, in the items' order, is raised.
    """
    work = list(items)
    if len(work) < 2 or workers < 2:
        return [function(item) for item in work]
    with _pool(workers) as pool:
        return results([pool.submit(function, item) for item in work])


class Start(Protocol):
    """Starts calls in other threads."""

    def __call__(self, function: Callable[[], R], /) -> Future[R]:
        """Start the call."""


@contextmanager
def calls_in_threads(workers: int = WORKERS) -> Iterator[Start]:
    """Yield a function that starts calls in other threads; the block ends after all of them."""
    calls: list[Future[Any]] = []
    with _pool(workers) as pool:

        def start(function: Callable[[], R], /) -> Future[R]:
            call = pool.submit(function)
            calls.append(call)
            return call

        try:
            yield start
        finally:
            wait(calls)


def results(calls: Iterable[Future[R]]) -> list[R]:
    """Return what the calls return, once all have ended; the first error, in order, is raised."""
    calls = list(calls)
    wait(calls)
    return [call.result() for call in calls]


def call_beside(function: Callable[[T], None], items: Iterable[T], ahead: int = 1) -> None:
    """Call `function` on each item, in order, in one other thread, while later items are produced.

    At most `ahead` items wait. The first error, of either side, is raised once the call that is
    under way has returned.
    """
    with ThreadPoolExecutor(1, "beside") as pool:
        calls: deque[Future[None]] = deque()
        try:
            for item in items:
                if len(calls) >= ahead:
                    calls.popleft().result()
                calls.append(pool.submit(function, item))
            while calls:
                calls.popleft().result()
        finally:
            for call in calls:
                call.cancel()


@contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool that is kept between calls, or one of its own to a thread of such a pool."""
    if getattr(_in_pool, "is_working", False):
        # Waiting in one of the pool's threads for other threads of it could deadlock.
        with ThreadPoolExecutor(workers) as pool:
            yield pool
        return
    if (kept := _pools.get(workers)) is None:
        kept = _pools.setdefault(workers, ThreadPoolExecutor(workers, "archive", _enter))
    yield kept


def _enter() -> None:
    _in_pool.is_working = True
