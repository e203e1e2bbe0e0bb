"""Only what nothing needs, and nothing may come to need, is deleted."""

from datetime import timedelta

import pytest

from feature_pipeline.archive import blobs, publish
from feature_pipeline.archive.deletion_lease import DeletionLease
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.maintenance import gc
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage, read_marks
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import ConflictError, InvalidInputError
from feature_pipeline_tests.fixtures.care import CareScene, Clock, aged, all_keys, everything
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, At

ALL = GcScope.everything()
DAY = timedelta(days=1)


@pytest.fixture
def clock(monkeypatch):
    """Moves the time of everything in the archive."""
    clock = Clock()
    clock.install(monkeypatch)
    return clock


@pytest.fixture
def care(clock, tmp_path):
    scene = CareScene(MemoryStore(clock.now), tmp_path, takes_census=True)
    everything(scene)
    return scene


def orphan(care, data=b"nobody needs this"):
    return blobs.put_blob(care.store, data).digest


def is_stored(care, digest):
    return care.store.stat(layout.blob(digest)) is not None


def collect(care, **options):
    return collect_garbage(care.store, ALL, **{"is_dry_run": False, **options})


def test_two_marks_a_grace_period_apart(care, clock):
    digest = orphan(care)
    needed = {key for key in all_keys(care.store) if key != layout.blob(digest)}
    for _ in range(7):
        report = collect(care)
        assert (report.orphaned, report.due, report.deleted) == (1, (), ())
        assert report.first_mark_at is None
        clock.offset += DAY
        assert is_stored(care, digest)
    report = collect(care)
    assert report.deleted == (digest,)
    assert report.deleted_bytes == len(b"nobody needs this")
    left = {key for key in all_keys(care.store) if not key.startswith(("gc/", "census/"))}
    assert left == {key for key in needed if not key.startswith("census/")}
    assert verify(care.store).is_clean
    assert collect(care).orphaned == 0


def test_a_dry_run_writes_nothing(care, clock):
    digest = orphan(care)
    before = all_keys(care.store)
    assert collect_garbage(care.store, ALL).orphaned == 1
    assert all_keys(care.store) == before
    collect(care)
    clock.offset += 8 * DAY
    before = all_keys(care.store)
    report = collect_garbage(care.store, ALL)
    assert (report.is_dry_run, report.due, report.deleted) == (True, (digest,), ())
    assert all_keys(care.store) == before


def test_a_scope_is_required(care):
    with pytest.raises(InvalidInputError, match="choose the blobs to collect"):
        GcScope(frozenset())
    with pytest.raises(InvalidInputError, match="'xy'"):
        GcScope(frozenset({"xy"}))


def test_a_shard_is_collected_alone(care, clock):
    first, second = orphan(care, b"1"), orphan(care, b"2")
    assert first.hex[:2] != second.hex[:2]
    scope = GcScope(frozenset({first.hex[:2]}))
    collect(care)
    clock.offset += 8 * DAY
    report = collect_garbage(care.store, scope, is_dry_run=False)
    assert report.deleted == (first,)
    assert is_stored(care, second)
    # A mark of a shard says nothing of the others.
    for key in read_marks(care.store):
        care.store.delete(key)
    collect_garbage(care.store, scope, is_dry_run=False)
    clock.offset += 8 * DAY
    assert collect(care).deleted == ()


def test_what_is_written_again_is_spared(care, clock):
    digest = orphan(care)
    aged(care.store, timedelta(days=30))
    collect(care)
    clock.offset += 8 * DAY
    # A publisher meets it, finds it old and writes it again.
    assert not blobs.write_blob(care.store, b"nobody needs this").is_new
    report = collect(care)
    assert (report.due, report.deleted) == ((), ())
    assert is_stored(care, digest)


@pytest.mark.parametrize("call", range(2, 24, 3))
def test_an_erasure_beside_it_is_no_loss(care, call):
    """Whatever it deletes while the roots are followed was not lost."""
    store = At(care.store, call, lambda: erase(care.store, DATASET, ["r1"], "asked for"))
    gc.make_mark(store, ALL, workers=1)
    assert store.calls >= call
    assert verify(care.store).is_clean


def test_what_came_to_be_needed_between_the_marks_stays(care, clock):
    digest = orphan(care, b"cif n")
    collect(care)
    clock.offset += 8 * DAY
    batch = care.batch_of("b9", ("n",))
    publish.submit_batch(care.store, batch, {})
    assert collect(care).deleted == ()
    assert is_stored(care, digest)


def test_unannounced_artifacts_and_their_marks(care, clock):
    """A publisher died before its inbox entry: blobs and manifest are collected together."""
    batch = log.read_batch(care.store, DATASET, "b1")
    completion = care.run(batch, care.release("2"), "never announced")
    collect(care)
    clock.offset += 8 * DAY
    report = collect(care)
    assert completion.manifest in report.deleted
    assert len(report.deleted) > 3
    assert verify(care.store).is_clean


def test_everything_named_by_roots_stays(care, clock):
    """Waiting, quarantined, superseded and failed alike."""
    erase(care.store, DATASET, ["r3"], "as well")
    before = {key for key in all_keys(care.store) if key.startswith("blobs/")}
    collect(care)
    clock.offset += 30 * DAY
    collect(care)
    after = {key for key in all_keys(care.store) if key.startswith("blobs/")}
    assert after == before
    assert verify(care.store).is_clean


@pytest.mark.parametrize("damage", [b"damaged", None])
def test_what_is_lost_for_good_is_given_up_by_name(care, clock, damage):
    orphan(care)
    collect(care)
    clock.offset += 8 * DAY
    manifest = log.head(care.store, DATASET, HOOK, "b1").manifest
    key = layout.blob(manifest)
    if damage is None:
        care.store.delete(key)
    else:
        care.store.replace(key, damage, care.store.stat(key).etag)
    before = all_keys(care.store)
    report = collect(care)
    assert (report.due, report.deleted) == ((), ())
    assert manifest.hex in report.obstacles[0]
    assert all_keys(care.store) == before
    assert collect(care, lost={manifest}).deleted


def test_old_marks_go(care, clock):
    for _ in range(20):
        collect(care)
        clock.offset += DAY
    assert len(read_marks(care.store)) <= 8


def test_one_collection_at_a_time(care, clock):
    orphan(care)
    collect(care)
    clock.offset += 8 * DAY
    lease = DeletionLease.acquire(care.store)
    with pytest.raises(ConflictError, match="another deletion"):
        collect(care)
    lease.end()
    assert len(collect(care).deleted) == 1


class TestMassesOfOrphans:
    """No publisher that died leaves so many: logs are missing, or an operator must confirm it."""

    def leave(self, care, count):
        for n in range(count):
            orphan(care, f"orphan {n}".encode())

    def test_nothing_is_marked_before_they_are_allowed(self, care):
        self.leave(care, 40)
        before = all_keys(care.store)
        report = collect(care)
        assert "40 of" in report.obstacles[0]
        assert "--new-orphans 40" in report.obstacles[0]
        assert collect(care, is_dry_run=True).obstacles == report.obstacles
        assert all_keys(care.store) == before
        assert collect(care, new_orphans=40).obstacles == ()

    def test_those_that_were_marked_are_not_new(self, care, clock):
        self.leave(care, 40)
        collect(care, new_orphans=40)
        clock.offset += 8 * DAY
        report = collect(care)
        assert (report.obstacles, len(report.deleted)) == ((), 40)

    def test_a_mark_of_other_shards_knows_nothing_of_them(self, care):
        self.leave(care, 40)
        shards = {layout.parse_blob(key).hex[:2] for key in all_keys(care.store) if "blobs" in key}
        one = GcScope(frozenset({min(shards)}))
        collect_garbage(care.store, one, is_dry_run=False, new_orphans=40)
        assert collect(care).obstacles

    def test_small_archives_and_shards(self, care):
        """A dozen is no mass in a whole archive; in a shard it is."""
        self.leave(care, 12)
        assert collect(care, is_dry_run=True).obstacles == ()
        digest = orphan(care, b"orphan 0")
        shard = GcScope(frozenset({digest.hex[:2]}))
        assert collect_garbage(care.store, shard).obstacles
