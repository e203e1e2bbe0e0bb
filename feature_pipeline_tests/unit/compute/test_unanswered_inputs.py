"""A hook is not asked about a record of which an input has no answer, unless it wants to be."""

from pathlib import Path

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.compute.redecode import decode_batch_again
from feature_pipeline.model.outcomes import OutcomeKind, Status
from feature_pipeline_tests.fixtures import asked
from feature_pipeline_tests.fixtures.asked import COLUMNS, DATASET, Asking

TEXTS = {"r1": "a", "r2": "no:", "r3": "bad:", "r4": "busy:", "r5": "none:"}


@pytest.fixture
def asking(memory_store: MemoryStore, tmp_path: Path) -> Asking:
    """A batch with every kind of outcome, and a hook that takes it as its input."""
    asking = Asking(memory_store, tmp_path)
    asking.hook()
    asking.hook("totals", inputs=["lengths"])
    asking.submit("b1", TEXTS)
    asking.run("b1")
    return asking


def test_the_outcome_is_the_verdict_of_the_input(asking: Asking):
    entry = asking.run("b1", "totals")
    assert asking.runner.starts[1:] == [["r1", "r5"]]
    outcomes = asking.outcomes("b1", "totals")
    by_record = {
        i: (o.status, o.kind, o.is_retryable, o.reason.removeprefix("not asked: input 'lengths' "))
        for i, o in outcomes.items()
        if i in ("r2", "r3", "r4")
    }
    assert by_record == {
        "r2": (Status.REJECTED, None, False, "rejected it: not for 'no:'"),
        "r3": (Status.ERRORED, OutcomeKind.INPUT, False, "has no answer: cannot take 'bad:'"),
        "r4": (Status.ERRORED, OutcomeKind.INPUT, True, "has no answer: cannot take 'busy:'"),
    }
    assert all(outcomes[i].reason.startswith("not asked: input 'lengths' ") for i in by_record)
    source = log.head(asking.store, DATASET, "lengths", "b1").manifest
    assert {i: (o.action is None, o.carried_from) for i, o in outcomes.items()} == {
        **dict.fromkeys(("r1", "r5"), (False, None)),
        **dict.fromkeys(("r2", "r3", "r4"), (True, source)),
    }
    manifest = read.read_manifest(asking.store, entry.manifest)
    counts = manifest.counts
    assert (counts.passed, counts.rejected, counts.errored, counts.carried) == (2, 1, 2, 3)
    assert asking.run("b1", "totals") is None
    assert verify(asking.store).is_clean


def test_no_process_is_started_for_none(asking: Asking):
    asking.submit("b2", {"r2": "no:", "r3": "bad:"})
    asking.run("b2")
    starts = len(asking.runner.starts)
    asking.run("b2", "totals")
    assert len(asking.runner.starts) == starts
    assert asking.run("b2", "totals") is None


def test_it_is_asked_as_soon_as_there_is_an_answer(asking: Asking, monkeypatch):
    asking.run("b1", "totals")
    asking.hook(config={"factor": 1, "note": "another release, which takes everything"})
    with monkeypatch.context() as patch:
        patch.setitem(asked.HOOKS, "lengths", lambda *_: {"features": [{"value": 7}]})
        asking.run("b1")
    asking.run("b1", "totals")
    assert asking.runner.starts[2:] == [list(TEXTS)] * 2
    assert set(asking.values("b1", "totals").values()) == {7}
    # ... and not any more when the answer is gone again; what was answered is not asked anew
    asking.hook()
    asking.run("b1")
    asking.run("b1", "totals")
    assert asking.runner.starts[4:] == [["r4"]]
    assert asking.values("b1", "totals")["r1"] == 1


def test_another_verdict_of_the_input_is_taken_over(asking: Asking):
    asking.run("b1", "totals")
    asking.hook(config={"rejected": ["bad:"]})
    asking.run("b1")
    asking.run("b1", "totals")
    assert asking.outcomes("b1", "totals")["r3"].status is Status.REJECTED
    assert len(asking.runner.starts) == 3


@pytest.mark.parametrize("scope", ["record", "batch"])
def test_a_hook_that_wants_them_is_given_the_verdict(asking: Asking, scope: str):
    asking.hook("totals", inputs=["lengths"], unanswered_inputs="give", scope=scope)
    asking.run("b1", "totals")
    assert asking.runner.lines[1]["lengths"] == [
        {"id": "r1", "status": "passed", "features": [{"value": 1}]},
        {"id": "r2", "status": "rejected", "reason": "not for 'no:'", "features": []},
        {"id": "r3", "status": "errored", "reason": "cannot take 'bad:'", "features": []},
        {"id": "r4", "status": "errored", "reason": "cannot take 'busy:'", "features": []},
        {"id": "r5", "status": "passed", "features": []},
    ]
    assert set(asking.values("b1", "totals").values()) == {0, 1}


def test_a_changed_mind_asks_and_takes_back(asking: Asking):
    asking.run("b1", "totals")
    asking.hook("totals", inputs=["lengths"], unanswered_inputs="give")
    asking.run("b1", "totals")
    assert asking.runner.starts[2:] == [["r2", "r3", "r4"]]
    asking.hook("totals", inputs=["lengths"])
    asking.run("b1", "totals")
    assert asking.outcomes("b1", "totals")["r2"].status is Status.REJECTED
    asking.hook("totals", inputs=["lengths"], unanswered_inputs="give")
    asking.run("b1", "totals")
    assert len(asking.runner.starts) == 3


def test_a_hook_of_whole_batches_is_asked_about_the_others(asking: Asking):
    asking.hook("totals", inputs=["lengths"], scope="batch")
    asking.run("b1", "totals")
    assert asking.runner.starts[1:] == [["r1", "r5"]]
    assert asking.run("b1", "totals") is None
    assert len(asking.outcomes("b1", "totals")) == 5


def test_a_rejection_comes_before_an_error_and_a_lasting_error_before_a_passing_one(
    asking: Asking,
):
    """Of several inputs that which decides for longest is named."""
    asking.definitions["second"] = asking.hook().model_copy(update={"name": "second"})
    asking.hook("totals", inputs=["lengths", "second"])
    texts = {"r6": "busy:", "r7": "bad:", "r8": "busy:"}
    asking.submit("b2", texts)
    asking.run("b2")
    with pytest.MonkeyPatch.context() as patch:
        verdicts = {"r6": {"reason": "no"}, "r7": {"reason": "no"},
                    "r8": {"error": "broken", "retryable": False}}  # fmt: skip
        patch.setitem(asked.HOOKS, "second", lambda record, *_: verdicts[record["id"]])
        asking.run("b2", "second")
    asking.run("b2", "totals")
    outcomes = asking.outcomes("b2", "totals")
    assert {i: (o.status, o.is_retryable) for i, o in outcomes.items()} == {
        "r6": (Status.REJECTED, False),
        "r7": (Status.REJECTED, False),
        "r8": (Status.ERRORED, False),
    }
    assert all("'second'" in o.reason for o in outcomes.values())


def test_what_was_not_asked_is_in_no_raw_output_and_stays_when_it_is_read_again(asking: Asking):
    entry = asking.run("b1", "totals")
    before = asking.outcomes("b1", "totals")
    assert not decode_batch_again(asking.store, entry).is_new
    manifest = read.read_manifest(asking.store, entry.manifest)
    asking.store.delete(layout.blob(manifest.blobs["rows"].digest))
    assert decode_batch_again(asking.store, entry).damage is not None
    assert asking.outcomes("b1", "totals") == before
    columns = [*COLUMNS, {"name": "note", "type": "string", "default": "none"}]
    asking.hook("totals", inputs=["lengths"], feature={"columns": columns})
    asking.run("b1", "totals")
    after = asking.outcomes("b1", "totals")
    assert after["r1"].rows == ((1, "none"),)
    assert {i: after[i] for i in ("r2", "r3", "r4")} == {i: before[i] for i in ("r2", "r3", "r4")}
    assert len(asking.runner.starts) == 2


def test_the_verdict_is_unchanged_when_the_input_is_redacted(asking: Asking):
    asking.run("b1", "totals")
    write_census(asking.store)
    erase(asking.store, DATASET, ["r1"], "asked for")
    head = log.head(asking.store, DATASET, "totals", "b1")
    assert not decode_batch_again(asking.store, head).is_new
    assert asking.outcomes("b1", "totals")["r2"].status is Status.REJECTED
    asking.run("b1", "totals")
    assert len(asking.runner.starts) == 2
    assert verify(asking.store).is_clean


def test_actions_are_those_of_archives_that_gave_no_verdict(asking: Asking):
    """What earlier code asked about records is not asked again: these were written by it."""
    expected = {
        "r1": "5a29d4637e20313006b027e7f50afaa94115c38e25042ce7b5b2e0cc7050c6aa",
        "r2": "419b52a850d64839c11db627b63402278bff3245122cbe3014584c08298c2e4e",
        "r3": "a99832a0838b334c415f85fc32ddbb32b527c766690463cfc5e1449f3ee8ecc6",
        "r4": "7d0413837292a0436331c0788df98a5512af5ba21042cdfa2055ad588778d807",
        "r5": "1462c37c8d15bbd3ecd07a0efc3d4319018502a822679b155ccb52424eba6d13",
    }
    asking.hook("totals", inputs=["lengths"], unanswered_inputs="give")
    actions = asking.plan("b1", "totals").actions
    assert {record: action.hex for record, action in actions.items()} == expected
    asking.hook("totals", inputs=["lengths"])
    actions = asking.plan("b1", "totals").actions
    assert {i: action.hex for i, action in actions.items()} == {
        i: expected[i] for i in ("r1", "r5")
    }


def test_a_hook_without_inputs_has_none_that_are_unanswered(asking: Asking):
    with pytest.raises(ValueError, match="unanswered_inputs"):
        asking.hook(unanswered_inputs="give")
