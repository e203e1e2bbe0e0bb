"""How upcasters are declared, found, and what they are given."""

import os
from datetime import UTC, date, datetime

import pytest
from pydantic import ValidationError

from feature_pipeline.model.columns import Column, decode_row
from feature_pipeline.model.definition import HookDefinition, UpcasterDefinition
from feature_pipeline.projections.rows.upcast import as_feature, load_upcaster

COLUMNS = (
    Column(name="text", type="string"),
    Column(name="day", type="string", format="date"),
    Column(name="at", type="string", format="date-time"),
    Column(name="list", type="array"),
    Column(name="absent", type="number"),
)


def test_an_upcaster_is_given_what_the_hook_could_have_written() -> None:
    written = {
        "text": "x",
        "day": "2026-01-31",
        "at": "2026-01-31T12:00:00Z",
        "list": [1, {"a": None}],
        "absent": None,
    }
    row = decode_row(COLUMNS, dict(written))
    assert row[1:3] == (date(2026, 1, 31), datetime(2026, 1, 31, 12, tzinfo=UTC))
    assert as_feature(COLUMNS, row) == written


def test_an_upcaster_is_imported_by_its_path() -> None:
    upcaster = UpcasterDefinition(function="os.path:join", releases=("1",))
    upcast: object = load_upcaster(upcaster)
    assert upcast is os.path.join


@pytest.mark.parametrize("function", ["no_colon", "a:b:c", "a-b:c", ":c", "a:"])
def test_what_is_no_path_of_a_function_is_refused(function: str) -> None:
    with pytest.raises(ValidationError):
        UpcasterDefinition(function=function, releases=("1",))


def test_a_release_has_one_upcaster() -> None:
    upcasters = [
        {"function": "m:f", "releases": ["1", "2"]},
        {"function": "m:g", "releases": ["2"]},
    ]
    with pytest.raises(ValidationError, match=r"table\.upcasters: a release occurs twice in"):
        HookDefinition.model_validate(
            {
                "name": "pockets",
                "dataset": "demo",
                "release": {"version": "3", "command": ["python", "p.py"], "code": ["p.py"]},
                "feature": {"columns": [{"name": "a", "type": "string"}]},
                "table": {"upcasters": upcasters},
            }
        )
