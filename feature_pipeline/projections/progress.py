"""Whether a table has loaded what the log says: cheap, by content digests alone.

What belongs here: comparing progress with the log. Not here: the rows themselves (`proof`).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from feature_pipeline.archive import history, log
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.log import FeatureEntry
from feature_pipeline.projections.bookkeeping import Progress, all_progress
from feature_pipeline.projections.database import Database
from feature_pipeline.projections.generation import read_table
from feature_pipeline.projections.table_spec import TableSpec
from feature_pipeline.projections.view import is_shown

_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """Where a table's progress differs from the log, by batch."""

    missing: tuple[str, ...]
    """Have a current artifact and are not in the table."""
    behind: tuple[str, ...]
    """Are in the table with other content than their current artifact."""
    extra: tuple[str, ...]
    """Are in the table and have no current artifact."""
    loaded: int
    """How many batches are in the table."""
    is_shown: bool = True
    """Whether the view that people read it by is there; False also if something else has its name.
    """

    @property
    def is_complete(self) -> bool:
        """Whether people read every current artifact in the table, and nothing else."""
        return self.is_shown and not (self.missing or self.behind or self.extra)

    def batches_to_load(self) -> list[str]:
        """The batches whose loading would make the table complete."""
        return sorted({*self.missing, *self.behind})

    def wrong(self) -> list[str]:
        """The batches that do not stand in the table as the log says."""
        return sorted({*self.missing, *self.behind, *self.extra})

    def summary(self) -> str:
        """One line for people; names some of the batches."""
        if self.is_complete:
            return f"{self.loaded} batches stand in the table as the archive's log says"
        parts = [
            f"{len(batches)} {what} ({', '.join(batches[:_SHOWN])}"
            + (", ...)" if len(batches) > _SHOWN else ")")
            for what, batches in (
                ("missing", self.missing),
                ("behind", self.behind),
                ("without a current artifact", self.extra),
            )
            if batches
        ]
        if not self.is_shown:
            parts.append(
                "and nobody can read them: its view is gone, or is another one; load any batch to"
                " put it back"
            )
        return f"{self.loaded} batches stand in the table; " + ", ".join(parts)

    def to_json(self) -> dict[str, list[str]]:
        """The batches by what is wrong with them."""
        return {
            "missing": list(self.missing),
            "behind": list(self.behind),
            "extra": list(self.extra),
        }


def check_progress(
    store: BlobStore,
    database: Database,
    spec: TableSpec,
    batches: Collection[str] | None = None,
) -> ProgressReport:
    """Compare progress with the log, by content digest: a listing and a query, no rows read.

    A table that does not exist misses every batch.

    Args:
        store: The archive.
        database: Where the table is.
        spec: The table.
        batches: Look at these alone; at all if None.
    """
    heads = current_entries(store, spec, batches)
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        if state is None:
            return compare_progress(heads, {})
        compared = compare_progress(heads, all_progress(connection, state.live.id, batches))
        return replace(compared, is_shown=is_shown(connection, spec.name))


def current_entries(
    store: BlobStore, spec: TableSpec, batches: Collection[str] | None
) -> dict[str, FeatureEntry]:
    """The current log entry of each of these batches that has one; of all batches if None.

    For a table of the past, what was current then.
    """
    if spec.as_of is not None:
        return _entries_as_of(store, spec, spec.as_of, batches)
    return log.heads(store, spec.dataset, spec.hook, batches)


def _entries_as_of(
    store: BlobStore, spec: TableSpec, time: datetime, batches: Collection[str] | None
) -> dict[str, FeatureEntry]:
    # Not by way of the log alone: what is erased since has a successor, which is read instead.
    heads = history.heads_as_of(store, spec.dataset, spec.hook, time)
    return heads if batches is None else {b: heads[b] for b in batches if b in heads}


def compare_progress(
    heads: Mapping[str, FeatureEntry], progress: Mapping[str, Progress]
) -> ProgressReport:
    """Where `progress` differs from the current artifacts' content digests."""
    return ProgressReport(
        missing=tuple(sorted(heads.keys() - progress.keys())),
        behind=tuple(
            sorted(
                batch
                for batch in heads.keys() & progress.keys()
                if heads[batch].content_digest != progress[batch].content_digest
            )
        ),
        extra=tuple(sorted(progress.keys() - heads.keys())),
        loaded=len(progress),
    )
