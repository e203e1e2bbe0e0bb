import threading
from datetime import UTC, datetime

import pytest

from feature_pipeline.archive import accept, log, tombstones
from feature_pipeline.archive.cache import LruCache
from feature_pipeline.archive.documents import instant_text
from feature_pipeline.archive.manifest import FailureInfo, Manifest, RunInfo
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.records import RecordFile
from feature_pipeline.release import HookRelease
from feature_pipeline_tests.fixtures.stores import (
    AN_INSTANT,
    DATASET,
    HOOK,
    FailingStore,
    make_batch,
    make_release,
)


class TestReleases:
    def test_the_last_release_is_registered_once(self, scene):
        first = scene.release("1")
        assert scene.release("1") == first
        assert log.releases(scene.store, DATASET, HOOK) == [first]

    def test_going_back_registers_again(self, scene):
        seqs = [scene.release(version).seq for version in ("1", "2", "1")]
        assert seqs == [1, 2, 3]
        digest = make_release("1").digest
        assert log.release(scene.store, DATASET, HOOK, digest).seq == 3
        assert log.hooks(scene.store, DATASET) == [HOOK]

    def test_an_unknown_release(self, scene):
        with pytest.raises(NotFoundError):
            log.release(scene.store, DATASET, HOOK, make_release().digest)

    def test_code_is_stored_before_the_entry(self, scene, tmp_path):
        path = tmp_path / "hook.py"
        path.write_text("print()")
        digest = log.blobs.put_file(scene.store, path).digest
        scene.store.delete(f"blobs/sha256/{digest.hex[:2]}/{digest.hex}")
        document = make_release().document.model_copy(
            update={"code": (RecordFile(name="hook.py", digest=str(digest), size=7),)}
        )
        release = HookRelease.of(document)
        with pytest.raises(InvalidInputError, match=r"no path was given for code file 'hook\.py'"):
            log.register_release(scene.store, release, {})
        path.write_text("changed")
        with pytest.raises(CorruptDataError):
            log.register_release(scene.store, release, {"hook.py": path})
        assert log.releases(scene.store, DATASET, HOOK) == []
        path.write_text("print()")
        log.register_release(scene.store, release, {"hook.py": path})
        assert log.blobs.read_blob(scene.store, digest, 7) == b"print()"

    def test_many_register_the_same_at_once(self, scene):
        entries = in_threads(lambda n: scene.release("1"))
        assert {entry.seq for entry in entries} == {1}

    def test_many_register_different_ones_at_once(self, scene):
        entries = in_threads(lambda n: scene.release(str(n)))
        assert sorted(entry.seq for entry in entries) == list(range(1, 9))
        assert log.releases(scene.store, DATASET, HOOK) == sorted(entries, key=lambda e: e.seq)


def in_threads(call, count=8):
    results, barrier = [], threading.Barrier(count)

    def run(n):
        barrier.wait()
        results.append(call(n))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


class TestEntries:
    def test_a_log_with_a_gap_is_not_read(self, scene):
        for version in "123":
            scene.release(version)
        scene.store.delete("log/releases/structures/pockets/0000000002")
        with pytest.raises(CorruptDataError, match="gap"):
            log.releases(scene.store, DATASET, HOOK)

    def test_an_older_entry_is_not_taken_for_one_that_is_gone(self, scene):
        batch, release = scene.submit(make_batch()), scene.release()
        for _ in range(2):
            accept.accept(scene.store, scene.completion(scene.artifact(batch, release)))
        failed = scene.artifact(batch, release, failure=FailureInfo(kind="exit", reason="1"))
        accept.accept(scene.store, scene.completion(failed))
        scene.store.delete("log/features/structures/pockets/b1/0000000002")
        for look in (log.head, lambda *args: log.heads(*args[:3])):
            with pytest.raises(CorruptDataError, match="gap"):
                look(scene.store, DATASET, HOOK, "b1")

    @pytest.mark.parametrize("data", [b"", b"{}", b"null", b'{"seq": 1}'])
    def test_a_damaged_entry_is_not_absent(self, scene, data):
        scene.submit(make_batch())
        scene.store._put("log/batches/structures/b1/0000000001", data)
        with pytest.raises(CorruptDataError, match="log/batches/structures/b1/0000000001"):
            log.batches(scene.store, DATASET)

    def test_an_entry_under_another_number_is_not_believed(self, scene):
        scene.release("1")
        key = "log/releases/structures/pockets/000000000"
        scene.store.create(f"{key}2", scene.store.get(f"{key}1").data)
        with pytest.raises(CorruptDataError, match="says that it is 1"):
            log.releases(scene.store, DATASET, HOOK)

    def test_entries_of_later_code_say_upgrade(self, scene):
        scene.store.create("log/batches/structures/b1/0000000001", b'{"spec_version": 2}')
        with pytest.raises(InvalidInputError, match="upgrade"):
            log.batches(scene.store, DATASET)

    def test_entries_are_read_once(self, scene):
        for key in ("b1", "b2", "b3"):
            scene.submit(make_batch(key))
        log.batches(scene.store, DATASET)
        counting = FailingStore(scene.store)
        assert list(log.batches(counting, DATASET)) == ["b1", "b2", "b3"]
        assert [call.split()[0] for call in counting.calls] == ["list_objects"]

    def test_a_log_begun_anew_is_read_anew(self, scene):
        first = scene.release("1")
        assert log.releases(scene.store, DATASET, HOOK) == [first]
        scene.store.delete("log/releases/structures/pockets/0000000001")
        scene.release("2")
        assert log.releases(scene.store, DATASET, HOOK) != [first]

    def test_unknown_batches(self, scene):
        with pytest.raises(NotFoundError, match="no batch 'none'"):
            log.read_batch(scene.store, DATASET, "none")
        assert log.batches(scene.store, DATASET) == {}
        assert log.head(scene.store, DATASET, HOOK, "none") is None


class TestTombstones:
    def test_withdrawn_until_lifted(self, scene):
        tombstones.withdraw(scene.store, DATASET, ["a", "b"], "asked for")
        tombstones.withdraw(scene.store, DATASET, ["c"], "asked for")
        tombstones.lift(scene.store, DATASET, ["b"], "allowed")
        assert tombstones.withdrawn(scene.store, DATASET) == {"a", "c"}
        assert tombstones.withdrawn(scene.store, "other") == set()
        entries = tombstones.tombstones(scene.store, DATASET)
        assert [entry.seq for entry in entries] == [1, 2, 3]

    def test_saying_it_again_adds_nothing(self, scene):
        first = tombstones.withdraw(scene.store, DATASET, ["b", "a"], "asked for")
        assert tombstones.withdraw(scene.store, DATASET, ["a", "b", "a"], "again") == first

    def test_only_what_is_withdrawn_can_be_lifted(self, scene):
        with pytest.raises(InvalidInputError, match="'a' is not withdrawn"):
            tombstones.lift(scene.store, DATASET, ["a"], "allowed")
        with pytest.raises(InvalidInputError, match="no record ids"):
            tombstones.withdraw(scene.store, DATASET, [], "x")


def test_documents_have_one_text(scene):
    artifact = scene.artifact(scene.submit(make_batch()), scene.release())
    completion = scene.completion(artifact)
    data = log.blobs.read_blob(scene.store, completion.manifest)
    assert Manifest.decode(data, "it").encode() == data
    assert b'"started_at":"2026-01-02T03:04:05.000000Z"' in data


def test_times_need_an_offset():
    with pytest.raises(ValueError, match="not a time with its offset"):
        RunInfo(
            id="x",
            runner="y",
            started_at=datetime(2026, 1, 1),  # noqa: DTZ001
            finished_at=AN_INSTANT,
        )
    assert instant_text(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00.000000Z"


def test_the_cache_keeps_the_last_used():
    cache = LruCache(2)
    for key in "ab":
        cache.put(key, key)
    assert cache.get("a") == "a"
    cache.put("c", "c")
    assert [cache.get(key) for key in "abc"] == ["a", None, "c"]
