"""Whatever the order of loading, whatever was loaded before: the table is the archive's."""

from dataclasses import dataclass

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog import generation
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive, load_batch

pytestmark = pytest.mark.postgres

COLUMNS = (Column(name="value", type="integer"), Column(name="text", type="string"))
RECORDS = ["a", "b", "Z", "é", "r 1"]

_rows = st.lists(
    st.fixed_dictionaries(
        {"value": st.none() | st.integers(0, 3), "text": st.none() | st.just("x")}
    ),
    max_size=2,
)
_answers = st.dictionaries(
    st.sampled_from(RECORDS), _rows | st.sampled_from(["rejected", "no"]), min_size=1
)


@dataclass(frozen=True)
class Submit:
    batch: str
    at_seconds: int
    outcomes: dict


@dataclass(frozen=True)
class Again:
    which: int
    values: list


@dataclass(frozen=True)
class Load:
    which: int


_steps = st.lists(
    st.one_of(
        st.builds(
            Submit, st.uuids().map(lambda key: f"b{key.hex[:6]}"), st.integers(0, 3), _answers
        ),
        st.builds(Again, st.integers(0, 9), st.lists(_rows, min_size=5, max_size=5)),
        st.builds(Load, st.integers(0, 9)),
    ),
    min_size=1,
    max_size=14,
)


def expected_rows(outcomes: dict[str, tuple[tuple[int, str], dict]]) -> set:
    """The model: each record under the last batch that has it."""
    owners: dict[str, str] = {}
    for batch in sorted(outcomes, key=lambda batch: outcomes[batch][0]):
        owners |= dict.fromkeys(outcomes[batch][1], batch)
    return {
        (record_id, ordinal, batch, row["value"], row["text"])
        for record_id, batch in owners.items()
        if isinstance(rows := outcomes[batch][1][record_id], list)
        for ordinal, row in enumerate(rows)
    }


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=_steps)
def test_incremental_in_any_order_equals_rebuilt(database_url: str, steps: list) -> None:
    archive, database = FeatureArchive(COLUMNS), Database(database_url)
    spec = archive.spec()
    outcomes: dict[str, tuple[tuple[int, str], dict]] = {}
    with database.connect("test") as connection:
        generation.drop_table(connection, spec)

    for step in steps:
        batches = sorted(outcomes)
        if isinstance(step, Submit) and step.batch not in outcomes:
            archive.submit(step.batch, step.outcomes, step.at_seconds)
            archive.say(step.batch, step.outcomes)
            outcomes[step.batch] = ((step.at_seconds, step.batch), dict(step.outcomes))
        elif isinstance(step, Again) and batches:
            batch = batches[step.which % len(batches)]
            order, before = outcomes[batch]
            values = dict(zip(before, step.values, strict=False))
            archive.say(batch, values)
            outcomes[batch] = (order, values)
        elif isinstance(step, Load) and batches:
            load_batch(archive.store, database, spec, batches[step.which % len(batches)])
    list(load_batches(archive.store, database, spec))

    grown = prove(archive.store, database, spec)
    assert grown.is_equal, grown
    assert read(database_url) == expected_rows(outcomes)

    with database.connect("test") as connection:
        generation.drop_table(connection, spec)
    list(load_batches(archive.store, database, spec, workers=2))
    rebuilt = prove(archive.store, database, spec)
    assert rebuilt.is_equal, rebuilt
    assert rebuilt.table_digest == grown.table_digest
    assert read(database_url) == expected_rows(outcomes)


def read(url: str) -> set:
    with psycopg.connect(url) as connection:
        return set(connection.execute("select * from features.pockets").fetchall())
