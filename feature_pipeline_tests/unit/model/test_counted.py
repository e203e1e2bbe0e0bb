"""Numbers with their nouns."""

import pytest

from feature_pipeline.model.counted import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(1, "batch", "1 batch"), (0, "batch", "0 batches"), (2, "row", "2 rows"), (1, "row", "1 row")],
)
def test_one_is_one(number, noun, text):
    assert counted(number, noun) == text
