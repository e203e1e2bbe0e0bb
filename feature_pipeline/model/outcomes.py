"""The outcome of each record of a batch, as exchanged by hooks, archive and tables."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from pydantic import StrictInt

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest, Value
from feature_pipeline.model.status import Status as Status
from feature_pipeline.model.text.counted import counted


class OutcomeKind(StrEnum):
    """Why a record errored. Append only."""

    HOOK = "hook"
    """The hook reported the error."""
    INVALID_OUTPUT = "invalid_output"
    """The hook's output about it violates the contract or the declared columns."""
    LOST = "lost"
    """The hook failed on it together with other records, which were not isolated."""
    OUT_OF_MEMORY = "out_of_memory"
    """Given this record alone, the hook ran out of memory."""
    DEADLINE = "deadline"
    """Given this record alone, the hook exceeded its time limit."""
    OUT_OF_SPACE = "out_of_space"
    """Given this record alone, the hook filled its disk."""
    OUTPUT_TOO_LARGE = "output_too_large"
    """Given this record alone, the hook wrote a file that is too large to be published."""
    CRASH = "crash"
    """Given this record alone, the hook exited with a status other than 0."""
    INPUT = "input"
    """The hook did not get the record: an input hook has no answer for it."""
    NOT_STAGED = "not_staged"
    """The hook did not get the record: its files cannot be laid out under their names."""
    UNKNOWN = "unknown"
    """The hook's output is gone, and its rows elsewhere have none of the record."""


def outcome_kind(text: str) -> OutcomeKind | str:
    """Return the kind that `text` names; the text itself if only later code knows it."""
    return OutcomeKind(text) if text in _KINDS else text


_KINDS: Final = frozenset(OutcomeKind)


@dataclass(frozen=True, slots=True)
class GrantedLimits:
    """The most that a hook run gives an attempt. No limit is part of an action."""

    memory_bytes: int
    """The most that memory is raised to after an attempt ran out of it."""
    timeout_seconds: float
    scratch_bytes: int


# which limits, once raised, may make another outcome of it
_LIMITS_OF: Final[Mapping[OutcomeKind | str, tuple[str, ...]]] = {
    OutcomeKind.OUT_OF_MEMORY: ("memory_bytes",),
    OutcomeKind.DEADLINE: ("timeout_seconds",),
    OutcomeKind.OUT_OF_SPACE: ("scratch_bytes",),
    OutcomeKind.OUTPUT_TOO_LARGE: (),
    OutcomeKind.CRASH: ("memory_bytes", "timeout_seconds", "scratch_bytes"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One record's outcome.

    `rows` hold one tuple per feature in the order written, each in the order of the declared
    columns. `reason` is None for passed records and never empty for others.
    """

    record_id: str
    status: Status
    rows: tuple[tuple[Value, ...], ...] = ()
    reason: str | None = None
    kind: OutcomeKind | str | None = None
    """None unless errored; a text if a later version of this code names another kind."""
    is_retryable: bool = False
    action: Digest | None = None
    """Equal actions have equal answers. None if nothing is known of it."""
    carried_from: Digest | None = None
    """The manifest that computed it, if that is another one: of any batch of the hook, or of the
    input hook whose verdict this is.
    """
    is_from_output: bool = True
    """Whether it was read from the hook's output; otherwise the hook wrote none about the record,
    or did not get it.
    """
    limits: GrantedLimits | None = None
    """The limits with which the hook failed on the record; else None."""

    def __post_init__(self) -> None:
        if (self.status is Status.PASSED) != (self.reason is None) or self.reason == "":
            raise InvalidInputError(
                f"record {self.record_id!r}: {self.status} with reason {self.reason!r}: rejected"
                " and errored need a reason that is not empty, passed has none"
            )
        if self.rows and self.status is not Status.PASSED:
            raise InvalidInputError(
                f"record {self.record_id!r}: {self.status} with {counted(len(self.rows), 'row')}"
            )
        if (self.status is Status.ERRORED) != (self.kind is not None):
            raise InvalidInputError(
                f"record {self.record_id!r}: {self.status} with kind {self.kind!r}"
            )

    def may_differ_under(self, granted: GrantedLimits) -> bool:
        """Return whether computing it again under `granted` may give another outcome."""
        if self.status is not Status.ERRORED:
            return False
        if self.is_retryable:
            return True
        if self.limits is None or self.kind is None:
            return False
        return any(
            getattr(granted, name) > getattr(self.limits, name)
            for name in _LIMITS_OF.get(self.kind, ())
        )


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """Number of records by outcome. `empty` counts passed records without rows."""

    records: StrictInt = 0
    passed: StrictInt = 0
    rejected: StrictInt = 0
    errored: StrictInt = 0
    empty: StrictInt = 0
    rows: StrictInt = 0
    carried: StrictInt = 0

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "OutcomeCounts":
        """Return the counts of `outcomes`."""
        tally = dict.fromkeys(cls.__slots__, 0)
        for outcome in outcomes:
            tally["records"] += 1
            tally[outcome.status.value] += 1
            tally["rows"] += len(outcome.rows)
            tally["empty"] += outcome.status is Status.PASSED and not outcome.rows
            tally["carried"] += outcome.carried_from is not None
        return cls(**tally)


@dataclass(frozen=True, slots=True)
class DecodedOutput:
    """The decoded output of a hook about the records that it got.

    `outcomes` has exactly one per record, in the batch's order. `unknown_ids` are ids in the output
    that the hook did not get; `undeclared_keys` are the feature keys that no column declares. Both
    stay in the raw output.
    """

    outcomes: tuple[Outcome, ...]
    unknown_ids: tuple[str, ...] = ()
    undeclared_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
    read: Mapping[str, Digest] = field(default_factory=dict)
    """By name, the digest of each file that was decoded, as it was then."""
