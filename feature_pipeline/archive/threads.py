"""Several requests at once: S3 answers in milliseconds that add up."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

WORKERS: Final = 8
"""More gain nothing: boto3 is bound by its own CPU, and its default pool has 10 connections."""


def map_threads(function: Callable[[T], R], items: Iterable[T], workers: int = WORKERS) -> list[R]:
    """`function` of every item, in the items' order.

    With several workers every call is made; then the first error, in the items' order, is raised.
    """
    work = list(items)
    if len(work) < 2 or workers < 2:
        return [function(item) for item in work]
    with ThreadPoolExecutor(min(workers, len(work))) as pool:
        futures = [pool.submit(function, item) for item in work]
    return [future.result() for future in futures]
