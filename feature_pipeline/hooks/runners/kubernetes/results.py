"""Read and interpret the result that an attempt's pod published, with or without a worker."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from feature_pipeline.errors import CorruptDataError, NotFoundError
from feature_pipeline.hooks.failure import FailureKind, RuntimeFacts, is_memory_error
from feature_pipeline.hooks.output_folder import excess
from feature_pipeline.hooks.runner import RunMonitor, RunRequest, RunResult
from feature_pipeline.hooks.runners.kubernetes import job as jobs
from feature_pipeline.hooks.runners.kubernetes.failure_facts import Diagnosis
from feature_pipeline.hooks.runners.kubernetes.transfer_protocol import (
    AttemptEnd,
    AttemptKey,
    PodResult,
    Results,
)
from feature_pipeline.hooks.runners.shared import log_file
from feature_pipeline.hooks.runners.shared.log_file import CappedLog
from feature_pipeline.hooks.runners.shared.log_stream import LogStream
from feature_pipeline.model.text.exit_status import exit_reason
from feature_pipeline.model.text.quantities import format_size
from feature_pipeline.pod.signed_urls import MOST_FILE_BYTES

UNKNOWN_NODE: Final = "unknown"
_CUT_BYTES: Final = 128
"""More than the length of the line that reports omitted output."""
_CHUNK_BYTES: Final = 1 << 16


class NotPublishedError(NotFoundError):
    """The attempt's pod has published nothing yet, or never will."""

    def __init__(self, attempt: AttemptKey) -> None:
        super().__init__(f"Job {attempt} has published no result")
        self.attempt = attempt


class PublishedResults:
    """A runner that starts nothing: its attempts are those whose pods have published already.

    An attempt ends here as it would have for the worker that began it, so that a worker that
    repeats a hook run's course makes the same decisions.

    Args:
        results: The pods' results.
        image: The image of the hook's container, which is part of an attempt's name.
    """

    name = "kubernetes"

    def __init__(self, results: Results, image: str) -> None:
        self._results = results
        self._image = image

    def run(self, request: RunRequest, monitor: RunMonitor) -> RunResult:
        """Return the attempt's published result.

        Raises:
            NotPublishedError: There is none.
        """
        job = jobs.job_name(request, jobs.identity(request, self._image, self._results.archive))
        attempt = AttemptKey(request.run_id, job)
        request.workspace.create()
        request.workspace.clear_output()
        try:
            result = self._results.result(attempt)
            end = self._results.end(attempt) if result is None else None
        except CorruptDataError as error:
            now = datetime.now(UTC)
            failure = runtime_facts(Diagnosis(FailureKind.PUBLISH_FAILED, str(error)), (), request)
            return without_result(AttemptEnd(failure, now, now, UNKNOWN_NODE), request)
        if end is not None:
            return without_result(end, request)
        if result is None:
            raise NotPublishedError(attempt)
        data, diagnosis = b"", None
        tail: tuple[str, ...] = ()
        try:
            data = with_last_line_ended(download_log(self._results, attempt, result, request))
        except (NotFoundError, CorruptDataError) as error:
            diagnosis = Diagnosis(FailureKind.PUBLISH_FAILED, str(error))
        else:
            tail = tail_of(data)
            diagnosis = verdict(request, result, tail)
        path = request.workspace.log(request.attempt)
        path.write_bytes(data)
        return RunResult(
            exit_code=diagnosis.exit_code if diagnosis is not None else 0,
            failure=None if diagnosis is None else runtime_facts(diagnosis, tail, request),
            started_at=result.started_at,
            finished_at=result.finished_at,
            log=path,
            peak_memory_bytes=result.peak_memory_bytes,
            node=result.node or UNKNOWN_NODE,
        )


def without_result(end: AttemptEnd, request: RunRequest) -> RunResult:
    """Return the attempt's end as recorded by its worker, with the last lines of its log."""
    path = request.workspace.log(request.attempt)
    path.write_text("".join(f"{line}\n" for line in end.failure.log_tail), encoding="utf-8")
    return RunResult(
        exit_code=end.failure.exit_code,
        failure=end.failure,
        started_at=end.started_at,
        finished_at=end.finished_at,
        log=path,
        peak_memory_bytes=None,
        node=end.node,
    )


def download_log(
    results: Results, attempt: AttemptKey, result: PodResult, request: RunRequest
) -> bytes:
    """Download the result's files into the request's workspace; return its log.

    Raises:
        NotFoundError, CorruptDataError: A file is missing, does not match the result, or is a log
            that our wrapper cannot have written.
    """
    most, size = log_file.LOG_HEAD_BYTES + log_file.LOG_TAIL_BYTES + _CUT_BYTES, result.log[1]
    if size > most:
        raise CorruptDataError(
            f"the log of Job {attempt} has {size} bytes; at most {most} are kept"
        )
    whole = request.workspace.log(request.attempt).with_suffix(".whole")
    if _length(result) > request.limits.scratch_bytes:
        result = replace(result, files={})  # too much: see `verdict`
    results.fetch(attempt, result, request.workspace.output, whole)
    data = whole.read_bytes()
    whole.unlink()
    return data


def _length(result: PodResult) -> int:
    return sum(size for _, size in result.files.values())


def tail_of(log: bytes) -> tuple[str, ...]:
    """Return the last lines of a log in the form in which a follower sees them."""
    with Path(os.devnull).open("wb") as nowhere:
        shown = LogStream(CappedLog(nowhere), lambda _: None)
        for start in range(0, len(log), _CHUNK_BYTES):
            shown.feed(log[start : start + _CHUNK_BYTES])
        shown.finish()
    return shown.tail()


def with_last_line_ended(data: bytes) -> bytes:
    """Return the log with a line end after its last line."""
    return data + b"\n" if data and not data.endswith(b"\n") else data


def verdict(request: RunRequest, result: PodResult, tail: tuple[str, ...]) -> Diagnosis | None:
    """Return the failure shown by the hook's own end; None if it succeeded."""
    limits, code = request.limits, result.exit_code
    if result.start_error is not None:
        program = request.release.document.command[0]
        reason = f"{program!r} cannot be started: {result.start_error}"
        return Diagnosis(FailureKind.CANNOT_START, reason)
    if result.oom_kills:
        limit = format_size(limits.memory_bytes)
        reason = f"it ran out of memory; its limit is {limit}"
        return Diagnosis(FailureKind.OUT_OF_MEMORY, reason, code)
    if result.is_late:
        return Diagnosis(FailureKind.DEADLINE, f"not done after {limits.timeout}", code)
    if code and is_memory_error(tail):
        return Diagnosis(FailureKind.OUT_OF_MEMORY, "its log reports that memory ran out", code)
    if code:
        return Diagnosis(FailureKind.NON_ZERO_EXIT, exit_reason(code), code)
    if result.too_large:
        named = ", ".join(f"{n} ({format_size(s)})" for n, s in result.too_large.items())
        reason = f"{named}: a pod can publish files of at most {format_size(MOST_FILE_BYTES)}"
        return Diagnosis(FailureKind.OUTPUT_TOO_LARGE, f"{reason}; make the batch smaller", code)
    if _length(result) > limits.scratch_bytes:
        reason = excess("output", _length(result), limits.scratch_bytes)
        return Diagnosis(FailureKind.OUT_OF_SPACE, reason, code)
    if result.irregular:
        reason = f"{', '.join(result.irregular)}: not a regular file"
        return Diagnosis(FailureKind.INVALID_OUTPUT, reason, code)
    return None


def runtime_facts(diagnosis: Diagnosis, tail: tuple[str, ...], request: RunRequest) -> RuntimeFacts:
    """Return the facts of a failed attempt."""
    reason = diagnosis.reason
    if diagnosis.kind is FailureKind.OUT_OF_MEMORY and "limit" not in reason:
        reason = f"{reason}; its limit is {format_size(request.limits.memory_bytes)}"
    return RuntimeFacts(
        kind=diagnosis.kind,
        reason=reason,
        exit_code=diagnosis.exit_code,
        log_tail=tail,
        memory_limit_bytes=request.limits.memory_bytes,
    )
