"""How an artifact reaches the store."""

import threading
from pathlib import Path

from feature_pipeline.archive.publish import publish_artifact
from feature_pipeline.archive.store.base import BYTES_MEDIA_TYPE
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline_tests.fixtures.stores import Scene, make_batch


class AllAtOnceStore(MemoryStore):
    """Answers no request to create an object until all of them are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.together: threading.Barrier | None = None

    def create(self, key: str, data: bytes, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        if self.together is not None:
            self.together.wait(60)
        return super().create(key, data, media_type)


def test_an_artifact_takes_one_round_of_requests(tmp_path: Path):
    """Over a network, each round is what a small artifact waits for."""
    store = AllAtOnceStore()
    scene = Scene(store, tmp_path)
    batch = scene.submit(make_batch())
    artifact = scene.artifact(batch, scene.release(), raw={"features.jsonl": b"{}"})
    store.together = threading.Barrier(5)
    published = publish_artifact(store, artifact)
    assert set(published.manifest.blobs) == {"raw/features.jsonl", "log", "rows", "outcomes"}
    assert len({ref.digest for ref in published.refs}) == 5
