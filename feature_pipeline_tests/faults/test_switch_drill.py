"""The switch drill's short form: readers check all values while loads and the server are killed."""

import pytest

from feature_pipeline_tests.faults.switch_drill import (
    BATCHES,
    EXPECTED,
    RECORDS,
    ROWS,
    Seen,
    drill,
    label,
)

pytestmark = [pytest.mark.postgres, pytest.mark.faults]


def rows(generation: int = 1, version: int = 1) -> list[tuple[str, int, str, int, int]]:
    return [
        (record, row, label(record, row, version), version, generation)
        for record, row in sorted(EXPECTED)
    ]


def test_a_reader_notices_what_is_not_one_generation_whole() -> None:
    assert len(rows()) == BATCHES * RECORDS * ROWS
    seen = Seen()
    assert seen.check(rows()) is None
    assert seen.check(rows(2, 2)) is None
    assert seen.check(rows(2, 2)[:-1]) == "143 rows in place of 144"
    assert seen.check([*rows(2, 2)[:-1], rows(2, 2)[0]]) == "144 rows in place of 144"
    assert seen.check([*rows(2, 2)[1:], rows(3, 2)[0]]) == "generations ['2', '3'] at once"
    assert seen.check([*rows(2, 2)[1:], rows(2, 3)[0]]) == "batch b0 has versions 2 and 3 at once"
    assert seen.check(rows(1, 2)) == "generation 1 after 2"
    assert seen.check(rows(2, 1)) == "version 1 of batch b0 after 2"
    wrong = [(*rows(2, 2)[0][:2], "another", 2, 2), *rows(2, 2)[1:]]
    assert seen.check(wrong) == "row 0 of b0/r0 has 'another', version 2"


@pytest.mark.slow
def test_readers_see_one_generation_whole() -> None:
    with drill(1) as running:
        tally = running.run(3)
    assert tally.problems == []
    assert tally.switches == 3
    assert tally.worker_kills + tally.server_kills > 0
