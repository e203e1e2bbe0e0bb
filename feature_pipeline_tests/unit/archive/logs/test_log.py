import json
import re
import threading
from datetime import UTC, datetime
from typing import ClassVar

import pytest

from feature_pipeline.archive import accept, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import instant_text
from feature_pipeline.archive.format.manifest import FailureInfo, Manifest, RunInfo
from feature_pipeline.archive.inspection.findings import State
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log, tombstones
from feature_pipeline.archive.logs.cache import LruCache
from feature_pipeline.archive.logs.erasures import ErasureEntry, erased
from feature_pipeline.archive.logs.reading import list_logs
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.query.history import readable_heads_as_of, readable_history
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.records import RecordFile
from feature_pipeline.model.release import HookRelease
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

    def test_an_entry_under_another_number_is_not_trusted(self, scene):
        scene.release("1")
        key = "log/releases/structures/pockets/000000000"
        scene.store.create(f"{key}2", scene.store.get(f"{key}1").data)
        with pytest.raises(
            CorruptDataError, match=r"pockets/0000000002 .* its place is .*pockets/0000000001"
        ):
            log.releases(scene.store, DATASET, HOOK)

    def test_the_error_of_newer_entries_asks_for_an_upgrade(self, scene):
        scene.store.create("log/batches/structures/b1/0000000001", b'{"spec_version": 3}')
        with pytest.raises(InvalidInputError, match="upgrade"):
            log.batches(scene.store, DATASET)

    def test_entries_are_read_once(self, scene):
        for key in ("b1", "b2", "b3"):
            scene.submit(make_batch(key))
        log.batches(scene.store, DATASET)
        counting = FailingStore(scene.store)
        assert list(log.batches(counting, DATASET)) == ["b1", "b2", "b3"]
        assert [call.split()[0] for call in counting.calls] == ["list_objects"]

    def test_a_log_begun_again_is_read_again(self, scene):
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


def at(log_name, seq):
    return f"log/{log_name}/{seq:010d}"


def stored(scene, key):
    return scene.store.get(key).data


class TestPlace:
    """An entry in the wrong place is damage to every reader, as it is to `verify`."""

    @pytest.fixture
    def filled(self, scene):
        """Two of everything that an entry can be mistaken for."""
        release = scene.release()
        for key in ("b1", "b2"):
            batch = scene.submit(make_batch(key))
            for label in "ab":
                completion = scene.completion(scene.artifact(batch, release, label=label))
                accept.accept(scene.store, completion)
        document = release.release.document
        for change in ({"hook": "sites"}, {"dataset": "other"}):
            other = HookRelease.of(document.model_copy(update=change))
            log.register_release(scene.store, other, {})
        for dataset in (DATASET, "other"):
            tombstones.withdraw(scene.store, dataset, ["gone"], "asked for")
            prefix = layout.erasure_log(dataset)
            erasure = ErasureEntry(seq=1, dataset=dataset, record_ids=("gone",))
            log.append(scene.store, prefix, ErasureEntry, lambda _, entry=erasure: entry)
        return scene

    READERS: ClassVar = {
        "features/structures/pockets/b1": [
            lambda store: log.read_log(store, DATASET, HOOK, "b1"),
            lambda store: log.head(store, DATASET, HOOK, "b1"),
            lambda store: log.heads(store, DATASET, HOOK),
            lambda store: log.heads(store, DATASET, HOOK, ["b1"]),
            lambda store: log.feature_logs(store, DATASET, HOOK),
            lambda store: readable_heads_as_of(store, DATASET, HOOK, 2, ["b1"]).whole(),
            lambda store: readable_heads_as_of(store, DATASET, HOOK, AN_INSTANT).whole(),
        ],
        "batches/structures/b1": [
            lambda store: log.batch_entry(store, DATASET, "b1"),
            lambda store: log.batches(store, DATASET),
            lambda store: log.batches(store, DATASET, ["b1"]),
            lambda store: log.readable_batch_logs(store, DATASET).whole(),
            lambda store: log.read_batch(store, DATASET, "b1"),
        ],
        "releases/structures/pockets": [lambda store: log.releases(store, DATASET, HOOK)],
        "tombstones/structures": [lambda store: tombstones.withdrawn(store, DATASET)],
        "erasures/structures": [lambda store: erased(store, DATASET)],
    }

    @pytest.mark.parametrize(
        ("target", "source"),
        [
            (at("features/structures/pockets/b1", 2), at("features/structures/pockets/b2", 2)),
            (at("features/structures/pockets/b1", 2), at("features/structures/pockets/b1", 1)),
            (at("batches/structures/b1", 1), at("batches/structures/b2", 1)),
            (at("releases/structures/pockets", 1), at("releases/structures/sites", 1)),
            (at("releases/structures/pockets", 1), at("releases/other/pockets", 1)),
            (at("tombstones/structures", 1), at("tombstones/other", 1)),
            (at("erasures/structures", 1), at("erasures/other", 1)),
        ],
    )
    def test_a_valid_entry_of_elsewhere_is_not_trusted(self, filled, target, source):
        filled.store._put(target, stored(filled, source))
        for look in self.READERS[target.removeprefix("log/").rpartition("/")[0]]:
            with pytest.raises(CorruptDataError, match=f"{target} .*its place is {source}"):
                look(filled.store)
        [finding] = [f for f in verify(filled.store).findings if f.key == target]
        assert finding.state is State.CORRUPT
        assert f"its place is {source}" in finding.detail

    def test_an_entry_that_names_no_place_at_all(self, filled):
        key = at("batches/structures/b1", 1)
        document = json.loads(stored(filled, key)) | {"batch": "Not A Key"}
        filled.store._put(key, document_bytes(document))
        with pytest.raises(CorruptDataError, match="in no log: batch key 'Not A Key'"):
            log.batches(filled.store, DATASET)

    @pytest.mark.parametrize(
        "alter",
        [lambda data: data + b"\n", lambda data: data.replace(b'"seq":', b'"seq": ')],
    )
    def test_an_entry_that_was_written_again_is_not_trusted(self, filled, alter):
        key = at("features/structures/pockets/b1", 2)
        filled.store._put(key, alter(stored(filled, key)))
        with pytest.raises(CorruptDataError, match="was altered"):
            log.head(filled.store, DATASET, HOOK, "b1")

    def test_damage_costs_its_own_batch(self, filled):
        filled.store._put(at("features/structures/pockets/b1", 2), b"{}")
        filled.store._put(at("batches/structures/b2", 1), b"{}")
        for reading, key, other in (
            (log.readable_heads(filled.store, DATASET, HOOK), "b1", "b2"),
            (log.readable_heads(filled.store, DATASET, HOOK, ["b1", "b2"]), "b1", "b2"),
            (log.readable_feature_logs(filled.store, DATASET, HOOK), "b1", "b2"),
            (log.readable_batches(filled.store, DATASET), "b2", "b1"),
            (log.readable_batch_logs(filled.store, DATASET), "b2", "b1"),
        ):
            assert list(reading.intact) == [other]
            assert {name: d.state for name, d in reading.damage.items()} == {key: State.CORRUPT}
            with pytest.raises(CorruptDataError):
                reading.whole()


class TestNamedLogs:
    """Listing named logs costs what these logs cost, in archives of any size."""

    class Store:
        """Logs of two entries each, and the listings of them."""

        def __init__(self, logs):
            self.inner, self.listings = MemoryStore(), []
            for number in range(logs):
                for seq in (1, 2):
                    self.inner.create(f"log/b{number:03d}/{seq}", b"")

        def list_objects(self, prefix, limit=None):
            listed = list(self.inner.list_objects(prefix, limit))
            self.listings.append((prefix, len(listed)))
            return iter(listed)

    @pytest.mark.parametrize("logs", [40, 1_000])
    @pytest.mark.parametrize("count", [1, 30, 40])
    def test_the_same_whether_all_or_each_is_listed(self, logs, count):
        store = self.Store(logs)
        names = [f"b{number:03d}" for number in range(count)]
        listed = list_logs(store, "log/", [*reversed(names), "unknown", names[0]])
        assert {name: [info.key for info in infos] for name, infos in listed.items()} == {
            name: [f"log/{name}/1", f"log/{name}/2"] for name in names
        }
        assert list(listed) == names

    def test_most_of_the_logs_are_listed_at_once(self):
        store = self.Store(40)
        list_logs(store, "log/", [f"b{number:03d}" for number in range(30)])
        assert store.listings == [("log/", 80)]

    def test_a_few_of_many_logs_are_not_looked_for_among_all(self):
        store = self.Store(1_000)
        list_logs(store, "log/", [f"b{number:03d}" for number in range(30)])
        assert sum(count for _, count in store.listings) < 1_000
        assert len(store.listings) == 31


class TestChain:
    """An entry names the stored bytes of the one before it."""

    @pytest.fixture
    def long(self, scene):
        """A log of three entries, the last of them not current."""
        release, batch = scene.release(), scene.submit(make_batch())
        for label in "ab":
            accept.accept(
                scene.store, scene.completion(scene.artifact(batch, release, label=label))
            )
        failed = scene.artifact(batch, release, failure=FailureInfo(kind="exit", reason="1"))
        accept.accept(scene.store, scene.completion(failed))
        return scene

    KEY = "features/structures/pockets/b1"

    def alter(self, scene, seq, **change):
        key = at(self.KEY, seq)
        scene.store._put(key, document_bytes(json.loads(stored(scene, key)) | change))

    def test_each_entry_names_the_one_before_it(self, long):
        entries = log.read_log(long.store, DATASET, HOOK, "b1")
        assert [entry.spec_version for entry in entries] == [2, 2, 2]
        assert [entry.previous for entry in entries] == [
            None,
            Digest.of(stored(long, at(self.KEY, 1))),
            Digest.of(stored(long, at(self.KEY, 2))),
        ]

    @pytest.mark.parametrize("seq", [1, 2])
    def test_an_entry_that_was_replaced_in_its_place(self, long, seq):
        self.alter(long, seq, completion="another run")
        for look in (
            lambda: log.read_log(long.store, DATASET, HOOK, "b1"),
            lambda: log.feature_logs(long.store, DATASET, HOOK),
        ):
            with pytest.raises(CorruptDataError, match="one of the two was replaced"):
                look()
        assert log.readable_feature_logs(long.store, DATASET, HOOK).damage.keys() == {"b1"}
        [finding] = verify(long.store).findings
        # The entry after its neighbour tells which of the two is right, where there is one.
        assert (finding.state, finding.key) == (State.CORRUPT, at(self.KEY, 1 if seq == 1 else 3))
        if seq == 2:
            with pytest.raises(CorruptDataError, match="one of the two was replaced"):
                log.head(long.store, DATASET, HOOK, "b1")

    def test_nothing_is_appended_after_an_entry_that_was_replaced(self, long):
        self.alter(long, 1, completion="another run")
        batch = log.read_batch(long.store, DATASET, "b1")
        more = long.completion(long.artifact(batch, long.release()))
        with pytest.raises(CorruptDataError):
            accept.accept(long.store, more)

    def test_what_another_writer_put_there_must_follow(self, long):
        entries = log.read_log(long.store, DATASET, HOOK, "b1")
        self.alter(long, 3, previous=str(Digest.of(b"else")))
        wanted = entries[-1].model_copy(update={"write_id": "ours"})
        with pytest.raises(CorruptDataError, match="one of the two was replaced"):
            log.append(
                long.store, f"log/{self.KEY}/", log.FeatureEntry, lambda _: wanted, entries[:2]
            )

    @pytest.mark.parametrize(
        ("seq", "change", "match"),
        [
            (1, {"previous": str(Digest.of(b"x"))}, "names an entry before it"),
            (2, {"previous": None}, "names no entry before it"),
            (2, {"spec_version": 1}, "has 'previous' in spec_version 1"),
            (2, {"spec_version": 0}, "has the spec_version 0, expected a positive"),
            (2, {"spec_version": True}, "has the spec_version True, expected a positive"),
        ],
    )
    def test_entries_that_contradict_themselves(self, long, seq, change, match):
        self.alter(long, seq, **change)
        with pytest.raises(CorruptDataError, match=match):
            log.read_log(long.store, DATASET, HOOK, "b1")

    def as_version_1(self, scene, seq):
        key = at(self.KEY, seq)
        document = json.loads(stored(scene, key)) | {"spec_version": 1}
        del document["previous"], document["published_at"]
        scene.store._put(key, document_bytes(document))

    def test_a_log_that_begins_with_version_1_continues(self, long):
        for seq in (1, 2, 3):
            self.as_version_1(long, seq)
        old = log.read_log(long.store, DATASET, HOOK, "b1")
        assert [entry.encode() for entry in old] == [
            stored(long, at(self.KEY, seq)) for seq in (1, 2, 3)
        ]
        batch = log.read_batch(long.store, DATASET, "b1")
        accept.accept(long.store, long.completion(long.artifact(batch, long.release())))
        entries = log.read_log(long.store, DATASET, HOOK, "b1")
        assert [entry.spec_version for entry in entries] == [1, 1, 1, 2]
        assert entries[-1].previous == Digest.of(stored(long, at(self.KEY, 3)))
        assert verify(long.store).is_clean

    def test_version_1_does_not_follow_version_2(self, long):
        self.as_version_1(long, 3)
        with pytest.raises(CorruptDataError, match="has spec_version 1, the entry before it 2"):
            log.head(long.store, DATASET, HOOK, "b1")
        [finding] = verify(long.store).findings
        assert (finding.state, finding.key) == (State.CORRUPT, at(self.KEY, 3))


class TestAgreement:
    """What an entry states of the objects it names is checked by every reader that follows it."""

    @pytest.fixture
    def filled(self, scene):
        batch = scene.submit(make_batch())
        accept.accept(scene.store, scene.completion(scene.artifact(batch, scene.release())))
        return scene

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            ({"manifest": "other"}, "its batch is b1, that of its manifest .* is b2"),
            ({"content_digest": str(Digest.of(b"x"))}, "its content_digest is "),
            ({"content_digest": None, "verdict": "failed"}, "its content_digest is None"),
            ({"release_seq": 2}, "its release_seq is 2"),
            ({"release": str(Digest.of(b"x"))}, "its release is"),
        ],
    )
    def test_an_entry_and_its_manifest(self, filled, change, match):
        scene = filled
        scene.release("2")
        if change.get("manifest"):
            other = scene.completion(
                scene.artifact(scene.submit(make_batch("b2")), scene.release("1"))
            )
            change = {"manifest": str(other.manifest)}
        key = at("features/structures/pockets/b1", 1)
        document = json.loads(stored(scene, key)) | change
        scene.store._put(key, document_bytes(document))
        [entry] = log.read_log(scene.store, DATASET, HOOK, "b1")
        with pytest.raises(CorruptDataError, match=f"{key} .*{match}"):
            read.manifest_of(scene.store, entry)
        [line] = readable_history(scene.store, DATASET, HOOK).lines
        assert line.manifest is None
        assert re.search("its (release|batch|content_digest)", str(line.problem))
        assert [f.state for f in verify(scene.store).findings if f.key == key] == [State.CORRUPT]
        if document["verdict"] == "current":
            with pytest.raises(CorruptDataError, match=match):
                Archive(scene.store).features(HOOK).to_arrow()

    @pytest.mark.parametrize("change", [{"records": 3}, {"digest": "other"}, {"source": "fork"}])
    def test_an_entry_and_its_batch(self, filled, change):
        scene = filled
        if change.get("digest"):
            change = {"digest": str(scene.submit(make_batch("b2")).digest)}
        key = at("batches/structures/b1", 1)
        scene.store._put(key, document_bytes(json.loads(stored(scene, key)) | change))
        with pytest.raises(CorruptDataError, match=f"{key} .*that of its batch document"):
            log.read_batch(scene.store, DATASET, "b1")
        assert [f.state for f in verify(scene.store).findings if f.key == key] == [State.CORRUPT]


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
    with pytest.raises(ValueError, match="not a time with a UTC offset"):
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


def test_values_are_evicted_by_their_size():
    """A batch may have one record or a hundred thousand: their number bounds no memory."""
    cache = LruCache[str](5, len)
    for key in ("aa", "bbb"):
        cache.put(key, key)
    cache.put("aa", "aaaa")
    assert (cache.get("bbb"), cache.get("aa")) == (None, "aaaa")
    cache.put("long", "a" * 9)
    assert (cache.get("aa"), cache.get("long")) == (None, "a" * 9)
    cache.put("b", "b")
    assert (cache.get("long"), cache.get("b")) == (None, "b")
