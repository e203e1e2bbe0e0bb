"""Only what nothing needs, and nothing may come to need, is deleted."""

from datetime import timedelta

import pytest

from feature_pipeline.archive import blobs, gc, inbox, layout, log, publish, sweep
from feature_pipeline.archive.documents import utc_now
from feature_pipeline.archive.erase import erase
from feature_pipeline.archive.gc import GcScope, collect_garbage, read_marks
from feature_pipeline.archive.verify import verify
from feature_pipeline.errors import ConflictError, CorruptDataError, InvalidInputError
from feature_pipeline_tests.fixtures.care import CareScene, aged, all_keys, everything
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, At, FailingStore

ALL = GcScope.everything()
DAY = timedelta(days=1)


@pytest.fixture
def clock(monkeypatch):
    """Moves the time of everything in the archive."""

    class Clock:
        offset = timedelta()

        def now(self):
            return utc_now() + self.offset

    clock = Clock()
    for module in (gc, blobs, sweep):
        monkeypatch.setattr(module, "utc_now", clock.now)
    return clock


@pytest.fixture
def care(memory_store, tmp_path):
    scene = CareScene(memory_store, tmp_path)
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
    left = {key for key in all_keys(care.store) if not key.startswith("gc/")}
    assert left == needed
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


def test_a_scope_must_be_said(care):
    with pytest.raises(InvalidInputError, match="say what may be collected"):
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


def test_what_a_batch_relies_on_is_not_deleted_by_a_collection_that_looked_before(
    care, clock, monkeypatch
):
    """Submitted by digest alone, between the second look at an orphan and its deletion."""
    digest = orphan(care, b"cif n")
    aged(care.store, 30 * DAY)
    collect(care)
    clock.offset += 8 * DAY
    batch = care.batch_of("b9", ("n",))
    original = gc._delete

    def delete(*args, **kwargs):
        monkeypatch.setattr(gc, "_delete", original)
        # What a collection in another process has decided is not undone by submitting; only that
        # the blob is another one by then keeps it.
        monkeypatch.setattr(sweep, "outlast", lambda store: None)
        publish.submit_batch(care.store, batch, {})
        return original(*args, **kwargs)

    monkeypatch.setattr(gc, "_delete", delete)
    collect(care)
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


def test_what_quarantined_text_names_stays(care, clock):
    """An entry of a bucket's other user, or of a version to come: nothing in it is lost."""
    digest = orphan(care)
    care.store.create("inbox/run.odd", f'{{"spec_version": 1, "x": "{digest}"}}'.encode())
    [entry] = [e for e in inbox.waiting(care.store) if e.id == "run.odd"]
    inbox.quarantine(care.store, entry, "odd")
    collect(care)
    clock.offset += 30 * DAY
    assert collect(care).deleted == ()
    care.store.create("inbox/run.new", f'{{"spec_version": 99, "x": "{digest}"}}'.encode())
    with pytest.raises(CorruptDataError, match="newer"):
        collect(care)


@pytest.mark.parametrize("damage", [b"damaged", None])
def test_nothing_is_deleted_while_something_cannot_be_followed(care, clock, damage):
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
    with pytest.raises(CorruptDataError, match=str(manifest.hex)):
        collect(care)
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
    held = sweep.Sweep.take(care.store)
    with pytest.raises(ConflictError, match="another collection"):
        collect(care)
    held.end()
    assert len(collect(care).deleted) == 1


def test_a_lease_that_ended_is_taken_over(care, clock):
    first = sweep.Sweep.take(care.store)
    clock.offset += sweep.LEASE + sweep.MARGIN
    second = sweep.Sweep.take(care.store)
    with pytest.raises(ConflictError):
        first.renew()
    first.end()
    second.renew()
    second.end()
    assert care.store.stat(layout.GC_SWEEP) is None


def test_a_collection_that_lost_its_lease_stops(care, clock, monkeypatch):
    digest = orphan(care)
    collect(care)
    clock.offset += 8 * DAY
    stat = care.store.stat

    def slow_stat(key):
        clock.offset += sweep.LEASE
        return stat(key)

    monkeypatch.setattr(care.store, "stat", slow_stat)
    assert collect(care).spared == (digest,)
    monkeypatch.undo()
    assert is_stored(care, digest)


def test_a_publisher_outlasts_a_collection(care, clock):
    """Written again just after the collection looked, and deleted: the publisher notices."""
    digest = orphan(care)
    aged(care.store, timedelta(days=30))
    looked = care.store.stat(layout.blob(digest))
    held = sweep.Sweep.take(care.store)
    deletes = iter([True])

    class Collecting(FailingStore):
        """Deletes what it looked at before, once the publisher has written it again."""

        def __getattr__(self, name):
            method = getattr(self.inner, name)

            def call(*args, **kwargs):
                answer = method(*args, **kwargs)
                if name == "replace" and args[0] == looked.key and next(deletes, False):
                    self.inner.delete(looked.key)
                if name == "get" and args[0] == layout.GC_SWEEP:
                    held.end()
                return answer

            return call

    written = blobs.write_blob(Collecting(care.store), b"nobody needs this")
    assert written.ref.digest == digest
    assert is_stored(care, digest)
    assert next(deletes, None) is None


def test_a_dead_collection_holds_nobody_up(care, clock):
    orphan(care)
    aged(care.store, timedelta(days=30))
    sweep.Sweep.take(care.store)
    clock.offset += sweep.LEASE + sweep.MARGIN
    blobs.write_blob(care.store, b"nobody needs this")
