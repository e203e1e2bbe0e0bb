"""What became of each record of a batch: the value that hooks, archive and tables exchange."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from feature_pipeline.digest import Digest, Value
from feature_pipeline.errors import InvalidInputError


class Status(StrEnum):
    """A hook's verdict on a record."""

    PASSED = "passed"
    """The hook made features; there may be none."""
    REJECTED = "rejected"
    """The hook says that the record is not for it, and why."""
    ERRORED = "errored"
    """No features could be made of this record; `OutcomeKind` says whose fault."""


class OutcomeKind(StrEnum):
    """Why a record errored. Append only."""

    HOOK = "hook"
    """The hook said so."""
    INVALID_OUTPUT = "invalid_output"
    """What the hook wrote about it breaks the contract or the declared columns."""
    LOST = "lost"
    """A crash of the hook took it along, and it could not be computed alone either."""


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
    kind: OutcomeKind | None = None
    is_retryable: bool = False
    action: Digest | None = None
    """What was asked: equal actions have equal answers. None where nothing is known of it."""
    carried_from: Digest | None = None
    """The manifest that computed it, when that is an earlier one."""

    def __post_init__(self) -> None:
        if (self.status is Status.PASSED) != (self.reason is None) or self.reason == "":
            raise InvalidInputError(
                f"record {self.record_id!r}: {self.status} with reason {self.reason!r}"
            )
        if self.rows and self.status is not Status.PASSED:
            raise InvalidInputError(
                f"record {self.record_id!r}: {self.status} with {len(self.rows)} rows"
            )
        if (self.status is Status.ERRORED) != (self.kind is not None):
            raise InvalidInputError(
                f"record {self.record_id!r}: {self.status} with kind {self.kind!r}"
            )


@dataclass(frozen=True, slots=True)
class OutcomeCounts:
    """How many records ended how. `empty` counts passed records without rows."""

    records: int = 0
    passed: int = 0
    rejected: int = 0
    errored: int = 0
    empty: int = 0
    rows: int = 0
    carried: int = 0

    @classmethod
    def of(cls, outcomes: Iterable[Outcome]) -> "OutcomeCounts":
        """The counts over `outcomes`."""
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
    """Everything a hook said about the records it was given.

    `outcomes` holds exactly one per record, in the batch's order. `unknown_ids` are ids that the
    hook wrote about and was never given; `undeclared_keys` are the feature keys that no column
    declares. Both stay in the raw output.
    """

    outcomes: tuple[Outcome, ...]
    unknown_ids: tuple[str, ...] = ()
    undeclared_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())
