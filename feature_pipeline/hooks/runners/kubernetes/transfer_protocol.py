"""The protocol for moving a hook's inputs and output without a credential in the pod."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from feature_pipeline.hooks.failure import RuntimeFacts
from feature_pipeline.hooks.runner import Workspace
from feature_pipeline.model.digest import Digest


@dataclass(frozen=True, slots=True)
class AttemptKey:
    """The hook run's id, and the name of the attempt's Job."""

    run_id: str
    job: str

    def __str__(self) -> str:
        return self.job


@dataclass(frozen=True, slots=True)
class Grants:
    """Signed addresses for the pod, valid for a limited time. Both parts are secret.

    `stage_url` names the document that lists the inputs. `publish` is the JSON that
    `feature_pipeline.pod.publish` reads.
    """

    stage_url: str
    publish: str


@dataclass(frozen=True, slots=True)
class PodResult:
    """The hook's end and files, as the pod reports them.

    `exit_code` is as shells give it. `start_error` is set if the program could not be started.
    `irregular` and `too_large`, with sizes in bytes, are not among the `files`.
    """

    exit_code: int
    is_late: bool
    oom_kills: int
    peak_memory_bytes: int
    started_at: datetime
    finished_at: datetime
    start_error: str | None
    node: str
    files: Mapping[str, tuple[Digest, int]]
    irregular: tuple[str, ...]
    too_large: Mapping[str, int]
    log: tuple[Digest, int]


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """The end of an attempt whose pod left no result, as its worker learnt it from the cluster."""

    failure: RuntimeFacts
    started_at: datetime
    finished_at: datetime
    node: str


class Results(Protocol):
    """Reads the result of an attempt's pod."""

    @property
    def archive(self) -> str:
        """Distinguishes attempts about this archive from those about another: see `job`."""
        ...

    def end(self, attempt: AttemptKey) -> AttemptEnd | None:
        """Return a worker's record of an attempt without a result; None if there is none.

        Raises:
            CorruptDataError: The object is something else.
        """
        ...

    def result(self, attempt: AttemptKey) -> PodResult | None:
        """Return the pod's result; None if it has not published one yet.

        Raises:
            CorruptDataError: The object is something else.
        """
        ...

    def fetch(self, attempt: AttemptKey, result: PodResult, output: Path, log: Path) -> None:
        """Download the files into `output` and the log to `log`, and compare them with `result`.

        Raises:
            NotFoundError, CorruptDataError: One is missing, or is something else.
        """
        ...


class Transfer(Results, Protocol):
    """Moves the workspace of one attempt to the pod and back."""

    def offer(self, attempt: AttemptKey, workspace: Workspace, lifetime_seconds: float) -> Grants:
        """Make the workspace's inputs, files and code available to the pod for that time.

        Raises:
            InvalidInputError: Addresses cannot be signed for so long.
            StoreUnavailableError: The store did not take them.
        """
        ...

    def note_end(self, attempt: AttemptKey, end: AttemptEnd) -> None:
        """Record the attempt's end for a worker that asks for it again; the first record stands.

        Raises:
            StoreUnavailableError, OutcomeUnknownError: It may not be stored.
        """
        ...

    def forget(self, attempt: AttemptKey) -> None:
        """Remove the result of the attempt's pod, if there is one.

        Raises:
            StoreUnavailableError, OutcomeUnknownError: It may still exist.
        """
        ...
