"""The end of an attempt, as a runner on this machine observes it."""

from dataclasses import dataclass

from feature_pipeline.hooks.failure import FailureKind, RuntimeFacts
from feature_pipeline.hooks.runner import RunRequest
from feature_pipeline.hooks.runners.shared.log_stream import LogStream


@dataclass(frozen=True, slots=True)
class End:
    """The end of a process or container; `failure` is None if it succeeded."""

    exit_code: int | None
    failure: tuple[FailureKind, str] | None
    peak_memory_bytes: int | None = None

    def facts(self, log: LogStream, request: RunRequest) -> RuntimeFacts | None:
        """Return the facts about the failure, for the policy; None if it succeeded."""
        if self.failure is None:
            return None
        kind, reason = self.failure
        return RuntimeFacts(
            kind=kind,
            reason=reason,
            exit_code=self.exit_code,
            log_tail=log.tail(),
            memory_limit_bytes=request.limits.memory_bytes,
        )
