"""Whatever an object holds, it costs itself: the others are accepted, and it is named."""

import io
import json
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_pipeline.archive import accept, publish, read
from feature_pipeline.archive.accept import Accepted, Quarantined, Waiting
from feature_pipeline.archive.format import encode, layout, parquet_bounds
from feature_pipeline.archive.format.documents import Document, NewerVersionError
from feature_pipeline.archive.format.encode import rows_schema
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.logs.inbox import Completion, QuarantinedEntry
from feature_pipeline.archive.logs.losses import LossEntry
from feature_pipeline.archive.maintenance.deletion import find_needed_blobs
from feature_pipeline.archive.store.base import ObjectStream
from feature_pipeline.errors import (
    CorruptDataError,
    FeaturePipelineError,
    InvalidInputError,
    StoreUnavailableError,
)
from feature_pipeline.model.records import Record, RecordBatch, Source
from feature_pipeline_tests.fixtures.stores import COLUMNS, DATASET, HOOK, make_batch

DEEP = "[" * 100_000
BEYOND = "0001-01-01T00:00:00+14:00"
HUGE = 10**4_000
LONE = "\ud800"


def with_value(value: object) -> list[dict[str, object]]:
    """Changes of one field of a completion each."""
    names = ("id", "dataset", "batch", "base", "release_seq", "dagster_run_id", "published_at")
    return [{name: value} for name in (*names, "manifest", "spec_version", "unknown")]


ODD_VALUES = [HUGE, -HUGE, LONE, "a\0b", BEYOND, [], {"x": HUGE}, "y" * 30_000, 1e300, True]
ODD = [change for value in ODD_VALUES for change in with_value(value)]


@pytest.fixture
def announced(scene):
    """A batch that waits, and a completion of another batch that waits."""
    batch, release = scene.submit(make_batch()), scene.release()
    publish.submit_batch(scene.store, make_batch("b2"), {})
    return publish.enqueue_completion(scene.store, scene.completion(scene.artifact(batch, release)))


def settle(scene) -> dict[str, Accepted | Waiting | Quarantined]:
    entries = accept.waiting(scene.store)
    settled = accept.accept_entries(scene.store, entries)
    return {entry.id: result for entry, result in zip(entries, settled, strict=True)}


def check_care(scene) -> None:
    """What goes over all objects goes on: it says what is wrong, and is not stopped by it."""
    verify(scene.store)
    find_needed_blobs(scene.store)
    inbox.readable_quarantined(scene.store)
    for entry in accept.waiting(scene.store):
        assert entry.content or entry.problem


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        '{"a":' * 20_000,
        '{"x": ' + DEEP,
        "[]",
        "9" * 5_000,
        json.dumps({f"k{n}": n for n in range(4_000)}),
        "x" * (inbox.MOST_ENTRY_BYTES + 1),
        "\x00" * inbox.MOST_ENTRY_BYTES,
    ],
    ids=["lists", "objects", "a member", "a list", "a number", "keys", "too large", "binary"],
)
def test_text_that_is_no_entry(scene, announced, text):
    scene.store.create("inbox/run.odd", text.encode())
    scene.store.create("inbox/batch.odd", text.encode())
    check_care(scene)
    settled = settle(scene)
    odd = [settled.pop("run.odd"), settled.pop("batch.odd")]
    assert all(isinstance(result, Quarantined) for result in odd)
    assert all(isinstance(result, Accepted) for result in settled.values())
    assert max(len(result.reason) for result in odd) < 2_500
    for entry in accept.quarantined(scene.store):
        assert entry.entry in text
        assert len(entry.reason) < 2_500
    check_care(scene)


def test_values_that_no_completion_can_have(scene, announced):
    for n, change in enumerate(ODD):
        document = json.loads(announced.encode()) | {"id": f"odd-{n}"} | change
        try:
            name = Completion.model_validate(document).inbox_id
            scene.store.create(layout.inbox(name), json.dumps(document).encode())
        except ValueError:
            scene.store.create(f"inbox/run.odd-{n}", json.dumps(document).encode())
    assert len(accept.waiting(scene.store)) == len(ODD) + 2
    check_care(scene)
    settled = settle(scene)
    assert isinstance(settled[announced.inbox_id], Accepted)
    assert log.head(scene.store, DATASET, HOOK, "b1").manifest == announced.manifest
    assert len(log.batch_entries(scene.store, DATASET, "b2")) == 1
    # all entries but those whose odd value is none: a base that is the number 1, a long run id
    accepted = [r.entry for r in settled.values() if isinstance(r, Accepted) and r.is_new]
    assert all(type(e.seq) is int and len(str(e)) < 2_000 for e in accepted)
    check_care(scene)


@pytest.mark.parametrize(
    "instant",
    [BEYOND, "9999-12-31T23:59:59-14:00", 1e300, "x" * 9_999],
    ids=["before the first year", "after the last year", "a number", "a long text"],
)
def test_times_that_no_clock_shows(scene, announced, instant):
    submission = inbox.Submission(
        dataset=DATASET, batch="b3", digest=make_batch("b3").digest, source="harvest"
    )
    document = json.loads(submission.encode()) | {"submitted_at": instant}
    scene.store.create(layout.inbox(submission.inbox_id), json.dumps(document).encode())
    settled = settle(scene)
    refused = settled.pop(submission.inbox_id)
    assert isinstance(refused, Quarantined)
    assert len(refused.reason) < 1_000
    assert all(isinstance(result, Accepted) for result in settled.values())


def test_an_unexpected_error_makes_the_entry_wait_and_then_quarantines_it(
    scene, announced, monkeypatch
):
    batch_entries = log.batch_entries

    def fails(store, dataset, batch):
        if batch == "b2":
            raise ZeroDivisionError("a mistake in this code")
        return batch_entries(store, dataset, batch)

    monkeypatch.setattr(log, "batch_entries", fails)
    settled = settle(scene)
    [odd] = [r for r in settled.values() if not isinstance(r, Accepted)]
    assert odd == Waiting("ZeroDivisionError: a mistake in this code")
    assert isinstance(settled[announced.inbox_id], Accepted)
    monkeypatch.setattr(accept, "WAIT_LIMIT", accept.WAIT_LIMIT * 0)
    [odd] = [r for r in settle(scene).values() if not isinstance(r, Accepted)]
    assert isinstance(odd, Quarantined)


def test_an_object_that_the_store_refuses_waits_alone(scene, announced, monkeypatch):
    original = scene.store.get

    def get(key, size=None):
        if key.startswith("inbox/batch."):
            raise StoreUnavailableError(f"{key}: 400 InvalidRequest: encrypted by another key")
        return original(key, size)

    monkeypatch.setattr(scene.store, "get", get)
    monkeypatch.setattr(accept, "WAIT_LIMIT", accept.WAIT_LIMIT * 0)
    settled = settle(scene)
    assert [type(result) for result in settled.values()] == [Waiting, Accepted]
    assert accept.quarantined(scene.store) == []


def test_something_else_in_the_quarantine_costs_no_entry(scene, announced):
    """An entry leaves the inbox when it can be read in the quarantine, and not before."""
    scene.store.create("inbox/run.odd", b"{}")
    scene.store.create("quarantine/run.odd", DEEP.encode())
    settled = settle(scene)
    assert isinstance(settled["run.odd"], Waiting)
    assert "could not be moved to the quarantine" in settled["run.odd"].reason
    assert isinstance(settled[announced.inbox_id], Accepted)
    check_care(scene)


def test_quarantined_documents_that_are_none_are_damage(scene, announced):
    scene.store.create("quarantine/a", DEEP.encode())
    scene.store.create("quarantine/b", b"x" * (QuarantinedEntry.most_bytes + 1))
    accept.quarantine(scene.store, accept.waiting(scene.store)[0], "y" * 100_000)
    quarantined = inbox.readable_quarantined(scene.store)
    assert [len(entry.reason) for entry in quarantined.intact.values()] < [2_100]
    assert set(quarantined.damage) == {"a", "b"}
    check_care(scene)


@pytest.mark.parametrize(
    "prefix", ["log/features/structures/pockets/b1/", "log/batches/structures/b2/"]
)
@pytest.mark.parametrize(
    "data",
    [DEEP.encode(), b'{"spec_version": 2, "seq": 1e999}', b"\xff"],
    ids=["lists", "beyond float64", "not UTF-8"],
)
def test_log_entries(scene, announced, prefix, data):
    scene.store.create(f"{prefix}0000000001", data)
    settled = settle(scene)
    assert sum(isinstance(result, Accepted) for result in settled.values()) == 1
    check_care(scene)


@pytest.mark.parametrize(
    "model", [Completion, inbox.Submission, QuarantinedEntry, Manifest, LossEntry]
)
@pytest.mark.parametrize(
    "value", [DEEP, BEYOND, HUGE, LONE, {"a": {"b": [1] * 999}}, None], ids=lambda v: str(v)[:20]
)
def test_reading_a_document_returns_it_or_names_the_problem(model, value):
    for name in model.model_fields:
        document = {"spec_version": model.newest, name: value}
        with pytest.raises(FeaturePipelineError) as raised:
            model.decode(json.dumps(document).encode(), "x", CorruptDataError)
        assert isinstance(raised.value, CorruptDataError | NewerVersionError)
        assert len(str(raised.value)) < 3_000


class TestFieldsThatCannotBeTrue:
    """What a completion or its manifest says is compared with what can be."""

    def refused(self, scene, completion, match):
        publish.enqueue_completion(scene.store, completion)
        result = settle(scene)[completion.inbox_id]
        assert not isinstance(result, Accepted)
        assert match in result.reason
        assert len(result.reason) < 2_500
        assert log.read_log(scene.store, DATASET, HOOK, "b1") == []

    def with_manifest(self, scene, **changes):
        """A completion of an artifact whose manifest is changed."""
        batch, release = scene.submit(make_batch()), scene.release()
        completion = scene.completion(scene.artifact(batch, release))
        manifest = read.read_manifest(scene.store, completion.manifest)
        document = json.loads(manifest.encode())
        for path, value in changes.items():
            target, _, name = path.rpartition("__")
            (document[target] if target else document)[name] = value
        data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        ref = log.blobs.put_blob(scene.store, data)
        return completion.model_copy(update={"manifest": ref.digest})

    @pytest.mark.parametrize(
        ("base", "match"), [(1, "its batch's log, which has 0"), (10**30, "base: an integer")]
    )
    def test_a_base_that_the_log_does_not_have(self, scene, base, match):
        """It would supersede whatever is computed after it."""
        batch, release = scene.submit(make_batch()), scene.release()
        completion = scene.completion(scene.artifact(batch, release), base=base)
        self.refused(scene, completion, match)
        honest = accept.accept(scene.store, scene.completion(scene.artifact(batch, release)))
        assert log.head(scene.store, DATASET, HOOK, "b1") == honest

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"run__memory_bytes": 10**30}, "run.memory_bytes: an integer beyond 64 bits"),
            ({"run__attempts": HUGE}, "run.attempts"),
            ({"run__started_at": "9999-12-31T00:00:00Z"}, "started at 9999"),
            ({"run__finished_at": "1969-12-31T00:00:00Z"}, "finished at 1969"),
            ({"run__finished_at": BEYOND}, "finished_at"),
            ({"run__node": "a\0b"}, "run.node: NUL character"),
            ({"run__node": LONE}, "run.node"),
            ({"release__version": "1\0"}, "but release 1 is version '1'"),
            ({"release__version": "v" * 100_000}, "but release 1 is version '1'"),
            ({"release__image": "other"}, "with image other"),
            ({"notes": ["\0"]}, "notes: NUL character"),
            ({"unknown": 5}, "unknown: Extra inputs are not permitted"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_of_manifests(self, scene, changes, match):
        self.refused(scene, self.with_manifest(scene, **changes), match)

    @pytest.mark.parametrize("published_at", ["1999-12-31T23:59:59Z", "2999-01-01T00:00:00Z"])
    def test_times_of_completions(self, scene, published_at):
        batch, release = scene.submit(make_batch()), scene.release()
        completion = scene.completion(scene.artifact(batch, release))
        document = json.loads(completion.encode()) | {"published_at": published_at}
        self.refused(
            scene, Completion.decode(json.dumps(document).encode(), "x"), "set the writer's clock"
        )

    def test_a_batch_of_the_far_future_owns_no_record(self, scene):
        submission = publish.submit_batch(scene.store, make_batch(), {})
        inbox.remove(scene.store, submission.inbox_id)
        document = json.loads(submission.encode()) | {"submitted_at": "2999-01-01T00:00:00Z"}
        scene.store.create(layout.inbox(submission.inbox_id), json.dumps(document).encode())
        [result] = settle(scene).values()
        assert isinstance(result, Quarantined)
        assert "2999" in result.reason

    def test_a_manifest_that_is_too_large_is_not_parsed(self, scene, monkeypatch):
        completion = self.with_manifest(scene, notes=["y" * 5_000])
        monkeypatch.setattr(Manifest, "most_bytes", 5_000)
        self.refused(scene, completion, "it can have at most 5,000")


class TestLargeObjects:
    """An object larger than its kind allows is read into memory by no process."""

    @pytest.fixture(autouse=True)
    def little(self, monkeypatch):
        monkeypatch.setattr(Document, "most_bytes", 5_000)

    @pytest.fixture
    def read_whole(self, scene, monkeypatch):
        """The sizes of what is read whole."""
        sizes, get = [], scene.store.get

        def counted(key, size=None):
            stored = get(key, size)
            sizes.append(len(stored.data))
            return stored

        @contextmanager
        def streamed(key, size=None):
            stored = get(key, size)
            yield ObjectStream(stored.info, iter([stored.data]))

        monkeypatch.setattr(scene.store, "get", counted)
        monkeypatch.setattr(scene.store, "open", streamed)
        return sizes

    def test_documents_that_entries_name(self, scene, announced, read_whole):
        large = log.blobs.put_blob(scene.store, b"[" * 9_000)
        submission = inbox.Submission(
            dataset=DATASET, batch="b3", digest=large.digest, source="harvest"
        )
        inbox.enqueue(scene.store, submission)
        odd = announced.model_copy(update={"manifest": large.digest})
        publish.enqueue_completion(scene.store, odd)
        scene.store.create("quarantine/odd", str(large.digest).encode())
        verify(scene.store)
        find_needed_blobs(scene.store)
        settled = settle(scene)
        for entry in (submission, odd):
            result = settled.pop(entry.inbox_id)
            assert isinstance(result, Quarantined)
            assert "has 9,000 bytes; it can have at most 5,000" in result.reason
        assert all(isinstance(result, Accepted) for result in settled.values())
        assert max(read_whole) <= 5_000

    def test_what_no_reader_would_read_is_not_written(self, scene, monkeypatch):
        """Readers and writers have one bound: what is submitted or published can be accepted."""
        batch, release = scene.submit(make_batch()), scene.release()
        metadata = {"text": "x" * 6_000}
        records = (Record(id="r", metadata=metadata),)
        large = RecordBatch.create(DATASET, "b9", Source.HARVEST, records)
        before = {info.key for info in scene.store.list_objects("")}
        with pytest.raises(InvalidInputError, match=r"'b9': its document has .* submit fewer"):
            publish.submit_batch(scene.store, large, {})
        monkeypatch.setattr(Manifest, "most_bytes", 500)
        with pytest.raises(InvalidInputError, match=r"'b1': its manifest has .* at most 500"):
            scene.completion(scene.artifact(batch, release))
        written = {info.key for info in scene.store.list_objects("")} - before
        assert not [key for key in written if not key.startswith("blobs/")]

    def test_entries(self, scene, announced, read_whole, monkeypatch):
        monkeypatch.setattr(QuarantinedEntry, "most_bytes", 200_000)
        scene.store.create("inbox/run.odd", b"x" * 300_000)
        scene.store.create("quarantine/odd", b"x" * 300_000)
        verify(scene.store)
        find_needed_blobs(scene.store)
        assert isinstance(settle(scene)["run.odd"], Quarantined)
        assert max(read_whole) < 200_000


class TestTables:
    """Every writer of blobs may write any Parquet: it is checked before it is decoded."""

    def refused(self, scene, match, *, rows: pa.Table | None = None, count: int | None = None):
        batch, release = scene.submit(make_batch()), scene.release()
        completion = scene.completion(scene.artifact(batch, release))
        manifest = read.read_manifest(scene.store, completion.manifest)
        document = json.loads(manifest.encode())
        if rows is not None:
            sink = io.BytesIO()
            pq.write_table(rows, sink, compression="zstd")
            ref = log.blobs.put_blob(scene.store, sink.getvalue())
            document["blobs"]["rows"] |= {"digest": str(ref.digest), "size": ref.size}
        if count is not None:
            document["counts"]["rows"] = count
        data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        manifest = log.blobs.put_blob(scene.store, data).digest
        publish.enqueue_completion(
            scene.store, completion.model_copy(update={"manifest": manifest})
        )
        [result] = settle(scene).values()
        # They will not change: nothing is waited for, so they are not decoded at every tick.
        assert isinstance(result, Quarantined)
        assert match in result.reason

    def table(self, label: list[str]) -> pa.Table:
        n = len(label)
        ids = pa.array(["r1"] * n)
        columns = [ids, pa.array(range(n), pa.int32()), pa.array([1.0] * n), pa.array([1] * n)]
        arrays = [*columns, pa.array(label)]
        return pa.Table.from_arrays(arrays, schema=rows_schema(COLUMNS))

    def test_more_rows_than_are_stated(self, scene):
        self.refused(scene, "3 rows; its manifest has 2", rows=self.table(["a"] * 3))

    def test_more_rows_than_can_be(self, scene, monkeypatch):
        monkeypatch.setattr(encode, "MOST_ROWS", 9)
        table = self.table(["a"] * 10)
        self.refused(
            scene, "10 rows; its manifest has 10, and the limit is 9", rows=table, count=10
        )

    def test_few_bytes_that_decompress_to_many(self, scene, monkeypatch):
        monkeypatch.setattr(parquet_bounds, "MOST_DECODED_BYTES", 1_000_000)
        table = self.table(["a" * 10_000] * 1_000)
        self.refused(scene, "10,002,000 bytes once decoded", rows=table, count=1_000)

    def test_other_columns(self, scene):
        table = self.table(["a", "b"]).drop_columns(["label"])
        self.refused(scene, "its columns are", rows=table)

    def test_what_is_no_parquet(self, scene, monkeypatch):
        monkeypatch.setattr(pq, "write_table", lambda _, sink, **__: sink.write(b"PAR1"))
        batch, release = scene.submit(make_batch()), scene.release()
        completion = publish.enqueue_completion(
            scene.store, scene.completion(scene.artifact(batch, release))
        )
        assert isinstance(settle(scene)[completion.inbox_id], Quarantined)
