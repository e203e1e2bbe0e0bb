"""Compare a table's progress with the logs: cheap, by content digests alone."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.damage import Readable
from feature_pipeline.archive.logs.known_lengths import known_logs
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.maintenance.compare_databases import (
    LostEntry,
    find_unlogged,
    not_given_up,
)
from feature_pipeline.archive.query import history
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.projections.catalog.bookkeeping import Progress, all_progress
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.generation import read_table
from feature_pipeline.projections.catalog.loaded_entries import known_entry
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.catalog.view import is_shown


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """The differences between a table's progress and the logs, by batch."""

    missing: tuple[str, ...]
    """Batches with a current artifact that are not in the table."""
    behind: tuple[str, ...]
    """Batches whose content in the table differs from their current artifact's."""
    extra: tuple[str, ...]
    """Batches in the table without a current artifact."""
    loaded: int
    """Number of batches in the table."""
    is_shown: bool = True
    """Whether the table's own view exists; False also if another object has its name."""
    lost: Mapping[str, LostEntry] = field(default_factory=dict)
    """Batches that were loaded from a log entry that the archive no longer has."""
    damaged: Mapping[str, str] = field(default_factory=dict)
    """Batches whose log cannot be read, with the reason: their head is not known."""

    @property
    def is_complete(self) -> bool:
        """Whether the table shows every current artifact, and nothing else."""
        return self.is_shown and not self.wrong()

    def batches_to_load(self) -> list[str]:
        """Return the batches whose loading would make the table complete."""
        return sorted({*self.missing, *self.behind})

    def wrong(self) -> list[str]:
        """The batches that differ from the logs."""
        return sorted({*self.missing, *self.behind, *self.extra, *self.lost, *self.damaged})

    def summary(self) -> str:
        """Return a one-line summary with the names of some batches."""
        if self.is_complete:
            return f"{counted(self.loaded, 'batch')} loaded as the archive's log says"
        parts = [
            f"{len(batches)} {what} ({first_few(batches)})"
            for what, batches in (
                ("missing", self.missing),
                ("behind", self.behind),
                ("without a current artifact", self.extra),
                (
                    "loaded from log entries that the archive no longer has, which"
                    " `feature-pipeline repair` restores or gives up",
                    sorted(self.lost),
                ),
                ("with a damaged log in the archive", sorted(self.damaged)),
            )
            if batches
        ]
        if not self.is_shown:
            parts.append(
                "and they cannot be read, because the view is missing or is another object:"
                " load any batch to restore it"
            )
        return f"{counted(self.loaded, 'batch')} loaded; " + ", ".join(parts)

    def to_json(self) -> dict[str, list[str]]:
        """Return the batches by kind of difference."""
        return {
            "missing": list(self.missing),
            "behind": list(self.behind),
            "extra": list(self.extra),
            "lost": sorted(self.lost),
            "damaged": sorted(self.damaged),
        }


def check_progress(
    store: BlobStore,
    database: Database,
    spec: TableSpec,
    batches: Collection[str] | None = None,
) -> ProgressReport:
    """Compare progress with the log, by content digest: a listing and a query, no rows read.

    A table that does not exist, or of which nothing was proved yet, lacks every batch.

    Args:
        store: The archive.
        database: The table's database.
        spec: The table.
        batches: Check only these; all if None.
    """
    heads = current_entries(store, spec, batches)
    with database.connect(f"table {spec.name!r}") as connection:
        state = read_table(connection, spec)
        if state is None or state.live is None:
            return compare_progress(heads, {})
        compared = compare_progress(heads, all_progress(connection, state.live.id, batches))
        return replace(compared, is_shown=is_shown(connection, spec.name))


class LostEntryError(CorruptDataError):
    """A table was loaded from a log entry that the archive no longer has."""


class CurrentEntries(Mapping[str, FeatureEntry]):
    """The current log entry of each batch that has one, by batch; from `current_entries`.

    `damage` has the batches for which it cannot be determined, with the reason: they are not among
    the others.
    """

    def __init__(self, store: BlobStore, spec: TableSpec, entries: Readable[FeatureEntry]) -> None:
        self._store, self._spec, self._entries = store, spec, entries.intact
        self.damage = entries.damage

    def __getitem__(self, batch: str) -> FeatureEntry:
        return self._entries[batch]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find_lost(self, progress: Mapping[str, Progress]) -> dict[str, LostEntry]:
        """Return the batches that were loaded from an entry that their log no longer has."""
        return self.compare_logs(progress)[0]

    def compare_logs(
        self, progress: Mapping[str, Progress]
    ) -> tuple[dict[str, LostEntry], set[str]]:
        """Return the batches loaded from an entry that their log no longer has.

        Returns:
            Those whose entry is lost, and those whose loss was accepted since.
        """
        known = [known_entry(self._spec, loaded) for loaded in progress.values()]
        unlogged = find_unlogged(self._store, known, self._entries)
        lost = {one.known.batch: one for one in not_given_up(self._store, unlogged)}
        return lost, {one.known.batch for one in unlogged} - lost.keys()


def current_entries(
    store: BlobStore, spec: TableSpec, batches: Collection[str] | None
) -> CurrentEntries:
    """Return the current log entry of each of these batches that has one; of all if None.

    For a table of the past, the entry that was current then.
    """
    dataset, hook = spec.dataset, spec.hook
    # What a census knows is compared where all batches are looked at: it is a line per batch.
    known = known_logs(store) if batches is None else None
    if spec.as_of is None:
        readable = log.readable_heads(store, dataset, hook, batches, known)
    else:
        # Not by way of the log alone: what is erased since has a successor, which is read instead.
        readable = history.readable_heads_as_of(store, dataset, hook, spec.as_of, batches, known)
    return CurrentEntries(store, spec, readable)


def compare_progress(current: CurrentEntries, progress: Mapping[str, Progress]) -> ProgressReport:
    """Return the differences of `progress` from the current artifacts' content digests."""
    lost, given_up = current.compare_logs(progress)
    unknown = lost.keys() | current.damage.keys()
    return ProgressReport(
        missing=tuple(sorted(current.keys() - progress.keys())),
        behind=tuple(
            sorted(
                batch
                for batch in (current.keys() & progress.keys()) - unknown
                if batch in given_up
                or current[batch].content_digest != progress[batch].content_digest
            )
        ),
        extra=tuple(sorted(progress.keys() - current.keys() - unknown)),
        loaded=len(progress),
        lost=lost,
        damaged={batch: str(damage.error) for batch, damage in current.damage.items()},
    )
