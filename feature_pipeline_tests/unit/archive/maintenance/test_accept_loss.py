"""The end of a log that is lost for good is given up by an entry that says so."""

import pytest

from feature_pipeline.archive import accept
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import take_census
from feature_pipeline.archive.inspection.findings import State
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.losses import accepted, losses
from feature_pipeline.archive.maintenance import loss_entries
from feature_pipeline.archive.maintenance.loss_entries import accept_losses, plan_loss
from feature_pipeline.errors import ConflictError, CorruptDataError, InvalidInputError
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, Death, FailingStore, make_batch

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


def states(scene):
    return {f.state for f in verify(scene.store).findings}


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
        assert take_census(long.store).is_clean
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


def test_nothing_is_given_up_that_is_there(long):
    assert plan_loss(long.store, LOG) is None
    delete(long, 3)
    loss = plan_loss(long.store, LOG)
    compute(long)
    with pytest.raises(ConflictError, match="plan it again"):
        accept_losses(long.store, DATASET, [loss], by="x", reason="y")
    with pytest.raises(InvalidInputError, match="no loss to accept"):
        accept_losses(long.store, DATASET, [], by="x", reason="y")
    with pytest.raises(InvalidInputError, match="not one of dataset 'other'"):
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


def test_a_loss_that_is_accepted_while_another_process_looks(long):
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

    assert take_census(Accepting(long.store)).is_clean
    assert losses(long.store, DATASET)
    assert verify(long.store).is_clean
    compute(long)
    assert take_census(long.store).is_clean
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
