"""Nothing that is needed is deleted: not beside damage, not beside publishers, not too late."""

import contextlib
import dataclasses
import re
from datetime import timedelta
from functools import partial

import pytest

from feature_pipeline.archive import accept, blobs, deletion_lease, publish
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.deletion_guard import Guard
from feature_pipeline.archive.deletion_lease import LEASE, MARGIN, DeletionLease
from feature_pipeline.archive.format import documents, layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log, tombstones
from feature_pipeline.archive.maintenance import deletion
from feature_pipeline.archive.maintenance.erase import erase, finish_erasing, lift
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import (
    ConflictError,
    InvalidInputError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordBatch, Source
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline_tests.fixtures.care import CareScene, Clock, all_keys, everything
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, At, copy_of

SECRET = "xyzzy7"
SHARED = b"shared bytes"
ALL = GcScope.everything()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    clock.install(monkeypatch)
    return clock


@pytest.fixture
def make(clock, tmp_path):
    """Makes archives, each in a store of its own."""
    count = iter(range(1000))

    def make_scene():
        folder = tmp_path / str(next(count))
        folder.mkdir()
        return CareScene(MemoryStore(clock.now), folder, takes_census=True)

    return make_scene


def batch_with(scene, key, record_id, data=SHARED):
    """A batch of one record, whose file has these bytes."""
    [record] = scene.batch_of(key, (record_id,)).records
    record = record.model_copy(update={"files": (scene.file(data),)})
    return RecordBatch.create(DATASET, key, Source.DEPOSITION, (record,))


def is_stored(store, data=SHARED):
    return store.stat(layout.blob(Digest.of(data))) is not None


def accept_all(store):
    """Accept what waits; the archive is clean then."""
    for settled in accept.accept_entries(store, accept.waiting(store)):
        assert isinstance(settled, accept.Accepted), settled
    assert verify(store).is_clean


class TestPublishersBesideDeletions:
    """Whichever of their requests meet: what was reported as stored is there."""

    def erased(self, scene):
        """The record that had the bytes is erased; it is still withdrawn, so its blobs are due."""
        scene.submit(batch_with(scene, "b1", SECRET))
        erase(scene.store, DATASET, [SECRET], "asked for")

    def make_orphan(self, scene, clock):
        """The bytes are orphaned, and were marked so a week ago."""
        everything(scene)
        blobs.put_blob(scene.store, SHARED)
        collect_garbage(scene.store, ALL, is_dry_run=False)
        clock.offset += timedelta(days=8)

    def submit(self, scene, store):
        batch = batch_with(scene, "b9", "other")
        publish.submit_batch(store, batch, scene.paths(batch))

    @pytest.mark.parametrize("prepare", ["erased", "to be erased"])
    def test_an_erasure_between_any_two_requests_of_a_submission(self, make, prepare):
        for call in range(1, 100):
            scene = make()
            if prepare == "erased":
                self.erased(scene)
                assert not is_stored(scene.store)
            else:
                scene.submit(batch_with(scene, "b1", SECRET))

            act = partial(erase, scene.store, DATASET, [SECRET], "asked for")
            store = At(scene.store, call, act)
            self.submit(scene, store)
            assert is_stored(scene.store), call
            accept_all(scene.store)
            if store.calls < call:
                break
        assert call > 5

    def test_a_submission_between_any_two_requests_of_an_erasure(self, make):
        for call in range(1, 200, 3):
            scene = make()
            scene.submit(batch_with(scene, "b1", SECRET))
            store = At(scene.store, call, lambda scene=scene: self.submit(scene, scene.store))
            try:
                erase(store, DATASET, [SECRET], "asked for")
            except StoreUnavailableError:
                # The publisher waited for the lease to end: its deletions are refused by then.
                finish_erasing(scene.store, DATASET)
            assert is_stored(scene.store) == (store.calls >= call), call
            accept_all(scene.store)
            if store.calls < call:
                break
        assert call > 20

    def test_a_collection_between_any_two_requests_of_a_submission(self, make, clock):
        """It is due: two marks found it orphaned, and only its deletion is left."""
        for call in range(1, 100):
            scene = make()
            self.make_orphan(scene, clock)

            act = partial(collect_garbage, scene.store, ALL, is_dry_run=False)
            store = At(scene.store, call, act)
            self.submit(scene, store)
            assert is_stored(scene.store), call
            accept_all(scene.store)
            if store.calls < call:
                break
        assert call > 5

    def test_a_submission_between_any_two_requests_of_a_collection(self, make, clock, monkeypatch):
        """By digest alone: it relies on a blob that two marks found orphaned.

        Even if it did not write old blobs again, which tells a collection as well.
        """
        monkeypatch.setattr(blobs, "_is_old", lambda info: False)
        spared = 0
        for call in range(1, 200, 5):
            scene = make()
            self.make_orphan(scene, clock)
            store = At(scene.store, call, lambda scene=scene: self.submit(scene, scene.store))
            with contextlib.suppress(StoreUnavailableError):
                spared += len(collect_garbage(store, ALL, is_dry_run=False).spared)
            assert is_stored(scene.store) == (store.calls >= call), call
            accept_all(scene.store)
            if store.calls < call:
                break
        assert call > 20
        assert spared

    def test_a_publisher_whose_record_is_withdrawn_meanwhile_brings_nothing_back(self, make):
        """What the erasure deleted of its artifact it does not write again."""
        for call in range(1, 100):
            scene = make()
            batch = scene.submit(scene.batch_of("b1", ("a", SECRET)))
            artifact = scene.artifact(batch, scene.release(), run_id="late")

            act = partial(erase, scene.store, DATASET, [SECRET], "asked for")
            store = At(scene.store, call, act)
            with contextlib.suppress(InvalidInputError):  # it was told so
                publish.publish_and_enqueue(
                    store, artifact, partial(completion_of, artifact, base=0)
                )
            finish_erasing(scene.store, DATASET)
            accept_all(scene.store)
            if store.calls < call:
                break
        assert call > 5

    @pytest.mark.parametrize("is_lifted", [False, True])
    @pytest.mark.parametrize("kind", ["new", "known", "artifact"])
    def test_what_is_reported_as_stored_is_known_to_an_erasure_of_its_record(
        self, make, kind, is_lifted
    ):
        """An erasure that did not find it had begun before: its publisher is told so."""
        refused = 0
        for call in range(1, 100):
            scene = make()
            batch = scene.batch_of("b1", ("a", SECRET))
            if kind != "new":
                scene.submit(batch)
            if kind == "artifact":
                artifact = scene.artifact(batch, scene.release(), run_id="late")

            outcomes: list[bool] = []

            def act(scene=scene, outcomes=outcomes):
                erasing = erase(scene.store, DATASET, [SECRET], "asked for")
                if is_lifted and erasing.is_finished:
                    lift(scene.store, DATASET, [SECRET], "again")
                now = log.batch_entries(scene.store, DATASET, "b1")
                outcomes.append(not erasing.is_finished or (kind == "known" and len(now) == 2))

            store = At(scene.store, call, act)
            reason = None
            try:
                if kind == "artifact":
                    publish.publish_and_enqueue(
                        store, artifact, partial(completion_of, artifact, base=0)
                    )
                else:
                    publish.submit_batch(store, batch, scene.paths(batch))
            except (InvalidInputError, ConflictError) as error:
                reason = str(error)
                refused += 1
            assert reason is None or re.search("withdrawn|erased", reason), reason
            assert reason is not None or outcomes in ([], [True]), call
            if store.calls < call:
                break
        assert refused > 5


def delete_all_that_nothing_needs(store):
    """The most that any deletion may do at this moment, without marks, grace or candidates."""
    stored = list(store.list_objects(layout.BLOBS))
    done = deletion.delete(store, stored, deletion.find_needed_blobs(store))
    assert done.obstacles == ()


class Submission:
    step = 1

    def prepare(self, scene):
        return scene.batch_of("b9", ("n1", "n2"))

    def act(self, scene, store, batch):
        publish.submit_batch(store, batch, scene.paths(batch))


class HookRun:
    """Its log's text is one that hooks print all the time: the blob comes and goes."""

    step = 1

    def prepare(self, scene):
        artifact = scene.artifact(log.read_batch(scene.store, DATASET, "b2"), scene.release("2"))
        artifact.log.write_text("finished without a warning")
        return artifact

    def act(self, scene, store, artifact):
        publish.publish_and_enqueue(store, artifact, partial(completion_of, artifact, base=0))


class Release:
    step = 1

    def prepare(self, scene):
        code = scene.file(b"new code").model_copy(update={"name": "hook.py"})
        document = ReleaseDocument(
            dataset=DATASET, hook="other", version="1", command=("run",), code=(code,)
        )
        return HookRelease.of(document), {"hook.py": scene.folder / code.blob.hex}

    def act(self, scene, store, release):
        log.register_release(store, *release)


class Erasure:
    step = 9  # it makes many requests

    def prepare(self, scene):
        return None

    def act(self, scene, store, prepared):
        erase(store, DATASET, ["r1"], "asked for")


class Requeue:
    """What moves between the inbox and the quarantine is named all the time."""

    step = 1

    def prepare(self, scene):
        return [entry.id for entry in inbox.quarantined(scene.store)]

    def act(self, scene, store, ids):
        inbox.requeue(store, ids)


@pytest.mark.parametrize("publisher", [Submission, HookRun, Release, Erasure, Requeue])
class TestPublishersBesideTheMostHostileDeletion:
    @pytest.fixture
    def ground(self, make):
        scene = make()
        everything(scene)
        return scene

    def check(self, scene):
        report = verify(scene.store)
        assert report.is_clean, report.findings
        accept_all(scene.store)

    def test_it_happens_between_any_two_requests_of_the_publisher(self, ground, publisher):
        prepared = publisher().prepare(ground)
        for call in range(1, 300, publisher.step):
            scene = CareScene(copy_of(ground.store), ground.folder)

            def act(store=scene.store):
                with contextlib.suppress(ConflictError):  # an erasure holds the lease
                    delete_all_that_nothing_needs(store)

            store = At(scene.store, call, act)
            publisher().act(scene, store, prepared)
            self.check(scene)
            if store.calls < call:
                return
        raise AssertionError

    def test_the_publisher_is_between_any_two_requests_of_it(self, ground, publisher):
        prepared = publisher().prepare(ground)
        for n in range(3):
            blobs.put_blob(ground.store, f"orphan {n}".encode())
        for call in range(1, 300, publisher.step):
            scene = CareScene(copy_of(ground.store), ground.folder)
            store = At(scene.store, call, lambda s=scene: publisher().act(s, s.store, prepared))
            # It may have waited for the lease to end: the store refuses what comes then.
            with contextlib.suppress(StoreUnavailableError, ConflictError):
                delete_all_that_nothing_needs(store)
            self.check(scene)
            if store.calls < call:
                return
        raise AssertionError


OTHERS = "others"
"""Another dataset, whose records, code and output have the same bytes."""

ROT = ("flip", "truncate", "empty", "a later version")
"""The bytes changed where they lie."""
OVERWRITTEN = ("flip, put anew", "flip near the end, put anew", "empty, put anew")
"""The object was put there anew, without a checksum: the store vouches for nothing."""


def damaged(data: bytes, how: str) -> bytes:
    at = len(data) - 8 if "near the end" in how else len(data) // 2
    if how.startswith("flip"):
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    if how.startswith("a later version"):
        return re.sub(rb'"spec_version":\d+', b'"spec_version":99', data)
    return data[:at] if how.startswith("truncate") else b""


class Damage:
    """An object of a store in memory is not as it was, until it is restored."""

    def __init__(self, store: MemoryStore, key: str, how: str) -> None:
        self.store, self.key, self.original = store, key, store._objects[key]
        if how == "delete":
            del store._objects[key]
            return
        data, info = damaged(self.original.data, how), self.original.info
        if how in OVERWRITTEN:
            info = dataclasses.replace(info, size=len(data), etag='"anew"', sha256=None)
        store._objects[key] = dataclasses.replace(self.original, data=data, info=info)

    def restore(self) -> None:
        self.store._objects[self.key] = self.original


def namers(store: MemoryStore) -> list[str]:
    """The keys of one object of each kind that names blobs in the other dataset."""
    heads = log.heads(store, OTHERS, HOOK)
    logs = [
        layout.feature_log(OTHERS, HOOK, "b1"),
        layout.batch_log(OTHERS, "b1"),
        layout.release_log(OTHERS, HOOK),
    ]
    keys = [layout.entry(log_of_it, 1) for log_of_it in logs]
    keys += [layout.entry(logs[0], 2)]
    keys += [layout.blob(heads["b1"].manifest)]
    keys += [layout.blob(log.batch_entry(store, OTHERS, "b1").digest)]
    for entry in inbox.waiting(store):
        if entry.content.dataset == OTHERS:
            keys += [f"{layout.INBOX}{entry.id}", layout.blob(entry.content.manifest)]
    for quarantined in inbox.quarantined(store):
        if f'"{OTHERS}"' in quarantined.entry:
            keys += [f"{layout.QUARANTINE}{quarantined.id}"]
    return keys


def blobs_of(store: MemoryStore) -> set[str]:
    return {key for key in all_keys(store) if key.startswith(layout.BLOBS)}


class TestDamage:
    """While anything that may name blobs is not as it was, in any dataset, everything stays."""

    @pytest.fixture
    def ground(self, make):
        scene = make()
        everything(scene)
        (scene.folder / OTHERS).mkdir()
        everything(CareScene(scene.store, scene.folder / OTHERS, dataset=OTHERS))
        write_census(scene.store)
        return scene

    @pytest.mark.parametrize("how", [*ROT, *OVERWRITTEN, "delete"])
    def test_an_erasure_deletes_nothing_and_withdraws_all_the_same(self, ground, how):
        kept = 0
        for key in namers(ground.store):
            if how == "delete" and not key.startswith((layout.LOGS, layout.BLOBS)):
                continue  # nothing says that it was there
            store = copy_of(ground.store)
            damage = Damage(store, key, how)
            before = blobs_of(store)
            report = erase(store, DATASET, ["r1"], "asked for")
            assert tombstones.withdrawn(store, DATASET) == {"r1"}
            ids = [record.id for record in log.read_batch(store, DATASET, "b1").records]
            assert ids == ["r2", "r3"]
            if report.kept_back:
                kept += 1
                assert (report.deleted, report.is_finished) == (0, False)
                assert before <= blobs_of(store)
                assert any(key in text for text in report.obstacles) or how in OVERWRITTEN
            else:
                # Another value that changes nothing of what is named.
                assert how.startswith("flip"), key
                assert how in OVERWRITTEN, key
            damage.restore()
            report = finish_erasing(store, DATASET)
            assert report.is_finished
            assert verify(store).findings == (), key
            assert report.deleted or kept == 0
        assert kept > 5

    @pytest.mark.parametrize("how", [*ROT, *OVERWRITTEN, "delete"])
    def test_a_collection_deletes_nothing(self, ground, how, clock):
        store = ground.store
        orphan = blobs.put_blob(store, b"an orphan")
        collect_garbage(store, ALL, is_dry_run=False)
        refused = 0
        for key in namers(ground.store):
            if how == "delete" and not key.startswith((layout.LOGS, layout.BLOBS)):
                continue
            store = copy_of(ground.store)
            damage = Damage(store, key, how)
            for _ in range(2):
                clock.offset += timedelta(days=8)
                report = collect_garbage(store, ALL, is_dry_run=False)
                if report.obstacles:
                    assert report.deleted == ()
            refused += bool(report.obstacles)
            damage.restore()
            assert verify(store).findings == (), key
            clock.offset += timedelta(days=8)
            assert orphan.digest in collect_garbage(store, ALL, is_dry_run=False).deleted or (
                not is_stored(store, b"an orphan")
            )
        assert refused > 5

    def test_a_later_version_that_was_quarantined_keeps_everything(self, ground):
        """So does any unreadable entry: it may have named what it does not name now."""
        store = ground.store
        for name, data in {"run.odd": b"", "run.new": b'{"spec_version": 99}'}.items():
            store.create(layout.inbox(name), data)
            [entry] = [e for e in inbox.waiting(store) if e.id == name]
            inbox.quarantine(store, entry, "odd")
            for _ in range(2):
                report = collect_garbage(store, ALL)
                assert any(name in text for text in report.obstacles)
            inbox.discard(store, [name])
            assert collect_garbage(store, ALL).obstacles == ()

    def test_a_store_that_gives_no_answer_keeps_everything(self, ground, monkeypatch):
        for key in namers(ground.store):
            store = copy_of(ground.store)

            def no_answer(asked, size=None, key=key, get=store.get):
                if asked == key:
                    raise StoreUnavailableError(f"GET {asked}: no answer")
                return get(asked, size)

            monkeypatch.setattr(store, "get", no_answer)
            report = collect_garbage(store, ALL)
            assert any(key in text for text in report.obstacles)


class ShortLists:
    """A store that lists less than it holds."""

    def __init__(self, inner, is_left_out):
        self.inner, self.is_left_out = inner, is_left_out

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def list_objects(self, prefix, limit=None):
        listed = self.inner.list_objects(prefix, limit)
        return iter([info for info in listed if not self.is_left_out(info.key)])

    def list_folders(self, prefix):
        keys = [i.key.removeprefix(prefix) for i in self.list_objects(prefix)]
        return sorted({key.partition("/")[0] for key in keys if "/" in key})


class TestLostLogs:
    """29 of 29 blobs were deleted."""

    @pytest.fixture
    def ground(self, make):
        scene = make()
        everything(scene)
        write_census(scene.store)
        return scene

    def logs(self, store):
        keys = [key for key in all_keys(store) if key.startswith(layout.LOGS)]
        names = {key.rpartition("/")[0] for key in keys}
        tails = [max(key for key in keys if key.startswith(f"{name}/")) for name in sorted(names)]
        return keys, sorted(names), tails

    def losses(self, store):
        keys, names, tails = self.logs(store)
        yield from ([tail] for tail in tails)
        yield from ([key for key in keys if key.startswith(f"{name}/")] for name in names)
        yield keys

    @pytest.mark.parametrize("is_listed_short", [False, True])
    def test_nothing_is_deleted_while_the_census_knows_more(self, ground, clock, is_listed_short):
        for lost in self.losses(ground.store):
            store = copy_of(ground.store)
            objects = {key: store._objects[key] for key in lost}
            acting = store
            if is_listed_short:
                acting = ShortLists(store, objects.__contains__)
            else:
                for key in lost:
                    del store._objects[key]
            before = blobs_of(store)
            for _ in range(3):
                report = collect_garbage(acting, ALL, is_dry_run=False, new_orphans=1000)
                assert report.obstacles
                clock.offset += timedelta(days=8)
            report = erase(acting, DATASET, ["s1"], "asked for")
            assert not report.is_finished
            assert before <= blobs_of(store)
            store._objects.update(objects)
            assert finish_erasing(store, DATASET).is_finished
            assert verify(store).findings == ()

    def test_there_is_no_census(self, ground, clock):
        store = ground.store
        for info in list(store.list_objects(layout.CENSUS)):
            store.delete(info.key)
        report = collect_garbage(store, ALL, is_dry_run=False)
        assert "no census" in report.obstacles[0]
        assert "feature-pipeline verify" in report.obstacles[0]
        write_census(store)
        assert collect_garbage(store, ALL, is_dry_run=False).obstacles == ()

    def test_there_are_blobs_and_no_logs(self, ground, clock):
        """The first collection ever; or a bucket that was copied in part."""
        store = ground.store
        for key in all_keys(store):
            if not key.startswith(layout.BLOBS):
                store.delete(key)
        for _ in range(2):
            report = collect_garbage(store, ALL, is_dry_run=False, new_orphans=1000)
            assert "no log and no census" in report.obstacles[0]
            write_census(store)
            clock.offset += timedelta(days=8)
        # A new release, and a census of it, do not make orphans of all the rest.
        ground.release("9")
        write_census(store)
        for _ in range(2):
            report = collect_garbage(store, ALL, is_dry_run=False)
            assert "new orphans" in report.obstacles[0]
            clock.offset += timedelta(days=8)

    def test_a_listing_of_the_inbox_or_the_quarantine_is_cut_short(self, ground, clock):
        store = ground.store
        collect_garbage(store, ALL, is_dry_run=False)
        for prefix in (layout.INBOX, layout.QUARANTINE):
            acting = ShortLists(store, lambda key, prefix=prefix: key.startswith(prefix))
            for _ in range(3):
                clock.offset += timedelta(days=8)
                report = collect_garbage(acting, ALL, is_dry_run=False)
                assert any("was not listed" in text for text in report.obstacles)
        assert verify(store).findings == ()


class TestTheLease:
    """Deletions end when it says that they do."""

    @pytest.fixture
    def store(self, clock):
        return MemoryStore(clock.now)

    @pytest.fixture
    def blob(self, store):
        return blobs.put_blob(store, SHARED)

    def test_no_deletion_arrives_after_it(self, store, blob, clock):
        """It left in time, and arrives when a publisher was told that nothing can go any more."""
        lease = DeletionLease.acquire(store)
        lease.condemn([blob.digest])
        publisher = Guard(store)
        assert publisher.find_lost([blob]) == []
        assert clock.offset >= LEASE + MARGIN
        with pytest.raises(StoreUnavailableError, match="refused after"):
            lease.delete(blob.digest)
        assert is_stored(store)

    def test_publishers_wait_for_what_is_condemned_alone(self, store, blob, clock):
        other = blobs.put_blob(store, b"other")
        lease = DeletionLease.acquire(store)
        publisher = Guard(store)
        lease.condemn([blob.digest])
        assert publisher.find_lost([other]) == []
        assert clock.offset == timedelta()
        lease.delete(blob.digest)
        lease.end()
        assert publisher.find_lost([other, blob]) == [blob]
        assert clock.offset == timedelta()

    def test_a_lease_that_came_and_went_is_noticed(self, store, blob):
        publisher = Guard(store)
        lease = DeletionLease.acquire(store)
        lease.condemn([blob.digest])
        lease.delete(blob.digest)
        lease.end()
        assert publisher.find_lost([blob]) == [blob]
        assert Guard(store).find_lost([blob]) == []  # nothing happened since it began

    def test_a_deletion_without_an_answer_keeps_it(self, store, blob, clock, monkeypatch):
        """It may arrive until the lease is over: before that no process may assume its end."""

        def no_answer(key, deadline):
            raise OutcomeUnknownError("no answer")

        lease = DeletionLease.acquire(store)
        lease.condemn([blob.digest])
        monkeypatch.setattr(store, "delete_before", no_answer)
        with pytest.raises(OutcomeUnknownError):
            lease.delete(blob.digest)
        lease.end()
        with pytest.raises(ConflictError, match="another deletion"):
            DeletionLease.acquire(store)
        until = lease.until
        lease.condemn([])
        assert store.now() > until
        lease.end()
        DeletionLease.acquire(store).end()

    def test_a_deletion_that_was_retried_keeps_it(self, store, blob, clock, monkeypatch):
        lease = DeletionLease.acquire(store)
        lease.condemn([blob.digest])
        monkeypatch.setattr(store, "delete_before", lambda key, deadline: False)
        lease.delete(blob.digest)
        lease.end()
        with pytest.raises(ConflictError):
            DeletionLease.acquire(store)

    def test_a_dead_ones_lease_is_taken_over_once_it_is_over(self, store, blob, clock):
        dead = DeletionLease.acquire(store)
        dead.condemn([blob.digest])
        clock.offset += LEASE
        with pytest.raises(ConflictError):
            DeletionLease.acquire(store)
        waited = []
        second = DeletionLease.acquire_when_free(store, waited.append)
        assert len(waited) == 1
        assert clock.offset >= LEASE + MARGIN
        with pytest.raises(ConflictError, match="another deletion took it"):
            dead.condemn([blob.digest])
        with pytest.raises(ConflictError):
            dead.end()
        second.condemn([])
        second.end()

    @pytest.mark.parametrize("wrong", [timedelta(days=-1), timedelta(days=1)])
    def test_clocks_of_machines_have_no_effect(self, store, blob, clock, monkeypatch, wrong):
        """Neither of the one that deletes nor of the one that waits: only the store's."""
        monkeypatch.setattr(documents, "utc_now", lambda: store.now() + wrong)
        lease = DeletionLease.acquire(store)
        with pytest.raises(ConflictError):
            DeletionLease.acquire(store)
        lease.condemn([blob.digest])
        deletion_lease.wait(store, [blob.digest])
        assert clock.offset >= LEASE + MARGIN
        with pytest.raises(StoreUnavailableError):
            lease.delete(blob.digest)

    @pytest.mark.parametrize("change", range(3))
    def test_a_change_whose_answer_was_lost_is_detected(self, store, change, monkeypatch):
        """Taking, extending and giving back."""
        changes = iter(range(3))

        def losing(method):
            def call(*args, **kwargs):
                answer = method(*args, **kwargs)
                if next(changes) == change:
                    raise OutcomeUnknownError("no answer")
                return answer

            return call

        monkeypatch.setattr(store, "create", losing(store.create))
        monkeypatch.setattr(store, "replace", losing(store.replace))
        lease = DeletionLease.acquire(store)
        lease.condemn([])
        lease.end()
        assert deletion_lease.read(store).is_over
        assert next(changes, None) is None
