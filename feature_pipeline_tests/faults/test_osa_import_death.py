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


def state(store: BlobStore) -> dict[str, object]:
    """What an import leaves, without times: artifacts and batches."""
    found: dict[str, object] = {}
    for dataset in log.datasets(store):
        for key, entry in log.batches(store, dataset).items():
            found[f"{dataset}/{key}"] = (str(entry.digest), entry.submitted_at)
        for hook in log.hooks(store, dataset):
            for key, entries in log.feature_logs(store, dataset, hook).items():
                found[f"{dataset}/{hook}/{key}"] = [
                    (e.completion, str(e.manifest), e.verdict, e.published_at) for e in entries
                ]
    return found


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
