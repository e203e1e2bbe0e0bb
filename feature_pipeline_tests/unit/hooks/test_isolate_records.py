"""Which records are run together next: laws over any set of records that a hook fails over."""

import random
from collections.abc import Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_pipeline.hooks.isolate_records import Isolation, Part, first_parts

BASE, MUCH = 2**30, 2**33


def parts_of(records: int, most: int = 1000, raised: Collection[int] = ()) -> list[Part]:
    sizes = [1] * records
    return first_parts(sizes, BASE, most, 10**9, dict.fromkeys(raised, 2 * MUCH))


def searched(
    search: Isolation, fails: Callable[[tuple[int, ...]], bool], most_runs: int = 10_000
) -> list[Part]:
    """Every part that was run until the search ended."""
    ran: list[Part] = []
    while parts := search.next_parts():
        ran += parts
        assert len(ran) < most_runs
        for part in parts:
            if fails(part.records):
                search.note_failed(part, MUCH)
            else:
                search.note_well(part)
    return ran


def poisoned(culprits: Collection[int]) -> Callable[[tuple[int, ...]], bool]:
    return lambda records: any(record in culprits for record in records)


def blamed(search: Isolation) -> list[int]:
    return sorted(part.records[0] for part in search.culprits)


def well(search: Isolation) -> set[int]:
    return {record for part in search.well for record in part.records}


@given(data=st.data(), records=st.integers(2, 300), most=st.sampled_from([7, 100, 1000]))
def test_up_to_two_culprits_are_isolated_and_all_others_are_computed(data, records, most):
    culprits = data.draw(st.sets(st.integers(0, records - 1), min_size=1, max_size=2))
    search = Isolation(parts_of(records, most), [1] * records, width=2)
    ran = searched(search, poisoned(culprits))
    if len(culprits) == records:
        assert not search.is_conclusive
        return
    assert search.is_conclusive
    assert blamed(search) == sorted(culprits)
    assert well(search) == set(range(records)) - culprits
    # no record is computed twice
    assert sum(len(part.records) for part in search.well) == records - len(culprits)
    # what a culprit costs: about two parts a level
    levels = (records - 1).bit_length() + 1
    first = -(-records // most)
    assert len(ran) <= first + 6 + 2 * len(culprits) * levels


def test_one_of_twelve_costs_nine_parts():
    search = Isolation(parts_of(12), [1] * 12)
    ran = searched(search, poisoned({7}))
    assert [(part.path, part.records) for part in ran[:3]] == [
        ("", tuple(range(12))),
        ("1", tuple(range(6))),
        ("2", tuple(range(6, 12))),
    ]
    assert len(ran) == 9
    assert (blamed(search), len(well(search))) == ([7], 11)


@pytest.mark.parametrize("records", [2, 3, 4, 12, 1000])
def test_a_hook_that_fails_over_everything_is_soon_given_up(records):
    search = Isolation(parts_of(records), list(range(records, 0, -1)), width=2)
    ran = searched(search, lambda _: True)
    assert len(ran) <= 6
    assert not search.is_conclusive
    assert not search.well
    if records > 4:
        # the smallest ones of both halves
        assert [len(part.records) for part in ran[-3:]] == [1, 1, 1]
        assert (records - 1,) in [part.records for part in ran[-3:]]


def test_a_hook_that_is_too_slow_for_many_records_is_not_taken_for_a_broken_one():
    search = Isolation(parts_of(1000), [1] * 1000, width=2)
    searched(search, lambda records: len(records) > 60)
    assert search.is_conclusive
    assert well(search) == set(range(1000))
    assert (search.culprits, search.unresolved) == ([], [])


@given(st.integers(30, 700), st.integers(0, 2**32))
def test_many_culprits_are_given_up_with_what_was_computed_until_then(count, seed):
    culprits = set(random.Random(seed).sample(range(1000), count))
    search = Isolation(parts_of(1000), [1] * 1000, width=2)
    ran = searched(search, poisoned(culprits))
    assert len(ran) <= 100
    left = {record for part in search.unresolved for record in part.records}
    if search.is_conclusive:
        assert set(blamed(search)) <= culprits
        assert not well(search) & culprits
        assert well(search) | set(blamed(search)) | left == set(range(1000))


def test_halves_begin_with_the_memory_that_was_not_enough():
    search = Isolation(parts_of(4), [1] * 4)
    (whole,) = search.next_parts()
    assert whole.memory_bytes == BASE
    search.note_failed(whole, MUCH)
    assert [part.memory_bytes for part in search.next_parts()] == [MUCH, MUCH]


def test_records_that_failed_before_are_parts_of_their_own():
    parts = parts_of(6, raised=[1, 4])
    assert [(p.path, p.records, p.memory_bytes) for p in parts] == [
        ("1", (0, 2, 3, 5), BASE),
        ("2", (1, 4), 2 * MUCH),
    ]


def test_they_need_no_other_record_to_be_believed():
    """All that is asked is what failed under lower limits: there is nothing else to compute."""
    parts = parts_of(2, raised=[0, 1])
    search = Isolation(parts, [1, 1], suspects=frozenset({0, 1}))
    searched(search, lambda _: True)
    assert search.is_conclusive
    assert blamed(search) == [0, 1]


def test_they_have_no_effect_on_others():
    parts = parts_of(5, raised=[0])
    search = Isolation(parts, [1] * 5, suspects=frozenset({0}))
    searched(search, lambda _: True)
    assert not search.is_conclusive


def test_what_ended_well_may_turn_out_to_be_unreadable():
    search = Isolation(parts_of(4), [1] * 4)
    (whole,) = search.next_parts()
    search.note_well(whole)
    assert search.next_parts() == []
    search.note_failed(whole, BASE)
    assert [part.records for part in search.next_parts()] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("sizes", "most_records", "most_bytes", "expected"),
    [
        ([1, 1, 1, 1, 1], 2, 100, [(0, 1), (2, 3), (4,)]),
        ([5, 5, 20, 1, 1], 10, 10, [(0, 1), (2,), (3, 4)]),
        ([1, 1], 10, 10, [(0, 1)]),
    ],
)
def test_first_parts_by_number_and_size(sizes, most_records, most_bytes, expected):
    parts = first_parts(sizes, BASE, most_records, most_bytes, {})
    assert [part.records for part in parts] == expected
    assert [part.path for part in parts] == ([""] if len(parts) == 1 else ["1", "2", "3"])
