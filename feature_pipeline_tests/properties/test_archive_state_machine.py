"""The archive against a model: whatever people, programs and accidents do in whatever order.

Nothing that was reported as stored is lost, and nothing wrong is shown as right. Processes die at
any request, others come in between any two, objects are damaged and restored, repaired from a
copy or given up, clocks jump.

Without one of these the machine fails, as `test_it_finds_what_would_be_lost_without` shows:

- nothing is deleted while what names blobs is damaged, in logs, manifests, batches, inbox or
  quarantine, or while a log has lost its end: blobs are gone once the object is restored;
- publishers look for deletions beside them, and the store refuses a deletion that arrives after the
  lease: a blob that was promised is gone;
- a lift finishes the erasure first: a batch is without the record, and its artifact is about it.
"""

import dataclasses
import inspect
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from feature_pipeline.archive import accept, blobs, deletion_guard, deletion_lease, publish, read
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.findings import Finding, ObjectKind, Reached, State
from feature_pipeline.archive.inspection.reachable import reach
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import erasures, inbox, log, tombstones
from feature_pipeline.archive.logs.tombstones import withdrawn
from feature_pipeline.archive.maintenance import deletion
from feature_pipeline.archive.maintenance.accept_loss import accept_losses, plan_losses
from feature_pipeline.archive.maintenance.erase import erase, finish_erasing, lift
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline.archive.maintenance.loss_entries import remove_given_up
from feature_pipeline.archive.maintenance.repair import (
    Sources,
    append_again,
    carry_out,
    find_unfinished,
    plan_repair,
)
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import (
    ConflictError,
    FeaturePipelineError,
    InvalidInputError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.model.records import Record, RecordBatch, Source
from feature_pipeline_tests.fixtures.care import CareScene, Clock, raw_line
from feature_pipeline_tests.fixtures.stores import (
    CHANGES,
    DATASET,
    HOOK,
    At,
    Death,
    FailingStore,
    connect,
)

OTHERS = "others"
"""A dataset without hooks, whose records have the same files."""

IDS = ("r1", "r2", "r3", "r4")
KEYS = tuple((dataset, key) for dataset in (DATASET, OTHERS) for key in ("b1", "b2", "b3"))
BATCHES = tuple(key for dataset, key in KEYS if dataset == DATASET)
PUBLISHING = ("submit", "answer")
DELETING = ("delete", "collect", "erase", "finish")
HOW = ("flip", "truncate", "empty", "remove")
EVERYTHING = GcScope.everything()
# Read at import: the session takes such variables out of the environment.
GIVEN_EXAMPLES = os.environ.get("FEATURE_PIPELINE_TEST_EXAMPLES")
EXAMPLES = int(GIVEN_EXAMPLES or "12")


def _cif(key: str, n: int) -> bytes:
    return f"cif {n % 2} of {key}".encode()


def _printed(label: str) -> bytes:
    """What hooks print: the same, run after run."""
    return f"finished {label}".encode()


def changed(data: bytes, how: str) -> bytes | None:
    """The bytes of a damaged object; None if it is gone."""
    at = len(data) // 2
    match how:
        case "flip":
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else b"x"
        case "truncate":
            return data[:at]
        case "empty":
            return b""
    return None


ORPHANS = (*(_cif(key, n) for key in BATCHES for n in (0, 1)), _printed("x"), _printed("y"))


@dataclass
class Answer:
    """What a hook run said, as the model knows it."""

    batch: str
    order: tuple[int, int]
    labels: dict[str, str]
    """By record."""
    is_promised: bool = False
    is_history: bool = False
    """Whether it was appended again as one that is never current."""


@dataclass
class Model:
    """What must be true of the archive."""

    submitted: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """By batch its records, as it was tried to submit it first: it never changes."""
    promised: set[tuple[str, str]] = field(default_factory=set)
    """Batches whose submission was reported as done."""
    answers: dict[str, Answer] = field(default_factory=dict)
    """By completion."""
    withdrawn: set[str] = field(default_factory=set)
    erasing: set[str] = field(default_factory=set)
    """Those whose erasure was begun and not finished."""
    erased: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """By batch the records that may have been taken out of it."""

    def begin_erasing(self, record_id: str) -> None:
        self.withdrawn.add(record_id)
        self.erasing.add(record_id)

    def end_erasing(self) -> None:
        for key, ids in self.submitted.items():
            if key[0] == DATASET:
                gone = self.withdrawn.intersection(ids)
                self.erased.setdefault(key, set()).update(gone)
        self.erasing.clear()


class ArchiveMachine(RuleBasedStateMachine):
    """Rules are what happens. Each may be killed, or have something else beside it."""

    def open_store(self) -> BlobStore:
        raise NotImplementedError

    def put(self, key: str, data: bytes | None) -> Callable[[], None]:
        """The object is other bytes, or gone; the answer restores it."""
        raise NotImplementedError

    def let_leases_end(self) -> None:
        """A process that died with a lease sends no further requests."""
        raise NotImplementedError

    def let_a_grace_pass(self) -> None:
        raise NotImplementedError

    def machines_clock(self) -> datetime:
        """What it shows if it is right."""
        return utc_now()

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        # What waits for something that never comes is quarantined at once.
        self.patch.setattr(accept, "WAIT_LIMIT", timedelta())
        self.store = self.open_store()
        self.scene = CareScene(self.store, Path(self.folder.name))
        self.releases = [self.scene.release("1")]
        write_census(self.store)
        self.model = Model()
        for dataset in (DATASET, OTHERS):
            self.submit(self.store, (dataset, "b1"), IDS[:3])
        self.settle(self.store)
        self.answer(self.store, "b1", "x", 0, 0.0)
        self.settle(self.store)

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            self.folder.cleanup()

    # What is done. Each takes the store through which it is done.

    def batch_of(self, dataset: str, key: str, ids: tuple[str, ...]) -> RecordBatch:
        """Records share files by twos, and with the batch of the same key of another dataset."""
        records = tuple(
            Record(id=i, metadata={"title": i}, files=(self.scene.file(_cif(key, n)),))
            for n, i in enumerate(IDS)
            if i in ids
        )
        return RecordBatch.create(dataset, key, Source.DEPOSITION, records)

    def submit(self, store: BlobStore, key: tuple[str, str], ids: tuple[str, ...]) -> None:
        ids = self.model.submitted.setdefault(key, ids)
        batch = self.batch_of(*key, ids)
        try:
            publish.submit_batch(store, batch, self.scene.paths(batch))
        except InvalidInputError as error:
            self.expect(error, "withdrawn", bool(self.model.withdrawn.intersection(ids)))
        except ConflictError as error:
            text = "erased since" if "erased since" in str(error) else "with other records"
            self.expect(error, text, bool(self.model.erased.get(key)))
        else:
            self.model.promised.add(key)

    def expect(self, error: Exception, text: str, is_right: bool) -> None:
        """It was refused, and for this reason."""
        assert is_right, error
        assert text in str(error)

    def answer(self, store: BlobStore, key: str, label: str, release: int, base: float) -> None:
        """A hook run ends. Its log is what such hooks always print."""
        if not (entries := log.batch_entries(self.store, DATASET, key)):
            return
        batch = RecordBatch.decode(blobs.read_blob(self.store, entries[-1].digest))
        ids = [record.id for record in batch.records]
        registered = self.releases[release % len(self.releases)]
        outcomes = tuple(
            Outcome(i, Status.PASSED, ((float(n), n, f"{label} of {i}"),))
            for n, i in enumerate(ids)
        )
        raw = {"features.jsonl": b"".join(raw_line(i, label) for i in ids), "errors.jsonl": b""}
        artifact = self.scene.artifact(batch, registered, outcomes=outcomes, raw=raw)
        assert artifact.log is not None
        artifact.log.write_bytes(_printed(label))
        base = int(base * len(log.read_log(self.store, DATASET, HOOK, key)))
        name = artifact.run.id
        labels = dict.fromkeys(ids, label)
        known = self.model.answers.setdefault(name, Answer(key, (registered.seq, base), labels))

        try:
            publish.publish_and_enqueue(
                store, artifact, partial(completion_of, artifact, base=base)
            )
        except InvalidInputError as error:
            self.expect(error, "withdrawn", bool(self.model.withdrawn))
        else:
            known.is_promised = True

    def withdraw(self, store: BlobStore, record_id: str) -> None:
        self.model.begin_erasing(record_id)
        if erase(store, DATASET, [record_id], "asked for").is_finished:
            self.model.end_erasing()

    def finish(self, store: BlobStore) -> None:
        if finish_erasing(store, DATASET).is_finished:
            self.model.end_erasing()

    def allow(self, store: BlobStore, record_id: str) -> None:
        if record_id not in self.model.withdrawn:
            return
        if lift(store, DATASET, [record_id], "allowed again").lifted:
            self.model.end_erasing()
            self.model.withdrawn.remove(record_id)

    def collect(self, store: BlobStore) -> None:
        for _ in range(2):
            collect_garbage(store, EVERYTHING, is_dry_run=False, new_orphans=10**6)
            self.let_a_grace_pass()

    def delete_all(self, store: BlobStore) -> None:
        """The most that any deletion may do: all that nothing needs, without marks or a grace."""
        stored = list(store.list_objects(layout.BLOBS))
        deletion.delete(store, stored, deletion.find_needed_blobs(store))

    def settle(self, store: BlobStore) -> None:
        """What waits is accepted; of what was promised, nothing is refused."""
        for settled in accept.accept_entries(store, accept.waiting(store)):
            assert not isinstance(settled, accept.Waiting), settled
        for entry in inbox.waiting(store):
            inbox.remove(store, entry.id)
        self.discard(store)

    def discard(self, store: BlobStore) -> None:
        """What was refused is given up: it was not promised, or waits for an erasure to end."""
        for quarantined in inbox.quarantined(store):
            entry = inbox.read_entry(
                quarantined.id, quarantined.left_at, quarantined.entry.encode()
            )
            if not self.is_promised(entry):
                inbox.discard(store, [quarantined.id])
            else:
                assert self.model.erasing, quarantined

    def is_promised(self, entry: inbox.InboxEntry) -> bool:
        match entry.content:
            case inbox.Submission(dataset=dataset, batch=batch):
                return (dataset, batch) in self.model.promised
            case inbox.Completion():
                return self.model.answers[self.name_of(entry.content)].is_promised
        raise AssertionError(entry)

    def doing(self, operation: str, data: st.DataObject) -> Callable[[BlobStore], None]:
        """One of the above, drawn."""
        if operation in {"submit", "answer"}:
            answerable = [key for key in self.model.submitted if key[0] == DATASET]
            key = data.draw(st.sampled_from(KEYS if operation == "submit" else answerable), "batch")
        if operation == "submit":
            ids = tuple(sorted(data.draw(st.sets(st.sampled_from(IDS), min_size=1), "records")))
            return lambda store: self.submit(store, key, ids)
        if operation == "answer":
            label = data.draw(st.sampled_from("xy"), "label")
            release, base = data.draw(st.integers(0, 3)), data.draw(st.sampled_from((0.0, 1.0)))
            return lambda store: self.answer(store, key[1], label, release, base)
        if operation in {"erase", "lift"}:
            record_id = data.draw(st.sampled_from(IDS), "record")
            act = self.withdraw if operation == "erase" else self.allow
            return lambda store: act(store, record_id)
        doings: dict[str, Callable[[BlobStore], None]] = {
            "finish": self.finish,
            "collect": self.collect,
            "delete": self.delete_all,
            "settle": self.settle,
        }
        return doings[operation]

    # Rules

    @rule(data=st.data(), operation=st.sampled_from(PUBLISHING), is_settled=st.booleans())
    def publish(self, data: st.DataObject, operation: str, is_settled: bool) -> None:
        self.doing(operation, data)(self.store)
        if is_settled:
            self.settle(self.store)

    @rule(data=st.data(), operation=st.sampled_from(("erase", "lift")))
    def erase_or_lift(self, data: st.DataObject, operation: str) -> None:
        self.doing(operation, data)(self.store)
        # Nothing stands in the way once everything is in its place.
        self.settle(self.store)
        self.finish(self.store)
        assert not self.model.erasing
        self.settle(self.store)

    @rule()
    def collect_all(self) -> None:
        self.settle(self.store)
        self.collect(self.store)
        assert not collect_garbage(self.store, EVERYTHING).orphaned or self.model.erasing

    @rule()
    def release(self) -> None:
        self.releases.append(self.scene.release(str(len(self.releases) + 1)))

    @rule(hours=st.floats(-20, 400))
    def a_machines_clock_jumps(self, hours: float) -> None:
        """The store's clock goes on; those of the machines are what they are.

        What a publisher states as its time is believed up to a day ahead of the store's.
        """
        right = self.machines_clock
        self.patch.setattr(blobs, "utc_now", lambda: right() + timedelta(hours=hours))
        self.patch.setattr(publish, "utc_now", lambda: right() + timedelta(hours=min(hours, 20)))

    @rule()
    def leave_orphans(self) -> None:
        """Publishers that died had written what others will need."""
        for data in ORPHANS:
            blobs.put_blob(self.store, data)

    @rule()
    def move_to_the_quarantine_and_back(self) -> None:
        for entry in inbox.waiting(self.store):
            inbox.quarantine(self.store, entry, "by hand")
        self.delete_all(self.store)
        inbox.requeue(self.store, [quarantined.id for quarantined in inbox.quarantined(self.store)])

    @rule(
        data=st.data(),
        operation=st.sampled_from((*PUBLISHING, *DELETING, "lift", "settle")),
        call=st.integers(1, 60),
        acts_first=st.booleans(),
        then=st.sampled_from((*DELETING, "settle", "lift")),
    )
    def kill(
        self, data: st.DataObject, operation: str, call: int, acts_first: bool, then: str
    ) -> None:
        """A process dies before a request, or after it was done, and another comes."""
        with suppress(Death):
            self.doing(operation, data)(FailingStore(self.store, call, acts_first))
        self.let_leases_end()
        self.see_what_is_withdrawn()
        self.doing(then, data)(self.store)

    @rule(record_id=st.sampled_from(IDS), change=st.integers(1, 24))
    def kill_an_erasure_and_lift(self, record_id: str, change: int) -> None:
        self.model.begin_erasing(record_id)
        with suppress(Death):
            erase(FailingStore(self.store, change, only=CHANGES), DATASET, [record_id], "asked for")
        self.let_leases_end()
        self.see_what_is_withdrawn()
        self.allow(self.store, record_id)

    def see_what_is_withdrawn(self) -> None:
        """Whether an erasure that died had begun."""
        self.model.withdrawn &= withdrawn(self.store, DATASET)
        self.model.erasing &= self.model.withdrawn

    @rule(
        data=st.data(),
        operation=st.sampled_from(PUBLISHING),
        beside=st.sampled_from(DELETING),
        moment=st.tuples(st.sampled_from((None, "create")), st.integers(2, 12)),
    )
    def disturb_a_publisher(
        self, data: st.DataObject, operation: str, beside: str, moment: tuple[str | None, int]
    ) -> None:
        self.disturb(self.doing(operation, data), self.doing(beside, data), moment)

    @rule(
        data=st.data(),
        operation=st.sampled_from(DELETING),
        beside=st.sampled_from((*PUBLISHING, *DELETING)),
        moment=st.one_of(
            st.tuples(st.just("delete_before"), st.integers(1, 4)),
            st.tuples(st.sampled_from((None, "create", "list_objects")), st.integers(1, 40)),
        ),
    )
    def disturb_a_deletion(
        self, data: st.DataObject, operation: str, beside: str, moment: tuple[str | None, int]
    ) -> None:
        self.leave_orphans()
        self.disturb(self.doing(operation, data), self.doing(beside, data), moment)

    def disturb(
        self,
        doing: Callable[[BlobStore], None],
        other: Callable[[BlobStore], None],
        moment: tuple[str | None, int],
    ) -> None:
        """Another process does something between two requests of this one."""

        def act() -> None:
            # One that would have to wait for the other to end gives up.
            with suppress(ConflictError, StoreUnavailableError):
                other(self.store)

        with suppress(ConflictError, StoreUnavailableError):
            method, number = moment
            doing(At(self.store, number, act, method))
        self.let_leases_end()

    @rule(
        data=st.data(),
        how=st.sampled_from(HOW),
        change=st.integers(0, 8),
        beside=st.sampled_from((None, *PUBLISHING, *DELETING)),
    )
    def repair(self, data: st.DataObject, how: str, change: int, beside: str | None) -> None:
        """Objects are damaged, and are restored from a copy; the repair may die at any change."""
        write_census(self.store)
        second = MemoryStore()
        for info in self.store.list_objects(""):
            second.create(info.key, self.store.get(info.key).data)
        entries = [key for key in self.namers() if not key.startswith(WAITING)]
        keys = sorted({*entries, *(r.key for r in reach(self.store).references.values())})
        drawn = st.lists(st.sampled_from(keys), min_size=1, max_size=3, unique=True)
        damaged = [key for key in data.draw(drawn, "damaged") if self.store.stat(key) is not None]
        for key in damaged:
            self.put(key, changed(self.store.get(key).data, how))
        if beside is not None:
            with suppress(FeaturePipelineError):
                self.doing(beside, data)(self.store)
        sources = Sources(second=second)
        for store in (FailingStore(self.store, change, only=CHANGES), self.store):
            for _ in range(len(keys)):
                with suppress(Death):
                    plan = plan_repair(store, self.findings(), sources)
                    assert carry_out(plan, lambda _: None) == []
                    if not plan.steps:
                        break
        for key in damaged:
            if beside is None:
                assert self.store.get(key).data == second.get(key).data, key
        self.let_leases_end()
        self.see_what_is_withdrawn()

    @rule(
        data=st.data(),
        how=st.sampled_from(HOW),
        change=st.integers(0, 8),
        acts_first=st.booleans(),
        beside=st.sampled_from((None, *PUBLISHING, *DELETING)),
    )
    def accept_a_loss(
        self, data: st.DataObject, how: str, change: int, acts_first: bool, beside: str | None
    ) -> None:
        """An entry of a log is gone for good, and is given up; the process that does it may die.

        What lies behind it is appended again: it alone is lost, or is the end of the log.
        """
        self.settle(self.store)
        write_census(self.store)
        prefix = layout.feature_log(DATASET, HOOK, data.draw(st.sampled_from(BATCHES), "batch"))
        keys = [info.key for info in self.store.list_objects(prefix)]
        if not keys:
            return
        before = {e.seq: self.name_of(e) for e in self.entries() if e.log_prefix == prefix}
        superseded = {
            self.name_of(e) for e in self.entries() if e.verdict is log.Verdict.SUPERSEDED
        }
        at = data.draw(st.integers(0, len(keys) - 1), "entry")
        self.put(keys[at], changed(self.store.get(keys[at]).data, how))
        if beside is not None:
            # A log with a damaged entry is neither read nor appended to.
            with suppress(FeaturePipelineError):
                self.doing(beside, data)(self.store)
        for store in (FailingStore(self.store, change, acts_first, only=CHANGES), self.store):
            with suppress(Death):
                remove_given_up(store, DATASET)
                append_again(store, find_unfinished(store, DATASET), ())
                if planned := plan_losses(store, self.findings()):
                    accept_losses(store, planned, by="the operator", reason="no copy is left")
                    append_again(store, planned, ())
        given_up = {before[at + 1]} - {self.name_of(entry) for entry in self.entries()}
        given_up -= self.names_of(entry.content for entry in inbox.waiting(self.store))
        for name in given_up:
            self.model.answers[name].is_promised = False
        # What is appended again has no later base than the shorter log.
        behind = {name for seq, name in before.items() if seq > at + 1}
        for entry in self.entries():
            if entry.completion.startswith("restored-"):
                name = self.name_of(entry)
                self.model.answers[name].order = entry.order
                if name in behind:
                    # It was so before, and what was newer than it is not known any more.
                    is_history = entry.verdict is log.Verdict.SUPERSEDED
                    assert not is_history or name in superseded
                    self.model.answers[name].is_history = is_history
        for waits in inbox.waiting(self.store):
            if isinstance(waits.content, inbox.Completion):
                answer = self.model.answers[self.name_of(waits.content)]
                answer.order = waits.content.release_seq, waits.content.base
                answer.is_history = waits.content.status is inbox.CompletionStatus.CANCELLED
        self.let_leases_end()
        self.see_what_is_withdrawn()
        self.settle(self.store)

    def findings(self) -> list[Finding]:
        """What `verify` finds wrong that can be brought back."""
        problems = verify(self.store, writes_census=False).findings
        return [
            f for f in problems if f.state is not State.NOT_ERASED and not self.is_unpromised(f)
        ]

    @rule(data=st.data(), beside=st.sampled_from(PUBLISHING), number=st.integers(1, 5))
    def let_a_deletion_arrive_late(self, data: st.DataObject, beside: str, number: int) -> None:
        """A publisher has waited for the lease to end before the request is carried out."""
        self.leave_orphans()
        self.disturb(self.delete_all, self.doing(beside, data), ("delete_before", number))

    @rule(
        data=st.data(),
        operation=st.sampled_from((*DELETING, "lift")),
        how=st.sampled_from(HOW),
        which=st.sampled_from(("any", "waiting", "last")),
        is_published=st.booleans(),
    )
    def damage(
        self, data: st.DataObject, operation: str, how: str, which: str, is_published: bool
    ) -> None:
        """Objects that name others are not as they were, for a while.

        Of any kind; or what waits; or the last entries of logs, which are gone.
        """
        if is_published:
            self.doing(data.draw(st.sampled_from(PUBLISHING), "published"), data)(self.store)
        write_census(self.store)
        # An entry that waits and vanishes is missed by nothing.
        keys = [key for key in self.namers() if how != "remove" or not key.startswith(WAITING)]
        if which == "last":
            how = "remove"
            logs = {key.rpartition("/")[0]: key for key in keys if key.startswith(layout.LOGS)}
            keys = list(logs.values())
        elif which == "waiting":
            keys = [key for key in keys if key.startswith(WAITING)] or keys
        restore = []
        drawn = st.lists(st.sampled_from(keys), min_size=1, max_size=2, unique=True)
        for key in data.draw(drawn, "damaged"):
            restore.append(self.put(key, changed(self.store.get(key).data, how)))
        with suppress(FeaturePipelineError):
            self.doing(operation, data)(self.store)
        self.nothing_wrong_is_shown()
        for put_back in reversed(restore):
            put_back()
        self.let_leases_end()
        self.see_what_is_withdrawn()

    def namers(self) -> list[str]:
        """The keys of what names others and can be read, in order."""
        named = [
            key.key for prefix in (layout.LOGS, *WAITING) for key in self.store.list_objects(prefix)
        ]
        digests = [e.manifest for e in self.entries()]
        digests += [
            entry.digest
            for dataset in (DATASET, OTHERS)
            for entries in log.readable_batch_logs(self.store, dataset).whole().values()
            for entry in entries
        ]
        keys = {layout.blob(digest) for digest in digests}
        return named + sorted(key for key in keys if self.store.stat(key) is not None)

    def entries(self) -> list[log.FeatureEntry]:
        logs = log.feature_logs(self.store, DATASET, HOOK)
        return [entry for entries in logs.values() for entry in entries]

    def names_of(self, contents: Iterable[object]) -> set[str]:
        """Of what waits, by name."""
        return {self.name_of(one) for one in contents if isinstance(one, inbox.Completion)}

    def name_of(self, entry: log.FeatureEntry | inbox.Completion) -> str:
        """The completion; of an artifact that was appended again, the run that made it."""
        name = entry.completion if isinstance(entry, log.FeatureEntry) else entry.id
        if not name.startswith("restored-"):
            return name
        digest = erasures.erased(self.store, DATASET).manifest_now(entry.manifest)
        return read.read_manifest(self.store, digest).run.id

    def nothing_wrong_is_shown(self) -> None:
        """Readers fail, or give what is right."""
        for key in BATCHES:
            with suppress(FeaturePipelineError):
                self.check_head(key)

    # What must be true then

    def check_batches(self) -> None:
        for key in KEYS:
            entries = log.batch_entries(self.store, *key)
            if not entries:
                continue
            ids = {record.id for record in log.read_batch(self.store, *key).records}
            erased = self.model.erased.get(key, set())
            of_here = self.model.erasing if key[0] == DATASET else set()
            wanted = set(self.model.submitted[key]) - erased
            assert ids - of_here == wanted - of_here, key

    def check_head(self, key: str) -> None:
        head = log.head(self.store, DATASET, HOOK, key)
        accepted = {self.name_of(e) for e in log.read_log(self.store, DATASET, HOOK, key)}
        never_current = {name for name in accepted if self.model.answers[name].is_history}
        if head is None:
            assert accepted == never_current
            return
        if self.model.erasing and head.manifest in erasures.erased(self.store, DATASET).manifests:
            return  # What stands for it was given up, and waits for the erasure to end.
        best = max(self.model.answers[name].order for name in accepted - never_current)
        answer = self.model.answers[self.name_of(head)]
        assert (answer.batch, answer.order) == (key, best)
        manifest = read.read_manifest(self.store, head.manifest)
        outcomes = read.read_artifact_outcomes(self.store, manifest)
        labels = {outcome.record_id: outcome.rows[0][2] for outcome in outcomes}
        erased = self.model.erased.get((DATASET, key), set()) | self.model.erasing
        wanted = {i: f"{label} of {i}" for i, label in answer.labels.items() if i not in erased}
        assert {i: text for i, text in labels.items() if i not in erased} == wanted
        if not self.model.erasing:
            assert labels == wanted
            raw = read.read_raw(self.store, manifest, "features.jsonl")
            assert raw == b"".join(
                raw_line(i, answer.labels[i]) for i in answer.labels if i in wanted
            )

    @invariant()
    def all_that_was_promised_is_there(self) -> None:
        if not hasattr(self, "model"):
            return
        self.check_batches()
        for key in BATCHES:
            self.check_head(key)
        waiting = {entry.id: entry.content for entry in inbox.waiting(self.store)}
        if self.model.erasing:
            # What is about a record that is being erased is held until its successor waits.
            for quarantined in inbox.quarantined(self.store):
                entry = inbox.read_entry(
                    quarantined.id, quarantined.left_at, quarantined.entry.encode()
                )
                waiting[quarantined.id] = entry.content
        batches = {
            (c.dataset, c.batch) for c in waiting.values() if isinstance(c, inbox.Submission)
        }
        runs = self.names_of(waiting.values())
        for dataset, batch in self.model.promised:
            is_accepted = bool(log.batch_entries(self.store, dataset, batch))
            assert is_accepted or (dataset, batch) in batches
        accepted = {self.name_of(entry) for entry in self.entries()}
        for name, answer in self.model.answers.items():
            assert not answer.is_promised or name in accepted | runs, name

    @invariant()
    def everything_verifies(self) -> None:
        if not hasattr(self, "model"):
            return
        for finding in verify(self.store).findings:
            if finding.state is State.NOT_ERASED:
                # Or equal bytes came again, and nothing needs them.
                is_orphan = finding.kind is ObjectKind.NAMED and self.model.withdrawn
                is_late = finding.named_by.startswith(WAITING)
                assert self.model.erasing or is_orphan or is_late, finding
                continue
            assert self.is_unpromised(finding), finding

    def is_unpromised(self, finding: Finding) -> bool:
        """Whether a publisher that died named it, and it was not yet written or was deleted."""
        if finding.state is not State.MISSING or not finding.named_by.startswith(WAITING):
            return False
        named_by = [e for e in inbox.waiting(self.store) if e.id in finding.named_by]
        return not any(map(self.is_promised, named_by))


WAITING = (layout.INBOX, layout.QUARANTINE)


class InMemory(ArchiveMachine):
    """Time is the model's: waiting takes none, and it jumps."""

    def open_store(self) -> BlobStore:
        self.clock = Clock()
        self.clock.install(self.patch)
        self.patch.setattr(accept, "utc_now", self.clock.now)
        self.memory = MemoryStore(self.clock.now)
        return self.memory

    def put(self, key: str, data: bytes | None) -> Callable[[], None]:
        quarantined = self.memory._objects.pop(key)
        if data is not None:
            info = dataclasses.replace(quarantined.info, size=len(data), etag='"x"', sha256=None)
            self.memory._objects[key] = dataclasses.replace(quarantined, data=data, info=info)

        def restore() -> None:
            self.memory._objects[key] = quarantined

        return restore

    def let_leases_end(self) -> None:
        self.clock.offset += deletion_lease.LEASE + deletion_lease.MARGIN

    def let_a_grace_pass(self) -> None:
        self.clock.offset += blobs.GRACE

    def machines_clock(self) -> datetime:
        return self.clock.now()

    @rule(hours=st.floats(0, 400))
    def time_passes(self, hours: float) -> None:
        self.clock.offset += timedelta(hours=hours)


class OnServer(ArchiveMachine):
    """Time passes as it does; a grace is none, and a lease short."""

    address = None

    def open_store(self) -> BlobStore:
        self.patch.setattr(blobs, "GRACE", timedelta())
        # A publisher beside a deletion that does not go on waits for the lease to expire.
        self.patch.setattr(deletion_lease, "LEASE", timedelta(seconds=5))
        self.patch.setattr(deletion_lease, "MARGIN", timedelta(seconds=1))
        self.connection = connect(self.address, f"machine-{secrets.token_hex(8)}")
        return self.connection.__enter__()

    def teardown(self) -> None:
        if hasattr(self, "connection"):
            self.connection.__exit__(None, None, None)
        super().teardown()

    def put(self, key: str, data: bytes | None) -> Callable[[], None]:
        quarantined = self.store.get(key).data
        self._put(key, data)
        return lambda: self._put(key, quarantined)

    def _put(self, key: str, data: bytes | None) -> None:
        self.store.delete(key)
        if data is not None:
            self.store.create(key, data)

    def let_leases_end(self) -> None:
        self.store.delete(layout.GC_LEASE)

    def let_a_grace_pass(self) -> None:
        pass


def run(machine: type[ArchiveMachine], examples: int, steps: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            # The same ones every time, unless a number asks for a search.
            derandomize=GIVEN_EXAMPLES is None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_archive_matches_the_model():
    run(InMemory, 2 * EXAMPLES, 20)


@pytest.mark.s3
@pytest.mark.slow
def test_so_it_is_on_a_server(s3_address):
    OnServer.address = s3_address
    run(OnServer, EXAMPLES // 4, 12)


def part_of_it(*rules: str) -> type[InMemory]:
    """The machine with these rules alone; what the others do can still be called."""
    marker = "hypothesis_stateful_rule"
    others = {
        name: partialmethod(method)
        for name, method in inspect.getmembers(InMemory)
        if hasattr(method, marker) and name not in rules
    }
    return type("Part", (InMemory,), others)


def but(is_left_out: Callable[[Finding], bool]) -> Callable[..., tuple[str, ...]]:
    """What forbids a deletion, but for some findings."""
    whole = deletion.obstacles

    def obstacles(reached: Reached, given_up: Collection[Digest] = ()) -> tuple[str, ...]:
        problems = [finding for finding in reached.findings if not is_left_out(finding)]
        return whole(dataclasses.replace(reached, findings=problems, unparsed={}), given_up)

    return obstacles


def lift_at_once(store: BlobStore, dataset: str, ids: Collection[str], reason: str) -> object:
    """Without finishing the erasure first."""
    return SimpleNamespace(lifted=tombstones.lift(store, dataset, ids, reason).record_ids)


def delete_late(store: MemoryStore, key: str, _: object) -> bool:
    """As a store that does not look at when a request arrives."""
    store.delete(key)
    return True


WAITS = {ObjectKind.INBOX_ENTRY, ObjectKind.QUARANTINE_ENTRY}
LEFT_OUT: dict[str, tuple[tuple[object, str, object], tuple[str, ...]]] = {
    "damage to what names others": (
        (deletion, "obstacles", but(lambda f: f.kind not in WAITS and f.state is not State.LOST)),
        ("damage",),
    ),
    "damage to what waits": (
        (deletion, "obstacles", but(lambda f: f.kind in WAITS)),
        ("damage",),
    ),
    "lost ends of logs": (
        (deletion, "obstacles", but(lambda f: f.state is State.LOST)),
        ("damage",),
    ),
    "deletions beside a publisher": (
        (deletion_guard.Guard, "find_lost", lambda self, refs: []),
        ("publish", "disturb_a_publisher", "disturb_a_deletion"),
    ),
    "the end of the lease": (
        (MemoryStore, "delete_before", delete_late),
        ("let_a_deletion_arrive_late",),
    ),
    "finishing before lifting": (
        (sys.modules[__name__], "lift", lift_at_once),
        ("publish", "kill_an_erasure_and_lift"),
    ),
}
"""What the archive takes care of: what is put in its place, and the rules that then find a loss."""


@pytest.mark.parametrize("care", LEFT_OUT)
def test_it_finds_what_would_be_lost_without(care, monkeypatch):
    """A model that finds nothing proves nothing."""
    (where, name, instead), rules = LEFT_OUT[care]
    monkeypatch.setattr(where, name, instead)
    with pytest.raises((AssertionError, FeaturePipelineError)):
        run_state_machine_as_test(
            part_of_it(*rules),
            settings=settings(
                max_examples=40,
                stateful_step_count=4,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )
