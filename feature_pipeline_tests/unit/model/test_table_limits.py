"""Definitions of which PostgreSQL cannot hold the table."""

import pytest
from pydantic import ValidationError

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.definition import HookDefinition, IndexDefinition
from feature_pipeline.model.table_limits import check_table_limits


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        (["string"] * 1598, "1,598 columns are more than the 1,597"),
        (["number"] * 1300, "at least 10,440 bytes, but PostgreSQL holds 8,160"),
        (["number"] * 1016, "8,168 bytes"),
        (["uuid"] * 509, "at least"),
        # each boolean is filled up to the integer after it
        (["boolean", "integer"] * 510, "at least"),
    ],
)
def test_tables_that_exceed_the_limits_of_postgresql(kinds: list[str], why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        check_table_limits(kinds)


@pytest.mark.parametrize(
    "kinds", [[], ["string"] * 1597, ["json"] * 1597, ["number"] * 1015, ["boolean"] * 1597]
)
def test_tables_within_the_limits(kinds: list[str]) -> None:
    check_table_limits(kinds)


def test_a_definition_is_checked_against_the_table_that_it_asks_for() -> None:
    columns = [{"name": f"c{n}", "type": "number"} for n in range(1300)]
    declared: dict = {
        "name": "wide",
        "dataset": "demo",
        "release": {"version": "1", "command": ["python", "p.py"], "code": ["p.py"]},
        "feature": {"columns": columns},
    }
    with pytest.raises(ValidationError, match=r"feature\.columns: 1,300 columns: a row with"):
        HookDefinition.model_validate(declared)
    chosen = {"columns": [column["name"] for column in columns[:1000]]}
    assert HookDefinition.model_validate({**declared, "table": chosen}).has_table


def test_an_index_has_no_more_columns_than_postgresql_allows() -> None:
    names = [f"c{number}" for number in range(33)]
    assert IndexDefinition(columns=tuple(names[:32]))
    with pytest.raises(ValidationError, match="33 columns are more than the 32 that an index"):
        IndexDefinition(columns=tuple(names))
