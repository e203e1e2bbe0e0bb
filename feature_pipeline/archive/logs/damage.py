"""States of damaged objects, and results of readers that continue past damage."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.errors import FeaturePipelineError, NotFoundError, StoreUnavailableError

T = TypeVar("T")


class State(StrEnum):
    """A problem with an object."""

    MISSING = "missing"
    CORRUPT = "corrupt"
    LOST = "lost"
    """A census knows it, and it is absent, or another one is in its place."""
    UNREADABLE = "unreadable"
    """The store refused or did not answer: nothing is known."""
    NEWER = "newer"
    """Its version is newer than this code supports."""
    NOT_ERASED = "not erased"
    """It contains data of a withdrawn record, and still exists."""


@dataclass(frozen=True, slots=True)
class Damage:
    """The reason why one log cannot be used."""

    key: str
    """The object at fault."""
    state: State
    error: FeaturePipelineError
    """The error that a reader raises if it needs all of the log."""

    @classmethod
    def of(cls, key: str, error: FeaturePipelineError) -> "Damage":
        """Return the damage for an `error` raised while reading the object `key`."""
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
    """The readable part and the damaged part: a damaged object affects its own log only.

    A command that shows `intact` must also name what is in `damage`, and its exit status must show
    that the result is incomplete.
    """

    intact: Mapping[str, T]
    """By log, in order; for logs per batch, by batch. A damaged log is in `damage` only."""
    damage: Mapping[str, Damage]
    """By log, as `intact`."""

    def whole(self) -> dict[str, T]:
        """Return everything, if nothing is damaged.

        Raises:
            FeaturePipelineError: The error of the first damaged log.
        """
        for damage in self.damage.values():
            raise damage.error
        return dict(self.intact)
