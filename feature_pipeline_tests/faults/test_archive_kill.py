"""Death between any two calls to the store, by SIGKILL on a server; a second run makes it whole.

The child is forked: it has a client of its own and dies as a process does, in the middle of
whatever its threads are doing. The first changes and every fourth are SIGKILLs; at the others a
store in memory takes no further call, which leaves the same objects.
"""

import multiprocessing
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest

from feature_pipeline.archive import accept, blobs, publish
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline_tests.fixtures.care import CareScene, holds, raw_lines
from feature_pipeline_tests.fixtures.stores import (
    CHANGES,
    DATASET,
    HOOK,
    Death,
    FailingStore,
    archive_client,
    copy_objects,
)

pytestmark = [pytest.mark.s3, pytest.mark.faults, pytest.mark.slow]

SECRET = "xyzzy7"
MOST_CHANGES = 120
ENDED = 7
# Read at import: the session takes such variables out of the environment.
KILL_EVERY = int(os.environ.get("FEATURE_PIPELINE_TEST_KILL_EVERY", "4"))
FEW_CHANGES = 4
"""The first of each drill, which are SIGKILLs anyway."""


class KilledStore(FailingStore):
    """Its process is killed just before the call that would be its change number `fatal_call`.

    Calls that only read leave the store as it was, so a death at any of them is the same as one
    just before the next change: these are all the states that a death can leave.
    """

    def __getattr__(self, name: str) -> object:
        method = getattr(self.inner, name)
        if name not in CHANGES:
            return method

        def call(*args: object, **kwargs: object) -> object:
            with self._lock:
                self.calls.append(name)
                if len(self.calls) == self.fatal_call:
                    os.kill(os.getpid(), signal.SIGKILL)
            return method(*args, **kwargs)

        return call


class EndedStore(FailingStore):
    """Its process dies just before the change number `fatal_call`: no later call arrives."""

    def __getattr__(self, name: str) -> object:
        method = getattr(self.inner, name)

        def call(*args: object, **kwargs: object) -> object:
            with self._lock:
                if name in CHANGES:
                    self.calls.append(name)
                if len(self.calls) >= self.fatal_call:
                    raise Death(name)
                return method(*args, **kwargs)

        return call


class Ground:
    """The server, and the clients that are used again and again: making one takes long."""

    def __init__(self, address: S3Address) -> None:
        self._bucket = address.bucket
        self._clients = [archive_client(address) for _ in range(2)]
        self.prefix = ""
        self.clear()

    def clear(self) -> None:
        """Go on in an empty prefix."""
        self.prefix = f"kill-{secrets.token_hex(8)}"
        self.store = S3Store(self._clients[0], self._bucket, self.prefix)

    def childs(self) -> S3Store:
        """The same place for a child: its client is never used here, so it has no connections."""
        return S3Store(self._clients[1], self._bucket, self.prefix)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture
def ground(s3_address) -> Iterator[Ground]:
    ground = Ground(s3_address)
    yield ground
    ground.close()


def dies(store: S3Store, act: Callable[[BlobStore], None], change: int) -> bool:
    """Whether a child that does `act` was killed there; False if it came to its end."""

    def child() -> None:
        # Not through pytest: the child exits without any cleanup.
        try:
            act(KilledStore(store, change))
            os._exit(ENDED)
        except BaseException:  # noqa: BLE001
            import traceback

            traceback.print_exc()
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(300)
    assert process.exitcode in {-signal.SIGKILL, ENDED}
    return process.exitcode != ENDED


def ends(store: BlobStore, act: Callable[[BlobStore], None], change: int) -> bool:
    """Whether `act` died there in this process; False if it came to its end."""
    try:
        act(EndedStore(store, change))
    except Death:
        return True
    return False


def drill(ground: Ground, tmp_path, prepare, act, check, *, ages_matter: bool = False) -> int:
    """Kill `act` before each of its changes in turn, then do it again; how many there were.

    A child always works on the server. What comes before and after it is done on a copy in
    memory, which the contract suite knows to behave alike, unless `ages_matter`: a copy is young.
    """
    for change in range(1, MOST_CHANGES):
        is_killed = change <= FEW_CHANGES or change % KILL_EVERY == 0
        folder = tmp_path / f"{change}"
        folder.mkdir()
        ground.clear()
        begun = ground.store if is_killed and ages_matter else MemoryStore()
        scene = CareScene(begun, folder, takes_census=True)
        prepared = prepare(scene)
        if is_killed and not ages_matter:
            copy_objects(scene.store, ground.store)

        def again(target: BlobStore, scene=scene, folder=folder, prepared=prepared) -> None:
            scene.store, scene.folder = target, folder / secrets.token_hex(4)
            scene.folder.mkdir()
            act(scene, prepared)

        left: BlobStore = ground.store if is_killed else scene.store
        is_dead = dies(ground.childs(), again, change) if is_killed else ends(left, again, change)
        if is_killed and not ages_matter:
            copy_objects(left, memory := MemoryStore())
            left = memory
        if is_dead:
            again(left)
        scene.store = left
        assert verify(left).findings == (), change
        check(scene, prepared)
        if not is_dead:
            return change - 1
    pytest.fail(f"more than {MOST_CHANGES} changes")


def submitted(scene):
    batch = scene.submit(scene.batch_of("b1", ("a", SECRET, "c")))
    return batch, scene.release()


def test_publish(ground, tmp_path):
    def act(scene, prepared):
        batch, release = prepared
        publish.enqueue_completion(scene.store, scene.run(batch, release, "x", run_id="run"))

    def check(scene, prepared):
        assert len(inbox.waiting(scene.store)) == 1
        assert collect_garbage(scene.store, GcScope.everything()).orphaned == 0

    assert drill(ground, tmp_path, submitted, act, check) > 4


def test_submit(ground, tmp_path):
    def prepare(scene):
        return scene.batch_of("b1", ("a", "b", "c"))

    def act(scene, batch):
        scene.batch_of("b1", ("a", "b", "c"))  # its files, in the folder of this attempt
        publish.submit_batch(scene.store, batch, scene.paths(batch))

    def check(scene, batch):
        [entry] = inbox.waiting(scene.store)
        assert entry.content.digest == batch.digest
        assert collect_garbage(scene.store, GcScope.everything()).orphaned == 0
        accept.accept_entries(scene.store, [entry])
        assert log.read_batch(scene.store, DATASET, "b1").digest == batch.digest

    assert drill(ground, tmp_path, prepare, act, check) > 4


def test_accept(ground, tmp_path):
    def prepare(scene):
        batch = scene.batch_of("b1", ("a", "b"))
        publish.submit_batch(scene.store, batch, scene.paths(batch))
        completion = scene.run(batch, scene.release(), "x")
        publish.enqueue_completion(scene.store, completion)
        return completion

    def act(scene, completion):
        accept.accept_entries(scene.store, accept.waiting(scene.store))
        for entry in accept.waiting(scene.store):
            accept.remove(scene.store, entry.id)

    def check(scene, completion):
        assert inbox.waiting(scene.store) == []
        [entry] = log.read_log(scene.store, DATASET, HOOK, "b1")
        assert (entry.completion, entry.manifest) == (completion.id, completion.manifest)
        assert len(log.batch_entries(scene.store, DATASET, "b1")) == 1

    assert drill(ground, tmp_path, prepare, act, check) > 3


def test_erase(ground, tmp_path):
    def prepare(scene):
        batch, release = submitted(scene)
        scene.compute(batch, release, "x")
        scene.compute(batch, release, "y", base=1)
        publish.enqueue_completion(scene.store, scene.run(batch, release, "waits", base=2))

    def act(scene, prepared):
        scene.store.delete("gc/lease")  # instead of waiting for the dead one's lease to end
        erase(scene.store, DATASET, [SECRET], "asked for")

    def check(scene, prepared):
        assert all(key.startswith("log/") for key in holds(scene.store, SECRET.encode()))
        entries = log.read_log(scene.store, DATASET, HOOK, "b1")
        assert [e.verdict.value for e in entries[2:]] == ["superseded", "current"]
        assert len(log.batch_entries(scene.store, DATASET, "b1")) == 2
        assert len(inbox.waiting(scene.store)) == 1
        manifest = accept.read.read_manifest(scene.store, entries[-1].manifest)
        raw = accept.read.read_raw(scene.store, manifest, "features.jsonl")
        assert raw == raw_lines(["a", "c"], "y")

    assert drill(ground, tmp_path, prepare, act, check) > 20


def test_gc(ground, tmp_path, monkeypatch):
    monkeypatch.setattr(blobs, "GRACE", timedelta())

    def prepare(scene):
        batch, release = submitted(scene)
        scene.compute(batch, release, "x")
        for n in range(3):
            blobs.put_blob(scene.store, f"orphan {n}".encode())
        scene.run(batch, release, "never announced")
        collect_garbage(scene.store, GcScope.everything(), is_dry_run=False)

    def act(scene, prepared):
        scene.store.delete("gc/lease")  # instead of waiting for the dead one's lease to end
        collect_garbage(scene.store, GcScope.everything(), is_dry_run=False)

    def check(scene, prepared):
        assert collect_garbage(scene.store, GcScope.everything()).orphaned == 0
        assert len(log.heads(scene.store, DATASET, HOOK)) == 1

    assert drill(ground, tmp_path, prepare, act, check, ages_matter=True) > 8
