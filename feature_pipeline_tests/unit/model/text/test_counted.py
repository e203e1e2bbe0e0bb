"""Numbers with their nouns."""

import pytest

from feature_pipeline.model.text.counted import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (1, "batch", "1 batch"),
        (0, "batch", "0 batches"),
        (1, "row", "1 row"),
        (1_000, "row", "1,000 rows"),
        (1, "entry", "1 entry"),
        (2, "entry", "2 entries"),
        (2, "reply", "2 replies"),
        (2, "array", "2 arrays"),
    ],
)
def test_a_number_is_followed_by_its_noun_in_singular_or_plural(number, noun, text):
    assert counted(number, noun) == text
