"""Submitters, publishers and acceptors in any interleaving, against a model of the log."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from feature_pipeline.archive import accept, publish
from feature_pipeline.archive.format.manifest import FailureInfo
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, Scene, make_batch

BATCHES = st.sampled_from(["b1", "b2"])


class Acceptance(RuleBasedStateMachine):
    """The model: per batch every completion announced, in what order it was first accepted."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.scene = Scene(MemoryStore(), Path(self.folder.name))
        self.store = self.scene.store
        self.announced = []
        self.accepted = []
        self.releases = [self.scene.release("1")]

    def teardown(self):
        self.folder.cleanup()

    @rule(key=BATCHES)
    def submit(self, key):
        publish.submit_batch(self.store, make_batch(key), {})

    @rule()
    def release(self):
        self.releases.append(self.scene.release(str(len(self.releases) + 1)))

    @rule(key=BATCHES, base=st.integers(0, 1), data=st.data(), fails=st.booleans())
    def publish(self, key, base, data, fails):
        release = data.draw(st.sampled_from(self.releases))
        failure = FailureInfo(kind="exit", reason="x") if fails else None
        artifact = self.scene.artifact(
            make_batch(key), release, label=str(self.scene.count), failure=failure
        )
        completion = self.scene.completion(artifact, base=base)
        publish.enqueue_completion(self.store, completion)
        self.announced.append(completion)

    @rule(limit=st.sampled_from([1, 3, None]))
    def accept(self, limit):
        for entry in accept.waiting(self.store)[:limit]:
            settled = accept.accept_entries(self.store, [entry])[0]
            if isinstance(settled, accept.Accepted) and isinstance(
                entry.content, accept.Completion
            ):
                assert settled.is_new == (not self.is_accepted(entry))
                if settled.is_new:
                    self.accepted.append(entry.content)

    def is_accepted(self, entry):
        """By its id: one that is announced again has another time of publication."""
        content = entry.content
        return isinstance(content, accept.Completion) and content.id in {
            completion.id for completion in self.accepted
        }

    @rule()
    def clean(self):
        """The inbox is emptied of what is done, as the sensor does on a later tick."""
        for entry in accept.waiting(self.store):
            if self.is_accepted(entry):
                accept.remove(self.store, entry.id)

    @rule(data=st.data())
    def announce_again(self, data):
        if self.announced:
            publish.enqueue_completion(self.store, data.draw(st.sampled_from(self.announced)))

    @invariant()
    def logs_hold_each_completion_once_in_order(self):
        for key in ("b1", "b2"):
            entries = log.read_log(self.store, DATASET, HOOK, key)
            assert [e.manifest for e in entries] == [
                c.manifest for c in self.accepted if c.batch == key
            ]

    @invariant()
    def the_head_is_the_best_of_what_was_accepted(self):
        heads = log.heads(self.store, DATASET, HOOK)
        for key in ("b1", "b2"):
            best = None
            for completion in self.accepted:
                if completion.batch != key or completion.status == "failed":
                    continue
                order = (completion.release_seq, completion.base, completion.published_at)
                if best is None or order >= best[0]:
                    best = (order, completion.manifest)
            assert (heads[key].manifest if key in heads else None) == (best[1] if best else None)
            entries = log.read_log(self.store, DATASET, HOOK, key)
            assert (Verdict.CURRENT in {e.verdict for e in entries}) == (best is not None)

    @invariant()
    def nothing_is_quarantined(self):
        assert accept.quarantined(self.store) == []


TestAcceptance = Acceptance.TestCase
TestAcceptance.settings = settings(max_examples=40, stateful_step_count=40)
