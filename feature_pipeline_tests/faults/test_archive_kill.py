"""SIGKILL between any two calls to the store; a second run makes it whole.

The child is forked: it has a client of its own and dies as a process does, in the middle of
whatever its threads are doing.
"""

import multiprocessing
import os
import secrets
import signal
from collections.abc import Callable
from datetime import timedelta

import pytest

from feature_pipeline.archive import accept, blobs, inbox, log, publish, sweep
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.erase import erase
from feature_pipeline.archive.gc import GcScope, collect_garbage
from feature_pipeline.archive.verify import verify
from feature_pipeline_tests.fixtures.care import CareScene, holds, raw_lines
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, FailingStore, connect

pytestmark = [pytest.mark.s3, pytest.mark.faults, pytest.mark.slow]

SECRET = "xyzzy7"
CHANGES = frozenset({"create", "create_file", "replace", "replace_file", "delete"})
MOST_CHANGES = 120
ENDED = 7


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


def dies(address, prefix, act: Callable[[BlobStore], None], change: int) -> bool:
    """Whether a child that does `act` was killed there; False if it came to its end."""

    def child() -> None:
        # Not through pytest: the child leaves without anybody's cleanup.
        try:
            with connect(address, prefix) as store:
                act(KilledStore(store, change))
            os._exit(ENDED)
        except BaseException:  # noqa: BLE001
            import traceback

            traceback.print_exc()
            os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in {-signal.SIGKILL, ENDED}
    return process.exitcode != ENDED


def drill(address, tmp_path, prepare, act, check) -> int:
    """Kill `act` before each of its changes in turn, then do it again; how many there were."""
    for change in range(1, MOST_CHANGES):
        prefix = f"kill-{secrets.token_hex(8)}"
        folder = tmp_path / f"{change}"
        folder.mkdir()
        with connect(address, prefix) as store:
            scene = CareScene(store, folder)
            prepared = prepare(scene)

            def again(target: BlobStore, scene=scene, folder=folder, prepared=prepared) -> None:
                scene.store, scene.folder = target, folder / secrets.token_hex(4)
                scene.folder.mkdir()
                act(scene, prepared)

            is_dead = dies(address, prefix, again, change)
            if is_dead:
                again(store)
            scene.store = store
            assert verify(store).findings == (), change
            check(scene, prepared)
        if not is_dead:
            return change - 1
    pytest.fail(f"more than {MOST_CHANGES} changes")


def submitted(scene):
    batch = scene.submit(scene.batch_of("b1", ("a", SECRET, "c")))
    return batch, scene.release()


def test_publish(s3_address, tmp_path):
    def act(scene, prepared):
        batch, release = prepared
        publish.announce(scene.store, scene.run(batch, release, "x", run_id="run"))

    def check(scene, prepared):
        assert len(inbox.waiting(scene.store)) == 1
        assert collect_garbage(scene.store, GcScope.everything()).orphaned == 0

    assert drill(s3_address, tmp_path, submitted, act, check) > 4


def test_submit_and_accept(s3_address, tmp_path):
    def prepare(scene):
        batch = scene.batch_of("b1", ("a", "b"))
        publish.submit_batch(scene.store, batch, scene.paths(batch))
        completion = scene.run(batch, scene.release(), "x")
        publish.announce(scene.store, completion)
        return completion

    def act(scene, completion):
        accept.settle_all(scene.store, accept.waiting(scene.store))
        for entry in accept.waiting(scene.store):
            accept.remove(scene.store, entry.id)

    def check(scene, completion):
        assert inbox.waiting(scene.store) == []
        [entry] = log.read_log(scene.store, DATASET, HOOK, "b1")
        assert (entry.completion, entry.manifest) == (completion.id, completion.manifest)
        assert len(log.batch_entries(scene.store, DATASET, "b1")) == 1

    assert drill(s3_address, tmp_path, prepare, act, check) > 3


def test_erase(s3_address, tmp_path):
    def prepare(scene):
        batch, release = submitted(scene)
        scene.compute(batch, release, "x")
        scene.compute(batch, release, "y", base=1)
        publish.announce(scene.store, scene.run(batch, release, "waits", base=2))

    def act(scene, prepared):
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

    assert drill(s3_address, tmp_path, prepare, act, check) > 20


def test_gc(s3_address, tmp_path, monkeypatch):
    monkeypatch.setattr(blobs, "GRACE", timedelta())
    monkeypatch.setattr(sweep, "LEASE", timedelta(seconds=1.5))
    monkeypatch.setattr(sweep, "MARGIN", timedelta(seconds=0.5))

    def prepare(scene):
        batch, release = submitted(scene)
        scene.compute(batch, release, "x")
        for n in range(3):
            blobs.put_blob(scene.store, f"orphan {n}".encode())
        scene.run(batch, release, "never announced")
        collect_garbage(scene.store, GcScope.everything(), is_dry_run=False)

    def act(scene, prepared):
        sweep.outlast(scene.store)  # a lease that a dead collection left ends by itself
        collect_garbage(scene.store, GcScope.everything(), is_dry_run=False)

    def check(scene, prepared):
        assert collect_garbage(scene.store, GcScope.everything()).orphaned == 0
        assert len(log.heads(scene.store, DATASET, HOOK)) == 1

    assert drill(s3_address, tmp_path, prepare, act, check) > 8
