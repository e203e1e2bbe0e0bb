"""Runs that go on at one moment compute no record twice, however their requests meet."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from feature_pipeline.archive import claims
from feature_pipeline.archive.claims import Claim, ClaimDocument
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.maintenance.rebuild_answers import complete
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline_tests.fixtures.asked import DATASET, Asking
from feature_pipeline_tests.fixtures.care import Clock
from feature_pipeline_tests.fixtures.stores import At, Death, FailingStore

B1 = {"r1": "a", "r2": "bb"}
B2 = {"r2": "bb", "r3": "ccc"}
HOOK = "lengths"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(claims, "_FIRST_BACKOFF_SECONDS", 0.002)
    monkeypatch.setattr(claims, "_LONGEST_BACKOFF_SECONDS", 0.01)
    return Clock()


@pytest.fixture
def make(clock: Clock, tmp_path: Path) -> Callable[[], Asking]:
    count = iter(range(1000))

    def make_asking() -> Asking:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        asking = Asking(MemoryStore(clock.now), folder)
        asking.hook()
        asking.submit("b1", B1)
        asking.submit("b2", B2)
        return asking

    return make_asking


class Beside:
    """A run in another thread, which a test begins and which goes on by itself."""

    def __init__(self, asking: Asking, key: str) -> None:
        self.asking, self.key = asking, key
        self.lines: list[str] = []
        self._rests = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._error: BaseException | None = None

    def begin(self) -> None:
        """Returns once it has ended, or waits for another."""
        self._thread.start()
        assert self._rests.wait(60)

    def end(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        if self._error is not None:
            raise self._error

    def _say(self, text: str) -> None:
        self.lines.append(text)
        self._rests.set()

    def _run(self) -> None:
        try:
            self.asking.run(self.key, say=self._say)
        except Exception as error:  # noqa: BLE001 - raised in the test's own thread
            self._error = error
        finally:
            self._rests.set()


def check(asking: Asking) -> None:
    """Each question was asked once, each answer is current, and no claim is left."""
    assert set(asking.runner.asked.values()) == {1}
    assert asking.values("b1") == {"r1": 1, "r2": 2}
    assert asking.values("b2") == {"r2": 2, "r3": 3}
    assert claimed(asking) == []
    assert verify(asking.store).is_clean


def claimed(asking: Asking) -> list[str]:
    return [info.key for info in asking.store.list_objects(layout.CLAIMS)]


def key_of(asking: Asking, batch: str) -> str:
    release = asking.definitions[HOOK].hook_release(asking.folder)
    return layout.claim(DATASET, HOOK, release.program, batch)


@contextmanager
def left_by_a_dead_run(asking: Asking, key: str = "b1") -> Iterator[None]:
    """A run over the batch dies when its hook has ended."""

    def die() -> None:
        raise Death

    asking.runner.before_end = die
    with pytest.raises(Death):
        asking.run(key)
    asking.runner.before_end = lambda: None
    assert claimed(asking) == [key_of(asking, key)]
    yield


def test_of_two_runs_one_waits_and_carries_over(make):
    asking = make()
    other = Beside(asking, "b2")

    def begin_another() -> None:
        asking.runner.before_end = lambda: None
        other.begin()

    asking.runner.before_end = begin_another
    asking.run("b1")
    other.end()
    assert asking.runner.starts == [["r1", "r2"], ["r3"]]
    [line] = other.lines
    assert line == (
        "2 records to compute: waiting for the hook run over batch 'b1', which computes 1 of them"
        " now"
    )
    check(asking)


def test_another_run_at_any_request(make):
    """It ends there, or waits for the first one."""
    waited = set()
    for call in range(1, 200):
        asking = make()
        other = Beside(asking, "b2")
        store = At(asking.store, call, other.begin)
        asking.run("b1", store=store)
        if store.calls < call:
            break
        other.end()
        waited.add(bool(other.lines))
        check(asking)
    assert call > 20
    assert waited == {True, False}


def test_the_later_claim_may_be_the_one_that_is_computed(make):
    """The first is written when the other run has looked; it stays, and the other ends."""
    asking = make()
    waits, runs = threading.Event(), threading.Event()

    def run_on() -> None:
        runs.set()
        assert waits.wait(60)

    asking.runner.before_end = run_on
    other = threading.Thread(target=lambda: asking.run("b2"))

    class Late:
        """A store whose first claim is late."""

        def __getattr__(self, name: str) -> object:
            return getattr(asking.store, name)

        def create(self, key: str, *arguments: object) -> bool:
            if key.startswith(layout.CLAIMS) and not runs.is_set():
                other.start()
                assert runs.wait(60)
            return asking.store.create(key, *arguments)

    asking.run("b1", store=Late(), say=lambda _: waits.set())
    other.join(60)
    assert asking.runner.starts == [["r2", "r3"], ["r1"]]
    check(asking)


def test_an_artifact_accepted_between_plan_and_claim_is_used(make):
    """The plan finds it in the memory and in no log; its run has ended before the claim."""
    asking = make()
    is_remembered, may_append = threading.Event(), threading.Event()

    class Slow:
        """A store whose log entry is late."""

        def __getattr__(self, name: str) -> object:
            return getattr(asking.store, name)

        def create(self, key: str, *arguments: object) -> bool:
            if key.startswith(layout.FEATURE_LOGS):
                is_remembered.set()
                assert may_append.wait(60)
            return asking.store.create(key, *arguments)

    other = threading.Thread(target=lambda: asking.run("b1", store=Slow()))
    other.start()
    assert is_remembered.wait(60)

    class Late:
        """A store whose claim is late."""

        def __getattr__(self, name: str) -> object:
            return getattr(asking.store, name)

        def create(self, key: str, *arguments: object) -> bool:
            if key.startswith(layout.CLAIMS):
                may_append.set()
                other.join(60)
            return asking.store.create(key, *arguments)

    asking.run("b2", store=Late(), say=pytest.fail)
    assert asking.runner.starts == [["r1", "r2"], ["r3"]]
    check(asking)


def test_the_claim_of_a_dead_run_expires(make, clock):
    asking = make()
    with left_by_a_dead_run(asking):
        lines: list[str] = []

        def say(text: str) -> None:
            lines.append(text)
            clock.offset += claims.LEASE + timedelta(seconds=1)

        asking.run("b2", say=say)
    assert len(lines) == 1
    # Work, not truth: the dead run's answer about r2 was not in the archive.
    assert asking.runner.starts == [["r1", "r2"], ["r2", "r3"]]
    assert asking.values("b2") == {"r2": 2, "r3": 3}
    clock.offset += claims.RETENTION
    complete(asking.store, DATASET, HOOK)
    assert claimed(asking) == []


def test_it_expires_although_the_stores_clock_is_set_back(make, clock, monkeypatch):
    asking = make()
    with left_by_a_dead_run(asking):
        monkeypatch.setattr(claims, "LEASE", timedelta(milliseconds=20))
        clock.offset -= timedelta(days=300)
        asking.run("b2")
    assert asking.values("b2") == {"r2": 2, "r3": 3}


def test_the_next_worker_of_the_same_batch_takes_it_over(make):
    """It attaches to what the dead one started, while others wait."""
    asking = make()
    other = Beside(asking, "b2")
    with left_by_a_dead_run(asking):
        other.begin()
        assert other.lines
        asking.run("b1", say=pytest.fail)
    other.end()
    assert asking.runner.starts == [["r1", "r2"], ["r3"]]
    check(asking)


def test_a_run_that_died_after_its_acceptance_delays_nothing(make):
    """Its claim is not expired, and its answers are there."""
    asking = make()
    other = Beside(asking, "b2")

    class Dying:
        """A store for a process that is killed before it removes its claim."""

        def __getattr__(self, name: str) -> object:
            return getattr(asking.store, name)

        def delete(self, key: str) -> None:
            raise Death

    asking.runner.before_end = other.begin
    with pytest.raises(Death):
        asking.run("b1", store=Dying())
    asking.runner.before_end = lambda: None
    other.end()
    assert asking.runner.starts == [["r1", "r2"], ["r3"]]
    assert claimed(asking) == [key_of(asking, "b1")]


def test_the_next_worker_does_not_give_way_to_a_run_that_waits(make):
    """Whatever the order of the two: what the dead worker started goes on."""
    asking = make()
    with left_by_a_dead_run(asking):
        key = key_of(asking, "b1")
        document = ClaimDocument.decode(asking.store.get(key).data, key)
        assert document.is_held
        earlier = {
            "holder": "another",
            "since": document.since - timedelta(days=1),
            "is_held": False,
        }
        waits = document.model_copy(update=earlier)
        asking.store.create(key_of(asking, "b2"), waits.encode())
        asking.run("b1", say=pytest.fail)
    assert asking.runner.starts == [["r1", "r2"]]


def test_an_expired_claim_is_not_taken_over_as_started(make, clock):
    """Another run may have begun with its records since: the next worker of the batch waits."""
    asking = make()
    with left_by_a_dead_run(asking):
        clock.offset += claims.LEASE + timedelta(seconds=1)
        other = Beside(asking, "b1")

        def begin_another() -> None:
            asking.runner.before_end = lambda: None
            other.begin()

        asking.runner.before_end = begin_another
        asking.run("b2", say=pytest.fail)
    other.end()
    assert other.lines
    assert asking.runner.starts == [["r1", "r2"], ["r2", "r3"], ["r1"]]
    assert claimed(asking) == []


@pytest.mark.parametrize("data", [b"", b"{", b'{"spec_version":2}'])
def test_a_claim_that_cannot_be_read_is_respected_until_it_expires(make, clock, data):
    asking = make()
    asking.store.create(key_of(asking, "b9"), data)
    lines: list[str] = []

    def say(text: str) -> None:
        lines.append(text)
        clock.offset += claims.LEASE + timedelta(seconds=1)

    asking.run("b1", say=say)
    assert "b9, which cannot be read, to expire" in lines[0]
    assert asking.values("b1") == {"r1": 1, "r2": 2}


def test_without_claims_a_run_continues(make):
    """A store that refuses these keys alone costs work."""
    asking = make()

    class Refusing:
        def __getattr__(self, name: str) -> object:
            method = getattr(asking.store, name)

            def call(*arguments: object, **options: object) -> object:
                if arguments and str(arguments[0]).startswith(layout.CLAIMS):
                    raise StoreUnavailableError("403")
                return method(*arguments, **options)

            return call

    asking.run("b1", store=Refusing())
    assert asking.values("b1") == {"r1": 1, "r2": 2}


def test_if_the_other_run_has_no_answer_the_records_are_computed(make):
    asking = make()
    plan = asking.plan("b1")
    other = Claim(asking.store, DATASET, HOOK, plan.release.release.program, "b1")
    assert other.acquire(list(plan.actions.values()), [], pytest.fail, pytest.fail)
    asking.run("b2", say=lambda _: other.release())
    assert asking.runner.starts == [["r2", "r3"]]


def test_a_forced_run_waits_for_none_and_others_wait_for_it(make):
    asking = make()
    asking.run("b1")
    other = Beside(asking, "b2")
    plan = asking.plan("b2")
    claim = Claim(asking.store, DATASET, HOOK, plan.release.release.program, "b0")
    everything = [*plan.actions.values(), *asking.plan("b1", force=True).actions.values()]
    claim.acquire(everything, everything, pytest.fail, pytest.fail)
    asking.runner.before_end = lambda: (claim.release(), other.begin())
    asking.submit("b3", B2)
    asking.run("b3", force=True, say=pytest.fail)
    asking.runner.before_end = lambda: None
    other.end()
    assert other.lines
    assert asking.runner.starts == [["r1", "r2"], ["r2", "r3"]]


def test_it_costs_few_requests_and_none_if_there_is_nothing_to_compute(make):
    asking = make()
    counting = FailingStore(asking.store, 10**9)
    asking.run("b1", store=counting)
    calls = [call.split()[0] for call in counting.calls if layout.CLAIMS in call]
    assert calls == ["create", "list_objects", "replace", "delete"]
    memory = [call for call in counting.calls if call.startswith(f"list_objects {layout.ANSWERS}")]
    assert len(memory) == 2
    asking.submit("b3", {"r2": "bb"})
    counting = FailingStore(asking.store, 10**9)
    asking.run("b3", store=counting)
    assert [call for call in counting.calls if layout.CLAIMS in call] == []


def test_a_claim_is_renewed_while_its_run_continues(make, clock, monkeypatch):
    monkeypatch.setattr(claims, "_RENEWED_SECONDS", 0.005)
    asking = make()
    plan = asking.plan("b1")
    actions = list(plan.actions.values())
    claim = Claim(asking.store, DATASET, HOOK, plan.release.release.program, "b1")
    claim.acquire(actions, actions, pytest.fail, pytest.fail)
    key = key_of(asking, "b1")
    first = ClaimDocument.decode(asking.store.get(key).data, key)
    end = utc_now() + timedelta(seconds=60)
    while ClaimDocument.decode(asking.store.get(key).data, key).number < 3:
        assert utc_now() < end
    now = ClaimDocument.decode(asking.store.get(key).data, key)
    assert now == first.model_copy(update={"number": now.number})
    claim.release()
    assert claimed(asking) == []


def test_no_two_runs_wait_for_each_other(make):
    """Each overlaps with the next, in a ring."""
    asking = make()
    ring = [Beside(asking, f"k{number}") for number in range(6)]
    for number in range(6):
        texts = {
            f"x{number}": "1" * (number + 1),
            f"x{(number + 1) % 6}": "1" * ((number + 1) % 6 + 1),
        }
        asking.submit(f"k{number}", texts)
    barrier = threading.Barrier(6)
    asking.runner.before_end = lambda: None

    def start(run: Beside) -> None:
        barrier.wait(60)
        run.begin()

    starters = [threading.Thread(target=start, args=(run,)) for run in ring]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(60)
    for run in ring:
        run.end()
    assert set(asking.runner.asked.values()) == {1}
    assert len(asking.runner.asked) == 6
    assert log.heads(asking.store, DATASET, HOOK).keys() == {f"k{n}" for n in range(6)}
    assert claimed(asking) == []
