import pytest

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, OutcomeCounts, OutcomeKind, Status

HOOK = OutcomeKind.HOOK


@pytest.mark.parametrize(
    "members",
    [
        {"status": Status.PASSED, "reason": "x"},
        {"status": Status.PASSED, "reason": ""},
        {"status": Status.PASSED, "kind": HOOK},
        {"status": Status.REJECTED},
        {"status": Status.REJECTED, "reason": ""},
        {"status": Status.REJECTED, "reason": "x", "kind": HOOK},
        {"status": Status.REJECTED, "reason": "x", "rows": ((1,),)},
        {"status": Status.ERRORED, "reason": "x"},
        {"status": Status.ERRORED, "kind": HOOK},
        {"status": Status.ERRORED, "reason": "x", "kind": HOOK, "rows": ((),)},
    ],
)
def test_an_outcome_is_of_one_kind_only(members):
    with pytest.raises(InvalidInputError, match="record 'r': "):
        Outcome("r", **members)


def test_counts():
    outcomes = [
        Outcome("a", Status.PASSED, ((1,), (2,))),
        Outcome("b", Status.PASSED, carried_from=Digest.of(b"")),
        Outcome("c", Status.REJECTED, reason="no"),
        Outcome("d", Status.ERRORED, reason="no", kind=HOOK),
        Outcome("e", Status.ERRORED, reason="no", kind=OutcomeKind.LOST),
    ]
    assert OutcomeCounts.of(outcomes) == OutcomeCounts(
        records=5, passed=2, rejected=1, errored=2, empty=1, rows=2, carried=1
    )
    assert OutcomeCounts.of([]) == OutcomeCounts()
