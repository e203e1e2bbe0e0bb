"""Every error the package raises on purpose, by what a handler would do about it.

::

    FeaturePipelineError
    ├── InvalidInputError (ValueError)  correct the input; trying again changes nothing
    ├── NotFoundError (KeyError)        the named thing is not there; it may come
    ├── ConflictError                   another process has it, or has written something different
    ├── CorruptDataError                stored bytes are not what their name says; restore them
    ├── StoreUnavailableError           S3 did not do it; nothing happened; try again later
    ├── OutcomeUnknownError             S3 gave no answer; it may have happened; read back
    ├── ProjectionError                 a table could not be built or read; the archive is untouched
    └── RuntimeFailure                  a hook run gave no verdict; the message says what is known

What a hook says about a *record* (rejected, errored) is data, not an error:
see `feature_pipeline.model.outcomes`.
"""

import errno
from enum import StrEnum
from typing import Final

FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""Numbers of an `OSError` which means that no space is left, or no more for this user."""


class ErrorKind(StrEnum):
    """Stable names of error categories, for programs. Append only."""

    INVALID_INPUT = "invalid_input"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    CORRUPT_DATA = "corrupt_data"
    STORE_UNAVAILABLE = "store_unavailable"
    OUTCOME_UNKNOWN = "outcome_unknown"
    PROJECTION = "projection"
    RUNTIME_FAILURE = "runtime_failure"


class FeaturePipelineError(Exception):
    """Root of the tree; never raised itself."""

    kind: ErrorKind


class InvalidInputError(FeaturePipelineError, ValueError):
    """The input is wrong: the message names it, where it is, and what would be right."""

    kind = ErrorKind.INVALID_INPUT


class NotFoundError(FeaturePipelineError, KeyError):
    """The named thing does not exist. Raised only when absence is certain."""

    kind = ErrorKind.NOT_FOUND

    def __str__(self) -> str:
        # KeyError shows the repr of its argument; a message is wanted here.
        return str(self.args[0]) if self.args else ""


class ConflictError(FeaturePipelineError):
    """Something else exists already, or another process holds the requested thing."""

    kind = ErrorKind.CONFLICT


class CorruptDataError(FeaturePipelineError):
    """Stored bytes differ from their digest, size or format. They are never returned as data."""

    kind = ErrorKind.CORRUPT_DATA


class StoreUnavailableError(FeaturePipelineError):
    """The store refused or could not be reached; the operation did not happen."""

    kind = ErrorKind.STORE_UNAVAILABLE


class OutcomeUnknownError(FeaturePipelineError):
    """The store did not answer and a read-back could not settle whether the write happened."""

    kind = ErrorKind.OUTCOME_UNKNOWN


class ProjectionError(FeaturePipelineError):
    """A table could not be built, loaded or read; the archive is untouched."""

    kind = ErrorKind.PROJECTION


class RuntimeFailure(FeaturePipelineError):
    """A hook run ended without a verdict on its records.

    `feature_pipeline.hooks.failure` distinguishes the kinds of failure; the message ends with the
    hook's last log lines.
    """

    kind = ErrorKind.RUNTIME_FAILURE
