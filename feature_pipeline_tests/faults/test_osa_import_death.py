"""SIGKILL while rows of a server's tables are imported; a second run makes the same archive."""

import multiprocessing
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.errors import ProjectionError
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.osa.history import importer
from feature_pipeline.osa.history.importer import Importer
from feature_pipeline_tests.faults.test_archive_kill import Ground, KilledStore, dies, ground
from feature_pipeline_tests.fixtures.osa_server import Beside
from feature_pipeline_tests.fixtures.stores import CHANGES, FailingStore, archive_client

__all__ = ["ground"]
pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.faults]

POINTS = (2, 9, 17, 34, 52)
"""Changes of the store before which the process is killed: within the first batch, an artifact's
blobs, its completion, its log entry, and later ones."""


def state(store: BlobStore, *, has_times: bool = True) -> dict[str, object]:
    """Batches, and the artifacts of each log in order, with the times at which they came."""
    left: dict[str, object] = {}
    for dataset in log.datasets(store):
        for key, entry in log.batches(store, dataset).items():
            left[f"{dataset}/{key}"] = str(entry.digest), has_times and entry.submitted_at
        for hook in log.hooks(store, dataset):
            for key, entries in log.feature_logs(store, dataset, hook).items():
                left[f"{dataset}/{hook}/{key}"] = [
                    (e.completion, str(e.manifest), e.verdict, has_times and e.published_at)
                    for e in entries
                ]
    return left


def test_a_killed_import_is_completed_by_the_next(beside: Beside, ground: Ground) -> None:
    shutil.rmtree(beside.folder)
    beside.settings = beside.settings.model_copy(
        update={"conventions": {"protein-designs": "designs"}}
    )
    follower = beside.follower()

    def run(store: BlobStore) -> None:
        arguments = store, follower.server, None, beside.settings, follower.definitions
        assert Importer(*arguments).run().is_complete

    run(beside.store)
    whole = state(beside.store)
    assert len(whole) == 9
    for change in POINTS:
        ground.clear()
        assert dies(ground.childs(), run, change), change
        assert state(ground.store) != whole
        run(ground.store)
        assert state(ground.store) == whole
    run(ground.store)
    assert state(ground.store) == whole


def open_there(address: S3Address, prefix: str) -> S3Store:
    return S3Store(archive_client(address), address.bucket, prefix)


def open_to_be_killed(change: int, address: S3Address, prefix: str) -> BlobStore:
    """In each process of an import, which is killed before this change of its own."""
    return KilledStore(open_there(address, prefix), change)


class KillingStore(FailingStore):
    """Kills the process that began this one, at its change number `fatal_call`."""

    def __getattr__(self, name: str) -> object:
        if name in CHANGES:
            self.calls.append(name)
            if len(self.calls) == self.fatal_call:
                os.kill(os.getppid(), signal.SIGKILL)
        return getattr(self.inner, name)


def open_to_kill(folder: Path, change: int, address: S3Address, prefix: str) -> BlobStore:
    """In each process of an import, whose number it writes into a folder."""
    (folder / str(os.getpid())).touch()
    return KillingStore(open_there(address, prefix), change)


class Parallel:
    """Imports of the recorded server's rows by two processes, each into a prefix of its own."""

    def __init__(self, beside: Beside, address: S3Address) -> None:
        shutil.rmtree(beside.folder)
        self.address = address
        follower = beside.follower()
        self.given = follower.server, None, beside.settings, follower.definitions
        assert Importer(beside.store, *self.given).run().is_complete
        self.whole = state(beside.store)

    def store(self, prefix: str) -> S3Store:
        return open_there(self.address, prefix)

    def run(self, prefix: str, opens: Callable[[S3Address, str], BlobStore] = open_there) -> None:
        opened = partial(opens, self.address, prefix)
        parallel = Importer(self.store(prefix), *self.given, workers=2, open_store=opened)
        assert parallel.run().is_complete

    def complete(self, prefix: str) -> None:
        """Import once more, in this process."""
        assert Importer(self.store(prefix), *self.given).run().is_complete


@pytest.fixture
def parallel(beside: Beside, s3_address: S3Address, monkeypatch: pytest.MonkeyPatch) -> Parallel:
    monkeypatch.setattr(importer, "_ROWS_A_PROCESS", 1)
    return Parallel(beside, s3_address)


def a_prefix() -> str:
    return f"import-{secrets.token_hex(8)}"


def test_several_processes_make_the_same_archive(parallel: Parallel) -> None:
    prefix = a_prefix()
    parallel.run(prefix)
    assert state(parallel.store(prefix)) == parallel.whole
    parallel.complete(prefix)
    assert state(parallel.store(prefix)) == parallel.whole


@pytest.mark.parametrize("change", [3, 20])
def test_a_killed_process_ends_the_import_and_the_next_completes_it(
    parallel: Parallel, change: int
) -> None:
    prefix = a_prefix()
    with pytest.raises(ProjectionError, match="ended unexpectedly"):
        parallel.run(prefix, partial(open_to_be_killed, change))
    assert state(parallel.store(prefix)) != parallel.whole
    assert not multiprocessing.active_children()
    parallel.complete(prefix)
    assert state(parallel.store(prefix)) == parallel.whole


def exists(pid: str) -> bool:
    """Whether a process runs; one that has ended may wait for its parent to ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_processes_end_with_the_one_that_began_them(parallel: Parallel, tmp_path: Path) -> None:
    prefix = a_prefix()
    opens = partial(open_to_kill, tmp_path, 9)
    killed = multiprocessing.get_context("fork").Process(target=parallel.run, args=(prefix, opens))
    killed.start()
    killed.join(300)
    assert killed.exitcode == -signal.SIGKILL
    deadline = time.monotonic() + 120
    while left := [each.name for each in tmp_path.iterdir() if exists(each.name)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    parallel.complete(prefix)
    assert state(parallel.store(prefix)) == parallel.whole
