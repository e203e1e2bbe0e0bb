"""What a definition may ask for, and which changes of it need the rows anew."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition, UpcasterDefinition
from feature_pipeline.projections.catalog.ddl import index_name, relation_name
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.rebuild import past_spec

A = Column(name="a", type="string")


def spec(**changes: object) -> TableSpec:
    values: dict = {"dataset": "demo", "hook": "pockets", "name": "pockets", "columns": (A,)}
    return TableSpec(**{**values, **changes})


@pytest.mark.parametrize("name", ["", "_outcomes", "a" * 64, "é" * 32, "a\nb", "a\x00b", "\ud800"])
def test_names_that_no_table_can_have(name) -> None:
    with pytest.raises(InvalidInputError):
        spec(name=name)


@pytest.mark.parametrize("name", ["select", "Pockets", "a b", 'a"b', "é" * 31, "50%"])
def test_names_that_only_have_to_be_quoted(name) -> None:
    assert spec(name=name).name == name


def test_an_index_on_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'b', which is not one of its columns: a, batch"):
        spec(indexes=(IndexDefinition(columns=("b",)),))
    assert spec(indexes=(IndexDefinition(columns=("batch", "a")),)).indexes


@pytest.mark.parametrize(
    "changes",
    [
        {"description": "Other words."},
        {"indexes": (IndexDefinition(columns=("a",)),)},
        {"columns": (Column(name="a", type="string", unit="kDa", description="Mass."),)},
    ],
)
def test_changes_that_keep_the_generation(changes) -> None:
    assert spec(**changes).generation_digest == spec().generation_digest


@pytest.mark.parametrize(
    "changes",
    [
        {"columns": (Column(name="b", type="string"),)},
        {"columns": (Column(name="a", type="number"),)},
        {"columns": (Column(name="a", type="string", format="uuid"),)},
        {"columns": (Column(name="a", type="string", required=True),)},
        {"columns": (Column(name="a", type="string", default="x"),)},
        {"columns": (Column(name="a", type="string", renamed_from="b"),)},
        {"columns": (A, Column(name="b", type="string"))},
        {"columns": ()},
        {"upcasters": (UpcasterDefinition(function="m:f", releases=("1",)),)},
        {"as_of": datetime(2026, 1, 1, tzinfo=UTC)},
    ],
)
def test_changes_that_need_a_new_generation(changes) -> None:
    assert spec(**changes).generation_digest != spec().generation_digest


def test_a_changed_unit_needs_a_new_generation_where_upcasters_convert_units() -> None:
    upcasters = (UpcasterDefinition(function="m:f", releases=("1",)),)
    digests = {
        spec(columns=(A.model_copy(update={"unit": unit}),), upcasters=upcasters).generation_digest
        for unit in ("Å", "nm", None)
    }
    assert len(digests) == 3


def test_generated_names_fit_and_differ() -> None:
    long = spec(name="é" * 31)
    names = {relation_name(long, 1), relation_name(long, 2), relation_name(spec(), 1)}
    assert len(names) == 3
    one = IndexDefinition(columns=("a",), name="i" * 63)
    other = IndexDefinition(columns=("a",), name="i" * 63, unique=True)
    names |= {index_name(relation, index) for relation in list(names) for index in (one, other)}
    assert len(names) == 9
    assert all(len(name.encode()) <= 63 for name in names)


TIME = datetime(2026, 1, 31, 12, tzinfo=UTC)


def test_tables_of_the_past_have_names_of_their_own() -> None:
    """Instants of one second, and tables with the same beginning, had one name."""
    names = ["pockets", "a" * 40 + "b", "a" * 40 + "c", "a" * 63, "é" * 31]
    times = [TIME, TIME + timedelta(microseconds=1), TIME + timedelta(seconds=1)]
    specs = [past_spec(spec(name=name), time) for name in names for time in times]

    assert len({each.name for each in specs}) == len(specs)
    assert specs[0].name == "pockets_as_of_20260131t120000"
    assert specs[1].name == "pockets_as_of_20260131t120000_000001"
    zone = timezone(timedelta(hours=2))
    assert past_spec(spec(), TIME.astimezone(zone)) == past_spec(spec(), TIME)


@pytest.mark.parametrize("time", [datetime(2026, 1, 31), datetime(9999, 1, 1, tzinfo=UTC)])  # noqa: DTZ001
def test_a_time_without_offset_or_to_come_names_no_table(time: datetime) -> None:
    with pytest.raises(InvalidInputError, match="as of"):
        past_spec(spec(), time)
