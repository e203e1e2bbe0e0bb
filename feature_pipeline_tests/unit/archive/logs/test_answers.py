"""The memory of answers: what is written is found, through compaction, races and damage."""

import itertools
import secrets
from collections.abc import Iterable
from functools import partial

import numpy as np
import pytest

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.encode import outcomes_table
from feature_pipeline.archive.logs import answers
from feature_pipeline.archive.logs.answers import Table, decode, encode
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import CorruptDataError, StoreUnavailableError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, At, FailingStore

PREFIX = layout.answers(DATASET, HOOK, Digest.of(b"program"))


def digest(name: str) -> Digest:
    return Digest.of(name.encode())


def remember(store: BlobStore, manifest: str, actions: Iterable[str]) -> None:
    answers.remember(store, PREFIX, digest(manifest), {digest(a) for a in actions})


def find(store: BlobStore, *actions: str) -> dict[Digest, set[Digest]]:
    return answers.find(store, PREFIX, [digest(a) for a in actions]).artifacts


def keys(store: BlobStore) -> list[str]:
    return [info.key for info in store.list_objects(PREFIX)]


def test_remembered_answers_alone_are_returned(memory_store: MemoryStore):
    remember(memory_store, "m1", ["a", "b"])
    remember(memory_store, "m2", ["b", "c"])
    assert find(memory_store, "a", "x") == {digest("m1"): {digest("a")}}
    assert find(memory_store, "b") == {digest("m1"): {digest("b")}, digest("m2"): {digest("b")}}
    assert find(memory_store, "x") == {}
    other = layout.answers(DATASET, HOOK, Digest.of(b"another program"))
    assert answers.find(memory_store, other, [digest("a")]).artifacts == {}


def test_one_object_an_artifact_and_the_same_one_again(memory_store: MemoryStore):
    for _ in range(3):
        remember(memory_store, "m1", ["a"])
    assert len(keys(memory_store)) == 1


@pytest.mark.parametrize("lost", [0, 1])
def test_answers_of_many_artifacts_are_in_few_objects(memory_store: MemoryStore, lost: int):
    """As the rounds of acceptance do it: some are accepted, then what is due is merged."""
    most = 0
    for number in range(200):
        remember(memory_store, f"m{number}", [f"{number}.{i}" for i in range(number % 5)])
        if number % 3 == lost:
            answers.compact(memory_store, DATASET, HOOK)
        most = max(most, len(keys(memory_store)))
    assert most <= 12
    every = [f"{n}.{i}" for n in range(200) for i in range(n % 5)]
    candidates = find(memory_store, *every)
    assert candidates == {
        digest(f"m{n}"): {digest(f"{n}.{i}") for i in range(n % 5)} for n in range(200) if n % 5
    }


def test_large_segments_come_in_parts_and_a_small_question_reads_one(
    memory_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(answers, "PART_BYTES", 1 << 12)
    for number in range(8):
        remember(memory_store, f"m{number}", [f"{number}.{i}" for i in range(300)])
    assert answers.compact(memory_store, DATASET, HOOK, answers.FULL_BYTES) == 8
    parts = keys(memory_store)
    assert len(parts) == 8
    counting = FailingStore(memory_store)
    assert find(counting, "3.7") == {digest("m3"): {digest("3.7")}}
    assert [call.split()[0] for call in counting.calls] == ["list_objects", "get"]
    every = [f"{n}.{i}" for n in range(8) for i in range(300)]
    assert sum(map(len, find(memory_store, *every).values())) == 2400
    # ... and parts are merged as whole segments
    for number in range(8, 16):
        remember(memory_store, f"m{number}", [f"{number}.{i}" for i in range(300)])
    while answers.compact(memory_store, DATASET, HOOK, answers.FULL_BYTES, fan_in=2):
        pass
    assert len({key.split(".")[0] for key in keys(memory_store)}) == 1
    every = [f"{n}.{i}" for n in range(16) for i in range(300)]
    assert sum(map(len, find(memory_store, *every).values())) == 4800


NUMBERS = tuple(map(str, range(9)))
NINE = {digest(f"m{n}"): {digest(n)} for n in NUMBERS}


def nine_answers() -> MemoryStore:
    """A store with `NINE`, an object each."""
    store = MemoryStore()
    for number in NUMBERS:
        remember(store, f"m{number}", [number])
    return store


def test_a_compaction_that_dies_at_any_call_loses_nothing():
    for call in itertools.count(1):
        store = nine_answers()
        dying = FailingStore(store, call, acts_first=bool(call % 2), error=KeyboardInterrupt)
        try:
            answers.compact(dying, DATASET, HOOK)
        except KeyboardInterrupt:
            assert find(store, *NUMBERS) == NINE
            answers.compact(store, DATASET, HOOK, fan_in=2)
            assert find(store, *NUMBERS) == NINE
        else:
            break
    assert call > 10


def test_two_compactions_at_once_lose_nothing():
    """The other one runs whole before any call of the first."""
    for call in itertools.count(1):
        store = nine_answers()
        beside = At(store, call, partial(answers.compact, store, DATASET, HOOK))
        answers.compact(beside, DATASET, HOOK)
        assert find(store, *NUMBERS) == NINE
        answers.compact(store, DATASET, HOOK, fan_in=1)
        assert len(keys(store)) == 1
        if beside.calls < call:
            break


def test_a_search_beside_a_compaction_finds_everything():
    for call in itertools.count(1):
        store = nine_answers()
        beside = At(store, call, partial(answers.compact, store, DATASET, HOOK))
        assert find(beside, *NUMBERS) == NINE
        if beside.calls < call:
            break


def test_an_object_that_is_listed_and_never_there_is_an_error(memory_store: MemoryStore):
    remember(memory_store, "m1", ["a"])

    class Listing(FailingStore):
        def get(self, key, size=None):
            memory_store.delete(key)
            try:
                return memory_store.get(key)
            finally:
                remember(memory_store, "m1", ["a"])

    with pytest.raises(StoreUnavailableError, match="listed but absent"):
        find(Listing(memory_store), "a")


def test_damage_is_reported_and_intact_parts_are_used(memory_store: MemoryStore):
    remember(memory_store, "m1", ["a"])
    remember(memory_store, "m2", ["b"])
    key = f"{PREFIX}{digest('m1').hex}.0.1"
    memory_store.delete(key)
    memory_store.create(key, b"nonsense")
    candidates = answers.find(memory_store, PREFIX, [digest("a"), digest("b")])
    assert candidates.artifacts == {digest("m2"): {digest("b")}}
    [problem] = candidates.problems
    assert key in problem
    # ... and it is no obstacle to compaction, which leaves it where it is
    assert answers.compact(memory_store, DATASET, HOOK, fan_in=2) == 1
    assert key in keys(memory_store)
    assert find(memory_store, "b") == {digest("m2"): {digest("b")}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"ARROW1",
        encode(Table(np.array([2, 1], np.uint64), np.array([0, 0], np.uint16), (digest("m"),))),
        encode(Table(np.array([1], np.uint64), np.array([1], np.uint16), (digest("m"),))),
        encode(Table(np.array([1], np.int32), np.array([0], np.uint16), (digest("m"),))),
    ],
    ids=["empty", "cut short", "not sorted", "points nowhere", "not actions"],
)
def test_what_is_no_memory_is_corrupt(data: bytes):
    with pytest.raises(CorruptDataError, match="here"):
        decode(data, "here")


def test_a_memory_of_later_code_is_left_alone(
    memory_store: MemoryStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(answers, "SPEC_VERSION", 2)
    remember(memory_store, "m1", ["a"])
    monkeypatch.undo()
    [key] = keys(memory_store)
    with pytest.raises(NewerVersionError, match="spec_version 2"):
        decode(memory_store.get(key).data, key)
    candidates = answers.find(memory_store, PREFIX, [digest("a")])
    assert candidates.artifacts == {}
    assert len(candidates.problems) == 1
    answers.compact(memory_store, DATASET, HOOK, fan_in=1)
    assert keys(memory_store) == [key]


def test_odd_objects_below_the_prefix_are_ignored(memory_store: MemoryStore):
    for name in ("readme", "a.b.c", f"{secrets.token_hex(32)}.3.2", f"{secrets.token_hex(32)}.0.3"):
        memory_store.create(f"{PREFIX}{name}", b"")
    remember(memory_store, "m1", ["a"])
    assert find(memory_store, "a") == {digest("m1"): {digest("a")}}


def own_answers(outcomes: list[Outcome]) -> set[Digest]:
    return answers.own_answers(outcomes_table(outcomes))


def test_an_artifact_answers_what_it_computed_unless_retryable():
    def outcome(name: str, **fields: object) -> Outcome:
        return Outcome(name, **{"status": Status.PASSED, "action": digest(name), **fields})

    errored = {"status": Status.ERRORED, "reason": "no", "kind": OutcomeKind.HOOK}
    own = own_answers(
        [
            outcome("passed"),
            outcome("rejected", status=Status.REJECTED, reason="no"),
            outcome("errored", **errored),
            outcome("busy", **errored, is_retryable=True),
            outcome("carried", carried_from=digest("m")),
            outcome("unknown", action=None),
        ]
    )
    assert own == {digest("passed"), digest("rejected"), digest("errored")}


def test_an_action_of_several_records_is_answered_whole_or_not_at_all():
    whole = [Outcome(i, Status.PASSED, action=digest("batch")) for i in "abc"]
    busy = Outcome(
        "d", Status.ERRORED, reason="busy", kind=OutcomeKind.HOOK, is_retryable=True,
        action=digest("batch"),
    )  # fmt: skip
    assert own_answers(whole) == {digest("batch")}
    assert own_answers([*whole, busy]) == set()
