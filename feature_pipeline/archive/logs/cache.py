"""A bounded in-process cache of values that cannot change."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class LruCache(Generic[V]):
    """The most recently used values, of at most `capacity` size together. Thread-safe.

    Args:
        capacity: The total size; the last value is kept whatever its size.
        size: The size of a value; 1 by default, so that `capacity` is the number of values.
    """

    def __init__(self, capacity: int, size: Callable[[V], int] = lambda _: 1) -> None:
        self._capacity = capacity
        self._size = size
        self._total = 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> V | None:
        """Return the value stored under `key`, if it still is."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
            return value

    def put(self, key: Hashable, value: V) -> None:
        """Store `value`; evict the least recently used ones while they are too large together."""
        size = self._size(value)
        with self._lock:
            if (replaced := self._values.pop(key, None)) is not None:
                self._total -= self._size(replaced)
            self._values[key] = value
            self._total += size
            while self._total > self._capacity and len(self._values) > 1:
                self._total -= self._size(self._values.popitem(last=False)[1])

    def trim(self, size: int) -> None:
        """Evict the least recently used values while all are larger than `size` together."""
        with self._lock:
            while self._total > size:
                self._total -= self._size(self._values.popitem(last=False)[1])

    def clear(self) -> None:
        """Remove all values."""
        with self._lock:
            self._values.clear()
            self._total = 0
