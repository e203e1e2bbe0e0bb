"""The disk of the store is full, or that of a worker: errors name it, and nothing needs a hand."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from feature_pipeline.archive import accept, blobs, publish
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.errors import FeaturePipelineError, NotFoundError
from feature_pipeline.model.digest import Digest
from feature_pipeline.orchestration.resources import HookRunnerResource
from feature_pipeline.orchestration.sensors.repeat_causes import is_repeatable
from feature_pipeline_tests.fixtures import missing
from feature_pipeline_tests.fixtures.dagster import COUNT_HOOK, COUNTS, Pipeline
from feature_pipeline_tests.fixtures.own_postgres import SmallDisk, small_disk
from feature_pipeline_tests.fixtures.own_seaweedfs import own_seaweed
from feature_pipeline_tests.fixtures.stores import Scene, archive_client, make_batch

pytestmark = [pytest.mark.s3, pytest.mark.faults]

LARGE = COUNT_HOOK + "\n(output / 'features.jsonl').open('a').write(' ' * 300_000)\n"
"""More than a full disk has left."""


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    try:
        with small_disk(256) as disk:
            yield disk
    except NotFoundError as error:
        missing(error)


def use_up(folder: Path) -> Path:
    """Take what is left; the file that has it."""
    rest = folder / "rest"
    with suppress(OSError), rest.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)
    return rest


def test_a_stores_disk_that_is_full_loses_nothing_and_is_named(disk: SmallDisk, tmp_path: Path):
    with own_seaweed(disk.folder) as seaweed:
        client = archive_client(seaweed.address)
        store = S3Store(client, seaweed.address.bucket, "archive")
        scene = Scene(store, tmp_path)
        release = scene.release()

        def submit_and_publish(key: str) -> None:
            batch = make_batch(key)
            submission = publish.submit_batch(store, batch, {})
            accept.accept_batch(store, submission)
            inbox.remove(store, submission.inbox_id)
            completion = scene.completion(scene.artifact(batch, release, run_id=f"run-{key}"))
            accept.accept(store, completion)

        submit_and_publish("b1")
        disk.fill()
        stored: list[Digest] = []

        def store_without_end() -> None:
            while True:
                stored.append(blobs.put_blob(store, os.urandom(20_000)).digest)

        with pytest.raises(FeaturePipelineError, match="a store with a full disk answers like"):
            store_without_end()
        with pytest.raises(FeaturePipelineError):
            submit_and_publish("b2")
        # What is there can be read.
        log.forget_read_entries()
        assert verify(store).findings == ()

        disk.empty()
        submit_and_publish("b2")
        seaweed.kill()
        seaweed.start()
        log.forget_read_entries()
        assert verify(store).findings == ()
        assert all(store.stat(layout.blob(digest)) is not None for digest in stored)
        for key in ("b1", "b2"):
            assert len(log.batch_entries(store, make_batch(key).dataset, key)) == 1
        client.close()


@pytest.mark.postgres
@pytest.mark.dagster
@pytest.mark.parametrize("is_for_output", [False, True], ids=["staging", "output"])
def test_a_workers_disk_that_is_full_is_named_and_the_run_repeated(
    is_for_output: bool, disk: SmallDisk, pipeline: Pipeline
):
    runner = HookRunnerResource(work_folder=str(disk.folder / "work"))
    pipeline.resources = {**pipeline.resources, "hook_runner": runner}
    pipeline.add_hook(code=LARGE if is_for_output else COUNT_HOOK)
    pipeline.submit_all()
    disk.fill()
    rest = None if is_for_output else use_up(disk.folder)

    result = pipeline.run(COUNTS, "b1", checks=False)
    assert not result.success
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "No space left on device (work folder " in str(failure.error)
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert run is not None
    assert is_repeatable(pipeline.instance, pipeline.defs.resolve_asset_graph(), run)

    disk.empty()
    if rest is not None:
        rest.unlink()
    assert pipeline.run(COUNTS, "b1", checks=False).success
    assert verify(pipeline.store).findings == ()
