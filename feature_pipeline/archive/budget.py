"""The number of batches that a dataset may have, which Dagster's pages and ticks limit."""

import threading
from dataclasses import dataclass
from typing import Final

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.counted import counted

MAX_BATCHES: Final = 100_000
"""Maximum number of batches of one dataset: beyond it Dagster's pages and ticks become slow."""
_SHARE_OF_ROOM: Final = 16
"""A process may use one part in so many of a dataset's room before it lists the batches again, so
that this many processes that submit at once do not exceed the maximum.
"""


@dataclass(slots=True)
class _Count:
    """The batches of one dataset, as this process counts them."""

    listed: int
    added: int = 0
    """By this process, since they were listed."""

    @property
    def total(self) -> int:
        return self.listed + self.added

    def has_room_for(self, more: int) -> bool:
        """Return whether so many more are certain to fit, without listing the batches again."""
        return self.added + more <= (MAX_BATCHES - self.listed) // _SHARE_OF_ROOM


_counts: dict[tuple[str, str], _Count] = {}
_lock = threading.Lock()


def check_budget(store: BlobStore, dataset: str, more: int = 1) -> None:
    """Check that Dagster can have this many more batches of the dataset, and count them.

    A process lists the batches the first time, and then only as the room becomes less: listing them
    for each new batch would cost more with every batch that is there.

    Raises:
        InvalidInputError: There would be more than `MAX_BATCHES`.
    """
    key = store.identity, dataset
    with _lock:
        count = _counts.get(key)
        if count is not None and count.has_room_for(more):
            count.added += more
            return
    count = _Count(len(store.list_folders(layout.batch_logs(dataset))))
    if count.total + more > MAX_BATCHES:
        raise InvalidInputError(
            f"dataset {dataset!r} has {counted(count.total, 'batch')}; {more} more would exceed"
            f" {MAX_BATCHES}: put more records into a batch (`--batch-size`), or submit to another"
            " dataset"
        )
    count.added += more
    with _lock:
        _counts[key] = count
