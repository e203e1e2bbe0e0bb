"""What can be wrong with a stored object, and reading that goes on past it.

What belongs here: the states, and the values of readers that give what is readable with what is
not. Not here: what objects are to the archive (`archive.inspection.findings`), reading.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.errors import FeaturePipelineError, NotFoundError, StoreUnavailableError

T = TypeVar("T")


class State(StrEnum):
    """What is wrong with an object."""

    MISSING = "missing"
    CORRUPT = "corrupt"
    LOST = "lost"
    """A census knows it, and it is not there, or another is in its place."""
    UNREADABLE = "unreadable"
    """The store refused or did not answer: nothing is known."""
    NEWER = "newer"
    """Of a version that only later code knows."""
    NOT_ERASED = "not erased"
    """It holds data of a withdrawn record, and is still there."""


@dataclass(frozen=True, slots=True)
class Damage:
    """Why one log cannot be relied on."""

    key: str
    """The object at fault."""
    state: State
    error: FeaturePipelineError
    """What a reader raises that needs all of it."""

    @classmethod
    def of(cls, key: str, error: FeaturePipelineError) -> "Damage":
        """Return the damage that reading the object `key` showed by `error`."""
        if isinstance(error, NewerVersionError):
            state = State.NEWER
        elif isinstance(error, NotFoundError):
            state = State.MISSING
        elif isinstance(error, StoreUnavailableError):
            state = State.UNREADABLE
        else:
            state = State.CORRUPT
        return cls(key, state, error)


@dataclass(frozen=True, slots=True)
class Readable(Generic[T]):
    """What could be read, and what could not: a damaged object costs its own log alone.

    A command that shows `found` also names what is in `damage`, and its exit status says that it is
    not all.
    """

    found: Mapping[str, T]
    """By log, in order; for logs per batch, by batch. A log that is damaged is in `damage` only."""
    damage: Mapping[str, Damage]
    """By log, as `found`."""

    def whole(self) -> dict[str, T]:
        """Return all that was found, if nothing is damaged.

        Raises:
            FeaturePipelineError: The error of the first log that is damaged.
        """
        for damage in self.damage.values():
            raise damage.error
        return dict(self.found)
