"""How a hook's inputs reach a pod, and its output comes back, without a credential in the pod."""

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
    """Which attempt: the hook run's id, and the name of the attempt's Job."""

    run_id: str
    job: str

    def __str__(self) -> str:
        return self.job


@dataclass(frozen=True, slots=True)
class Grants:
    """What the pod is given, secret both: signed addresses that work for a limited time.

    `stage_url` names the document that lists the inputs. `publish` is the JSON that
    `feature_pipeline.pod.publish` reads.
    """

    stage_url: str
    publish: str


@dataclass(frozen=True, slots=True)
class PodResult:
    """How the hook ended, by the pod's own word, and what it left.

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
    """How an attempt ended whose pod left no result: what its worker learnt from the cluster."""

    failure: RuntimeFacts
    started_at: datetime
    finished_at: datetime
    node: str


class Results(Protocol):
    """Takes what the pod of one attempt left."""

    @property
    def archive(self) -> str:
        """Tells attempts about this archive from those about another: see `job`."""
        ...

    def end(self, attempt: AttemptKey) -> AttemptEnd | None:
        """What a worker noted of an attempt that left no result; None if none did.

        Raises:
            CorruptDataError: There is something else.
        """
        ...

    def result(self, attempt: AttemptKey) -> PodResult | None:
        """What the pod published; None as long as it has not.

        Raises:
            CorruptDataError: There is something else.
        """
        ...

    def fetch(self, attempt: AttemptKey, result: PodResult, output: Path, log: Path) -> None:
        """The files are in `output` and the log in `log`, with the digests that `result` names.

        Raises:
            NotFoundError, CorruptDataError: One is missing, or is something else.
        """
        ...


class Transfer(Results, Protocol):
    """Moves the workspace of one attempt, there and back."""

    def offer(self, attempt: AttemptKey, workspace: Workspace, lifetime_seconds: float) -> Grants:
        """The workspace's inputs, files and code can be had by the pod for that time.

        Raises:
            InvalidInputError: Addresses cannot be signed for so long.
            StoreUnavailableError: The store did not take them.
        """
        ...

    def note_end(self, attempt: AttemptKey, end: AttemptEnd) -> None:
        """A worker that asks for the attempt again learns that it ended; the first answer stands.

        Raises:
            StoreUnavailableError, OutcomeUnknownError: It may not be there.
        """
        ...

    def forget(self, attempt: AttemptKey) -> None:
        """The attempt's pod has left no result, whatever it left; no error if it had left none.

        Raises:
            StoreUnavailableError, OutcomeUnknownError: It may be there.
        """
        ...
