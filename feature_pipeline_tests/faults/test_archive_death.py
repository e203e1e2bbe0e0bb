"""The process dies between any two calls to the store: nothing false stands, a rerun converges."""

import pytest

from feature_pipeline.archive import accept, publish, read
from feature_pipeline.archive.accept import Accepted
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline_tests.fixtures.stores import (
    DATASET,
    HOOK,
    Death,
    FailingStore,
    Scene,
    make_batch,
    make_release,
)

pytestmark = pytest.mark.faults

MOST_CALLS = 80


def whole_path(store, scene):
    """What a submitter, a publisher and an acceptor do, as often as needed."""
    batch = make_batch()
    publish.submit_batch(store, batch, {})
    release = log.register_release(store, make_release(), {})
    scene.store = store
    completion = scene.completion(scene.artifact(batch, release, run_id="run"))
    publish.enqueue_completion(store, completion)
    settled = accept.accept_entries(store, accept.waiting(store))
    for entry in accept.waiting(store):
        accept.remove(store, entry.id)
    return settled


def check_nothing_false(store):
    """Whatever is named is there: heads can be read, waiting entries name what is stored."""
    for dataset in log.datasets(store):
        for batch in log.batches(store, dataset):
            log.read_batch(store, dataset, batch)
        for hook in log.hooks(store, dataset):
            for entry in log.heads(store, dataset, hook).values():
                manifest = read.read_manifest(store, entry.manifest)
                read.read_artifact_outcomes(store, manifest)
                for name in manifest.blobs:
                    read.read_named(store, manifest, name)
    for entry in inbox.waiting(store):
        content = entry.content
        assert content is not None
        digest = content.manifest if isinstance(content, publish.Completion) else content.digest
        assert log.blobs.read_blob(store, digest)


@pytest.mark.parametrize("acts_first", [False, True], ids=["before", "after"])
def test_death_at_any_call(memory_store, tmp_path, acts_first):
    """Every call of the whole path in turn is the last; then everything is done again."""
    deaths = 0
    for fatal_call in range(1, MOST_CALLS):
        memory_store = type(memory_store)()
        scene = Scene(memory_store, tmp_path / f"{fatal_call}")
        scene.folder.mkdir()
        failing = FailingStore(memory_store, fatal_call, acts_first)
        try:
            whole_path(failing, scene)
        except Death:
            deaths += 1
        else:
            break
        check_nothing_false(memory_store)

        whole_path(memory_store, scene)
        check_nothing_false(memory_store)
        entries = log.read_log(memory_store, DATASET, HOOK, "b1")
        assert [entry.verdict for entry in entries] == [Verdict.CURRENT], fatal_call
        assert len(log.batch_entries(memory_store, DATASET, "b1")) == 1
        assert len(log.releases(memory_store, DATASET, HOOK)) == 1
        assert accept.waiting(memory_store) == []
        assert accept.quarantined(memory_store) == []
    assert deaths > 25, "the path has more calls than this"
    assert fatal_call < MOST_CALLS - 1, "some calls were never fatal"


def test_quarantine_never_loses_the_entry(memory_store, tmp_path):
    for acts_first in (False, True):
        for fatal_call in range(1, 10):
            store = type(memory_store)()
            store.create("inbox/run.odd", b"not an entry")
            failing = FailingStore(store, fatal_call, acts_first)
            try:
                for entry in accept.waiting(failing):
                    accept.accept_entries(failing, [entry])[0]
            except Death:
                quarantined = [e.entry for e in accept.quarantined(store)]
                assert accept.waiting(store) or quarantined == ["not an entry"]
            for entry in accept.waiting(store):
                assert not isinstance(accept.accept_entries(store, [entry])[0], Accepted)
            assert accept.waiting(store) == []
            assert [e.entry for e in accept.quarantined(store)] == ["not an entry"]
