"""Failures of hook runs and the policy on them: facts in, decision out, no side effects.

A runner reports `RuntimeFacts`; `FailurePolicy.decide` turns them into a `Decision`; `hooks.run`
(or the process that watches a Job) acts on it. Nothing else counts retries.
"""

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from feature_pipeline.model.definition import Limits
from feature_pipeline.model.outcomes import GrantedLimits
from feature_pipeline.model.text.quantities import format_size
from feature_pipeline.model.text.quoting import MOST_REASON, quoted

MAX_MEMORY_DOUBLINGS: Final = 3
LOG_TAIL_LINES: Final = 20


class FailureKind(StrEnum):
    """The reason why a hook run ended without a verdict. Append only."""

    OUT_OF_MEMORY = "out_of_memory"
    DEADLINE = "deadline"
    """It took longer than `limits.timeout`."""
    NON_ZERO_EXIT = "non_zero_exit"
    """The program exited with a status other than 0, or by a signal that we did not send."""
    CANNOT_START = "cannot_start"
    """The program does not exist, or is not executable."""
    IMAGE_PULL = "image_pull"
    UNSCHEDULABLE = "unschedulable"
    """No node has room for its limits."""
    EVICTED = "evicted"
    """The cluster removed the node or the pod."""
    STAGE_FAILED = "stage_failed"
    """Its inputs could not be laid out, or do not match their digests."""
    PUBLISH_FAILED = "publish_failed"
    """It ran, and its output could not be stored."""
    CLUSTER_REFUSED = "cluster_refused"
    """The cluster's API refused: permissions, quota, or a name that does not exist."""
    INVALID_OUTPUT = "invalid_output"
    """It exited with 0 and left a file that is truncated or cannot be parsed."""
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    OUT_OF_SPACE = "out_of_space"
    """Its scratch or its output exceeded `limits.scratch`."""
    OUTPUT_TOO_LARGE = "output_too_large"
    """One of its files is larger than a pod can publish."""
    WORKER_DIED = "worker_died"
    """Its worker died, and it could not be attached to: the attempt was repeated."""


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """The facts that a runner reports about a run without verdict.

    `exit_code` follows the shell: 128 + n for a program that signal n ended; None if there was no
    exit. `log_tail` are the log's last lines, oldest first. `memory_limit_bytes` is the limit that
    it ran under.
    """

    kind: FailureKind
    reason: str
    exit_code: int | None = None
    log_tail: tuple[str, ...] = ()
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        # It may quote what the hook wrote.
        object.__setattr__(self, "reason", quoted(self.reason, MOST_REASON))

    def describe(self) -> str:
        """Return kind, reason and log tail for display."""
        head = f"{self.kind.value}: {self.reason}"
        if not self.log_tail:
            return f"{head} (its log is empty)"
        return "\n".join([head, "last lines of its log:", *(f"  {line}" for line in self.log_tail)])


@dataclass(frozen=True, slots=True)
class Retry:
    """Run it again after `delay_seconds`; with `memory_bytes`, or unchanged if that is None."""

    delay_seconds: float
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The hook run failed: record it as failed, with its output and log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Abort:
    """Nothing is known about the batch: stop the surrounding run, and record no failed hook run.

    No other batch would succeed until the problem in `reason` has been corrected.
    """

    reason: str


Decision = Retry | GiveUp | Abort

# The next attempt would meet the same end: the program, its records and its deadline are the same.
_FINAL: Final = frozenset(
    {
        FailureKind.DEADLINE,
        FailureKind.INVALID_OUTPUT,
        FailureKind.OUT_OF_SPACE,
        FailureKind.OUTPUT_TOO_LARGE,
    }
)
# Not the hook's doing, and waiting does not help.
_ABORTING: Final = frozenset(
    {FailureKind.CANNOT_START, FailureKind.CLUSTER_REFUSED, FailureKind.CANCELLED}
)
# Not the hook's doing, and may pass; when it does not, the batch is not to blame.
_SURROUNDINGS: Final = frozenset({FailureKind.IMAGE_PULL, FailureKind.UNSCHEDULABLE})


@dataclass(frozen=True, slots=True)
class FailurePolicy:
    """The decision about a failed attempt.

    Attributes:
        retries: How often an attempt is repeated, not counting memory doublings.
        retry_within_seconds: An attempt that exited with a status other than 0 is repeated only if
            it took at most this long, since every repetition of such a hook may cost as much.
        memory_bytes: The declared memory, which is doubled three times at most, whatever the first
            attempt had; None takes the first attempt's.
        memory_ceiling_bytes: Memory is never raised beyond it; None leaves it to the number of
            doublings.
        delay_seconds: Delay before the first retry; it doubles up to `max_delay_seconds`.
    """

    retries: int = 2
    retry_within_seconds: float = 300.0
    memory_bytes: int | None = None
    memory_ceiling_bytes: int | None = None
    delay_seconds: float = 5.0
    max_delay_seconds: float = 300.0

    def decide(
        self,
        facts: RuntimeFacts,
        earlier: Sequence[RuntimeFacts] = (),
        *,
        seconds: float = 0.0,
    ) -> Decision:
        """Decide what to do about `facts`.

        Args:
            facts: The attempt that just failed.
            earlier: The failed attempts before it at the same records, oldest first.
            seconds: How long the attempt ran.
        """
        if facts.kind is FailureKind.OUT_OF_MEMORY:
            return self._more_memory(facts, earlier)
        if facts.kind in _ABORTING:
            return Abort(facts.reason)
        if facts.kind in _FINAL:
            return GiveUp(facts.reason)
        used = sum(fact.kind is not FailureKind.OUT_OF_MEMORY for fact in earlier)
        is_slow_exit = (
            facts.kind is FailureKind.NON_ZERO_EXIT and seconds > self.retry_within_seconds
        )
        if used < self.retries and not is_slow_exit:
            return Retry(min(self.delay_seconds * 2**used, self.max_delay_seconds))
        reason = f"{facts.reason}; {used + 1} attempts" if used else facts.reason
        return Abort(reason) if facts.kind in _SURROUNDINGS else GiveUp(reason)

    def _more_memory(self, facts: RuntimeFacts, earlier: Sequence[RuntimeFacts]) -> Decision:
        limit = facts.memory_limit_bytes
        if limit is None:
            return GiveUp(f"{facts.reason}; no memory limit was set, so none can be raised")
        first = next((fact for fact in earlier if fact.memory_limit_bytes is not None), facts)
        declared = self.memory_bytes or first.memory_limit_bytes or limit
        most = _most_memory(declared, self.memory_ceiling_bytes)
        doublings = sum(fact.kind is FailureKind.OUT_OF_MEMORY for fact in earlier)
        if limit < most and doublings < MAX_MEMORY_DOUBLINGS:
            return Retry(0.0, min(2 * limit, most))
        if self.memory_ceiling_bytes is not None and limit >= self.memory_ceiling_bytes:
            return GiveUp(f"{facts.reason}; {format_size(limit)} is its limits.memory_ceiling")
        doubled = f"memory was doubled {MAX_MEMORY_DOUBLINGS} times already"
        return GiveUp(f"{facts.reason}; {doubled}")


def granted_limits(limits: Limits) -> GrantedLimits:
    """Return the most that attempts get under `limits`, with memory fully raised."""
    return GrantedLimits(
        memory_bytes=_most_memory(limits.memory_bytes, limits.memory_ceiling_bytes),
        timeout_seconds=limits.timeout_seconds,
        scratch_bytes=limits.scratch_bytes,
    )


def _most_memory(declared_bytes: int, ceiling_bytes: int | None) -> int:
    most = declared_bytes * 2**MAX_MEMORY_DOUBLINGS
    return most if ceiling_bytes is None else min(most, ceiling_bytes)


_MEMORY_ERRORS: Final = ("MemoryError", "numpy.core._exceptions", "numpy._core._exceptions")


def is_memory_error(log_tail: Sequence[str]) -> bool:
    """Return whether the last line of a failed program's log is Python's out-of-memory error."""
    last = _last_line(log_tail)
    return last.startswith(_MEMORY_ERRORS) and "MemoryError" in last


def is_space_error(log_tail: Sequence[str]) -> bool:
    """Return whether the last line of a failed program's log reports a full disk."""
    return os.strerror(errno.ENOSPC) in _last_line(log_tail)


def _last_line(log_tail: Sequence[str]) -> str:
    return next((line for line in reversed(log_tail) if line.strip()), "")
