"""The archive on the real server against a dictionary: whatever people do in whatever order."""

import os
import secrets
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from feature_pipeline.archive import accept, blobs, inbox, log, publish, read, tombstones
from feature_pipeline.archive.erase import erase, finish_erasing
from feature_pipeline.archive.gc import GcScope, collect_garbage
from feature_pipeline.archive.log import Verdict
from feature_pipeline.archive.verify import verify
from feature_pipeline.errors import ConflictError, InvalidInputError
from feature_pipeline_tests.fixtures.care import CareScene, raw_line
from feature_pipeline_tests.fixtures.stores import (
    DATASET,
    HOOK,
    Death,
    FailingStore,
    connect,
)

pytestmark = [pytest.mark.s3, pytest.mark.slow]

IDS = ("r1", "r2", "r3", "r4", "r5")
KEYS = ("b1", "b2", "b3")
# Read at import: the session takes such variables out of the environment.
EXAMPLES = int(os.environ.get("FEATURE_PIPELINE_TEST_EXAMPLES", "6"))


class ArchiveMachine(RuleBasedStateMachine):
    """The model: per batch its records and each completion accepted, with what it said of whom."""

    address = None

    @initialize()
    def begin(self):
        self.folder = tempfile.TemporaryDirectory()
        self.connection = connect(self.address, f"machine-{secrets.token_hex(8)}")
        self.store = self.connection.__enter__()
        self.scene = CareScene(self.store, Path(self.folder.name))
        self.releases = [self.scene.release("1")]
        self.submitted = {}
        """Per batch the records as submitted: it never changes."""
        self.batches = {}
        """Per batch the ids that it has now."""
        self.accepted = {}
        """Per batch (completion id, order, what it says now: id to label) in order."""
        self.announced = {}
        """Completions that wait: inbox id to (completion, says)."""
        self.withdrawn = set()

    def teardown(self):
        if hasattr(self, "connection"):
            self.connection.__exit__(None, None, None)
            self.folder.cleanup()

    # What people do

    @rule(key=st.sampled_from(KEYS), ids=st.sets(st.sampled_from(IDS), min_size=1, max_size=4))
    def submit(self, key, ids):
        if key in self.submitted:
            ids = self.submitted[key]
        batch = self.scene.batch_of(key, tuple(sorted(ids)))
        if self.withdrawn & set(ids):
            with pytest.raises(InvalidInputError, match="withdrawn"):
                publish.submit_batch(self.store, batch, self.scene.paths(batch))
            return
        if key in self.batches and self.batches[key] != self.submitted[key]:
            with pytest.raises(ConflictError, match="records were erased since"):
                publish.submit_batch(self.store, batch, self.scene.paths(batch))
            return
        publish.submit_batch(self.store, batch, self.scene.paths(batch))
        self.settle()
        self.submitted.setdefault(key, sorted(ids))
        self.batches.setdefault(key, sorted(ids))

    @rule()
    def release(self):
        self.releases.append(self.scene.release(str(len(self.releases) + 1)))

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), label=st.sampled_from("xyz"), accepts=st.booleans())
    def publish(self, data, label, accepts):
        key = data.draw(st.sampled_from(sorted(self.batches)))
        release = data.draw(st.sampled_from(self.releases))
        base = data.draw(st.integers(0, len(log.read_log(self.store, DATASET, HOOK, key))))
        batch = log.read_batch(self.store, DATASET, key)
        completion = self.scene.run(batch, release, label, base=base)
        publish.announce(self.store, completion)
        says = {record.id: label for record in batch.records}
        self.announced[completion.id] = (completion, says)
        if accepts:
            self.settle()

    @precondition(lambda self: getattr(self, "accepted", None))
    @rule(data=st.data())
    def announce_again(self, data):
        """A publisher that did not hear the answer leaves its entry once more."""
        key = data.draw(st.sampled_from(sorted(self.accepted)))
        entry = log.read_log(self.store, DATASET, HOOK, key)[-1]
        publish.announce(
            self.store,
            publish.Completion(
                id=entry.completion,
                dataset=DATASET,
                hook=HOOK,
                batch=key,
                release_seq=entry.release_seq,
                release_digest=entry.release,
                base=entry.base,
                manifest=entry.manifest,
                status=publish.CompletionStatus.SUCCEEDED,
            ),
        )
        before = log.read_log(self.store, DATASET, HOOK, key)
        accept.settle_all(self.store, inbox.waiting(self.store))
        self.note_accepted()
        after = log.read_log(self.store, DATASET, HOOK, key)
        assert [e.completion for e in after].count(entry.completion) == [
            e.completion for e in before
        ].count(entry.completion)

    @rule()
    def settle(self):
        for settled in accept.settle_all(self.store, inbox.waiting(self.store)):
            assert isinstance(settled, accept.Accepted)
        for entry in inbox.waiting(self.store):
            inbox.remove(self.store, entry.id)
        self.note_accepted()

    def note_accepted(self):
        """The order of acceptance is the log's; what was accepted is ours to know."""
        for entries in log.feature_logs(self.store, DATASET, HOOK).values():
            for entry in entries:
                if entry.completion in self.announced:
                    completion, says = self.announced.pop(entry.completion)
                    order = (completion.release_seq, completion.base)
                    self.accepted.setdefault(completion.batch, []).append(
                        (completion.id, order, says)
                    )

    @rule(record_id=st.sampled_from(IDS), crash=st.integers(0, 40), acts_first=st.booleans())
    def erase(self, record_id, crash, acts_first):
        """Somebody erases, may be killed at it, and does it again."""
        self.withdrawn.add(record_id)
        try:
            store = FailingStore(self.store, crash, acts_first) if crash else self.store
            erase(store, DATASET, [record_id], "asked for")
        except Death:
            self.store.delete("gc/lease")  # instead of waiting for the dead one's lease to end
            erase(self.store, DATASET, [record_id], "asked for")
        self.forget()

    def forget(self):
        for key, ids in self.batches.items():
            self.batches[key] = [i for i in ids if i not in self.withdrawn]
        said = [says for done in self.accepted.values() for _, _, says in done]
        said += [says for _, says in self.announced.values()]
        for says in said:
            for gone in self.withdrawn & says.keys():
                del says[gone]

    @precondition(lambda self: self.withdrawn)
    @rule(data=st.data())
    def lift(self, data):
        finish_erasing(self.store, DATASET)
        record_id = data.draw(st.sampled_from(sorted(self.withdrawn)))
        tombstones.lift(self.store, DATASET, [record_id], "allowed again")
        self.withdrawn.remove(record_id)

    @rule()
    def leave_orphans(self):
        """Publishers that die before they name what they stored."""
        blobs.put_blob(self.store, os.urandom(8))
        if self.batches:
            batch = log.read_batch(self.store, DATASET, min(self.batches))
            self.scene.run(batch, self.releases[0], "never announced")

    @rule(crash=st.integers(0, 30))
    def collect(self, crash):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blobs, "GRACE", timedelta())
            everything = GcScope.everything()
            collect_garbage(self.store, everything, is_dry_run=False)
            store = FailingStore(self.store, crash) if crash else self.store
            try:
                collect_garbage(store, everything, is_dry_run=False)
            except Death:
                self.store.delete("gc/lease")  # instead of waiting for the dead one's lease to end
                collect_garbage(self.store, everything, is_dry_run=False)
                collect_garbage(self.store, everything, is_dry_run=False)
            assert collect_garbage(self.store, everything).orphaned == 0

    # What must be true then

    @invariant()
    def batches_are_those_submitted_but_for_the_erased(self):
        if not hasattr(self, "batches"):
            return
        stored = {
            key: [record.id for record in log.read_batch(self.store, DATASET, key).records]
            for key in log.batches(self.store, DATASET)
        }
        assert stored == self.batches

    @invariant()
    def heads_are_the_best_of_what_was_accepted(self):
        if not hasattr(self, "batches"):
            return
        heads = log.heads(self.store, DATASET, HOOK)
        for key in self.batches:
            best = None
            for done in self.accepted.get(key, []):
                if best is None or done[1] >= best[1]:
                    best = done
            assert (key in heads) == (best is not None)
            if best is None:
                continue
            head, (completion_id, order, says) = heads[key], best
            assert (head.completion, head.order, head.verdict) == (
                completion_id,
                order,
                Verdict.CURRENT,
            )
            manifest = read.read_manifest(self.store, head.manifest)
            outcomes = read.read_artifact_outcomes(self.store, manifest)
            assert {o.record_id: o.rows[0][2] for o in outcomes} == {
                i: f"{label} of {i}" for i, label in says.items()
            }
            raw = read.read_raw(self.store, manifest, "features.jsonl")
            assert raw == b"".join(raw_line(i, label) for i, label in says.items())

    @invariant()
    def everything_verifies(self):
        if not hasattr(self, "batches"):
            return
        assert verify(self.store).findings == ()
        assert inbox.quarantined(self.store) == []


def test_the_archive_is_as_the_model_says(s3_address):
    ArchiveMachine.address = s3_address
    run_state_machine_as_test(
        ArchiveMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
