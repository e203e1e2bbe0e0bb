"""Rows, size and lag of the tables that people read, as samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.model.instruments import (
    TABLE_LOAD_LAG,
    TABLE_ROWS,
    TABLE_SIZE,
)
from feature_pipeline.observability.samples import Sample, sample
from feature_pipeline.projections.catalog.bookkeeping import Progress, all_progress
from feature_pipeline.projections.catalog.database import Database, fetch_value
from feature_pipeline.projections.catalog.generation import read_table
from feature_pipeline.projections.catalog.spec import TableSpec

_SIZE: Final = """
-- bytes of the generation that is read, with its indexes; null if it was dropped by hand
select pg_total_relation_size(to_regclass(%s))"""


@dataclass(slots=True)
class Loads:
    """Which artifacts were seen in tables."""

    _seen: dict[str, dict[str, str]] = field(default_factory=dict)
    """By table and batch, the manifest that its rows come from."""

    def read(
        self, database: Database, spec: TableSpec, heads: Mapping[str, FeatureEntry]
    ) -> tuple[list[Sample], list[Sample]]:
        """Return the lags of what was loaded since the last call, and the state of the table.

        The first call for a table finds what is there and counts none of it: when it was loaded
        first is not known, since a rebuild loads everything again.

        Raises:
            ProjectionError: PostgreSQL could not be reached, or refused.
        """
        with database.connect(f"table {spec.name!r}") as connection:
            state = read_table(connection, spec)
            if state is None or state.live is None:
                return [], []
            progress = all_progress(connection, state.live.id)
            relation = state.live.identifier.as_string(connection)
            size = fetch_value(connection, _SIZE, [relation])
        labels = {"dataset": spec.dataset, "table": spec.name}
        rows = sum(one.rows for one in progress.values())
        samples = [Sample(TABLE_ROWS, rows, labels)]
        if size is not None:
            samples.append(Sample(TABLE_SIZE, size, labels))
        return self._lags(spec, progress, heads), samples

    def _lags(
        self, spec: TableSpec, progress: Mapping[str, Progress], heads: Mapping[str, FeatureEntry]
    ) -> list[Sample]:
        now = {batch: str(one.manifest) for batch, one in progress.items()}
        before = self._seen.get(spec.name)
        self._seen[spec.name] = now
        if before is None:
            return []
        lags = []
        for batch, manifest in now.items():
            head = heads.get(batch)
            if before.get(batch) == manifest or head is None or str(head.manifest) != manifest:
                continue
            seconds = (progress[batch].loaded_at - head.published_or_accepted_at).total_seconds()
            lags.append(
                sample(TABLE_LOAD_LAG, max(seconds, 0.0), dataset=spec.dataset, table=spec.name)
            )
        return lags
