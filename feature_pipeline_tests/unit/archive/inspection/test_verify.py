"""Whatever is damaged is named, by what it is, where it is and who needs it."""

import dataclasses

import pytest

from feature_pipeline.archive import accept, publish
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.findings import ObjectKind, Scope, State
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import InvalidInputError, StoreUnavailableError
from feature_pipeline.model.digest import Digest
from feature_pipeline_tests.fixtures.care import CareScene, all_keys, archived_keys, everything
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, FailingStore

KINDS = {
    "log/features/structures/pockets/b1/0000000001": ObjectKind.FEATURE_ENTRY,
    "log/batches/structures/b1/0000000001": ObjectKind.BATCH_ENTRY,
    "log/releases/structures/pockets/0000000001": ObjectKind.RELEASE_ENTRY,
}


@pytest.fixture
def care(memory_store, tmp_path):
    scene = CareScene(memory_store, tmp_path)
    memory_store.create(layout.PROBE, b"as an opened store has it")
    everything(scene)
    return scene


def overwrite(store, key, data):
    """Behind the store's back: it has the checksum of what was there."""
    stored = store._objects[key]
    info = dataclasses.replace(stored.info, size=len(data), etag=f'"{Digest.of(data)}"')
    store._objects[key] = dataclasses.replace(stored, data=data, info=info)


def put_back(store, key, data):
    """As other programs write objects: the store keeps no checksum."""
    overwrite(store, key, data)
    stored = store._objects[key]
    info = dataclasses.replace(stored.info, sha256=None)
    store._objects[key] = dataclasses.replace(stored, info=info)


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def test_a_sound_archive_is_clean(care):
    report = verify(care.store)
    assert report.findings == ()
    assert report.is_clean
    assert report.blobs_read == report.blobs > 10
    # Everything that is archived was looked at, but for the census that this has written.
    assert report.documents + report.blobs == len(archived_keys(care.store)) - 1
    assert "all right" in report.summary()


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_every_object_in_turn(care, damage):
    """No object of an archive can be damaged without being named."""
    store = care.store
    assert verify(store).is_clean
    objects = dict(store._objects)
    kinds = set()
    for key in archived_keys(store):
        data = store.get(key).data
        if damage == "delete":
            store.delete(key)
        elif damage == "truncate" and data:
            overwrite(store, key, data[: len(data) // 2])
        elif data:
            overwrite(store, key, flipped(data, len(data) * 2 // 3))
        else:
            continue
        report = verify(store)
        named = [finding for finding in report.findings if finding.key == key]
        if named:
            [finding] = named
            states = {State.MISSING, State.LOST} if damage == "delete" else {State.CORRUPT}
            assert finding.state in states
            assert finding.named_by
            assert finding.kind is KINDS.get(key, finding.kind)
            kinds.add(finding.kind)
        else:
            # What waits is known by nothing else, and neither is the first census.
            assert damage == "delete"
            assert key.startswith(("inbox/", "quarantine/", "census/"))
        store._objects = dict(objects)
    everywhere = {
        ObjectKind.BATCH_ENTRY,
        ObjectKind.RELEASE_ENTRY,
        ObjectKind.FEATURE_ENTRY,
        ObjectKind.MANIFEST,
        ObjectKind.BATCH,
        ObjectKind.RECORD_FILE,
        ObjectKind.CODE,
        ObjectKind.ROWS,
        ObjectKind.OUTCOMES,
        ObjectKind.RAW,
        ObjectKind.HOOK_LOG,
    }
    waiting = {ObjectKind.INBOX_ENTRY, ObjectKind.QUARANTINE_ENTRY}
    unknown = {ObjectKind.CENSUS, *waiting}
    assert kinds == (everywhere if damage == "delete" else everywhere | unknown)
    assert verify(store).is_clean


def test_every_byte_of_a_log_entry_counts(care):
    """A log entry's name does not say its bytes: the store's checksum does."""
    store = care.store
    key = "log/features/structures/pockets/b1/0000000002"
    data = store.get(key).data
    for at in range(0, len(data), 7):
        overwrite(store, key, flipped(data, at))
        [finding] = [f for f in verify(store).findings if f.key == key]
        assert finding.state is State.CORRUPT
    overwrite(store, key, data)


def test_every_byte_counts_without_a_checksum_too(care):
    """Content decides: what the entry says, the entry after it, or the census."""
    store = care.store
    assert verify(store).is_clean
    for seq in (1, 2):
        key = f"log/features/structures/pockets/b1/000000000{seq}"
        data = store.get(key).data
        for at in range(0, len(data), 11):
            put_back(store, key, flipped(data, at))
            findings = verify(store).findings
            assert {f.state for f in findings} & {State.CORRUPT, State.LOST}
            assert any(f.key.startswith("log/features/structures/pockets/b1/") for f in findings)
        put_back(store, key, data)
    assert verify(store).is_clean


def test_stores_without_checksums_are_no_damage(care):
    for key in all_keys(care.store):
        put_back(care.store, key, care.store.get(key).data)
    assert verify(care.store).is_clean
    assert verify(care.store).notes == ()


def test_right_bytes_without_a_checksum_are_right(care):
    """As operations.md allows: objects put back by any tool that keeps bytes."""
    store = care.store
    keys = archived_keys(store)
    for key in keys:
        put_back(store, key, store.get(key).data)
    before = {key: store.get(key).data for key in all_keys(store)}
    report = verify(store)
    assert report.is_clean
    [note] = report.notes
    assert note.startswith(f"the store keeps no checksum of {len(keys)} valid objects")
    assert "verify --restore-checksums" in note
    assert {key: store.get(key).data for key in before} == before
    waiting = {key: store._objects[key].info for key in keys if key.startswith("inbox/")}

    [note] = verify(store, restore_checksums=True).notes
    rewritten = [key for key in keys if key.startswith(("log/", "blobs/"))]
    assert note.endswith(f"set again for {len(rewritten)} of them")
    assert {key: store.get(key).data for key in before} == before
    for key in rewritten:
        assert store.stat(key).sha256 == Digest.of(before[key])
    # What waits is as old as its object.
    assert {key: store._objects[key].info for key in waiting} == waiting
    report = verify(store, Scope(DATASET))
    assert (report.is_clean, report.notes) == (True, ())


def test_wrong_bytes_are_not_given_a_checksum(care):
    store = care.store
    assert verify(store).is_clean
    head = log.head(store, DATASET, HOOK, "b1")
    keys = ("log/features/structures/pockets/b1/0000000001", layout.blob(head.manifest))
    for key in keys:
        put_back(store, key, flipped(store.get(key).data, 100))
    assert not verify(store, restore_checksums=True).is_clean
    assert [store.stat(key).sha256 for key in keys] == [None, None]


class RefusingStore(FailingStore):
    """A store that does not answer for some keys."""

    def __init__(self, inner, refused):
        super().__init__(inner)
        self.refused = refused

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        def call(*args, **kwargs):
            if name in {"get", "open"} and args[0] in self.refused:
                raise StoreUnavailableError(f"no answer for {args[0]}")
            return method(*args, **kwargs)

        return call


def test_what_cannot_be_read_is_not_missing(care):
    for key in archived_keys(care.store):
        findings = verify(RefusingStore(care.store, {key})).findings
        assert [f.state for f in findings if f.key == key] == [State.UNREADABLE]
        assert not any(f.state is State.CORRUPT for f in findings)


def test_an_empty_listing_is_not_reported_as_right(care):
    store = FailingStore(care.store, 1, error=lambda: StoreUnavailableError("no answer"))
    with pytest.raises(StoreUnavailableError):
        verify(store)


def test_an_archive_of_nothing_is_not_called_right(care):
    """Most likely it is another prefix, or another dataset, than the one that was meant."""
    for report in (verify(MemoryStore()), verify(care.store, Scope("nowhere"))):
        assert report.is_clean
        assert "nothing is stored" in report.summary()
        assert "all right" not in report.summary()


def test_erased_is_not_missing(care):
    write_census(care.store)
    erase(care.store, DATASET, ["r2"], "asked for")
    report = verify(care.store)
    assert report.is_clean
    assert report.erased > 4
    assert "erased" in report.summary()


def test_an_erasure_whose_tombstone_is_gone_is_named(care):
    """Without it, the records would be accepted and loaded again."""
    erase(care.store, DATASET, ["r2"], "asked for")
    key = layout.entry(layout.tombstone_log(DATASET), 1)
    care.store.delete(key)
    [finding] = verify(care.store).findings
    assert (finding.state, finding.kind) == (State.MISSING, ObjectKind.TOMBSTONE_ENTRY)
    assert finding.key == key
    assert "'r2'" in finding.detail
    erase(care.store, DATASET, ["r2"], "asked for")
    assert verify(care.store).is_clean


def test_damage_to_the_log_of_erasures_is_named_with_what_it_explained(care):
    """What was erased is missing then: no other object says why."""
    write_census(care.store)
    erase(care.store, DATASET, ["r2"], "asked for")
    key = layout.entry(layout.erasure_log(DATASET), 1)
    overwrite(care.store, key, care.store.get(key).data[:-9])
    log.forget_read_entries()
    findings = {(f.state, f.key) for f in verify(care.store).findings}
    assert (State.CORRUPT, key) in findings
    assert State.MISSING in {state for state, _ in findings}


def test_a_successor_that_is_gone_from_the_end_of_its_log_is_named(care):
    write_census(care.store)
    erase(care.store, DATASET, ["r1"], "asked for")
    key = layout.entry(
        layout.feature_log(DATASET, HOOK, "b1"),
        log.read_log(care.store, DATASET, HOOK, "b1")[-1].seq,
    )
    care.store.delete(key)
    [finding] = verify(care.store).findings
    assert (finding.state, finding.key) == (State.MISSING, key)


def test_an_erasure_that_did_not_end_is_named(care):
    write_census(care.store)
    before = dict(care.store._objects)
    erase(care.store, DATASET, ["r2"], "asked for")
    gone = [key for key in before if key not in care.store._objects and key.startswith("blobs/")]
    assert gone
    for key in gone:
        care.store._objects[key] = before[key]
        [finding] = verify(care.store).findings
        assert (finding.state, finding.key) == (State.NOT_ERASED, key)
        assert "feature-pipeline erase" in finding.detail
        care.store.delete(key)


class TestScopes:
    def test_a_hook(self, care):
        report = verify(care.store, Scope(DATASET, HOOK))
        assert report.is_clean
        key = log.read_batch(care.store, DATASET, "b1").records[0].files[0].blob
        care.store.delete(layout.blob(key))
        assert verify(care.store, Scope(DATASET, HOOK)).is_clean
        assert not verify(care.store, Scope(DATASET)).is_clean

    def test_a_batch(self, care):
        assert verify(care.store, Scope(DATASET, HOOK, "b1")).is_clean
        assert verify(care.store, Scope(DATASET, None, "b1")).is_clean
        entry = log.head(care.store, DATASET, HOOK, "b1")
        care.store.delete(layout.blob(entry.manifest))
        assert verify(care.store, Scope(DATASET, None, "b2")).is_clean
        for scope in (Scope(DATASET, None, "b1"), Scope(DATASET, HOOK, "b1"), Scope(DATASET)):
            [finding] = verify(care.store, scope).findings
            assert (finding.state, finding.kind) == (State.MISSING, ObjectKind.MANIFEST)
            assert "b1" in finding.named_by

    def test_a_hook_needs_its_dataset(self):
        with pytest.raises(InvalidInputError):
            Scope(hook=HOOK)


class TestSamples:
    def test_a_sample_is_repeated_by_its_seed(self, care):
        first = verify(care.store, sample=0.3)
        again = verify(care.store, sample=0.3, seed=first.seed)
        assert first.blobs_read == again.blobs_read < first.blobs
        assert first.bytes_read == again.bytes_read
        assert 0 < round(first.blobs * 0.3) == first.blobs_read

    @pytest.mark.parametrize("sample", [0, -0.1, 1.1])
    def test_other_fractions_are_refused(self, care, sample):
        with pytest.raises(InvalidInputError):
            verify(care.store, sample=sample)


def test_progress_counts_every_blob_once(care):
    steps = []
    report = verify(care.store, progress=lambda done, total: steps.append((done, total)))
    assert steps == [(n, report.blobs) for n in range(1, report.blobs + 1)]


def test_a_completion_may_move_while_the_inbox_is_read(care):
    """Quarantined and left again between two listings: it is seen all the same."""
    store = care.store
    [quarantined] = inbox.quarantined(store)
    moves = iter([lambda: inbox.requeue(store, [quarantined.id])])

    class Moving(FailingStore):
        def __getattr__(self, name):
            method = getattr(self.inner, name)

            def call(*args, **kwargs):
                answer = method(*args, **kwargs)
                if name == "list_objects" and args[0] == layout.INBOX:
                    next(moves, lambda: None)()
                return answer

            return call

    waiting = {e.id for e in inbox.waiting(store)} | {quarantined.id}
    report = verify(Moving(store))
    assert report.is_clean
    assert {e.id for e in inbox.waiting(store)} == waiting


def test_nothing_is_missing_while_others_submit_and_accept(care):
    """After every listing something is submitted, computed and accepted, and something waits."""
    store, release = care.store, log.releases(care.store, DATASET, HOOK)[-1]
    numbers = iter(range(1000))

    class Live(FailingStore):
        def __getattr__(self, name):
            method = getattr(self.inner, name)

            def call(*args, **kwargs):
                answer = method(*args, **kwargs)
                if name == "list_objects":
                    number = next(numbers)
                    batch = care.batch_of(f"live{number}", (f"live{number}",))
                    publish.submit_batch(store, batch, care.paths(batch))
                    for entry in accept.waiting(store):
                        if isinstance(accept.accept_entries(store, [entry])[0], accept.Accepted):
                            accept.remove(store, entry.id)
                    publish.enqueue_completion(
                        store, care.run(batch, release, "x", run_id=f"l{number}")
                    )
                return answer

            return call

    report = verify(Live(store))
    assert report.findings == ()
    assert next(numbers) > 5
    assert verify(store).is_clean


def test_entries_that_contradict_their_manifests(care):
    store = care.store
    prefix = layout.feature_log(DATASET, HOOK, "b1")
    entry = log.read_log(store, DATASET, HOOK, "b1")[-1]
    wrong = entry.model_copy(update={"seq": 3, "content_digest": Digest.of(b"x")})
    log.append(store, prefix, log.FeatureEntry, lambda _: wrong)
    [finding] = verify(store).findings
    assert (finding.state, finding.kind) == (State.CORRUPT, ObjectKind.FEATURE_ENTRY)
    assert finding.key.endswith("3")


def test_json(care):
    care.store.delete(layout.blob(log.head(care.store, DATASET, HOOK, "b1").manifest))
    document = verify(care.store).to_json()
    assert document["is_clean"] is False
    assert document["counts"]["missing"] == 1
    assert document["findings"][0]["kind"] == "manifest"
