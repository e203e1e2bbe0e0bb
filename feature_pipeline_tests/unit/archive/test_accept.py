import itertools
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from feature_pipeline.archive import accept, budget, publish, read
from feature_pipeline.archive.accept import Accepted, Quarantined, Waiting
from feature_pipeline.archive.format import content_digests, layout
from feature_pipeline.archive.format.manifest import ROWS, FailureInfo
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log, tombstones
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.publish import CompletionStatus, publish_artifact
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline_tests.fixtures.stores import (
    DATASET,
    HOOK,
    FailingStore,
    make_batch,
    make_outcomes,
    make_release,
)

FAILED = FailureInfo(kind="exit", reason="exit status 1", exit_code=1)


def test_outcomes_can_be_read(scene):
    batch = scene.submit(make_batch())
    artifact = scene.artifact(batch, scene.release())
    entry = accept.accept(scene.store, scene.completion(artifact))
    assert (entry.seq, entry.verdict) == (1, Verdict.CURRENT)
    assert log.head(scene.store, DATASET, HOOK, "b1") == entry
    manifest = read.read_manifest(scene.store, entry.manifest)
    assert manifest.content_digest == entry.content_digest
    assert repr(read.read_artifact_outcomes(scene.store, manifest)) == repr(list(artifact.outcomes))
    assert read.read_raw(scene.store, manifest, "features.jsonl") == b"run-1 a"
    assert read.raw_names(manifest) == ["errors.jsonl", "features.jsonl"]
    assert read.read_log_text(scene.store, manifest) == "log of run-1"


def test_accepting_twice_is_accepting_once(scene):
    completion = scene.completion(scene.artifact(scene.submit(make_batch()), scene.release()))
    first = accept.accept(scene.store, completion)
    assert accept.accept(scene.store, completion) == first
    assert log.read_log(scene.store, DATASET, HOOK, "b1") == [first]


def test_a_second_answer_to_one_question_is_kept_too(scene):
    batch, release = scene.submit(make_batch()), scene.release()
    entries = [
        accept.accept(
            scene.store, scene.completion(scene.artifact(batch, release, label=label, run_id="r"))
        )
        for label in "ab"
    ]
    assert [entry.seq for entry in entries] == [1, 2]
    assert entries[0].manifest != entries[1].manifest


def test_an_identical_rerun_has_the_same_content(scene):
    batch, release = scene.submit(make_batch()), scene.release()
    entries = [
        accept.accept(scene.store, scene.completion(scene.artifact(batch, release)))
        for _ in range(2)
    ]
    assert [entry.verdict for entry in entries] == [Verdict.CURRENT] * 2  # the later one stands
    assert entries[0].content_digest == entries[1].content_digest
    assert entries[0].manifest != entries[1].manifest


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_the_head_is_the_latest_release_and_base_whatever_the_order(scene, order):
    """Completions arrive in any order: a delayed old one never replaces a newer one."""
    batch = scene.submit(make_batch())
    releases = [scene.release("1"), scene.release("2")]
    for _ in range(3):  # what they were planned upon
        accept.accept(
            scene.store, scene.completion(scene.artifact(batch, releases[0], failure=FAILED))
        )
    asked = [(releases[0], 0), (releases[0], 3), (releases[1], 0), (releases[1], 2)]
    completions = [
        scene.completion(scene.artifact(batch, release, label=str(n)), base=base)
        for n, (release, base) in enumerate(asked)
    ]
    for n in order:
        accept.accept(scene.store, completions[n])
    head = log.head(scene.store, DATASET, HOOK, "b1")
    assert head.manifest == completions[3].manifest
    assert log.heads(scene.store, DATASET, HOOK) == {"b1": head}
    assert len(log.read_log(scene.store, DATASET, HOOK, "b1")) == 7


def test_failed_runs_are_history(scene):
    batch, release = scene.submit(make_batch()), scene.release()
    good = accept.accept(scene.store, scene.completion(scene.artifact(batch, release)))
    failed = scene.artifact(batch, release, failure=FAILED)
    entry = accept.accept(scene.store, scene.completion(failed, base=1))
    assert (entry.verdict, entry.content_digest) == (Verdict.FAILED, None)
    assert log.head(scene.store, DATASET, HOOK, "b1") == good
    manifest = read.read_manifest(scene.store, entry.manifest)
    assert read.read_raw(scene.store, manifest, "features.jsonl") == b"run-2 a"
    assert read.read_artifact_outcomes(scene.store, manifest) == []
    assert read.read_rows(scene.store, manifest).num_rows == 0


def test_a_batch_that_only_failed_has_no_head(scene):
    batch = scene.submit(make_batch())
    failed = scene.artifact(batch, scene.release(), failure=FAILED)
    accept.accept(scene.store, scene.completion(failed))
    assert log.head(scene.store, DATASET, HOOK, "b1") is None
    assert log.heads(scene.store, DATASET, HOOK) == {}


@pytest.mark.parametrize("failure", [None, FAILED])
def test_results_of_cancelled_runs_are_history(scene, failure):
    batch = scene.submit(make_batch())
    artifact = scene.artifact(batch, scene.release(), failure=failure)
    completion = scene.completion(artifact, status=CompletionStatus.CANCELLED)
    entry = accept.accept(scene.store, completion)
    assert entry.verdict is (Verdict.FAILED if failure else Verdict.SUPERSEDED)
    assert log.head(scene.store, DATASET, HOOK, "b1") is None


class TestWhatIsNotAccepted:
    @pytest.fixture
    def batch(self, scene):
        return scene.submit(make_batch())

    def test_a_batch_that_is_not_known_yet(self, scene):
        completion = scene.completion(scene.artifact(make_batch(), scene.release()))
        with pytest.raises(NotFoundError, match="not known yet"):
            accept.accept(scene.store, completion)

    def test_a_release_that_is_not_known_yet(self, scene, batch):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        later = completion.model_copy(update={"release_seq": 2})
        with pytest.raises(NotFoundError, match="has no release 2 yet"):
            accept.accept(scene.store, later)

    def test_a_release_other_than_the_stated_one(self, scene, batch):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        other = completion.model_copy(update={"release_digest": make_release("9").digest})
        with pytest.raises(InvalidInputError, match="release 1 of"):
            accept.accept(scene.store, other)

    def test_another_batch_of_the_same_key(self, scene, batch):
        other = make_batch(ids=("r1", "x"))
        completion = scene.completion(scene.artifact(other, scene.release()))
        with pytest.raises(InvalidInputError, match="it was made from"):
            accept.accept(scene.store, completion)

    @pytest.mark.parametrize(
        "changed", [{"hook": "other"}, {"dataset": "other"}, {"batch": "b2"}, {"status": "failed"}]
    )
    def test_names_that_differ_from_the_manifest(self, scene, batch, changed):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        odd = type(completion).model_validate(completion.model_dump() | changed)
        with pytest.raises((InvalidInputError, NotFoundError)):
            accept.accept(scene.store, odd)

    def test_a_missing_manifest(self, scene, batch):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        scene.store.delete(f"blobs/sha256/{completion.manifest.hex[:2]}/{completion.manifest.hex}")
        with pytest.raises(NotFoundError):
            accept.accept(scene.store, completion)

    @pytest.mark.parametrize("name", ["rows", "outcomes", "log", "raw/features.jsonl"])
    @pytest.mark.parametrize("damage", [None, "other bytes", "other size"])
    def test_missing_or_damaged_blobs(self, scene, batch, name, damage):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        ref = read.read_manifest(scene.store, completion.manifest).blobs[name]
        key = f"blobs/sha256/{ref.digest.hex[:2]}/{ref.digest.hex}"
        if damage is None:
            scene.store.delete(key)
        else:
            scene.store._put(key, b"x" * (ref.size + (damage == "other size")))
        with pytest.raises((NotFoundError, CorruptDataError)):
            accept.accept(scene.store, completion)
        assert log.read_log(scene.store, DATASET, HOOK, "b1") == []

    def test_digests_that_its_tables_do_not_have(self, scene, batch):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        odd = self._with_manifest(scene, completion, content_digest=Digest.of(b"other"))
        with pytest.raises(InvalidInputError, match="its tables give"):
            accept.accept(scene.store, odd)

    def test_outcomes_of_other_records(self, scene, batch):
        other = make_batch("b1", ("r1", "r2", "r3", "x"))
        published = publish_artifact(scene.store, scene.artifact(other, scene.release()))
        completion = scene.completion(scene.artifact(batch, scene.release()))
        odd = self._with_manifest(scene, completion, **self._tables(published.manifest))
        with pytest.raises(InvalidInputError, match=r"r4, x"):
            accept.accept(scene.store, odd)

    def test_more_rows_than_the_cardinality_allows(self, scene, batch):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        odd = self._with_manifest(scene, completion, cardinality="one")
        with pytest.raises(InvalidInputError, match="cardinality is one"):
            accept.accept(scene.store, odd)

    def test_two_columns_of_one_name(self, scene, batch):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        manifest = read.read_manifest(scene.store, completion.manifest)
        columns = (*manifest.columns, manifest.columns[0])
        with pytest.raises(InvalidInputError, match="both use the name"):
            accept.accept(scene.store, self._with_manifest(scene, completion, columns=columns))

    def test_null_in_a_required_column(self, scene, batch):
        outcomes = tuple(
            Outcome(o.record_id, Status.PASSED, ((1.0, None, "x"),)) for o in make_outcomes(batch)
        )
        completion = scene.completion(scene.artifact(batch, scene.release(), outcomes=outcomes))
        with pytest.raises(InvalidInputError, match=r"required column .* is null"):
            accept.accept(scene.store, completion)

    def test_a_withdrawn_record(self, scene, batch):
        completion = scene.completion(scene.artifact(batch, scene.release()))
        tombstones.withdraw(scene.store, DATASET, ["r2", "other"], "asked for")
        with pytest.raises(InvalidInputError, match="'r2' of dataset 'structures' is withdrawn"):
            accept.accept(scene.store, completion)
        tombstones.lift(scene.store, DATASET, ["r2"], "allowed")
        assert accept.accept(scene.store, completion).verdict is Verdict.CURRENT

    def _tables(self, manifest):
        return {
            "blobs": dict(manifest.blobs),
            "content_digest": manifest.content_digest,
            "rows_digest": manifest.rows_digest,
            "counts": manifest.counts,
        }

    def _with_manifest(self, scene, completion, **changes):
        manifest = read.read_manifest(scene.store, completion.manifest)
        changed = manifest.model_copy(update=changes)
        ref = accept.log.blobs.put_blob(scene.store, changed.encode())
        return completion.model_copy(update={"manifest": ref.digest})


class TestBatches:
    def test_submitting_and_accepting(self, scene, tmp_path):
        path = tmp_path / "f.cif"
        path.write_bytes(b"data")
        batch = make_batch()
        submission = publish.submit_batch(scene.store, batch, {})
        entry = accept.accept_batch(scene.store, submission)
        assert (entry.seq, entry.digest, entry.records) == (1, batch.digest, 4)
        assert entry.submitted_at == submission.submitted_at
        assert log.read_batch(scene.store, DATASET, "b1") == batch
        assert log.batches(scene.store, DATASET) == {"b1": entry}
        assert log.datasets(scene.store) == [DATASET]

    def test_a_batch_of_another_writer_keeps_the_digest_of_its_bytes(self, scene):
        """Other writers space JSON as they like; what was submitted is what is logged and read."""
        data = json.dumps(json.loads(make_batch().encode()), indent=1).encode()
        digest = log.blobs.put_blob(scene.store, data).digest
        assert digest != make_batch().digest
        submission = inbox.enqueue(
            scene.store,
            publish.Submission(
                dataset=DATASET, batch="b1", digest=digest, source=make_batch().document.source
            ),
        )
        assert accept.accept_batch(scene.store, submission).digest == digest
        batch = log.read_batch(scene.store, DATASET, "b1")
        assert (batch.digest, batch.records) == (digest, make_batch().records)
        accept.accept(scene.store, scene.completion(scene.artifact(batch, scene.release())))
        assert verify(scene.store).is_clean
        [again] = accept.accept_entries(scene.store, accept.waiting(scene.store)[:1])
        assert isinstance(again, Accepted)

    def test_submitting_again_is_the_same_submission(self, scene):
        first = publish.submit_batch(scene.store, make_batch(), {})
        assert publish.submit_batch(scene.store, make_batch(), {}) == first
        accept.accept_batch(scene.store, first)
        inbox.remove(scene.store, first.inbox_id)
        assert publish.submit_batch(scene.store, make_batch(), {}) == first
        assert inbox.waiting(scene.store) == []

    def test_a_batch_never_changes(self, scene):
        scene.submit(make_batch())
        with pytest.raises(ConflictError, match="has a batch 'b1' already"):
            publish.submit_batch(scene.store, make_batch(ids=("x",)), {})

    def test_two_batches_of_one_key_in_the_inbox(self, scene):
        submissions = [
            publish.submit_batch(scene.store, make_batch(ids=ids), {}) for ids in (("x",), ("y",))
        ]
        accept.accept_batch(scene.store, submissions[0])
        with pytest.raises(ConflictError):
            accept.accept_batch(scene.store, submissions[1])

    def test_a_withdrawn_record_is_not_submitted_again(self, scene):
        tombstones.withdraw(scene.store, DATASET, ["r3"], "asked for")
        with pytest.raises(InvalidInputError, match="withdrawn"):
            scene.submit(make_batch())

    def test_full_datasets(self, scene, monkeypatch):
        monkeypatch.setattr(budget, "MAX_BATCHES", 2)
        for key in ("b1", "b2"):
            scene.submit(make_batch(key))
        scene.submit(make_batch("b2"))
        with pytest.raises(InvalidInputError, match="has 2 batches"):
            scene.submit(make_batch("b3"))

    def test_batches_are_not_listed_for_each_submission(self, scene):
        store = FailingStore(scene.store, only=frozenset({"list_folders"}))
        for number in range(30):
            publish.submit_batch(store, make_batch(f"b{number}"), {})
        assert len(store.calls) == 1

    def test_batches_of_other_processes_count_as_the_room_becomes_less(self, scene, monkeypatch):
        monkeypatch.setattr(budget, "MAX_BATCHES", 100)

        def submit(first, last):
            for number in range(first, last):
                scene.submit(make_batch(f"ours-{number}"))

        submit(0, 10)
        for number in range(90):
            key = layout.entry(layout.batch_log(DATASET, f"theirs-{number}"), layout.FIRST_SEQ)
            scene.store.create(key, b"")
        with pytest.raises(InvalidInputError, match=r"has 10[0-6] batches; 1 more would exceed"):
            submit(10, 20)


class TestSettling:
    @pytest.fixture
    def waiting(self, scene):
        """A batch and a run of it, both in the inbox."""
        publish.submit_batch(scene.store, make_batch(), {})
        completion = scene.completion(scene.artifact(make_batch(), scene.release()))
        publish.enqueue_completion(scene.store, completion)
        return accept.waiting(scene.store)

    def test_batches_come_first(self, scene, waiting):
        assert [type(e.content).__name__ for e in waiting] == ["Submission", "Completion"]
        settled = accept.accept_entries(scene.store, waiting[::-1])
        assert [type(s.entry).__name__ for s in settled] == ["FeatureEntry", "BatchEntry"]
        assert all(s.is_new for s in settled)
        assert accept.waiting(scene.store) == waiting

    def test_again(self, scene, waiting):
        accept.accept_entries(scene.store, waiting)
        again = accept.accept_entries(scene.store, waiting)
        assert [s.is_new for s in again] == [False, False]
        assert len(log.read_log(scene.store, DATASET, HOOK, "b1")) == 1

    def test_a_completion_before_its_batch_waits_an_hour(self, scene, waiting):
        run = waiting[1]
        assert isinstance(accept.accept_entries(scene.store, [run])[0], Waiting)
        old = replace(run, modified_at=run.modified_at - timedelta(hours=2))
        settled = accept.accept_entries(scene.store, [old])[0]
        assert isinstance(settled, Quarantined)
        assert "not known yet" in settled.reason
        [quarantined] = accept.quarantined(scene.store)
        assert (quarantined.id, quarantined.reason) == (run.id, settled.reason)
        assert accept.waiting(scene.store) == waiting[:1]

    def test_what_was_quarantined_can_wait_again(self, scene, waiting):
        run = waiting[1]
        accept.quarantine(scene.store, run, "for a test")
        accept.requeue(scene.store, [run.id])
        assert accept.quarantined(scene.store) == []
        assert [e.content for e in accept.waiting(scene.store)] == [e.content for e in waiting]

    def test_what_breaks_the_contract_is_quarantined_at_once(self, scene, waiting):
        tombstones.withdraw(scene.store, DATASET, ["r1"], "asked for")
        settled = accept.accept_entries(scene.store, waiting)
        assert isinstance(settled[0], Quarantined)
        assert isinstance(settled[1], Waiting)  # its batch will never come

    def test_a_store_that_does_not_answer_quarantines_nothing(self, scene, waiting):
        old = [replace(e, modified_at=e.modified_at - timedelta(days=2)) for e in waiting]
        for entry in old:
            store = FailingStore(scene.store, 1, error=lambda: StoreUnavailableError("503"))
            assert accept.accept_entries(store, [entry])[0] == Waiting("503")
        assert accept.quarantined(scene.store) == []
        assert len(accept.waiting(scene.store)) == 2

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '"x"', "{}", '{"spec_version": 1, "id": 5}', "\x00", "null"]
    )
    def test_entries_that_are_none_are_quarantined_as_they_were(self, scene, text):
        scene.store.create("inbox/run.odd", text.encode())
        [entry] = accept.waiting(scene.store)
        assert entry.content is None
        assert isinstance(accept.accept_entries(scene.store, [entry])[0], Quarantined)
        assert accept.waiting(scene.store) == []
        assert accept.quarantined(scene.store)[0].entry == text

    def test_unusual_names(self, scene):
        scene.store.create("inbox/a folder/ö", b"{}")
        [entry] = accept.waiting(scene.store)
        settled = accept.accept_entries(scene.store, [entry])[0]
        assert isinstance(settled, Quarantined)
        assert accept.waiting(scene.store) == []
        accept.requeue(scene.store, [settled.id])
        assert [e.id for e in accept.waiting(scene.store)] == ["a folder/ö"]

    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    @pytest.mark.parametrize("at_once", [True, False])
    def test_of_equals_the_one_published_later_is_current(self, scene, order, at_once):
        """However they are accepted: together, or one by one by processes that restart."""
        batch, release = scene.submit(make_batch()), scene.release()
        published = [
            publish.enqueue_completion(
                scene.store, scene.completion(scene.artifact(batch, release, label=label))
            )
            for label in "ab"
        ]
        waiting = {e.content.id: e for e in accept.waiting(scene.store)}
        entries = [waiting[published[n].id] for n in order]
        if at_once:
            accept.accept_entries(scene.store, entries)
        else:
            for entry in entries:
                accept.accept_entries(scene.store, [entry])[0]
        logged = log.read_log(scene.store, DATASET, HOOK, "b1")
        head = log.last_current(logged)
        assert head.manifest == published[1].manifest
        assert head.published_at == published[1].published_at
        if at_once:
            assert [e.verdict for e in logged] == [Verdict.CURRENT, Verdict.CURRENT]
        assert len(logged) == 2

    def test_without_published_at_it_counts_from_its_inbox_entry(self, scene):
        """As left by code that knew version 1."""
        batch, release = scene.submit(make_batch()), scene.release()
        old = scene.completion(scene.artifact(batch, release, label="old"))
        old = old.model_copy(update={"spec_version": 1})
        scene.store.create(layout.inbox(old.inbox_id), old.encode())
        assert b"published_at" not in old.encode()
        new = publish.enqueue_completion(
            scene.store, scene.completion(scene.artifact(batch, release, label="new"))
        )
        waiting = {e.content.id: e for e in accept.waiting(scene.store)}
        for completion in (new, old):
            accept.accept_entries(scene.store, [waiting[completion.id]])[0]
        logged = log.read_log(scene.store, DATASET, HOOK, "b1")
        assert [e.verdict for e in logged] == [Verdict.CURRENT, Verdict.SUPERSEDED]
        assert logged[1].published_at == waiting[old.id].modified_at

    def test_an_older_one_that_is_tried_again_stays_older(self, scene):
        batch, release = scene.submit(make_batch()), scene.release()
        old = scene.completion(scene.artifact(batch, release, label="old"))
        old = old.model_copy(update={"spec_version": 1})
        scene.store.create(layout.inbox(old.inbox_id), old.encode())
        [entry] = accept.waiting(scene.store)
        accept.quarantine(scene.store, entry, "for the test")
        new = scene.completion(scene.artifact(batch, release, label="new"))
        accept.accept(scene.store, publish.enqueue_completion(scene.store, new))
        accept.requeue(scene.store, [entry.id])
        for waiting in accept.waiting(scene.store):
            accept.accept_entries(scene.store, [waiting])[0]
        assert log.head(scene.store, DATASET, HOOK, "b1").manifest == new.manifest

    def test_an_entry_of_later_code_waits(self, scene, waiting):
        document = json.loads(waiting[1].content.encode()) | {"spec_version": 3, "new": True}
        scene.store.create("inbox/run.later", json.dumps(document).encode())
        entry = next(e for e in accept.waiting(scene.store) if e.id == "run.later")
        settled = accept.accept_entries(scene.store, [entry])[0]
        assert isinstance(settled, Waiting)
        assert "upgrade" in settled.reason

    def test_rows_that_no_column_can_store_affect_nothing_else(self, scene, monkeypatch):
        """Every writer of blobs may write any Parquet."""
        release = scene.release()
        for key in ("b1", "b2"):
            artifact = scene.artifact(scene.submit(make_batch(key)), release)
            publish.enqueue_completion(scene.store, scene.completion(artifact))
        original = content_digests.Content.of
        broken = iter([ValueError("badly formed hexadecimal UUID string")])

        def of(columns, outcomes):
            if (error := next(broken, None)) is not None:
                raise error
            return original(columns, outcomes)

        monkeypatch.setattr(content_digests.Content, "of", of)
        settled = accept.accept_entries(scene.store, accept.waiting(scene.store))
        [refused] = [result for result in settled if isinstance(result, Quarantined)]
        assert "cannot be decoded: badly formed" in refused.reason
        assert sum(isinstance(result, Accepted) for result in settled) == len(settled) - 1

    def test_an_inbox_object_that_is_damaged_stops_nothing_else(self, scene, waiting, monkeypatch):
        original = scene.store.get

        def get(key, size=None):
            if key == f"inbox/{waiting[0].id}":
                raise CorruptDataError(f"{key}: bytes are not what the checksum says")
            return original(key, size)

        monkeypatch.setattr(scene.store, "get", get)
        entries = accept.waiting(scene.store)
        assert [entry.id for entry in entries] == [entry.id for entry in waiting]
        assert "checksum" in entries[0].problem
        assert isinstance(accept.accept_entries(scene.store, [entries[0]])[0], Waiting)

    def test_some_of_them(self, scene, waiting):
        infos = inbox.list_waiting(scene.store)
        accept.remove(scene.store, waiting[0].id)
        assert inbox.read_waiting(scene.store, infos[:2]) == waiting[1:2]

    def test_removed_entries_do_not_wait(self, scene, waiting):
        for entry in waiting:
            accept.remove(scene.store, entry.id)
            accept.remove(scene.store, entry.id)
        assert accept.waiting(scene.store) == []
        assert isinstance(accept.accept_entries(scene.store, [waiting[0]])[0], Accepted)


def test_publishing_equal_artifacts_stores_them_once(scene):
    batch, release = scene.submit(make_batch()), scene.release()
    artifact = scene.artifact(batch, release)
    first = publish_artifact(scene.store, artifact)
    again = publish_artifact(scene.store, artifact)
    assert first.manifest_digest == again.manifest_digest
    assert (again.bytes_stored, again.restored) == (0, ())
    stored = sum(info.size for info in scene.store.list_objects("blobs/"))
    assert first.bytes_stored == stored - len(batch.encode())


def test_publishing_again_restores_damaged_blobs(scene):
    artifact = scene.artifact(scene.submit(make_batch()), scene.release())
    ref = publish_artifact(scene.store, artifact).manifest.blobs[ROWS]
    scene.store._put(f"blobs/sha256/{ref.digest.hex[:2]}/{ref.digest.hex}", b"damaged")
    assert publish_artifact(scene.store, artifact).restored == (ref.digest,)


def test_artifacts_have_one_outcome_for_each_record(scene):
    batch, release = scene.submit(make_batch()), scene.release()
    outcomes = make_outcomes(batch)
    before = len(list(scene.store.list_objects("")))
    for odd in (outcomes[:-1], outcomes[::-1], (*outcomes, outcomes[0])):
        with pytest.raises(InvalidInputError, match="not one per record"):
            publish_artifact(scene.store, scene.artifact(batch, release, outcomes=odd))
    with pytest.raises(InvalidInputError):
        publish_artifact(
            scene.store, scene.artifact(batch, release, outcomes=outcomes, failure=FAILED)
        )
    assert len(list(scene.store.list_objects(""))) == before
