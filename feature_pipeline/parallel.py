"""Concurrent requests: S3 answers in milliseconds that add up."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

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
    if getattr(_in_pool, "is_working", False):
        # Waiting in one of the pool's threads for other threads of it could deadlock.
        with ThreadPoolExecutor(min(workers, len(work))) as pool:
            return _run(pool, function, work)
    cached = _pools.get(workers)
    if cached is None:
        cached = _pools.setdefault(workers, ThreadPoolExecutor(workers, "archive", _enter))
    return _run(cached, function, work)


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


def _enter() -> None:
    _in_pool.is_working = True


def _run(pool: ThreadPoolExecutor, function: Callable[[T], R], work: list[T]) -> list[R]:
    futures = [pool.submit(function, item) for item in work]
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error
    return [future.result() for future in futures]
