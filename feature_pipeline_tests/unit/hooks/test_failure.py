import pytest

from feature_pipeline.hooks.failure import (
    Abort,
    FailureKind,
    FailurePolicy,
    GiveUp,
    Retry,
    RuntimeFacts,
    is_memory_error,
)

GIB = 1024**3


def facts(kind: FailureKind, memory: int | None = GIB) -> RuntimeFacts:
    return RuntimeFacts(kind, "the reason", memory_limit_bytes=memory)


EXIT = facts(FailureKind.NON_ZERO_EXIT)
MEMORY = facts(FailureKind.OUT_OF_MEMORY)


def test_every_kind_has_a_decision_now_and_in_the_end():
    policy = FailurePolicy(retries=1)
    for kind in FailureKind:
        assert isinstance(policy.decide(facts(kind)), Retry | GiveUp | Abort)
        last = policy.decide(facts(kind), [facts(kind)] * 5)
        assert isinstance(last, GiveUp | Abort)
        assert "the reason" in last.reason


def test_an_exit_is_retried_with_growing_pauses_and_then_given_up():
    policy = FailurePolicy(retries=3, delay_seconds=100)
    assert [policy.decide(EXIT, [EXIT] * n) for n in range(4)] == [
        Retry(100),
        Retry(200),
        Retry(300),
        GiveUp("the reason; 4 attempts"),
    ]


def test_without_retries_the_first_failure_is_the_last():
    assert FailurePolicy(retries=0).decide(EXIT) == GiveUp("the reason")


def test_an_exit_after_a_long_time_is_not_repeated():
    """A hook that always ends so would cost that time again, as often as it may be retried."""
    policy = FailurePolicy(retries=3, retry_within_seconds=60)
    assert policy.decide(EXIT, seconds=59) == Retry(5)
    assert policy.decide(EXIT, seconds=61) == GiveUp("the reason")
    assert policy.decide(EXIT, [EXIT], seconds=61) == GiveUp("the reason; 2 attempts")
    # what is not the hook's doing costs what it costs
    assert policy.decide(facts(FailureKind.EVICTED), seconds=3600) == Retry(5)


def test_memory_that_was_learnt_counts_towards_what_is_granted():
    """A part that begins with more than was declared is not raised to more than others are."""
    policy = FailurePolicy(memory_bytes=GIB)
    assert policy.decide(facts(FailureKind.OUT_OF_MEMORY, 4 * GIB)) == Retry(0, 8 * GIB)
    assert isinstance(policy.decide(facts(FailureKind.OUT_OF_MEMORY, 8 * GIB)), GiveUp)


def test_memory_is_doubled_three_times():
    policy = FailurePolicy(retries=0)
    tried = [facts(FailureKind.OUT_OF_MEMORY, GIB * 2**n) for n in range(4)]
    decisions = [policy.decide(tried[n], tried[:n]) for n in range(4)]
    assert decisions[:3] == [Retry(0, 2 * GIB), Retry(0, 4 * GIB), Retry(0, 8 * GIB)]
    assert decisions[3] == GiveUp("the reason; memory was doubled 3 times already")


def test_memory_is_not_raised_beyond_the_ceiling():
    policy = FailurePolicy(memory_ceiling_bytes=3 * GIB // 2)
    assert policy.decide(MEMORY) == Retry(0, 3 * GIB // 2)
    at_ceiling = facts(FailureKind.OUT_OF_MEMORY, 3 * GIB // 2)
    assert policy.decide(at_ceiling, [MEMORY]) == GiveUp(
        "the reason; 1.5Gi is its limits.memory_ceiling"
    )


def test_memory_and_other_failures_are_counted_apart():
    policy = FailurePolicy(retries=1)
    assert policy.decide(EXIT, [MEMORY, MEMORY]) == Retry(5)
    assert policy.decide(MEMORY, [EXIT, EXIT]) == Retry(0, 2 * GIB)


@pytest.mark.parametrize("kind", [FailureKind.DEADLINE, FailureKind.INVALID_OUTPUT])
def test_what_would_end_the_same_way_is_not_tried_again(kind):
    assert FailurePolicy(retries=9).decide(facts(kind)) == GiveUp("the reason")


@pytest.mark.parametrize(
    "kind", [FailureKind.CANNOT_START, FailureKind.CLUSTER_REFUSED, FailureKind.CANCELLED]
)
def test_what_no_batch_would_survive_stops_everything(kind):
    assert FailurePolicy(retries=9).decide(facts(kind)) == Abort("the reason")


@pytest.mark.parametrize("kind", [FailureKind.IMAGE_PULL, FailureKind.UNSCHEDULABLE])
def test_what_may_pass_is_waited_for_and_is_not_the_batchs_fault(kind):
    policy = FailurePolicy(retries=1)
    assert policy.decide(facts(kind)) == Retry(5)
    assert policy.decide(facts(kind), [facts(kind)]) == Abort("the reason; 2 attempts")


def test_facts_describe_themselves():
    description = RuntimeFacts(FailureKind.NON_ZERO_EXIT, "status 3", 3, ("one", "two")).describe()
    assert description == "non_zero_exit: status 3\nlast lines of its log:\n  one\n  two"
    assert "log is empty" in EXIT.describe()


@pytest.mark.parametrize(
    ("tail", "is_memory"),
    [
        (["MemoryError"], True),
        (["Traceback", "MemoryError: no", ""], True),
        (["numpy._core._exceptions._ArrayMemoryError: Unable to allocate 1 TiB"], True),
        (["MemoryError", "and then something else"], False),
        (["no MemoryError here"], False),
        ([], False),
    ],
)
def test_pythons_word_for_memory(tail, is_memory):
    assert is_memory_error(tail) is is_memory
