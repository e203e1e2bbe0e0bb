"""The end of a log that is lost for good is given up by an entry that says so."""

from datetime import timedelta

import pytest

from feature_pipeline.archive import accept
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.findings import State
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.logs.inbox import CompletionStatus
from feature_pipeline.archive.logs.losses import accepted, losses
from feature_pipeline.archive.logs.tombstones import withdraw
from feature_pipeline.archive.maintenance import loss_entries
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.maintenance.loss_entries import accept_losses, plan_loss
from feature_pipeline.archive.maintenance.repair import append_again, find_unfinished
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline_tests.fixtures.care import CareScene
from feature_pipeline_tests.fixtures.stores import (
    AN_INSTANT,
    DATASET,
    HOOK,
    Death,
    FailingStore,
    make_batch,
)

LOG = "log/features/structures/pockets/b1/"


@pytest.fixture
def long(scene):
    """A log of three entries that a census knows."""
    scene.submit(make_batch())
    for _ in range(3):
        compute(scene)
    assert verify(scene.store).is_clean
    return scene


def compute(scene):
    batch = log.read_batch(scene.store, DATASET, "b1")
    artifact = scene.artifact(batch, scene.release(), label=f"run {scene.count}")
    return accept.accept(scene.store, scene.completion(artifact))


def delete(scene, *seqs):
    for seq in seqs:
        scene.store.delete(layout.entry(LOG, seq))


def give_up(scene):
    loss = plan_loss(scene.store, LOG)
    return accept_losses(scene.store, DATASET, [loss], by="the operator", reason="no copy is left")


def give_up_and_append_again(scene):
    give_up(scene)
    append_again(scene.store, losses(scene.store, DATASET)[-1].losses, ())
    log.forget_read_entries()


def computed(store, folder, *ids):
    """A batch of these records with an artifact; a census is taken at every step."""
    scene = CareScene(store, folder, takes_census=True)
    scene.compute(scene.submit(scene.batch_of("b1", ids)), scene.release())
    return scene


def states(scene):
    return {f.state for f in verify(scene.store).findings}


def test_what_was_planned_on_an_entry_that_is_given_up_is_accepted_on_the_one_that_is_kept(long):
    batch = log.read_batch(long.store, DATASET, "b1")
    waiting = long.completion(long.artifact(batch, long.release(), label="late"), base=3)
    never_had = long.completion(long.artifact(batch, long.release(), label="odd"), base=4)
    delete(long, 2, 3)
    give_up(long)
    log.forget_read_entries()
    entry = accept.accept(long.store, waiting)
    assert (entry.seq, entry.base, entry.verdict) == (2, 1, log.Verdict.CURRENT)
    # It stands in the order where the log says, and not before everything that is planned from now.
    after = long.artifact(batch, long.release(), label="after")
    assert accept.accept(long.store, long.completion(after, base=2)).verdict is log.Verdict.CURRENT
    with pytest.raises(NotFoundError, match="planned on entry 4 of its batch's log, which has 3"):
        accept.accept(long.store, never_had)


def test_the_shorter_log_is_right_from_then_on(long):
    delete(long, 2, 3)
    assert states(long) == {State.LOST}
    loss = plan_loss(long.store, LOG)
    assert (loss.entries, loss.known_entries, loss.removed) == (1, 3, ())
    entry = give_up(long)
    assert (entry.by, entry.reason, entry.spec_version) == (
        "the operator",
        "no copy is left",
        2,
    )
    for _ in range(2):
        assert verify(long.store).is_clean
        assert write_census(long.store).is_clean
    assert accepted(losses(long.store, DATASET)) == {LOG: loss}
    # Its numbers are used again, and the end that is lost then is noticed again.
    assert [compute(long).seq, compute(long).seq] == [2, 3]
    assert verify(long.store).is_clean
    delete(long, 3)
    assert states(long) == {State.LOST}
    give_up(long)
    assert verify(long.store).is_clean


def test_a_whole_log(long):
    delete(long, 1, 2, 3)
    loss = plan_loss(long.store, LOG)
    assert (loss.entries, loss.last, loss.known_entries) == (0, None, 3)
    give_up(long)
    assert verify(long.store).is_clean
    assert compute(long).seq == 1
    assert verify(long.store).is_clean


def test_what_lies_behind_a_gap_is_kept_as_text_and_removed(long):
    text = long.store.get(layout.entry(LOG, 3)).data.decode()
    delete(long, 2)
    loss = plan_loss(long.store, LOG)
    assert (loss.entries, [(r.seq, r.text) for r in loss.removed]) == (1, [(3, text)])
    give_up(long)
    assert [e.seq for e in log.read_log(long.store, DATASET, HOOK, "b1")] == [1]
    assert verify(long.store).is_clean
    assert [compute(long).seq for _ in range(3)] == [2, 3, 4]
    assert verify(long.store).is_clean


def test_an_entry_that_is_damaged_for_good(long):
    long.store._put(layout.entry(LOG, 2), b"\xff{}")
    give_up(long)
    [entry] = losses(long.store, DATASET)
    assert [r.seq for r in entry.losses[0].removed] == [2, 3]
    assert entry.losses[0].removed[0].text == "\\xff{}"
    assert verify(long.store).is_clean


def test_an_end_that_was_replaced(long):
    key = layout.entry(LOG, 3)
    other = log.read_log(long.store, DATASET, HOOK, "b1")[-1].model_copy(
        update={"write_id": log.new_write_id()}
    )
    long.store._put(key, other.encode())
    assert states(long) == {State.LOST}
    loss = plan_loss(long.store, LOG)
    assert (loss.entries, loss.known_entries, loss.removed) == (3, 3, ())
    give_up(long)
    assert verify(long.store).is_clean


@pytest.mark.parametrize("seq", [1, 2, 3])
def test_an_entry_that_names_what_is_not_there(long, seq):
    """A flipped bit of the digest leaves a valid entry: the one to give up is this one."""
    key = layout.entry(LOG, seq)
    texts = [long.store.get(layout.entry(LOG, n)).data.decode() for n in (1, 2, 3)]
    other = log.read_log(long.store, DATASET, HOOK, "b1")[seq - 1].model_copy(
        update={"manifest": Digest.of(b"never stored")}
    )
    long.store._put(key, other.encode())
    log.forget_read_entries()
    loss = plan_loss(long.store, LOG)
    assert (loss.entries, loss.known_entries) == (seq - 1, 3)
    assert [r.text for r in loss.removed] == [other.encode().decode(), *texts[seq:]]
    give_up(long)
    append_again(long.store, [loss], ())
    assert len(log.read_log(long.store, DATASET, HOOK, "b1")) == 2
    assert verify(long.store).is_clean


def test_a_batch_entry_that_names_what_is_not_there(long):
    prefix = layout.batch_log(DATASET, "b1")
    [entry] = log.batch_entries(long.store, DATASET, "b1")
    other = entry.model_copy(update={"digest": Digest.of(b"never stored")})
    long.store._put(layout.entry(prefix, 1), other.encode())
    log.forget_read_entries()
    loss = plan_loss(long.store, prefix)
    assert (loss.entries, [r.text for r in loss.removed]) == (0, [other.encode().decode()])
    accept_losses(long.store, DATASET, [loss], by="the operator", reason="no copy is left")
    log.forget_read_entries()
    long.submit(make_batch())
    assert log.read_batch(long.store, DATASET, "b1") == make_batch()
    assert verify(long.store).is_clean


def test_nothing_is_given_up_that_is_there(long):
    assert plan_loss(long.store, LOG) is None
    delete(long, 3)
    loss = plan_loss(long.store, LOG)
    compute(long)
    with pytest.raises(ConflictError, match="plan it again"):
        accept_losses(long.store, DATASET, [loss], by="x", reason="y")
    with pytest.raises(InvalidInputError, match="no loss to accept"):
        accept_losses(long.store, DATASET, [], by="x", reason="y")
    with pytest.raises(InvalidInputError, match="does not belong to dataset 'other'"):
        accept_losses(long.store, "other", [loss], by="x", reason="y")
    assert losses(long.store, DATASET) == []


def test_another_witness_may_know_more(long):
    """A table was loaded from an entry that the bucket, census included, has forgotten."""
    assert plan_loss(long.store, LOG, known_entries=5).known_entries == 5


@pytest.mark.parametrize("acts_first", [False, True])
def test_death_at_every_call(long, acts_first):
    delete(long, 2)
    objects = dict(long.store._objects)
    loss = plan_loss(long.store, LOG)
    for fatal in range(1, 100):
        long.store._objects = dict(objects)
        try:
            accept_losses(
                FailingStore(long.store, fatal, acts_first), DATASET, [loss], by="x", reason="y"
            )
        except Death:
            again = plan_loss(long.store, LOG)
            if again is not None:
                with pytest.raises(CorruptDataError, match="gap"):
                    log.read_log(long.store, DATASET, HOOK, "b1")
                accept_losses(long.store, DATASET, [again], by="x", reason="y")
            assert verify(long.store).is_clean
            assert compute(long).seq == 2
        else:
            break
    assert fatal > 5


def test_a_log_that_went_on_is_not_touched_by_an_old_removal(long):
    delete(long, 2)
    loss = plan_loss(long.store, LOG)
    give_up(long)
    compute(long), compute(long)
    accept_losses(long.store, DATASET, [loss], by="the operator", reason="no copy is left")
    assert len(log.read_log(long.store, DATASET, HOOK, "b1")) == 3
    assert loss_entries.plan_loss(long.store, LOG) is None


def test_a_loss_that_is_accepted_while_another_process_reads(long):
    """It counts against the census that the other had read before."""
    delete(long, 2, 3)

    class Accepting(FailingStore):
        def __getattr__(self, name):
            method = getattr(self.inner, name)

            def call(*args, **kwargs):
                if (name, *args[:1]) == ("list_objects", layout.LOGS) and not losses(
                    long.store, DATASET
                ):
                    give_up(long)
                return method(*args, **kwargs)

            return call

    assert write_census(Accepting(long.store)).is_clean
    assert losses(long.store, DATASET)
    assert verify(long.store).is_clean
    compute(long)
    assert write_census(long.store).is_clean
    delete(long, 2)
    assert states(long) == {State.LOST}


def test_losses_that_are_lost_themselves(long):
    """What they gave up is lost again, until they are back or it is given up anew."""
    delete(long, 3)
    give_up(long)
    assert verify(long.store).is_clean
    prefix = layout.loss_log(DATASET)
    long.store.delete(layout.entry(prefix, 1))
    assert states(long) == {State.LOST}
    loss = plan_loss(long.store, prefix)
    assert loss.entries == 0
    accept_losses(long.store, DATASET, [loss], by="x", reason="y")
    assert verify(long.store).is_clean


def test_the_entry_of_an_erasures_successor(memory_store, tmp_path):
    """What the entry before it names is erased; the log of erasures says what stands for it."""
    scene = computed(memory_store, tmp_path, "r1", "r2")
    assert erase(scene.store, DATASET, ["r1"], "asked for").is_finished
    assert verify(scene.store).is_clean
    head = log.head(scene.store, DATASET, HOOK, "b1")
    scene.store._put(layout.entry(LOG, head.seq), b"{}")
    give_up_and_append_again(scene)
    now = log.head(scene.store, DATASET, HOOK, "b1")
    assert (now.seq, now.manifest) == (head.seq, head.manifest)
    assert verify(scene.store).is_clean


def test_a_successor_that_another_erasure_replaced(memory_store, tmp_path):
    """What the first erasure replaced has a successor: that of the second."""
    scene = computed(memory_store, tmp_path, "r1", "r2", "r3")
    assert erase(scene.store, DATASET, ["r1"], "asked for").is_finished
    between = log.head(scene.store, DATASET, HOOK, "b1")
    assert erase(scene.store, DATASET, ["r2"], "asked for").is_finished
    head = log.head(scene.store, DATASET, HOOK, "b1")
    scene.store._put(layout.entry(LOG, between.seq), b"{}")
    give_up_and_append_again(scene)
    entries = log.read_log(scene.store, DATASET, HOOK, "b1")
    assert between.manifest not in {entry.manifest for entry in entries}
    assert entries[-1].manifest == head.manifest
    assert verify(scene.store).is_clean


def test_nothing_is_appended_behind_damage(memory_store, tmp_path):
    """An entry behind it would name it, and so make it a part of the log."""
    scene = computed(memory_store, tmp_path, "r1", "r2")
    assert erase(scene.store, DATASET, ["r1"], "asked for").is_finished
    lost = log.head(scene.store, DATASET, HOOK, "b1")
    scene.store._put(layout.entry(LOG, lost.seq), b"{}")
    give_up_and_append_again(scene)
    write_census(scene.store)
    again = log.head(scene.store, DATASET, HOOK, "b1")
    assert find_unfinished(scene.store, DATASET) != []
    damaged = again.model_copy(update={"manifest": Digest.of(b"never stored")})
    scene.store._put(layout.entry(LOG, again.seq), damaged.encode())
    assert find_unfinished(scene.store, DATASET) == []
    assert append_again(scene.store, losses(scene.store, DATASET)[-1].losses, ()) == []
    entries = [info.key for info in scene.store.list_objects(LOG)]
    assert entries == [layout.entry(LOG, seq) for seq in (1, 2)]


class TestOrder:
    """What is current among artifacts that are appended again is what was current."""

    def compute(self, scene, base, at, status=None, version="1"):
        batch = log.read_batch(scene.store, DATASET, "b1")
        artifact = scene.artifact(batch, scene.release(version), label=f"run {scene.count}")
        completion = scene.completion(artifact, base=base, status=status)
        published_at = AN_INSTANT + timedelta(hours=at)
        return accept.accept(scene.store, completion.as_published(published_at))

    def given_up_and_appended_again(self, scene):
        give_up_and_append_again(scene)
        return log.head(scene.store, DATASET, HOOK, "b1")

    def test_a_base_is_what_it_was(self, scene):
        """Its place in the log is no later base: an answer to an older question stays older."""
        scene.submit(make_batch())
        self.compute(scene, 0, 1)
        lost = self.compute(scene, 0, 2)
        best = self.compute(scene, 2, 3)
        assert self.compute(scene, 1, 4).verdict is log.Verdict.SUPERSEDED
        scene.store._put(layout.entry(LOG, lost.seq), b"{}")
        assert self.given_up_and_appended_again(scene).manifest == best.manifest
        assert len(log.read_log(scene.store, DATASET, HOOK, "b1")) == 3

    def test_what_was_cancelled_stays_history(self, scene):
        scene.submit(make_batch())
        best = self.compute(scene, 0, 2)
        lost = self.compute(scene, 0, 1)
        cancelled = self.compute(scene, 1, 3, CompletionStatus.CANCELLED)
        damaged = lost.model_copy(update={"manifest": Digest.of(b"never stored")})
        scene.store._put(layout.entry(LOG, lost.seq), damaged.encode())
        assert self.given_up_and_appended_again(scene).manifest == best.manifest
        again = log.read_log(scene.store, DATASET, HOOK, "b1")[-1]
        assert (again.manifest, again.verdict) == (cancelled.manifest, log.Verdict.SUPERSEDED)

    def test_what_was_cancelled_behind_an_unreadable_entry_stays_history(self, scene):
        """That entry may have been the newer one: which it was is not known, and no matter."""
        scene.submit(make_batch())
        first = self.compute(scene, 0, 1)
        lost = self.compute(scene, 1, 2)
        cancelled = self.compute(scene, 2, 3, CompletionStatus.CANCELLED)
        scene.store._put(layout.entry(LOG, lost.seq), b"{}")
        assert self.given_up_and_appended_again(scene).manifest == first.manifest
        again = log.read_log(scene.store, DATASET, HOOK, "b1")[-1]
        assert (again.manifest, again.verdict) == (cancelled.manifest, log.Verdict.SUPERSEDED)
        # Nor is it current where nothing else is left.
        scene.store._put(layout.entry(LOG, first.seq), b"{}")
        assert self.given_up_and_appended_again(scene) is None
        assert verify(scene.store).is_clean

    def test_what_is_about_a_withdrawn_record_waits(self, scene):
        """Its erasure did not end: it takes what waits, too."""
        batch = scene.submit(make_batch())
        for base in (0, 1, 2):
            self.compute(scene, base, base)
        scene.store._put(layout.entry(LOG, 2), b"{}")
        withdraw(scene.store, DATASET, [batch.records[0].id], "asked for")
        give_up(scene)
        [loss] = losses(scene.store, DATASET)[-1].losses
        assert append_again(scene.store, [loss], ()) == []
        assert [e.content.id[:9] for e in inbox.waiting(scene.store)] == ["restored-"]
