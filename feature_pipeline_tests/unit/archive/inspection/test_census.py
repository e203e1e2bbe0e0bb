"""A log cannot show that its end is gone; the census, written beside it, can."""

from datetime import UTC, datetime, timedelta

import pytest

from feature_pipeline.archive import accept
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection import census
from feature_pipeline.archive.inspection.census import MAX_CENSUSES, write_census
from feature_pipeline.archive.inspection.findings import ObjectKind, Scope, State
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, known_lengths, log, tombstones
from feature_pipeline.archive.logs.known_lengths import Line, encode_census, known_logs
from feature_pipeline.archive.maintenance import deletion
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.errors import CorruptDataError, StoreUnavailableError
from feature_pipeline.model.digest import Digest
from feature_pipeline_tests.fixtures.care import CareScene, all_keys, everything
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, FailingStore

PREFIX = "log/features/structures/pockets/b1/"
BATCH = "log/batches/structures/b2/"
RELEASES = "log/releases/structures/pockets/"


@pytest.fixture
def care(memory_store, tmp_path):
    """An archive with a log of every kind."""
    scene = CareScene(memory_store, tmp_path)
    everything(scene)
    for entry in inbox.waiting(memory_store):
        accept.accept_entries(memory_store, [entry])[0]
    write_census(memory_store)
    erase(memory_store, DATASET, ["r3"], "asked for")
    return scene


@pytest.fixture
def counted(care):
    """The same, verified."""
    assert verify(care.store).is_clean
    return care


def ends(store):
    """By log the key of its last entry."""
    return {key.rpartition("/")[0] + "/": key for key in all_keys(store) if key.startswith("log/")}


def censuses(store):
    return [info.key for info in store.list_objects(layout.CENSUS)]


def compute_more(care, batch="b1"):
    entries = log.read_log(care.store, DATASET, HOOK, batch)
    care.compute(
        log.read_batch(care.store, DATASET, batch),
        log.releases(care.store, DATASET, HOOK)[-1],
        f"more {len(entries)}",
        base=len(entries),
    )


def lost(store, scope=None):
    return [f for f in verify(store, scope).findings if f.state is State.LOST]


class TestLoss:
    def test_the_end_of_a_log_of_every_kind(self, counted):
        kinds = set()
        for prefix, key in ends(counted.store).items():
            data = counted.store.get(key).data
            counted.store.delete(key)
            finding = {f.key: f for f in verify(counted.store).findings}[key]
            assert finding.state in {State.LOST, State.MISSING}
            kinds.add(finding.kind)
            report = write_census(counted.store)
            assert [(s.log, s.damage.state) for s in report.shortfalls] == [(prefix, State.LOST)]
            assert "the log has lost its end" in report.summary()
            counted.store.create(key, data)
            assert verify(counted.store).is_clean
        assert kinds == {
            ObjectKind.FEATURE_ENTRY,
            ObjectKind.BATCH_ENTRY,
            ObjectKind.RELEASE_ENTRY,
            ObjectKind.TOMBSTONE_ENTRY,
            ObjectKind.ERASURE_ENTRY,
        }

    def test_a_loss_is_not_forgotten(self, counted):
        """However often the archive is read and goes on: until the entry is back."""
        key = ends(counted.store)[PREFIX]
        data = counted.store.get(key).data
        counted.store.delete(key)
        for version in "678":
            counted.release(version)
            assert [f.key for f in lost(counted.store)] == [key]
            assert not write_census(counted.store).is_clean
        assert len(censuses(counted.store)) == MAX_CENSUSES
        # What went on elsewhere is known all the same.
        counted.store.delete(ends(counted.store)[RELEASES])
        assert {f.kind for f in lost(counted.store)} == {
            ObjectKind.FEATURE_ENTRY,
            ObjectKind.RELEASE_ENTRY,
        }
        counted.store.create(key, data)
        assert {f.kind for f in lost(counted.store)} == {ObjectKind.RELEASE_ENTRY}

    def test_every_log_gone(self, counted):
        logs = len(ends(counted.store))
        for key in all_keys(counted.store):
            if key.startswith("log/"):
                counted.store.delete(key)
        for _ in range(2):
            assert len(lost(counted.store)) == logs == len(write_census(counted.store).shortfalls)

    def test_an_end_that_was_replaced(self, counted):
        """The entry is in its place and follows the one before it; it is another all the same."""
        key = ends(counted.store)[PREFIX]
        entry = log.read_log(counted.store, DATASET, HOOK, "b1")[-1]
        other = entry.model_copy(update={"write_id": log.new_write_id()})
        counted.store._put(key, other.encode())
        for _ in range(2):
            [finding] = verify(counted.store).findings
            assert (finding.state, finding.key) == (State.LOST, key)
            assert "another entry is in its place" in finding.detail
        compute_more(counted)
        assert [f.key for f in lost(counted.store)] == [key]

    def test_within_a_scope(self, counted):
        counted.store.delete(ends(counted.store)[PREFIX])
        for scope in (Scope(DATASET), Scope(DATASET, HOOK), Scope(DATASET, HOOK, "b1")):
            assert len(lost(counted.store, scope)) == 1
        assert lost(counted.store, Scope(DATASET, HOOK, "b2")) == []
        assert lost(counted.store, Scope("other")) == []

    def test_nothing_is_collected_meanwhile(self, counted):
        counted.store.delete(ends(counted.store)[PREFIX])
        [obstacle] = deletion.find_needed_blobs(counted.store).obstacles
        assert "is lost (the log has lost its end" in obstacle

    def test_readers_with_known_logs_report_lost_ones(self, counted):
        compute_more(counted, "b2")
        store = counted.store
        assert verify(store).is_clean
        for prefix in (PREFIX, BATCH, "log/features/structures/pockets/b2/"):
            store.delete(ends(store)[prefix])
        known = known_logs(store)
        for reading in (
            log.readable_heads(store, DATASET, HOOK, known=known),
            log.readable_heads(store, DATASET, HOOK, ["b1", "b2", "b3"], known=known),
            log.readable_feature_logs(store, DATASET, HOOK, known=known),
        ):
            assert reading.intact == {}
            assert {batch: damage.state for batch, damage in reading.damage.items()} == {
                "b1": State.LOST,
                "b2": State.LOST,
            }
            with pytest.raises(CorruptDataError, match="the log has lost its end"):
                reading.whole()
        assert list(log.readable_heads(store, DATASET, HOOK, ["b2"], known=known).damage) == ["b2"]
        batches = log.readable_batches(store, DATASET, known=known)
        assert (list(batches.intact), list(batches.damage)) == (["b1"], ["b2"])
        assert list(log.readable_batch_logs(store, DATASET, known=known).damage) == ["b2"]
        # Without what is known, the shorter log looks whole.
        assert list(log.readable_heads(store, DATASET, HOOK).intact) == ["b1"]


class Interrupted(FailingStore):
    """Another process acts just before one call."""

    def __init__(self, inner, when, act):
        super().__init__(inner)
        self.when, self.act = when, act

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        def call(*args, **kwargs):
            if self.act is not None and (name, *args[:1]) == self.when:
                act, self.act = self.act, None
                act()
            return method(*args, **kwargs)

        return call


class TestNoFalseAlarm:
    @pytest.mark.parametrize(
        "when",
        [
            ("list_objects", layout.CENSUS),
            ("list_objects", layout.LOSS_LOGS),
            ("list_objects", layout.LOGS),
            ("list_objects", layout.FEATURE_LOGS),
            ("list_objects", layout.BATCH_LOGS),
            ("get", f"{PREFIX}0000000001"),
        ],
    )
    @pytest.mark.parametrize("look", [verify, write_census])
    def test_logs_that_go_on_meanwhile(self, counted, when, look):
        """And a census of another process that knows them already."""

        def act():
            compute_more(counted)
            counted.submit(counted.batch_of("b9", ("n1",)))
            write_census(counted.store)

        store = Interrupted(counted.store, when, act)
        assert look(store).is_clean
        assert verify(counted.store).is_clean
        assert write_census(counted.store).is_new is False

    def test_an_object_that_was_written_again(self, counted):
        """Its etag is another, its bytes are the same."""
        for key in ends(counted.store).values():
            counted.store._put(key, counted.store.get(key).data)
        assert write_census(counted.store).is_clean
        assert verify(counted.store).is_clean

    def test_what_the_listing_leaves_out_is_not_lost(self, counted):
        key = ends(counted.store)[PREFIX]

        class Short(FailingStore):
            def __getattr__(self, name):
                method = getattr(self.inner, name)
                if name != "list_objects":
                    return method
                return lambda prefix: (i for i in method(prefix) if i.key != key)

        [shortfall] = write_census(Short(counted.store)).shortfalls
        assert shortfall.damage.state is State.UNREADABLE
        assert {f.state for f in verify(Short(counted.store)).findings} == {State.UNREADABLE}
        assert verify(counted.store).is_clean

    def test_an_entry_that_could_not_be_read_may_be_put_right(self, care):
        key = ends(care.store)[PREFIX]
        data = care.store.get(key).data
        care.store._put(key, b"{}")
        assert [f.state for f in verify(care.store).findings if f.key == key] == [State.CORRUPT]
        care.store.delete(key)
        assert key in {f.key for f in lost(care.store)}
        care.store.create(key, data)
        assert verify(care.store).is_clean


class TestCensus:
    def test_its_summary(self, counted):
        known = known_logs(counted.store)
        assert known.damage == {}
        lines = known.below(layout.LOGS)
        keys = {prefix: layout.entry(prefix, line.entries) for prefix, line in lines.items()}
        assert keys == ends(counted.store)
        for prefix, key in keys.items():
            assert lines[prefix].digest == Digest.of(counted.store.get(key).data)
        assert known.below(BATCH) == {BATCH: lines[BATCH]}

    def test_an_archive_without_logs_has_none(self, memory_store):
        report = write_census(memory_store)
        assert (report.census, report.is_new, report.is_clean) == (None, False, True)
        assert verify(memory_store).is_clean
        assert censuses(memory_store) == []

    def test_nothing_new_is_not_written_again(self, counted):
        before = censuses(counted.store)
        assert write_census(counted.store).is_new is False
        assert verify(counted.store).is_clean
        counted.release("5")
        assert verify(counted.store, Scope(DATASET)).is_clean
        assert censuses(counted.store) == before

    def test_the_newest_are_kept(self, counted):
        for version in "56789":
            counted.release(version)
            assert write_census(counted.store).is_new
        assert len(censuses(counted.store)) == MAX_CENSUSES
        assert known_logs(counted.store).census.key == max(censuses(counted.store))

    def test_only_what_is_new_is_read(self, counted):
        compute_more(counted)
        store = FailingStore(counted.store)
        assert write_census(store).is_new
        gets = [call for call in store.calls if call.startswith("get log/")]
        assert gets == [f"get {ends(counted.store)[PREFIX]}"]

    def test_a_damaged_one_is_named_and_an_older_one_used(self, counted):
        key = ends(counted.store)[PREFIX]
        counted.release("5")
        write_census(counted.store)
        newest = max(censuses(counted.store))
        data = bytearray(counted.store.get(newest).data)
        data[len(data) // 2] ^= 1
        counted.store._put(newest, bytes(data))
        stored = counted.store.get(key).data
        counted.store.delete(key)
        findings = {f.key: f for f in verify(counted.store).findings}
        assert (findings[newest].state, findings[newest].kind) == (State.CORRUPT, ObjectKind.CENSUS)
        assert findings[key].state is State.LOST
        # Named once: the census that was written then stands in for it.
        assert newest not in censuses(counted.store)
        assert [f.key for f in lost(counted.store)] == [key]
        counted.store.create(key, stored)
        assert verify(counted.store).is_clean

    def test_one_of_later_code_is_named_and_left_alone(self, counted, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(known_lengths, "CENSUS_VERSION", 2)
            counted.release("5")
            newer = write_census(counted.store).census.key
        known_lengths._censuses.clear()
        counted.release("6")
        report = verify(counted.store)
        assert [(f.key, f.state) for f in report.findings] == [(newer, State.NEWER)]
        assert "no census was written" in report.notes[0]
        assert max(censuses(counted.store)) == newer

    def test_other_objects_in_its_folder(self, counted):
        counted.store.create("census/notes", b"by a person")
        assert [f.key for f in verify(counted.store).findings] == ["census/notes"]

    def test_a_clock_that_is_set_back(self, counted, monkeypatch):
        counted.release("5")
        past = datetime.now(UTC) - timedelta(days=400)
        monkeypatch.setattr(census, "utc_now", lambda: past)
        taken = write_census(counted.store).census
        assert taken.key == max(censuses(counted.store))
        assert known_logs(counted.store).census.key == taken.key

    def test_one_that_is_removed_before_it_is_read(self, counted):
        """Another process wrote newer ones since the listing."""
        counted.release("5")
        first = max(censuses(counted.store))

        def act():
            write_census(counted.store)
            counted.store.delete(first)

        known_lengths._censuses.clear()
        store = Interrupted(counted.store, ("get", first), act)
        assert known_logs(store).census.key == max(censuses(counted.store))

    def test_a_store_that_takes_none(self, counted):
        """Verifying needs no right to write."""
        counted.release("5")

        class ReadOnly(FailingStore):
            def create(self, key, data, media_type=""):
                raise StoreUnavailableError("403")

        report = verify(ReadOnly(counted.store))
        assert report.is_clean
        assert report.notes == ("no census was written: 403",)
        assert report.to_json()["notes"] == list(report.notes)

    def test_it_is_compact(self):
        """Names cost next to nothing: 100,000 batches under five hooks are some 30 MB."""
        lines = {
            f"log/features/structures/{hook}/deposition-of-some-institute-{number:06d}/": Line(
                1, Digest.of(f"{hook}{number}".encode()), f'"{number:032x}"'
            )
            for hook in ("pockets", "alignments")
            for number in range(5_000)
        }
        assert len(encode_census(lines)) / len(lines) < 64


def test_tombstones_that_are_lost_are_not_forgotten(counted):
    """Without them, withdrawn records would be accepted again."""
    tombstones.withdraw(counted.store, DATASET, ["r2"], "asked for")
    write_census(counted.store)
    counted.store.delete(ends(counted.store)["log/tombstones/structures/"])
    assert [f.kind for f in lost(counted.store)] == [ObjectKind.TOMBSTONE_ENTRY]
