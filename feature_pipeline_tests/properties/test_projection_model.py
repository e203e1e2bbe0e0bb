"""Whatever happens to a table, in whatever order: it is what the current manifests say.

The model is plain Python: per batch its place in the order of submission, the columns that it was
written with and what was said. Deployments, partial loads, deaths, rollbacks and rebuilds must not
be able to tell in the end.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from feature_pipeline.errors import ConflictError, NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections import load
from feature_pipeline.projections.catalog import generation
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline.projections.rollback import rollback, unpin
from feature_pipeline.projections.rows import write
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline.projections.switch import finalize
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

LABEL = Column(name="label", type="string")
COUNT = Column(name="count", type="integer")
NUMBER = Column(name="count", type="number")
NOTE = Column(name="note", type="string", default="none")
TITLE = Column(name="title", type="string", renamed_from="label")
HEADING = Column(name="heading", type="string", renamed_from=["title", "label"])
DEFINITIONS = (
    (LABEL, COUNT),
    (LABEL, COUNT, NOTE),
    (LABEL,),
    (NOTE, NUMBER, LABEL),
    (TITLE, COUNT),
    (COUNT, HEADING),
)
RECORDS = ["a", "b", "Z", "é"]
HARM = (
    "drop table feature_pipeline.{live} cascade",
    "drop table feature_pipeline.{last} cascade",
    "alter table feature_pipeline.{live} drop constraint {live}_pkey",
    "drop view features.pockets cascade",
    "create or replace view features.pockets as {view} where false",
    "drop table feature_pipeline.generations cascade",
)
DEATHS = (
    (load, "replace_batches"),
    (write, "ensure_key"),
    (write, "replace_batch"),
    (write, "write_progress"),
    (finalize, "ensure_key"),
    (finalize, "follow_indexes"),
    (finalize, "prove_once"),
    (finalize, "wait_for_older_snapshots"),
    (finalize, "switch"),
    (finalize, "drop_superseded"),
)

_row = st.tuples(st.none() | st.sampled_from("xy"), st.none() | st.integers(0, 3))
_answers = st.dictionaries(
    st.sampled_from(RECORDS), st.lists(_row, max_size=2) | st.just("rejected"), min_size=1
)


@dataclass(frozen=True)
class Say:
    batch: int
    at_seconds: int
    outcomes: dict[str, Any]


@dataclass(frozen=True)
class Deploy:
    definition: int


@dataclass(frozen=True)
class Load:
    batches: list[int]
    death: tuple[int, int, bool] | None


@dataclass(frozen=True)
class Rebuild:
    death: tuple[int, int, bool] | None


@dataclass(frozen=True)
class Rollback:
    pass


@dataclass(frozen=True)
class Unpin:
    pass


@dataclass(frozen=True)
class Harm:
    """A change by hand."""

    statement: str


_fatal = st.tuples(st.integers(0, len(DEATHS) - 1), st.integers(0, 2), st.booleans())
_death = st.one_of(st.none(), _fatal, _fatal, _fatal)
_steps = st.lists(
    st.one_of(
        st.builds(Say, st.integers(0, 3), st.integers(0, 3), _answers),
        st.builds(Deploy, st.integers(0, len(DEFINITIONS) - 1)),
        st.builds(Load, st.lists(st.integers(0, 3), max_size=4), _death),
        st.builds(Rebuild, _death),
        st.builds(Rollback),
        st.builds(Unpin),
        st.builds(Harm, st.sampled_from(HARM)),
    ),
    min_size=3,
    max_size=14,
)


class Death(BaseException):
    """The process ends here, as far as this test's database can tell."""


def dying(patch: pytest.MonkeyPatch, death: tuple[int, int, bool] | None) -> None:
    """Let the process die at a call of one of the steps, before or after its work."""
    if death is None:
        return
    which, calls, is_after = death
    module, name = DEATHS[which]
    original = getattr(module, name)
    left = [calls]

    def step(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            return original(*args, **kwargs)
        if is_after:
            original(*args, **kwargs)
        raise Death(name)

    patch.setattr(module, name, step)


@dataclass
class World:
    """The archive and the table on one side, the model on the other."""

    database: Database
    archive: FeatureArchive = field(default_factory=lambda: FeatureArchive(DEFINITIONS[0]))
    outcomes: dict[str, tuple[tuple[int, str], tuple[Column, ...], dict]] = field(
        default_factory=dict
    )
    is_harmed: bool = False
    """A change by hand is not repaired yet: the next load does."""

    @property
    def spec(self) -> TableSpec:
        return self.archive.spec()

    def say(self, step: Say) -> None:
        batch = f"b{step.batch}"
        rows = {
            record_id: outcome if outcome == "rejected" else [self._feature(row) for row in outcome]
            for record_id, outcome in step.outcomes.items()
        }
        if batch not in self.outcomes:
            self.archive.submit(batch, rows, step.at_seconds)
            order = (step.at_seconds, batch)
        else:
            order, _, before = self.outcomes[batch]
            rows = {record_id: rows.get(record_id, []) for record_id in before}
        self.archive.say(batch, rows)
        self.outcomes[batch] = (order, self.archive.columns, rows)

    def _feature(self, row: tuple[str | None, int | None]) -> dict:
        text, count = row
        values = dict.fromkeys(("label", "title", "heading"), text) | {
            "count": count,
            "note": "said",
        }
        return {column.name: values[column.name] for column in self.archive.columns}

    def fits(self) -> bool:
        """Whether every batch can be shown under the columns declared now."""
        integer = COUNT in self.archive.columns
        return not any(integer and NUMBER in written for _, written, _ in self.outcomes.values())

    def expected(self) -> set:
        owners: dict[str, str] = {}
        for batch in sorted(self.outcomes, key=lambda batch: self.outcomes[batch][0]):
            owners |= dict.fromkeys(self.outcomes[batch][2], batch)
        return {
            (record_id, ordinal, batch, *(self._value(batch, row, c) for c in self.archive.columns))
            for record_id, batch in owners.items()
            if isinstance(rows := self.outcomes[batch][2][record_id], list)
            for ordinal, row in enumerate(rows)
        }

    def _value(self, batch: str, row: dict, column: Column) -> Any:
        written = self.outcomes[batch][1]
        for name in (column.name, *column.former_names):
            if any(c.name == name for c in written):
                return row[name]
        # A rename that was taken back.
        later = (c.name for c in written if column.name in c.former_names)
        return next((row[name] for name in later), column.default)

    def check_live(self) -> None:
        """What people read is exact for what is loaded, and readable."""
        with self.database.connect("test") as connection:
            state = generation.read_table(connection, self.spec)
        if self.is_harmed or state is None or state.live is None:
            return
        if state.live.is_whole:
            assert prove(self.archive.store, self.database, self.spec).has_equal_content
        read(self.database)

    def harm(self, statement: str) -> None:
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            query = "select rtrim(pg_get_viewdef(to_regclass('features.pockets')), ';')"
            named: dict[str, Any] = {"view": connection.execute(query).fetchone()[0]}
            with suppress(psycopg.errors.UndefinedTable):
                rows = connection.execute(
                    "select relation from feature_pipeline.generations g"
                    " left join feature_pipeline.tables t on t.live = g.id"
                    " where table_name = 'pockets' order by t.live is not null, g.id"
                ).fetchall()
                named |= {"last": rows[0][0], "live": rows[-1][0]} if rows else {}
            with suppress(KeyError, psycopg.Error):
                connection.execute(statement.format(**named).encode())
                self.is_harmed = True


def read(database: Database) -> list:
    with psycopg.connect(database.url) as connection:
        return connection.execute("select * from features.pockets").fetchall()


def carry_out(world: World, step: object) -> None:
    store, database = world.archive.store, world.database
    match step:
        case Say():
            world.say(step)
        case Deploy(definition):
            world.archive.columns = DEFINITIONS[definition]
        case Load(batches, death):
            chosen = [f"b{number}" for number in batches if f"b{number}" in world.outcomes]
            with database.connect("test") as connection:
                generation.adopt_definition(connection, world.spec)
            with pytest.MonkeyPatch.context() as patch:
                dying(patch, death)
                list(load_batches(store, database, world.spec, chosen or None))
            world.is_harmed = False
        case Rebuild(death):
            with pytest.MonkeyPatch.context() as patch:
                dying(patch, death)
                list(fill(store, database, begin_rebuild(store, database, world.spec)))
            world.is_harmed = False
        case Rollback():
            rollback(store, database, world.spec)
        case Unpin():
            unpin(store, database, world.spec)
        case Harm(statement):
            world.harm(statement)


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_steps)
def test_the_table_matches_the_current_manifests(database_url: str, steps: list) -> None:
    world = World(Database(database_url))
    with world.database.connect("test") as connection:
        generation.drop_table(connection, world.spec)
    # Something to lose from the start: an empty table survives everything.
    opening = [
        Say(0, 0, {"a": [("x", 1)], "b": [("y", 2), (None, None)]}),
        Say(1, 1, {"b": [("z", 3)], "é": "rejected"}),
        Load([], None),
    ]
    for step in [*opening, *steps]:
        try:
            carry_out(world, step)
        except (Death, CannotEvolveError, NotFoundError, ConflictError) as error:
            event(f"{type(step).__name__}: {type(error).__name__}")
        world.check_live()

    store, database = world.archive.store, world.database
    if not world.fits():
        world.archive.columns = DEFINITIONS[3]
    with database.connect("test") as connection:
        generation.adopt_definition(connection, world.spec)
    list(load_batches(store, database, world.spec))
    unpin(store, database, world.spec)
    list(load_batches(store, database, world.spec))
    grown = prove(store, database, world.spec)
    assert grown.is_equal, grown
    assert set(read(database)) == world.expected()

    with database.connect("test") as connection:
        generation.drop_table(connection, world.spec)
    list(load_batches(store, database, world.spec))
    rebuilt = prove(store, database, world.spec)
    assert rebuilt.is_equal, rebuilt
    assert rebuilt.table_digest == grown.table_digest
    assert set(read(database)) == world.expected()
