"""`first_few` names what is there and counts what is left out."""

import pytest

from feature_pipeline.model.text.first_few import first_few


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b"], "a, b"),
        (["a", "b", "c"], "a, b and 1 more"),
        (iter(["a", "b", "c", "d"]), "a, b and 2 more"),
        ([1, 2, 3], "1, 2 and 1 more"),
    ],
)
def test_the_rest_is_counted(names, expected: str) -> None:
    assert first_few(names, limit=2) == expected


def test_the_separator_also_precedes_the_number_of_the_rest() -> None:
    assert first_few("abc", limit=2, separator="; ") == "a; b; and 1 more"
