"""The evolution matrix, row by row."""

import pyarrow as pa
import pytest

from feature_pipeline.archive.format.encode import rows_schema
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.rows.evolve import CannotEvolveError, evolve_rows, map_columns


def rows(columns: list[Column], values: list[tuple]) -> pa.Table:
    schema = rows_schema(columns)
    data = [(f"r{number}", 0, *value) for number, value in enumerate(values)]
    return pa.Table.from_pylist(
        [dict(zip(schema.names, line, strict=True)) for line in data], schema=schema
    )


def evolve(written: list[Column], wanted: list[Column], values: list[tuple]) -> list[tuple]:
    table = evolve_rows(rows(written, values), map_columns(written, wanted))
    assert table.schema.equals(rows_schema(wanted))
    return [tuple(line.values())[2:] for line in table.to_pylist()]


A = Column(name="a", type="string")
N = Column(name="n", type="integer")


def test_equal_columns_pass_through() -> None:
    assert evolve([A, N], [A, N], [("x", 1), (None, None)]) == [("x", 1), (None, None)]


def test_columns_may_change_places() -> None:
    assert evolve([A, N], [N, A], [("x", 1)]) == [(1, "x")]


def test_a_new_column_is_null_or_its_default() -> None:
    new = [
        Column(name="b", type="string"),
        Column(name="c", type="array", default=[1.0, {"x": None}]),
        Column(name="d", type="string", format="date", default="2026-01-31"),
        Column(name="e", type="number", required=True, default=1),
    ]
    [values] = evolve([A], [A, *new], [("x",)])
    assert values[:3] == ("x", None, '[1,{"x":null}]')
    assert str(values[3]) == "2026-01-31"
    assert values[4] == 1.0


def test_a_dropped_column_is_left_out() -> None:
    assert evolve([A, N], [N], [("x", 1)]) == [(1,)]


def test_a_renamed_column_is_read_under_its_old_name() -> None:
    renamed = Column(name="b", type="string", renamed_from="a")
    assert evolve([A], [renamed], [("x",)]) == [("x",)]
    # and under its own where it was written so
    assert evolve([renamed, N], [renamed], [("y", 1)]) == [("y",)]


def test_required_may_become_optional() -> None:
    assert evolve([A.model_copy(update={"required": True})], [A], [("x",)]) == [("x",)]


def test_optional_may_become_required_where_no_null_is() -> None:
    required = A.model_copy(update={"required": True})
    assert evolve([A], [required], [("x",)]) == [("x",)]
    with pytest.raises(
        CannotEvolveError, match=r"'a': is now required, but null in 2 .*'r0', 'r2'"
    ):
        evolve([A], [required], [(None,), ("x",), (None,)])


def test_a_new_required_column_is_refused_where_rows_are() -> None:
    new = Column(name="b", type="string", required=True)
    assert evolve([A], [A, new], []) == []
    with pytest.raises(CannotEvolveError, match="'b': is now required"):
        evolve([A], [A, new], [("x",)])


def test_integers_become_numbers_where_exact() -> None:
    number = Column(name="n", type="number")
    exact = [0, -1, 2**53, 2**60, -(2**63), None]
    assert evolve([N], [number], [(value,) for value in exact]) == [
        (None if value is None else float(value),) for value in exact
    ]


@pytest.mark.parametrize("value", [2**53 + 1, -(2**53) - 1, 2**60 + 1, 2**63 - 1])
def test_integers_that_float64_cannot_represent_are_refused_by_value(value) -> None:
    with pytest.raises(CannotEvolveError, match=f"1 integer not exact as a number: {value}"):
        evolve([N], [Column(name="n", type="number")], [(1,), (value,)])


@pytest.mark.parametrize(
    ("written", "wanted", "message"),
    [
        (A, Column(name="a", type="string", format="date"), "was string, is now string \\(date\\)"),
        (A, Column(name="a", type="number"), "was string, is now number"),
        (Column(name="n", type="number"), N, "was number, is now integer"),
        (Column(name="a", type="array"), Column(name="a", type="object"), "was array, is now"),
        (N, Column(name="b", type="string", renamed_from="n"), "'b': was integer, is now string"),
    ],
)
def test_anything_else_is_refused(written, wanted, message) -> None:
    with pytest.raises(CannotEvolveError, match=message):
        map_columns([written], [wanted])


def test_all_refusals_are_reported_at_once() -> None:
    with pytest.raises(CannotEvolveError, match=r"'a'.*; .*'n'"):
        map_columns([A, N], [Column(name="a", type="number"), Column(name="n", type="string")])


def test_no_rows_evolve_into_no_rows() -> None:
    wanted = [Column(name="n", type="number"), A, Column(name="b", type="string", default="x")]
    assert evolve([A, N], wanted, []) == []
    empty = rows([A, N], [("x", 1)]).slice(1)
    assert len(evolve_rows(empty, map_columns([A, N], wanted))) == 0


def test_a_column_renamed_twice_is_read_under_any_of_its_names() -> None:
    first, second = Column(name="a", type="string"), Column(name="b", type="string")
    for b in (second, second.model_copy(update={"renamed_from": "a"})):
        third = Column(name="c", type="string", renamed_from=["b", "a"])
        assert evolve([first], [third], [("x",)]) == [("x",)]
        assert evolve([b], [third], [("y",)]) == [("y",)]
        assert evolve([third], [third], [("z",)]) == [("z",)]
    assert evolve([first, second], [third], [("x", "y")]) == [("y",)]
    before = Column(name="c", type="string", renamed_from="b")
    assert evolve([before, second, first], [third], [("z", "-", "-")]) == [("z",)]


def test_a_column_renamed_to_a_name_that_another_had_is_read_under_its_own() -> None:
    """The old column of that name was dropped; its values are none of the new one's."""
    old = Column(name="score", type="number")
    second = Column(name="score_v2", type="number")
    renamed = Column(name="score", type="number", renamed_from="score_v2")
    assert evolve([old, second], [renamed], [(1.0, 2.0)]) == [(2.0,)]
    assert evolve([second], [renamed], [(2.0,)]) == [(2.0,)]
    assert evolve([renamed], [renamed], [(3.0,)]) == [(3.0,)]
