"""SIGKILL while rows of a server's tables are imported; a second run makes the same archive."""

import shutil

import pytest

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.osa.history.importer import Importer
from feature_pipeline_tests.faults.test_archive_kill import Ground, dies, ground
from feature_pipeline_tests.fixtures.osa_server import Beside

__all__ = ["ground"]
pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.faults]

POINTS = (2, 9, 17, 34, 52)
"""Changes of the store before which the process is killed: within the first batch, an artifact's
blobs, its completion, its log entry, and later ones."""


def state(store: BlobStore, *, has_times: bool = True) -> dict[str, object]:
    """Batches, and the artifacts of each log in order, with the times at which they came."""
    left: dict[str, object] = {}
    for dataset in log.datasets(store):
        for key, entry in log.batches(store, dataset).items():
            left[f"{dataset}/{key}"] = str(entry.digest), has_times and entry.submitted_at
        for hook in log.hooks(store, dataset):
            for key, entries in log.feature_logs(store, dataset, hook).items():
                left[f"{dataset}/{hook}/{key}"] = [
                    (e.completion, str(e.manifest), e.verdict, has_times and e.published_at)
                    for e in entries
                ]
    return left


def test_a_killed_import_is_completed_by_the_next(beside: Beside, ground: Ground) -> None:
    shutil.rmtree(beside.folder)
    beside.settings = beside.settings.model_copy(
        update={"conventions": {"protein-designs": "designs"}}
    )
    follower = beside.follower()

    def run(store: BlobStore) -> None:
        given = store, follower.server, None, beside.settings, follower.definitions
        assert Importer(*given).run().is_complete

    run(beside.store)
    whole = state(beside.store)
    assert len(whole) == 9
    for change in POINTS:
        ground.clear()
        assert dies(ground.childs(), run, change), change
        assert state(ground.store) != whole
        run(ground.store)
        assert state(ground.store) == whole
    run(ground.store)
    assert state(ground.store) == whole
