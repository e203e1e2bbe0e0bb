"""Withdrawn records leave nothing behind; everything else stays as it was."""

import contextlib

import pytest

from feature_pipeline.archive import accept, publish, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import FailureInfo
from feature_pipeline.archive.inspection.findings import State
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log, tombstones
from feature_pipeline.archive.logs.erasures import erased, erasures
from feature_pipeline.archive.logs.known_lengths import known_logs
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.maintenance import erase as erase_module
from feature_pipeline.archive.maintenance.erase import (
    OUTSIDE_REACH,
    ErasureReport,
    erase,
    finish_erasing,
    lift,
)
from feature_pipeline.archive.maintenance.redact import redact_lines
from feature_pipeline.archive.query import history
from feature_pipeline.errors import ConflictError, InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline_tests.fixtures.care import CareScene, everything, holds, raw_lines
from feature_pipeline_tests.fixtures.stores import (
    CHANGES,
    DATASET,
    HOOK,
    Death,
    FailingStore,
    copy_of,
    make_outcomes,
)

SECRET = "xyzzy7"


@pytest.fixture
def care(memory_store, tmp_path):
    return CareScene(memory_store, tmp_path, takes_census=True)


def clean(store):
    report = verify(store)
    assert report.findings == ()
    return report


class TestLines:
    def test_other_lines_stay_byte_for_byte(self):
        odd = b'\xef\xbb\xbf { "id" : "keep" , "features":[ 1.0e0 ] }\r\n\r\n  \n{"id":"k\\u0032"}'
        data = odd + b'\n{"features": [], "id": "gone"}\n{"id":"go\\u006ee"}\n'
        assert redact_lines(data, {"gone"}) == odd + b"\n"

    def test_no_line_about_the_record_stays(self):
        lines = [
            b'{"id":"gone","id":"keep"}',
            b'{"step": "working on gone", "n": 1}',
            b'{"id": "keep", "cut off',
            b"Traceback: gone",
            b'{"id":"gone","deep":' + b"[" * 20000 + b"]" * 20000 + b"}",
        ]
        assert redact_lines(b"\n".join(lines), {"gone"}).strip() == b""

    def test_lines_that_only_mention_it_stay(self):
        """What a hook said about another record is that record's."""
        data = b'{"id":"keep","features":[{"aligned_to":"gone"}]}\n'
        data += b'{"id":"keep","deep":' + b"[" * 20000 + b"]" * 20000 + b"}\n"
        assert redact_lines(data, {"gone"}) == data

    def test_no_line_feed_at_the_end(self):
        assert redact_lines(b'{"id":"a"}\n{"id":"b"}', {"b"}) == b'{"id":"a"}\n'
        assert redact_lines(b"", {"b"}) == b""


def test_nothing_of_the_record_is_left(care):
    everything(care)
    batch = care.submit(care.batch_of("b3", ("t1", SECRET, "t2")))
    release = care.release("3")
    care.compute(batch, release, "x")
    care.compute(batch, release, "y", base=1)
    before = {key: care.store.get(key).data for key in holds(care.store, b"")}
    report = erase(care.store, DATASET, [SECRET], "asked for")
    assert report.record_ids == (SECRET,)
    assert (report.batches, report.artifacts, report.problems) == (["b3"], 2, [])
    assert report.to_json()["outside_reach"] == list(OUTSIDE_REACH)
    left = holds(care.store, SECRET.encode())
    assert {key.split("/")[1] for key in left} == {"tombstones", "erasures"}
    # Nothing is overwritten, and nothing of others goes.
    for key, data in before.items():
        if SECRET.encode() not in data and not key.startswith("blobs/"):
            assert care.store.get(key).data == data
    assert clean(care.store).erased > 5


def test_outcomes_of_other_records_are_unchanged(care):
    batch = care.submit(care.batch_of("b1", ("a", SECRET, "c")))
    care.compute(batch, care.release(), "x")
    head = log.head(care.store, DATASET, HOOK, "b1")
    old = read.read_artifact_outcomes(care.store, read.read_manifest(care.store, head.manifest))
    erase(care.store, DATASET, [SECRET], "asked for")
    new_head = log.head(care.store, DATASET, HOOK, "b1")
    assert (new_head.seq, new_head.verdict, new_head.order) == (2, Verdict.CURRENT, head.order)
    manifest = read.read_manifest(care.store, new_head.manifest)
    assert read.read_artifact_outcomes(care.store, manifest) == [
        outcome for outcome in old if outcome.record_id != SECRET
    ]
    assert read.read_raw(care.store, manifest, "features.jsonl") == raw_lines(["a", "c"], "x")
    assert manifest.content_digest == new_head.content_digest != head.content_digest
    assert manifest.counts.records == 2
    assert [r.id for r in log.read_batch(care.store, DATASET, "b1").records] == ["a", "c"]
    entries = log.batch_entries(care.store, DATASET, "b1")
    assert (entries[1].records, entries[1].order) == (2, entries[0].order)
    # It can be computed on: the next artifact is accepted like any other.
    batch = log.read_batch(care.store, DATASET, "b1")
    entry = care.compute(batch, care.release(), "again", base=2)
    assert (entry.seq, entry.verdict) == (3, Verdict.CURRENT)
    clean(care.store)


def test_erasing_twice_and_more(care):
    batch = care.submit(care.batch_of("b1", ("a", "b", "c")))
    care.compute(batch, care.release(), "x")
    erase(care.store, DATASET, ["b"], "one")
    state = {key: care.store.get(key).data for key in holds(care.store, b"")}
    again = erase(care.store, DATASET, ["b"], "one")
    assert (again.batches, again.artifacts, again.deleted) == ([], 0, 0)
    assert {key: care.store.get(key).data for key in holds(care.store, b"")} == state
    erase(care.store, DATASET, ["c"], "two")
    head = log.head(care.store, DATASET, HOOK, "b1")
    manifest = read.read_manifest(care.store, head.manifest)
    assert [o.record_id for o in read.read_artifact_outcomes(care.store, manifest)] == ["a"]
    known = erased(care.store, DATASET)
    first = log.read_log(care.store, DATASET, HOOK, "b1")[0]
    assert known.manifest_now(first.manifest) == head.manifest
    assert known.batch_now(batch.digest) == log.batch_entry(care.store, DATASET, "b1").digest
    clean(care.store)


def test_the_only_record_of_a_batch(care):
    """A deposition is a batch of one: what stays is an empty batch with an empty artifact."""
    batch = care.submit(care.batch_of("b1", (SECRET,)))
    care.compute(batch, care.release(), "x")
    erase(care.store, DATASET, [SECRET], "asked for")
    assert log.read_batch(care.store, DATASET, "b1").records == ()
    head = log.head(care.store, DATASET, HOOK, "b1")
    manifest = read.read_manifest(care.store, head.manifest)
    assert read.read_artifact_outcomes(care.store, manifest) == []
    assert manifest.counts.records == 0
    clean(care.store)


def test_a_file_that_another_record_has_stays(care):
    shared = care.file(b"shared bytes")
    batch = care.batch_of("b1", ("a", SECRET))
    records = tuple(r.model_copy(update={"files": (shared,)}) for r in batch.records)
    batch = type(batch).create(DATASET, "b1", batch.document.source, records)
    care.submit(batch)
    erase(care.store, DATASET, [SECRET], "asked for")
    assert log.blobs.read_blob(care.store, shared.blob) == b"shared bytes"
    clean(care.store)


def test_history_failed_and_carried(care):
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", SECRET)))
    release = care.release()
    first = care.compute(batch, release, "x")
    failed = care.artifact(
        batch,
        release,
        raw={"features.jsonl": raw_lines(["a", SECRET]) + b'{"id": "a", "fea'},
        failure=FailureInfo(kind="exit", reason=f"died at {SECRET}", exit_code=3),
    )
    accept.accept(store, care.completion(failed, base=1))
    carried = tuple(
        Outcome(i, Status.PASSED, ((1.0, 1, "z"),), carried_from=first.manifest)
        for i in ("a", SECRET)
    )
    accept.accept(store, care.completion(care.artifact(batch, release, outcomes=carried), base=2))
    erase(store, DATASET, [SECRET], "asked for")
    entries = log.read_log(store, DATASET, HOOK, "b1")
    assert [e.verdict.value for e in entries[3:]] == ["superseded", "failed", "current"]
    manifests = [read.read_manifest(store, e.manifest) for e in entries[3:]]
    assert manifests[1].failure.exit_code == 3
    assert SECRET not in manifests[1].failure.reason
    assert read.read_raw(store, manifests[1], "features.jsonl") == raw_lines(["a"])
    [outcome] = read.read_artifact_outcomes(store, manifests[2])
    assert outcome.carried_from == entries[3].manifest
    # Time travel reads the successors.
    for as_of in (1, 2, first.accepted_at):
        heads = history.readable_heads_as_of(store, DATASET, HOOK, as_of).whole()
        assert heads["b1"] == entries[3]
    lines = history.readable_history(store, DATASET, HOOK, "b1").lines
    assert [line.is_erased for line in lines] == [True] * 3 + [False] * 3
    assert [line.is_head for line in lines] == [False] * 5 + [True]


def test_single_feature_files(care):
    """`features.json` is about the one record that was computed."""
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", "b")))
    release = care.release()
    first = care.compute(batch, release, "x")
    outcomes = (
        Outcome("a", Status.PASSED, ((1.0, 1, "z"),)),
        Outcome("b", Status.PASSED, ((1.0, 1, "z"),), carried_from=first.manifest),
    )
    artifact = care.artifact(batch, release, outcomes=outcomes, raw={"features.json": b"[{}]"})
    accept.accept(store, care.completion(artifact, base=1))
    erase(store, DATASET, ["b"], "x")
    manifest = read.read_manifest(store, log.head(store, DATASET, HOOK, "b1").manifest)
    assert read.raw_names(manifest) == ["features.json"]
    erase(store, DATASET, ["a"], "x")
    manifest = read.read_manifest(store, log.head(store, DATASET, HOOK, "b1").manifest)
    assert read.raw_names(manifest) == []


def test_what_waits_is_redacted_too(care):
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", SECRET)))
    release = care.release()
    care.compute(batch, release, "x")
    for label in ("waits", "held"):
        publish.enqueue_completion(store, care.run(batch, release, label, base=1, run_id=label))
    [waiting] = [e for e in inbox.waiting(store) if "held" in e.id]
    inbox.quarantine(store, waiting, "for the test")
    new = care.batch_of("b2", ("n", SECRET))
    publish.submit_batch(store, new, care.paths(new))
    report = erase(store, DATASET, [SECRET], "asked for")
    assert report.waiting == 3
    assert all(k.startswith("log/") for k in holds(store, SECRET.encode()))
    assert inbox.quarantined(store) == []
    settled = accept.accept_entries(store, accept.waiting(store))
    assert [type(s).__name__ for s in settled] == ["Accepted"] * 3
    assert [r.id for r in log.read_batch(store, DATASET, "b2").records] == ["n"]
    for entry in log.read_log(store, DATASET, HOOK, "b1")[2:]:
        manifest = read.read_manifest(store, entry.manifest)
        assert [o.record_id for o in read.read_artifact_outcomes(store, manifest)] == ["a"]
    clean(store)


def test_accepted_entries_that_are_still_in_the_inbox(care):
    """The sensor removes an entry some ticks after its acceptance."""
    store = care.store
    batch = care.batch_of("b1", ("a", SECRET))
    publish.submit_batch(store, batch, care.paths(batch))
    accept.accept_entries(store, accept.waiting(store))
    publish.enqueue_completion(store, care.run(batch, care.release(), "x"))
    accept.accept_entries(store, accept.waiting(store))
    erase(store, DATASET, [SECRET], "asked for")
    settled = accept.accept_entries(store, accept.waiting(store))
    assert [(type(s).__name__, s.is_new) for s in settled] == [("Accepted", False)] * 2
    assert accept.quarantined(store) == []
    clean(store)


def test_a_run_that_ends_after_the_erasure(care):
    """Its artifact is about the record, so it is not accepted; erasing again takes care of it."""
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", SECRET)))
    release = care.release()
    care.compute(batch, release, "x")
    erase(store, DATASET, [SECRET], "asked for")
    publish.enqueue_completion(store, care.run(batch, release, "late", base=1))
    [settled] = accept.accept_entries(store, accept.waiting(store))
    assert not isinstance(settled, accept.Accepted)
    assert finish_erasing(store, DATASET).waiting == 1
    [settled] = accept.accept_entries(store, accept.waiting(store))
    assert isinstance(settled, accept.Accepted)
    assert settled.entry.verdict is Verdict.CURRENT
    clean(store)


def test_what_was_made_before_the_erasure_does_not_come_back_after_a_lift(care):
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", SECRET)))
    release = care.release()
    head = care.compute(batch, release, "x")
    late = care.run(batch, release, "late", base=1)
    early = submission_of(care.batch_of("b2", ("n", SECRET)))
    erase(store, DATASET, [SECRET], "asked for")
    tombstones.lift(store, DATASET, [SECRET], "allowed again")
    # A process with the batch in memory, or that stored it again, may not publish it either.
    log.blobs.put_blob(store, batch.encode())
    new = care.batch_of("b2", ("n", SECRET))
    care.submit(care.batch_of("b3", ("n", SECRET)))  # what comes after the lift stores their bytes
    log.blobs.put_blob(store, new.encode())
    publish.enqueue_completion(store, late)
    inbox.enqueue(store, early)
    settled = accept.accept_entries(store, accept.waiting(store))
    assert ["erased" in s.reason for s in settled] == [True, True]
    assert log.head(store, DATASET, HOOK, "b1").base == head.base
    assert log.batch_entries(store, DATASET, "b2") == []
    inbox.discard(store, [entry.id for entry in settled])
    care.submit(new)
    care.compute(new, release, "new")


def test_a_failed_run_of_a_withdrawn_record_is_not_accepted(care):
    """What it left names the record, as what a run that went well says does."""
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", SECRET)))
    failed = care.artifact(
        batch,
        care.release(),
        raw={"features.jsonl": raw_lines(["a", SECRET])},
        failure=FailureInfo(kind="exit", reason=f"died at {SECRET}", exit_code=3),
    )
    completion = care.completion(failed)
    tombstones.withdraw(store, DATASET, [SECRET], "asked for")
    with pytest.raises(InvalidInputError, match="withdrawn"):
        accept.accept(store, completion)
    publish.enqueue_completion(store, completion)
    assert finish_erasing(store, DATASET).waiting == 1
    [settled] = accept.accept_entries(store, accept.waiting(store))
    assert settled.entry.verdict is Verdict.FAILED
    assert all(k.startswith("log/") for k in holds(store, SECRET.encode()) if "inbox" not in k)


def test_an_artifact_accepted_in_spite_of_the_tombstone_is_detected(care, monkeypatch):
    """An acceptor that read the tombstones before the withdrawal may still append."""
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", SECRET)))
    release = care.release()
    care.compute(batch, release, "x")
    late = care.run(batch, release, "late", base=1)
    round_before = accept._Round(store)
    assert round_before.withdrawn(DATASET) == set()
    erase(store, DATASET, [SECRET], "asked for")
    monkeypatch.setattr(accept, "_known_batch", lambda *_: batch)
    entry, _ = accept._accept(round_before, late, store.now())
    assert entry.verdict is Verdict.CURRENT
    findings = verify(store).findings
    assert {finding.state for finding in findings} == {State.NOT_ERASED}
    assert finish_erasing(store, DATASET).artifacts == 1
    clean(store)


def test_a_late_run_of_a_batch_erased_twice_and_lifted(care):
    """It is redacted to what the batch is now, whatever is withdrawn at that time."""
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", "b", "c")))
    release = care.release()
    late = care.run(batch, release, "late")
    erase(store, DATASET, ["b"], "one")
    erase(store, DATASET, ["c"], "two")
    tombstones.lift(store, DATASET, ["b"], "allowed again")
    publish.enqueue_completion(store, late)
    new = care.submit(care.batch_of("b2", ("b", "d")))
    care.compute(new, release, "new")
    erase(store, DATASET, ["d"], "three")
    [settled] = accept.accept_entries(store, accept.waiting(store))
    manifest = read.read_manifest(store, settled.entry.manifest)
    assert [o.record_id for o in read.read_artifact_outcomes(store, manifest)] == ["a"]
    assert read.read_raw(store, manifest, "features.jsonl") == raw_lines(["a"], "late")
    head = log.head(store, DATASET, HOOK, "b2")
    manifest = read.read_manifest(store, head.manifest)
    assert [o.record_id for o in read.read_artifact_outcomes(store, manifest)] == ["b"]
    clean(store)


def test_resubmission_needs_a_lift(care):
    store = care.store
    batch = care.submit(care.batch_of("b1", ("a", SECRET)))
    care.compute(batch, care.release(), "x")
    erase(store, DATASET, [SECRET], "asked for")
    stored = holds(store, b"")
    new = care.batch_of("b2", (SECRET,))
    for again in (new, batch):
        with pytest.raises(InvalidInputError, match="withdrawn"):
            publish.submit_batch(store, again, care.paths(again))
    assert holds(store, b"") == stored
    with pytest.raises(InvalidInputError, match="not withdrawn"):
        tombstones.lift(store, DATASET, ["a"], "mistake")
    tombstones.lift(store, DATASET, [SECRET], "allowed again")
    # A batch never changes: not in the batch that it was erased from, and not in silence.
    with pytest.raises(ConflictError, match=r"erased since; .* under another key"):
        publish.submit_batch(store, batch, care.paths(batch))
    inbox.enqueue(store, submission_of(batch))
    [refused] = accept.accept_entries(store, accept.waiting(store))
    assert "erased since" in refused.reason
    inbox.discard(store, [refused.id])
    assert not {key for key in holds(store, SECRET.encode()) if not key.startswith("log/")}
    care.submit(new)
    care.compute(new, care.release(), "new")
    assert clean(store).erased
    # Its bytes are the same as those erased, and they are needed again.
    assert log.blobs.read_blob(store, Digest.of(f"cif {SECRET}".encode()))
    erase(store, DATASET, [SECRET], "again")
    assert all(k.startswith("log/") for k in holds(store, SECRET.encode()))
    clean(store)


class TestStoppedAndLifted:
    """What an erasure began is brought to its end, whenever it stopped."""

    def ground(self, care):
        release = care.release()
        batch = care.submit(care.batch_of("b1", ("a", SECRET, "c")))
        care.compute(batch, release, "x")
        care.compute(batch, release, "y", base=1)
        publish.enqueue_completion(care.store, care.run(batch, release, "waits", base=2))

    def every_death(self, care):
        """An archive for every change of an erasure: it died before it."""
        self.ground(care)
        for change in range(1, 100, 2):
            died = CareScene(copy_of(care.store), care.folder)
            store = FailingStore(died.store, change, only=CHANGES)
            with contextlib.suppress(Death):
                erase(store, DATASET, [SECRET], "asked for")
            if len(store.calls) < change:
                assert change > 20, change
                return
            died.store.delete(layout.GC_LEASE)  # instead of waiting for its lease to end
            yield died

    def is_consistent(self, care):
        """The current artifact is about the records that the batch has, and no others."""
        ids = [record.id for record in log.read_batch(care.store, DATASET, "b1").records]
        head = log.head(care.store, DATASET, HOOK, "b1")
        manifest = read.read_manifest(care.store, head.manifest)
        outcomes = read.read_artifact_outcomes(care.store, manifest)
        return [outcome.record_id for outcome in outcomes] == ids

    def test_a_lift_finishes_it(self, care):
        for died in self.every_death(care):
            if SECRET not in tombstones.withdrawn(died.store, DATASET):
                with pytest.raises(InvalidInputError, match="not withdrawn"):
                    lift(died.store, DATASET, [SECRET], "allowed again")
                assert clean(died.store)
                continue
            report = lift(died.store, DATASET, [SECRET], "allowed again")
            assert report.lifted == (SECRET,)
            assert self.is_consistent(died)
            assert all(key.startswith("log/") for key in holds(died.store, SECRET.encode()))
            clean(died.store)
            died.submit(died.batch_of("b2", (SECRET,)))
            clean(died.store)

    def test_one_that_was_lifted_all_the_same_is_named_and_finished(self, care):
        """As an earlier version of the command left it."""
        refusals = 0
        for died in self.every_death(care):
            if SECRET not in tombstones.withdrawn(died.store, DATASET):
                continue
            tombstones.lift(died.store, DATASET, [SECRET], "allowed again")
            report = verify(died.store)
            if not self.is_consistent(died):
                refusals += 1
                assert State.NOT_ERASED in {finding.state for finding in report.findings}
            finish_erasing(died.store, DATASET)
            assert self.is_consistent(died)
            clean(died.store)
        assert refusals > 3

    def test_nothing_is_lifted_while_it_cannot_be_finished(self, care):
        self.ground(care)
        tombstones.withdraw(care.store, DATASET, [SECRET], "asked for")
        head = log.head(care.store, DATASET, HOOK, "b1")
        rows = log.layout.blob(read.read_manifest(care.store, head.manifest).blobs["rows"].digest)
        stored = care.store.get(rows)
        care.store.replace(rows, b"damaged", stored.info.etag)
        report = lift(care.store, DATASET, [SECRET], "allowed again")
        assert report.lifted == ()
        assert report.problems
        assert tombstones.withdrawn(care.store, DATASET) == {SECRET}
        care.store.replace(rows, stored.data, care.store.stat(rows).etag)
        assert lift(care.store, DATASET, [SECRET], "allowed again").lifted == (SECRET,)
        clean(care.store)

    def test_records_that_come_back_by_a_second_erasure(self, care):
        """Lifted after a death, then another record is erased: the first stays out."""
        self.ground(care)
        store = care.store
        tombstones.withdraw(store, DATASET, [SECRET], "asked for")
        ids = frozenset({SECRET})
        report = ErasureReport(DATASET, ())
        known = known_logs(store)
        pass_ = erase_module._Pass(store, DATASET, ids, report, print, set(), known)
        pass_._redact_batches(pass_._batch_logs())  # and it dies
        tombstones.lift(store, DATASET, [SECRET], "allowed again")
        erase(store, DATASET, ["c"], "asked for")
        assert [r.id for r in log.read_batch(store, DATASET, "b1").records] == ["a"]
        assert self.is_consistent(care)
        clean(store)


def submission_of(batch):
    return publish.Submission(
        dataset=batch.dataset,
        batch=batch.key,
        digest=batch.digest,
        source=batch.document.source,
    )


def test_what_others_left_in_the_archive_is_named_and_the_rest_is_erased(care):
    store = care.store
    release = care.release()
    for key in ("b1", "b2", "b3"):
        care.compute(care.submit(care.batch_of(key, (f"a{key}", SECRET))), release, "x")
    junk = {
        f"log/batches/{DATASET}/b1/notes.txt": b"by hand",
        f"log/features/{DATASET}/{HOOK}/b2/0000000002": b"{cut off",
        "inbox/odd name": b"?",
        f"quarantine/{'q' * 8}": b"?",
    }
    for key, data in junk.items():
        store.create(key, data)
    report = erase(store, DATASET, [SECRET], "asked for")
    assert report.batches == ["b2", "b3"]
    assert len(report.problems) == 4
    problems = " ".join(report.problems)
    for key in ("b1/notes.txt", "b2/0000000002", "inbox/odd name", "quarantine/qqqqqqqq"):
        assert key in problems
    head = log.head(store, DATASET, HOOK, "b3")
    assert raw_lines(["ab3"], "x") == read.read_raw(
        store, read.read_manifest(store, head.manifest), "features.jsonl"
    )
    for key in junk:
        store.delete(key)
    report = finish_erasing(store, DATASET)
    assert report.problems == []
    assert all(key.startswith("log/") for key in holds(store, SECRET.encode()))
    clean(store)


def test_damaged_artifacts_are_named_and_the_rest_is_erased(care):
    store = care.store
    release = care.release()
    for key in ("b1", "b2"):
        care.compute(care.submit(care.batch_of(key, (f"a{key}", SECRET))), release, "x")
    head = log.head(store, DATASET, HOOK, "b1")
    rows = read.read_manifest(store, head.manifest).blobs["rows"]
    info = store.stat(log.layout.blob(rows.digest))
    store.replace(info.key, b"damaged", info.etag)
    report = erase(store, DATASET, [SECRET], "asked for")
    assert len(report.problems) == 1
    assert "b1" in report.problems[0]
    assert report.artifacts == 1
    states = {finding.state for finding in verify(store).findings}
    assert states == {State.CORRUPT, State.NOT_ERASED}


def test_outcomes_of_every_kind(care):
    batch = care.submit(care.batch_of("b1", ("a", "b", "c", "d")))
    artifact = care.artifact(
        batch, care.release(), outcomes=make_outcomes(batch), raw={"features.jsonl": b""}
    )
    accept.accept(care.store, care.completion(artifact))
    for gone in ("a", "b", "c", "d"):
        erase(care.store, DATASET, [gone], "x")
        clean(care.store)
    assert len(erasures(care.store, DATASET)) == 4


def test_unknown_ids(care):
    report = erase(care.store, DATASET, ["nobody"], "in advance")
    assert (report.record_ids, report.batches) == ((), [])
    batch = care.batch_of("b1", ("nobody",))
    with pytest.raises(InvalidInputError, match="withdrawn"):
        publish.submit_batch(care.store, batch, care.paths(batch))
    with pytest.raises(InvalidInputError):
        erase(care.store, DATASET, [], "nothing")


def test_records_erased_from_a_waiting_batch_are_named(care):
    """Its log has never had the records: the batch that was submitted is not another one."""
    scene = care
    scene.release()
    other = scene.batch_of("b1", ("r3",))
    batch = scene.batch_of("b1", ("r1", "r2"))
    publish.submit_batch(scene.store, batch, scene.paths(batch))
    erase(scene.store, DATASET, ["r1"], "asked for")
    lift(scene.store, DATASET, ["r1"], "allowed again")
    accept.accept_entries(scene.store, accept.waiting(scene.store))
    with pytest.raises(ConflictError, match="from which records were erased since"):
        publish.submit_batch(scene.store, batch, scene.paths(batch))
    with pytest.raises(ConflictError, match="with other records"):
        publish.submit_batch(scene.store, other, scene.paths(other))
