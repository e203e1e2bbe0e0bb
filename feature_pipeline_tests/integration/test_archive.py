"""The archive on a real S3 server."""

import threading

import pytest

from feature_pipeline.archive import accept, publish, read
from feature_pipeline.archive.accept import Accepted
from feature_pipeline.archive.logs import log
from feature_pipeline.errors import CorruptDataError, InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import Record, RecordBatch, RecordFile, Source
from feature_pipeline_tests.fixtures.stores import DATASET, HOOK, connect, make_batch

pytestmark = pytest.mark.s3


def test_the_whole_path(s3_scene, s3_address, s3_prefix):
    """Submit, publish, accept in one process; another one reads it all from S3 alone."""
    store = s3_scene.store
    batch = make_batch()
    publish.submit_batch(store, batch, {})
    artifact = s3_scene.artifact(batch, s3_scene.release())
    publish.enqueue_completion(store, s3_scene.completion(artifact))
    settled = accept.accept_entries(store, accept.waiting(store))
    assert [s.is_new for s in settled if isinstance(s, Accepted)] == [True, True]
    for entry in accept.waiting(store):
        accept.remove(store, entry.id)
    with connect(s3_address, s3_prefix) as other:
        assert log.datasets(other) == [DATASET]
        assert log.hooks(other, DATASET) == [HOOK]
        assert log.read_batch(other, DATASET, "b1") == batch
        head = log.heads(other, DATASET, HOOK)["b1"]
        manifest = read.read_manifest(other, head.manifest)
        assert repr(read.read_artifact_outcomes(other, manifest)) == repr(list(artifact.outcomes))
        assert accept.waiting(other) == []


def test_record_files(s3_store, tmp_path):
    paths = {}
    files = []
    for n in range(5):
        path = tmp_path / f"{n}.cif"
        path.write_bytes(b"structure %d" % n)
        digest = Digest.of(path.read_bytes())
        paths[digest] = path
        files.append(RecordFile(name=path.name, digest=str(digest), size=path.stat().st_size))
    batch = RecordBatch.create(
        DATASET, "b1", Source.DEPOSITION, (Record(id="r", files=tuple(files)),)
    )
    some = dict(list(paths.items())[:3])
    with pytest.raises(InvalidInputError, match=r"file '3\.cif' of record 'r'.*1 other"):
        publish.submit_batch(s3_store, batch, some)
    accept.accept_batch(s3_store, publish.submit_batch(s3_store, batch, paths))
    other = RecordBatch.create(DATASET, "b2", Source.FORK, (Record(id="s", files=tuple(files)),))
    accept.accept_batch(s3_store, publish.submit_batch(s3_store, other, {}))

    wrong = RecordFile(name="x", digest=files[0].digest, size=999)
    odd = RecordBatch.create(DATASET, "b3", Source.FORK, (Record(id="s", files=(wrong,)),))
    with pytest.raises(InvalidInputError, match="the batch states 999"):
        publish.submit_batch(s3_store, odd, paths)
    next(iter(paths.values())).write_bytes(b"changed")
    third = RecordBatch.create(DATASET, "b4", Source.FORK, (Record(id="s", files=(files[0],)),))
    with pytest.raises(CorruptDataError):
        publish.submit_batch(s3_store, third, paths)


def test_two_processes_accept_the_same_inbox(s3_scene, s3_address, s3_prefix):
    store = s3_scene.store
    release = s3_scene.release()
    for n in range(8):
        batch = make_batch(f"b{n}")
        publish.submit_batch(store, batch, {})
        publish.enqueue_completion(store, s3_scene.completion(s3_scene.artifact(batch, release)))
    entries = accept.waiting(store)
    assert len(entries) == 16
    results = []
    with connect(s3_address, s3_prefix) as other:
        threads = [
            threading.Thread(target=lambda s=s: results.extend(accept.accept_entries(s, entries)))
            for s in (store, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sum(isinstance(r, Accepted) and r.is_new for r in results) == 16
    assert all(isinstance(r, Accepted) for r in results)
    assert len(log.heads(store, DATASET, HOOK)) == 8
    for n in range(8):
        assert len(log.read_log(store, DATASET, HOOK, f"b{n}")) == 1
