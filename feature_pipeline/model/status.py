"""A hook's verdict on a record."""

from enum import StrEnum


class Status(StrEnum):
    """A hook's verdict on a record."""

    PASSED = "passed"
    """The hook wrote features; there may be none."""
    REJECTED = "rejected"
    """The hook does not apply to the record, for a reason."""
    ERRORED = "errored"
    """No features could be made of this record; `OutcomeKind` gives the cause."""
