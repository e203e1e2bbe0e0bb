"""Processes that import and prove hook runs, each with its own session of one snapshot."""

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process, util
from typing import Any, Final, TypeVar

from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import ProjectionError
from feature_pipeline.osa.history.run_import import ImportedHook, RunImporter
from feature_pipeline.osa.server.database import Reader, Server
from feature_pipeline.osa.server.schema import HISTORY

T = TypeVar("T")
R = TypeVar("R")

_PENDING: Final = 2
"""Tasks given to the processes for each of them: one that it does, and one that waits."""


@dataclass(frozen=True, slots=True)
class _Setup:
    """What a process needs to open its session."""

    open_store: Callable[[], BlobStore]
    server: Server
    snapshot: str
    hooks: Sequence[ImportedHook]


class InProcess:
    """Imports hook runs in this process."""

    def __init__(self, importer: RunImporter) -> None:
        self._importer = importer

    def map(self, function: Callable[[RunImporter, T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result for each item, in order, before the next one is taken."""
        return (function(self._importer, item) for item in items)


class Workers:
    """Import hook runs in other processes; use it as a context manager.

    If a process ends unexpectedly, the others are ended, too. If this process is killed, they end
    as soon as they notice: within one change of the archive.

    Args:
        count: Number of processes.
        open_store: Opens the archive in each of them; importable by its name.
        server: The server.
        reader: The session whose snapshot they read, open until they have ended.
        hooks: The hooks of the import.
    """

    def __init__(
        self,
        count: int,
        open_store: Callable[[], BlobStore],
        server: Server,
        reader: Reader,
        hooks: Sequence[ImportedHook],
    ) -> None:
        self._most_pending = _PENDING * count
        setup = _Setup(open_store, server, reader.export_snapshot(), hooks)
        # A forked process would have this one's connections.
        self._pool = ProcessPoolExecutor(count, get_context("spawn"), _start, (setup,))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def map(self, function: Callable[[RunImporter, T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the result for each item, in order; only a few items are taken ahead.

        Raises:
            ProjectionError: A process ended unexpectedly.
        """
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                if len(pending) == self._most_pending:
                    yield pending.popleft().result()
                pending.append(self._pool.submit(_call, function, item))
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise ProjectionError(
                "a process of the import ended unexpectedly: it was killed, or the machine ran out"
                " of memory (--workers 1 needs the least). What was imported stays: import again"
            ) from error


_setup: _Setup | None = None
_importer: RunImporter | None = None


def _start(setup: _Setup) -> None:
    """Prepare a process; what may fail is done by its first task, whose error is reported."""
    global _setup
    _setup = setup
    # An interrupt reaches the whole group of processes: the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when the one that began it is gone: its queue would never be closed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _call(function: Callable[[RunImporter, Any], R], item: Any) -> R:
    return function(_opened(), item)


def _opened() -> RunImporter:
    global _importer
    if _importer is None:
        if _setup is None:
            raise RuntimeError("this process was not prepared")
        with ExitStack() as stack:
            reader = stack.enter_context(_setup.server.session(HISTORY, snapshot=_setup.snapshot))
            _importer = RunImporter(_setup.open_store(), reader, _setup.hooks)
            # The session lasts until the process ends.
            util.Finalize(None, stack.pop_all().close, exitpriority=0)
        # Each collection would look through what was imported.
        gc.collect()
        gc.freeze()
    return _importer
