"""What two releases say of the same batches, counted and shown."""

import itertools
import math
import random
from collections import Counter

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.logs import tombstones
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.query.compare import (
    MAX_EXAMPLES,
    Comparison,
    compare_releases,
    find_release,
    last_two_releases,
)
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

DATASET, HOOK = "demo", "pockets"
COLUMNS = (
    Column(name="score", type="number"),
    Column(name="count", type="integer"),
    Column(name="label", type="string"),
    Column(name="parts", type="array"),
)
BEFORE: dict[str, object] = {
    "same": [{"score": math.nan, "count": 1, "label": None, "parts": [1.0, {"b": 1, "a": 2}]}],
    "moved": [{"score": 1.0, "count": 1}, {"score": 2.0, "count": 2}, {"score": 3.0, "count": 3}],
    "fewer": [{"count": 1}, {"count": 2}],
    "more": [{"count": 1}],
    "rejected": [{"count": 1}],
    "reason": "too large",
    "mended": ValueError("boom"),
    "empty": [],
}
AFTER: dict[str, object] = {
    "same": [{"score": math.nan, "count": 1, "label": None, "parts": [1, {"a": 2, "b": 1}]}],
    "moved": [{"score": 1.5, "count": 1}, {"score": 2.0, "count": 2}, {"score": -3.0, "count": 4}],
    "fewer": [{"count": 1}],
    "more": [{"count": 1}, {"count": 2}],
    "rejected": "no protein",
    "reason": "too small",
    "mended": [{"count": 1}],
    "empty": [],
}


@pytest.fixture
def archive() -> FeatureArchive:
    """Release 1 said `BEFORE` of b1; two more batches, one said of under release 1 only."""
    archive = FeatureArchive(COLUMNS)
    archive.add("b1", BEFORE)
    archive.add("b2", {"x": [{"count": 1}]})
    archive.add("b3", {"y": [{"count": 1}]})
    return archive


def compare(archive: FeatureArchive, *batches: str) -> Comparison:
    before, after = last_two_releases(archive.store, DATASET, HOOK)
    return compare_releases(archive.store, DATASET, HOOK, before, after, batches or None)


def test_every_kind_of_difference_is_counted(archive: FeatureArchive) -> None:
    archive.register("2")
    archive.say("b1", AFTER)
    archive.say("b2", {"x": [{"count": 1}]})
    comparison = compare(archive).to_json()
    examples = {e["record_id"]: e for e in comparison.pop("examples")}  # type: ignore[attr-defined]
    assert comparison.pop("from")["version"] == "1"  # type: ignore[index]
    assert comparison.pop("to")["version"] == "2"  # type: ignore[index]
    assert comparison == {
        "equal": False,
        "batches": 2,
        "equal_batches": 1,
        "records": {"equal": 3, "added": 0, "removed": 0, "changed": 6},
        "rows": {"equal": 5, "added": 2, "removed": 2, "changed": 2},
        "outcomes": [
            {"before": "errored", "after": "passed", "records": 1},
            {"before": "passed", "after": "rejected", "records": 1},
        ],
        "reasons_changed": 1,
        "columns": {"score": 2, "count": 1},
        "columns_added": [],
        "columns_removed": [],
        "columns_retyped": [],
        "only_from": ["b3"],
        "only_to": [],
    }
    assert list(examples) == ["fewer", "mended", "more", "moved", "reason", "rejected"]
    assert examples["moved"] == {
        "batch": "b1",
        "record_id": "moved",
        "before": "passed, 3 rows",
        "after": "passed, 3 rows",
        "columns": ["score", "count"],
    }
    assert (examples["mended"]["before"], examples["mended"]["after"]) == (
        "errored: boom",
        "passed, 1 row",
    )


def test_columns_of_one_release_alone_are_named_and_not_compared(archive: FeatureArchive) -> None:
    archive.columns = (
        Column(name="points", type="number", renamed_from="score"),
        Column(name="count", type="number"),
        Column(name="label", type="integer"),
        Column(name="new", type="string", default="x"),
    )
    archive.register("2")
    archive.say("b2", {"x": [{"points": None, "count": 1.0, "label": 7, "new": "said"}]})
    comparison = compare(archive)
    assert comparison.difference.is_equal
    assert comparison.difference.records_equal == comparison.difference.rows_equal == 1
    assert comparison.columns_added == ("new",)
    assert comparison.columns_removed == ("parts",)
    assert comparison.columns_retyped == ("label",)
    assert comparison.only_before == ("b1", "b3")


def test_the_last_artifact_of_each_release_counts_and_equal_batches_are_not_read(
    archive: FeatureArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = archive.release
    archive.say("b2", {"x": [{"count": 2}]})
    archive.register("2")
    archive.say("b2", {"x": [{"count": 2}]})
    archive.release = first  # comes late: superseded, and never current
    archive.say("b2", {"x": [{"count": 3}]})
    monkeypatch.setattr(read, "read_rows", None)
    comparison = compare(archive)
    assert comparison.difference.equal_batches == comparison.difference.batches == 1


def test_what_is_withdrawn_or_erased_is_not_compared(archive: FeatureArchive) -> None:
    archive.register("2")
    archive.say("b1", AFTER)
    tombstones.withdraw(archive.store, DATASET, ["moved"], "asked for")
    assert compare(archive).difference.records_changed == 5
    erase(archive.store, DATASET, ["moved", "mended"], "asked for")
    difference = compare(archive).difference
    assert (difference.records_changed, difference.records_equal) == (4, 2)
    assert {example.record_id for example in difference.examples}.isdisjoint({"moved", "mended"})


def test_examples_are_bounded(archive: FeatureArchive) -> None:
    many = {f"r{number:03}": [{"count": number}] for number in range(MAX_EXAMPLES * 3)}
    archive.add("many", many)
    archive.register("2")
    archive.say("many", {record_id: [{"count": -1}] for record_id in many})
    difference = compare(archive, "many").difference
    assert difference.rows_changed == difference.records_changed == MAX_EXAMPLES * 3
    assert [e.record_id for e in difference.examples] == [f"r{n:03}" for n in range(MAX_EXAMPLES)]


def test_releases_are_selected_by_version_or_number(archive: FeatureArchive) -> None:
    def seq(name: str) -> int:
        return find_release(archive.store, DATASET, HOOK, name).seq

    with pytest.raises(NotFoundError, match="has one release: two are needed"):
        last_two_releases(archive.store, DATASET, HOOK)
    archive.register("3")
    assert (seq("1"), seq("3"), seq("2"), seq("#2")) == (1, 2, 2, 2)
    with pytest.raises(NotFoundError, match=r"no release 'x'; it has 1 \(#1\), 3 \(#2\)"):
        seq("x")
    with pytest.raises(NotFoundError, match=r"no batch has artifacts .* --select old-release"):
        compare(archive)
    with pytest.raises(NotFoundError, match=r"'b1' has no artifact .* under both"):
        compare(archive, "b1")
    archive.register("1")  # going back registers again: the other release before it is 3
    before, after = last_two_releases(archive.store, DATASET, HOOK)
    assert (before.seq, after.seq) == (2, 3)
    with pytest.raises(InvalidInputError, match="the same release"):
        compare_releases(
            archive.store,
            DATASET,
            HOOK,
            find_release(archive.store, DATASET, HOOK, "#1"),
            after,
        )


def canonical(value: object) -> str:
    """Equal exactly for equal values: one NaN, two zeros, JSON by value."""
    if isinstance(value, list):
        return repr([1 if item == 1 else item for item in value])
    return repr(value)


class Model:
    """What two releases say, as plain Python, and what differs."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()

    def draw_answer(self) -> object:
        return self.draw.choices([self.rows(), "small", "large", ValueError("boom")], [6, 1, 1, 1])[
            0
        ]

    def rows(self) -> list[dict[str, object]]:
        return [
            {
                "score": self.draw.choice([None, 0.0, -0.0, 1.5, math.nan, math.inf]),
                "count": self.draw.choice([None, 0, 2**63 - 1]),
                "label": self.draw.choice([None, "", "é", "NaN"]),
                "parts": self.draw.choice([None, [], [1], [1.0], ["1"]]),
            }
            for _ in range(self.draw.randrange(3))
        ]

    def compare(self, before: dict[str, object], after: dict[str, object]) -> None:
        self.counts["batches"] += 1
        differs = False
        for record_id, old in before.items():
            differs |= self.compare_record(old, after[record_id])
        self.counts["equal_batches"] += not differs

    def compare_record(self, old: object, new: object) -> bool:
        kinds = {list: "passed", str: "rejected", ValueError: "errored"}
        one = old if isinstance(old, list) else []
        other = new if isinstance(new, list) else []
        pairs = list(zip(one, other, strict=False))
        changed = [
            [name for name in row if canonical(row[name]) != canonical(now[name])]
            for row, now in pairs
        ]
        self.counts["rows_equal"] += changed.count([])
        self.counts["rows_changed"] += len(pairs) - changed.count([])
        self.counts["rows_removed"] += max(0, len(one) - len(other))
        self.counts["rows_added"] += max(0, len(other) - len(one))
        for name in itertools.chain.from_iterable(changed):
            self.counts[f"column {name}"] += 1
        is_other_kind = type(old) is not type(new)
        is_other_reason = not is_other_kind and not isinstance(old, list) and str(old) != str(new)
        if is_other_kind:
            self.counts[f"{kinds[type(old)]} to {kinds[type(new)]}"] += 1
        self.counts["reasons_changed"] += is_other_reason
        is_changed = is_other_kind or is_other_reason or any(changed) or len(one) != len(other)
        self.counts["records_changed" if is_changed else "records_equal"] += 1
        return is_changed


@pytest.mark.parametrize("seed", range(30))
def test_two_releases_differ_as_in_the_model(seed: int) -> None:
    model, archive = Model(seed), FeatureArchive(COLUMNS)
    before = {f"b{n}": {f"r{n}{i}": model.draw_answer() for i in range(4)} for n in range(4)}
    for batch, outcomes in before.items():
        archive.add(batch, outcomes)
    archive.register("2")
    for batch, outcomes in before.items():
        share = model.draw.choice([0.0, 0.2, 0.7])
        after = {
            record_id: model.draw_answer() if model.draw.random() < share else old
            for record_id, old in outcomes.items()
        }
        archive.say(batch, after)
        model.compare(outcomes, after)
    difference = compare(archive).difference
    counts = {
        name: getattr(difference, name)
        for name in (
            *("batches", "equal_batches", "reasons_changed", "records_equal", "records_changed"),
            *("rows_equal", "rows_added", "rows_removed", "rows_changed"),
        )
    }
    counts |= {f"column {name}": n for name, n in difference.columns.items()}
    counts |= {f"{old} to {new}": n for (old, new), n in difference.outcomes.items()}
    assert +Counter(counts) == +model.counts
    assert difference.records_added == difference.records_removed == 0
    assert len(difference.examples) == min(MAX_EXAMPLES, difference.records_changed)
