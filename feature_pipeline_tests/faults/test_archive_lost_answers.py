"""The server acts and its answer is lost: nothing is written twice, nothing is taken for absent."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from feature_pipeline.archive import accept, blobs, publish, read
from feature_pipeline.archive.accept import Accepted, Waiting
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.store import s3
from feature_pipeline.errors import OutcomeUnknownError, StoreUnavailableError
from feature_pipeline_tests.fixtures.stores import AN_INSTANT, DATASET, HOOK, Scene, make_batch

pytestmark = [pytest.mark.s3, pytest.mark.faults]

ALWAYS = 1000


@pytest.fixture
def lossy(proxied_store, tmp_path):
    """An archive behind the proxy, with one accepted batch."""
    scene = Scene(proxied_store, tmp_path)
    scene.submit(make_batch())
    return scene


def test_a_retry_does_not_take_its_own_success_for_a_conflict(lossy, proxy):
    """The client sends the entry again and hears 412: the entry there is its own."""
    artifact = lossy.artifact(make_batch(), lossy.release())
    completion = lossy.completion(artifact)
    proxy.lose_answers("PUT .*/log/features/", times=1)
    entry = accept.accept(lossy.store, completion)
    assert proxy.lost == 1
    assert log.read_log(lossy.store, DATASET, HOOK, "b1") == [entry]


def test_an_entry_of_another_writer_is_not_mistaken_for_ours(lossy, proxy, s3_scene):
    """Both see an empty log; ours loses the race and its answer, and becomes number two."""
    release = lossy.release()
    ours, theirs = (
        lossy.completion(lossy.artifact(make_batch(), release, label=label)) for label in "ab"
    )
    first = accept.accept(s3_scene.store, theirs)
    proxy.lose_answers("PUT .*/log/features/", times=ALWAYS)

    prefix = "log/features/structures/pockets/b1/"

    def decide(entries):
        seq = log.next_seq(entries)
        return first.model_copy(update={"seq": seq, "manifest": ours.manifest, "write_id": "ours"})

    second, is_new = log.append(lossy.store, prefix, log.FeatureEntry, decide, known=[])
    assert (second.seq, second.write_id, is_new) == (2, "ours", True)
    assert log.read_log(s3_scene.store, DATASET, HOOK, "b1") == [first, second]


@pytest.mark.parametrize("path", ["/blobs/", "/inbox/", "/log/features/", "/log/releases/"])
def test_every_write_may_lose_every_answer(lossy, proxy, path):
    """No answer ever comes; what was done is found by reading back."""
    proxy.lose_answers(f"PUT .*{path}", times=ALWAYS)
    completion = lossy.completion(lossy.artifact(make_batch(), lossy.release()))
    publish.enqueue_completion(lossy.store, completion)
    [entry] = inbox.waiting(lossy.store)
    settled = accept.accept_entries(lossy.store, [entry])[0]
    assert isinstance(settled, Accepted)
    assert proxy.lost
    assert log.read_log(lossy.store, DATASET, HOOK, "b1") == [settled.entry]
    manifest = read.read_manifest(lossy.store, settled.entry.manifest)
    assert len(read.read_artifact_outcomes(lossy.store, manifest)) == 4


def test_without_an_answer_the_outcome_is_unknown_until_a_rerun(lossy, proxy):
    completion = lossy.completion(lossy.artifact(make_batch(), lossy.release()))
    proxy.lose_answers("PUT .*/log/features/", times=ALWAYS)
    proxy.lose_answers("GET .*/log/features/.*/b1/0", times=ALWAYS)
    with pytest.raises(OutcomeUnknownError, match="reading it back failed"):
        accept.accept(lossy.store, completion)
    proxy.heal()
    again = accept.accept(lossy.store, completion)
    assert log.read_log(lossy.store, DATASET, HOOK, "b1") == [again]


def test_an_unreachable_store_is_not_an_empty_one(lossy, proxy):
    publish.enqueue_completion(
        lossy.store, lossy.completion(lossy.artifact(make_batch(), lossy.release()))
    )
    entry = inbox.waiting(lossy.store)[-1]
    proxy.close()
    for call in (
        lambda: log.head(lossy.store, DATASET, HOOK, "b1"),
        lambda: log.batches(lossy.store, DATASET),
        lambda: lossy.store.stat("inbox/x"),
        lambda: lossy.store.get("inbox/x"),
    ):
        with pytest.raises(StoreUnavailableError):
            call()
    with pytest.raises(OutcomeUnknownError):
        blobs.put_blob(lossy.store, b"data")
    assert isinstance(accept.accept_entries(lossy.store, [entry])[0], Waiting)


def test_a_body_cut_short_is_requested_again(lossy, proxy):
    ref = blobs.put_blob(lossy.store, b"x" * 200_000)
    proxy.lose_answers("GET .*/blobs/", times=2, keep_bytes=50_000)
    assert blobs.read_blob(lossy.store, ref.digest, ref.size) == b"x" * 200_000
    assert proxy.lost == 2


def test_a_body_always_cut_short_is_not_data(lossy, proxy, tmp_path):
    ref = blobs.put_blob(lossy.store, b"x" * 200_000)
    proxy.lose_answers("GET .*/blobs/", times=ALWAYS, keep_bytes=50_000)
    with pytest.raises(StoreUnavailableError):
        blobs.read_blob(lossy.store, ref.digest, ref.size)
    with pytest.raises(StoreUnavailableError):
        blobs.download_blob(lossy.store, ref.digest, tmp_path / "target" / "file", ref.size)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_large_file_whose_completion_is_lost(lossy, proxy, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "MULTIPART_BYTES", 6 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    path = tmp_path / "large"
    path.write_bytes(b"large" * (3 << 19))
    proxy.lose_answers(r"POST .*\?uploadId=", times=ALWAYS)
    ref = blobs.put_file(lossy.store, path)
    assert proxy.lost
    assert blobs.verify_blob(lossy.store, ref.digest, ref.size) == path.stat().st_size


def test_two_writers_race_with_lost_answers(lossy, proxy, s3_scene):
    """Every completion stands in the log exactly once, and every reader sees the same head."""
    release = lossy.release()
    completions = [
        lossy.completion(lossy.artifact(make_batch(), release, label=str(n))).as_published(
            AN_INSTANT + timedelta(seconds=n)
        )
        for n in range(6)
    ]
    proxy.lose_answers("PUT .*/log/features/", times=5)
    barrier = threading.Barrier(12)
    errors: list[BaseException] = []

    def run(store, completion):
        barrier.wait()
        try:
            accept.accept(store, completion)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(store, completion))
        for completion in completions
        for store in (lossy.store, s3_scene.store)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    entries = log.read_log(s3_scene.store, DATASET, HOOK, "b1")
    assert sorted(e.completion for e in entries) == sorted(c.id for c in completions)
    assert log.head(lossy.store, DATASET, HOOK, "b1").manifest == completions[5].manifest


def test_a_deletion_that_arrives_after_its_deadline_is_refused(lossy, proxy, s3_store):
    """It left in time and was held up on its way: the store itself keeps the deadline."""
    s3_store.create("inbox/x", b"needed by now")
    deadline = s3_store.now() + timedelta(seconds=4)
    with ThreadPoolExecutor(1) as pool:
        with proxy.holding("DELETE .*/inbox/x") as arrived:
            deletion = pool.submit(lossy.store.delete_before, "inbox/x", deadline)
            assert arrived.wait(30)
            while s3_store.now() <= deadline:
                time.sleep(0.05)
        with pytest.raises(StoreUnavailableError, match="expired"):
            deletion.result(60)
    assert s3_store.get("inbox/x").data == b"needed by now"


def test_a_deletion_whose_answer_was_lost_may_still_arrive(lossy, proxy):
    lossy.store.create("inbox/x", b"x")
    proxy.lose_answers("DELETE .*/inbox/x", times=1)
    deadline = lossy.store.now() + timedelta(minutes=1)
    assert lossy.store.delete_before("inbox/x", deadline) is False
    assert lossy.store.stat("inbox/x") is None
    proxy.lose_answers("DELETE .*/inbox/x", times=ALWAYS)
    with pytest.raises(OutcomeUnknownError):
        lossy.store.delete_before("inbox/x", deadline)
