"""Tables of the past: at every instant of a history, what was current then."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.archive.logs import tombstones
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill, past_spec
from feature_pipeline_tests.fixtures.feature_archive import COUNT, LABEL, FeatureArchive

pytestmark = pytest.mark.postgres

INSTANTS = 20
RECORDS = ("a", "b", "Z", "é")
Row = tuple[str, int, str, str | None, int | None]


@dataclass
class History:
    """Batches that overlap, answered again and again, under releases to and fro."""

    archive: FeatureArchive = field(default_factory=lambda: FeatureArchive((LABEL, COUNT)))
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    outcomes: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """Per batch, in order of submission, what is current."""

    def step(self) -> datetime:
        """Something is accepted; when."""
        if not self.outcomes or (len(self.outcomes) < 5 and self.draw.random() < 0.3):
            batch = f"b{len(self.outcomes)}"
            ids = self.draw.sample(RECORDS, self.draw.randint(1, 3))
            self.archive.submit(batch, ids)
        else:
            batch = self.draw.choice(list(self.outcomes))
            ids = list(self.outcomes[batch])
        self.outcomes[batch] = {record_id: self.answer() for record_id in ids}
        return self.archive.say(batch, self.outcomes[batch]).accepted_at

    def answer(self) -> object:
        if self.draw.random() < 0.2:
            return "rejected"
        return [
            {"label": self.draw.choice([None, "x", "y"]), "count": self.draw.randrange(3)}
            for _ in range(self.draw.randrange(3))
        ]

    def rows(self) -> set[Row]:
        """The model: each record under the last batch that has it."""
        owners: dict[str, str] = {}
        for batch, outcomes in self.outcomes.items():
            owners |= dict.fromkeys(outcomes, batch)
        return {
            (record_id, ordinal, batch, row["label"], row["count"])
            for record_id, batch in owners.items()
            if isinstance(rows := self.outcomes[batch][record_id], list)
            for ordinal, row in enumerate(rows)
        }


def test_twenty_tables_show_what_was_current_at_twenty_instants(
    database: Database, connection: psycopg.Connection
) -> None:
    history = History()
    archive = history.archive
    instants = [(history.step(), history.rows()) for _ in range(INSTANTS)]
    assert len({frozenset(rows) for _, rows in instants}) > 5

    tombstones.withdraw(archive.store, "demo", ["Z"], "asked for")
    for at, then in instants:
        spec = past_spec(archive.spec(), at)
        list(fill(archive.store, database, begin_rebuild(archive.store, database, spec)))
        query = sql.SQL("select record_id, ordinal, batch, label, count from {}")
        shown = connection.execute(query.format(sql.Identifier("features", spec.name)))
        # What was withdrawn since is in no table of the past either.
        assert set(shown.fetchall()) == {row for row in then if row[0] != "Z"}, at
        assert prove(archive.store, database, spec).is_equal
