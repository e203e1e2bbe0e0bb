"""The corpus's objects in a bucket of a real server: they cost themselves, and everything goes on."""

import pytest

from feature_pipeline.archive import accept, publish
from feature_pipeline.archive.accept import Accepted, Quarantined, Waiting
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.maintenance.deletion import find_needed_blobs
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, make_batch
from feature_pipeline_tests.hostile.doors import changed, doors
from feature_pipeline_tests.hostile.test_documents import CASES, TEXTS

pytestmark = pytest.mark.s3


def test_bad_objects_beside_good_ones(s3_scene):
    store = s3_scene.store
    batch, release = s3_scene.submit(make_batch()), s3_scene.release()
    publish.enqueue_completion(store, s3_scene.completion(s3_scene.artifact(batch, release)))
    publish.submit_batch(store, make_batch("b2"), {})
    for number, text in enumerate(TEXTS.values()):
        store.create(f"inbox/{('run', 'batch')[number % 2]}.text-{number}", text)
    good = {kind: door.good for kind, door in doors().items()}
    bad = [
        (f"inbox/{'batch' if kind == 'submission' else 'run'}.case-{number}", kind, path, text)
        for number, (kind, path, text, _) in enumerate(CASES)
        if kind in ("completion", "submission")
    ]
    bad += [
        (f"log/features/{DATASET}/{HOOK}/odd-{number}/0000000001", kind, path, text)
        for number, (kind, path, text, _) in enumerate(CASES)
        if kind == "feature entry"
    ]
    for key, kind, path, text in bad:
        store.create(key, changed(good[kind], path, text))
    store.create("quarantine/odd", changed(good["quarantined"], "entry", r'"\ud800"'))
    entries = accept.waiting(store)
    assert len(entries) == 2 + len(TEXTS) + sum("inbox" in key for key, *_ in bad)
    results = dict(zip([e.id for e in entries], accept.accept_entries(store, entries), strict=True))
    accepted = [entry_id for entry_id, r in results.items() if isinstance(r, Accepted)]
    assert len(accepted) == 2
    assert not any("case" in each or "text" in each for each in accepted)
    refused = [result for result in results.values() if not isinstance(result, Accepted)]
    assert all(isinstance(result, Quarantined | Waiting) for result in refused)
    # What waits is of a version that only later code knows.
    assert sum(isinstance(result, Waiting) for result in refused) < 4
    assert all(len(result.reason) < 2_500 for result in refused)
    assert log.head(store, DATASET, HOOK, "b1") is not None
    # What goes over all objects names the bad ones, and deletes nothing beside them.
    findings = {finding.key for finding in verify(store).findings}
    assert {key for key, *_ in bad if key.startswith("log/")} <= findings
    find_needed_blobs(store)
    assert collect_garbage(store, GcScope.everything(), is_dry_run=False).obstacles
    readable = inbox.readable_quarantined(store)
    assert set(readable.damage) == {"odd"}
    assert len(readable.intact) >= len(refused) - 4
