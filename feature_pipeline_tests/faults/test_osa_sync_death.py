"""SIGKILL while outputs of a server are taken and accepted; the next pass ends as if alone."""

import pytest

from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.osa.settings import OsaSettings
from feature_pipeline_tests.faults.test_archive_kill import Ground, dies, ground
from feature_pipeline_tests.faults.test_osa_import_death import state
from feature_pipeline_tests.fixtures.osa_server import Beside

__all__ = ["ground"]
pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.faults]

POINTS = (3, 25, 45, 65, 85)
"""Changes of the store before which the process is killed: of the first batch, of outputs, of what
is remembered, and of what is accepted."""


def test_a_killed_sync_is_completed_by_the_next(beside: Beside, ground: Ground) -> None:
    beside.settings = OsaSettings(conventions={"protein-designs": "designs"})

    def sync(store: BlobStore) -> None:
        beside.store = store
        beside.follow()
        beside.accept_all()

    sync(beside.store)
    whole = state(beside.store, has_times=False)
    for change in POINTS:
        ground.clear()
        assert dies(ground.childs(), sync, change), change
        assert state(ground.store, has_times=False) != whole
        sync(ground.store)
        assert state(ground.store, has_times=False) == whole
    assert beside.follow().published == []
