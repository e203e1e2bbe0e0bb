"""Run a hook over a batch in parts, side by side, and join their output.

Only hooks whose outcome for a record depends on that record alone are run in parts.
"""

import json
import os
import re
import shutil
import threading
from codecs import BOM_UTF8
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.failure import Abort, FailureKind, FailurePolicy, GiveUp, RuntimeFacts
from feature_pipeline.hooks.isolate_records import Isolation, Part, first_parts
from feature_pipeline.hooks.json_lines import MOST_LINE_BYTES, read_document
from feature_pipeline.hooks.output_folder import (
    FEATURES,
    RAW_FILES,
    SINGLE_FEATURES,
    storable_files,
)
from feature_pipeline.hooks.run import FailedRecord, HookRun, run_hook
from feature_pipeline.hooks.runner import HookRunner, RunMonitor, RunRequest, Workspace
from feature_pipeline.hooks.runners.shared.log_file import CappedLog, open_log
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import OutcomeKind
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.quantities import format_size
from feature_pipeline.regular_files import open_regular

# The hook's doing, so that fewer records, or others, may end otherwise.
_KINDS: Final = {
    FailureKind.OUT_OF_MEMORY: OutcomeKind.OUT_OF_MEMORY,
    FailureKind.DEADLINE: OutcomeKind.DEADLINE,
    FailureKind.OUT_OF_SPACE: OutcomeKind.OUT_OF_SPACE,
    FailureKind.OUTPUT_TOO_LARGE: OutcomeKind.OUTPUT_TOO_LARGE,
    FailureKind.NON_ZERO_EXIT: OutcomeKind.CRASH,
    FailureKind.INVALID_OUTPUT: OutcomeKind.INVALID_OUTPUT,
}
_REASON_CHARACTERS: Final = 500
_RECORDS: Final = "records.jsonl"
_JOINED: Final = "joined"
_NEVER_SECONDS: Final = -1.0
_LINE_ENDS: Final = re.compile(rb"[\r\n]+")

Check = Callable[[Path, Sequence[str]], object]
"""Reads the output about these records; raises InvalidInputError if that is not possible."""


@dataclass(frozen=True, slots=True)
class PartLimits:
    """The maximum size of one part.

    Attributes:
        records: Maximum number of records of a part.
        input_bytes: Maximum bytes of their lines and files; a larger record is a part of its own.
        at_once: Parts that run side by side.
        is_divisible: Whether there may be parts at all.
    """

    records: int = 1000
    input_bytes: int = 20 * 2**30
    at_once: int = 4
    is_divisible: bool = True


class InterruptedPartError(Exception):
    """Another part was interrupted: handle this one as interrupted, too."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A staged record of the batch."""

    record_id: str
    line: bytes
    size: int


@dataclass(frozen=True, slots=True)
class _Ran:
    """A part that was run, with its own workspace."""

    part: Part
    workspace: Workspace
    run: HookRun

    @property
    def memory_bytes(self) -> int:
        """Memory limit of the last attempt."""
        return self.run.starts[-1].memory_limit_bytes


def run_in_parts(
    runner: HookRunner,
    request: RunRequest,
    policy: FailurePolicy,
    monitor: RunMonitor,
    limits: PartLimits,
    *,
    check: Check,
    begin_with: Mapping[str, int] | None = None,
) -> HookRun:
    """Run the hook over the batch, in parts if it exceeds `limits` or the hook fails on it.

    The workspace gets the parts' output joined, in the batch's order, and one log of every start.
    Records on which the hook fails when it gets them alone are `failed_records` of a run that gives
    a verdict on the others. If the hook fails on everything, or for a reason that is not its own,
    the run gives no verdict: its reason names the records, and the others' output is stored.

    Args:
        runner: Makes the attempts.
        request: The first attempt at the whole batch.
        policy: Decides about failed attempts.
        monitor: Watches all of them.
        limits: Maximum size of a part.
        check: Called for the run's output, and for parts where that cannot be read.
        begin_with: Records on which the hook failed before under lower limits, by id, with the
            bytes of memory for the first attempt.

    Raises:
        BaseException: Any interruption of the wait; the runner handles every part as interrupted.
    """
    return _Course(runner, request, policy, monitor, limits, check, begin_with or {}).run()


class _Course:
    """The execution of a hook over one batch, from its first parts to the merged output of all."""

    def __init__(
        self,
        runner: HookRunner,
        request: RunRequest,
        policy: FailurePolicy,
        monitor: RunMonitor,
        limits: PartLimits,
        check: Check,
        begin_with: Mapping[str, int],
    ) -> None:
        self._runner = runner
        self._request = request
        self._policy = policy
        self._shared = _Shared(monitor)
        self._limits = limits
        self._check = check
        self._items = items = _read_items(request.workspace)
        raised = {
            position: begin_with[item.record_id]
            for position, item in enumerate(items)
            if item.record_id in begin_with
        }
        sizes, memory = [item.size for item in items], request.limits.memory_bytes
        parts = first_parts(sizes, memory, limits.records, limits.input_bytes, raised)
        if not limits.is_divisible:
            everything = tuple(range(len(items)))
            parts = [Part("", everything, max(part.memory_bytes for part in parts))]
        width = max(1, limits.at_once // 2)
        self._search = Isolation(parts, sizes, width, frozenset(raised))
        self._first = parts
        self._ran: dict[Part, _Ran] = {}

    def run(self) -> HookRun:
        """Run parts until the search has ended, and join their output."""
        while True:
            while parts := self._search.next_parts():
                self._run_parts(parts)
                if (stopped := self._stopped()) is not None:
                    return self._without_verdict(stopped)
            if not self._search.is_conclusive:
                return self._without_verdict(self._blamed())
            if not self._search.well:
                return self._with_verdict()
            try:
                output = self._join(self._search.well)
                self._check(output, self._ids(self._search.well))
            except InvalidInputError as error:
                if (stopped := self._find_invalid(error)) is not None:
                    return self._without_verdict(stopped)
                continue
            self._adopt(output)
            return self._with_verdict()

    def _run_parts(self, parts: Sequence[Part]) -> None:
        """Run the parts in lanes: each begins with the memory that the one before it needed.

        Because of the lanes, a part's memory depends on how others ended, and not on when.
        """
        lanes = [parts[n :: self._limits.at_once] for n in range(self._limits.at_once)]

        def run_lane(lane: Sequence[Part]) -> list[_Ran]:
            ended, needed = [], 0
            for part in lane:
                ran = self._run_part(part, max(part.memory_bytes, needed))
                if ran.run.failure is None:
                    needed = max(needed, ran.memory_bytes)
                ended.append(ran)
            return ended

        with ThreadPoolExecutor(self._limits.at_once, thread_name_prefix="part") as pool:
            futures = [pool.submit(run_lane, lane) for lane in lanes if lane]
            try:
                # the first error is enough; and an interrupt comes here, not to the threads
                wait(futures, return_when="FIRST_EXCEPTION")
                has_failed = any(f.done() and f.exception() is not None for f in futures)
                self._shared.interrupt_if(has_failed)
                wait(futures)
                errors = [error for future in futures if (error := future.exception()) is not None]
                # The other parts end because of the first error; theirs must not hide it.
                errors.sort(key=lambda error: isinstance(error, InterruptedPartError))
                if errors:
                    raise errors[0]
            except BaseException:
                self._shared.interrupt_if(True)
                raise
        ended = {ran.part: ran for future in futures for ran in future.result()}
        for part in parts:
            self._ran[part] = ended[part]
            self._note(ended[part])

    def _run_part(self, part: Part, memory_bytes: int) -> _Ran:
        request, policy = self._request, self._policy
        if memory_bytes != request.limits.memory_bytes:
            request = replace(request, limits=request.limits.with_memory(memory_bytes))
        monitor = self._shared.monitor("")
        if part.path:
            items = [self._items[record] for record in part.records]
            # named by its records: who runs the same part again attaches to it
            name = Digest.of(b"\n".join(item.record_id.encode() for item in items)).hex[:12]
            workspace = Workspace(request.workspace.root / "parts" / name)
            _lay_out(request.workspace, workspace, items)
            request = replace(request, part=name, workspace=workspace)
            first, last = items[0].record_id, items[-1].record_id
            monitor = self._shared.monitor(f"{first} to {last}" if len(items) > 1 else first)
        if part not in self._first and len(part.records) > 1:
            # it is divided, which is another try for each of its records
            policy = replace(policy, retry_within_seconds=_NEVER_SECONDS)
        count = len(part.records)
        run = run_hook(self._runner, request, policy, monitor, part=part.path, records=count)
        return _Ran(part, request.workspace, run)

    def _note(self, ran: _Ran) -> None:
        """Record in the search how a part ended."""
        failure = ran.run.failure
        if failure is None:
            self._search.note_well(ran.part)
        elif self._is_hooks_doing(ran):
            self._search.note_failed(ran.part, ran.memory_bytes)
            count = len(ran.part.records)
            if count > 1 and self._limits.is_divisible:
                reason = f"{failure.kind.value}: {failure.reason}"
                self._shared.monitor("").log(f"{reason}: the {count} records are divided")

    def _is_hooks_doing(self, ran: _Ran) -> bool:
        failure = ran.run.failure
        return (
            failure is not None and failure.kind in _KINDS and isinstance(ran.run.decision, GiveUp)
        )

    def _stopped(self) -> _Ran | None:
        """Return the part that ends the run: fewer records would not change its failure."""
        failed = [ran for ran in self._ran.values() if ran.run.failure is not None]
        if not self._limits.is_divisible:
            return failed[0] if failed else None
        others = [ran for ran in failed if not self._is_hooks_doing(ran)]
        # what says nothing about the batch stops the run, whatever else happened
        aborted = [ran for ran in others if isinstance(ran.run.decision, Abort)]
        return next(iter([*aborted, *others]), None)

    def _blamed(self) -> _Ran:
        """Return the part whose failure is the run's, if the hook failed on everything."""
        return next(ran for ran in self._ran.values() if ran.run.failure is not None)

    def _find_invalid(self, error: InvalidInputError) -> _Ran | None:
        """Continue the search with the parts whose output cannot be read.

        Returns the part that ends the run, if none is to be divided.
        """
        has_invalid = False
        for part in list(self._search.well):
            ran = self._ran[part]
            try:
                self._check(ran.workspace.output, self._ids([part]))
            except InvalidInputError as problem:
                has_invalid = True
                self._ran[part] = ran = _as_invalid(ran, problem)
                is_misunderstood = len(part.records) > 1 and _has_single(ran.workspace)
                if is_misunderstood or not self._limits.is_divisible:
                    return ran
                self._note(ran)
        return None if has_invalid else _as_invalid(self._ran[self._search.well[0]], error)

    def _ids(self, parts: Sequence[Part]) -> list[str]:
        records = sorted(record for part in parts for record in part.records)
        return [self._items[record].record_id for record in records]

    def _with_verdict(self) -> HookRun:
        """Return the run with a verdict on the successful parts."""
        failed = [self._failed_record(part) for part in self._search.culprits]
        for part in self._search.unresolved:
            failed += self._lost_records(part)
        if not self._search.well:
            self._request.workspace.clear_output()
        order = {item.record_id: position for position, item in enumerate(self._items)}
        failed.sort(key=lambda record: order[record.record_id])
        return self._joined(None, None, tuple(failed))

    def _failed_record(self, part: Part) -> FailedRecord:
        failure = self._ran[part].run.failure
        assert failure is not None  # noqa: S101  (a culprit's)
        reason = failure.reason
        if failure.kind is FailureKind.NON_ZERO_EXIT and failure.log_tail:
            reason = f"{reason}: {failure.log_tail[-1]}"
        kind = _KINDS[failure.kind]
        return FailedRecord(self._items[part.records[0]].record_id, kind, _as_reason(reason))

    def _lost_records(self, part: Part) -> list[FailedRecord]:
        """Return the records of a part that was not fully divided; they may be computed again."""
        failure = next(
            ran.run.failure
            for ran in reversed(self._ran.values())
            if set(part.records) <= set(ran.part.records) and ran.run.failure is not None
        )
        reason = _as_reason(
            "the hook failed on this record together with"
            f" {counted(len(part.records) - 1, 'other')} ({failure.kind.value}: {failure.reason}),"
            " and too often to isolate the cause; run the batch again"
        )
        return [
            FailedRecord(self._items[record].record_id, OutcomeKind.LOST, reason, True)
            for record in part.records
        ]

    def _without_verdict(self, blamed: _Ran) -> HookRun:
        """Return the run without a verdict, with the joined output of the last parts."""
        search = self._search
        left = [part for part in (*search.well, *search.culprits) if part in self._ran]
        left += [part for part in search.unresolved if part in self._ran]
        left += [ran.part for ran in self._ran.values() if not self._is_hooks_doing(ran)]
        if self._first[0].path or search.well:
            self._adopt(self._join(sorted(set(left), key=_position), strict=False))
        facts, decision = blamed.run.failure, blamed.run.decision
        assert facts is not None  # noqa: S101  (chosen so)
        assert decision is not None  # noqa: S101  (a failed run has one)
        if len(self._ran) > 1:
            well = {record for part in search.well for record in part.records}
            lost = [item.record_id for n, item in enumerate(self._items) if n not in well]
            names = first_few(map(repr, lost))
            reason = f"no outcome for {len(lost)} of the batch's records: {names}"
            facts = replace(facts, reason=f"{facts.reason}; {reason}")
            decision = replace(decision, reason=f"{decision.reason}; {reason}")
        return self._joined(facts, decision)

    def _joined(
        self,
        failure: RuntimeFacts | None,
        decision: GiveUp | Abort | None,
        failed: tuple[FailedRecord, ...] = (),
    ) -> HookRun:
        starts = tuple(start for ran in self._ran.values() for start in ran.run.starts)
        log = starts[0].result.log
        if len(starts) > 1:
            log = self._request.workspace.whole_log
            with open_log(log) as file:
                for ran in self._ran.values():
                    self._write_log(file, ran)
                for record in failed:
                    _note(file, f"record {record.record_id!r}: {record.kind}: {record.reason}")
        run_id, name = self._request.run_id, self._runner.name
        return HookRun(run_id, name, starts, failure, decision, log, failed)

    def _write_log(self, file: CappedLog, ran: _Ran) -> None:
        """Write the output of each start of a part, below a line that names the start."""
        ids = self._ids([ran.part])
        records = (
            f"records {ids[0]!r} to {ids[-1]!r} ({len(ids)})" if len(ids) > 1 else repr(ids[0])
        )
        part = f"part {ran.part.path}, " if ran.part.path else ""
        for start in ran.run.starts:
            result = start.result
            memory = format_size(start.memory_limit_bytes)
            ended = "well" if result.failure is None else result.failure.kind.value
            _note(
                file,
                f"{part}{records}: attempt {start.attempt} with {memory} of memory ended"
                f" {ended} after {result.seconds:.1f} s",
            )
            if result.failure is None or result.failure.kind is not FailureKind.WORKER_DIED:
                with result.log.open("rb") as source:
                    shutil.copyfileobj(source, file)

    def _join(self, parts: Sequence[Part], *, strict: bool = True) -> Path:
        """Join the parts' output in the batch's order; return the folder.

        Raises:
            InvalidInputError: A part left something other than a regular file, and `strict` is set.
        """
        ran = [self._ran[part] for part in sorted(parts, key=_position)]
        workspace = self._request.workspace
        if len(ran) == 1 and ran[0].workspace == workspace:
            return workspace.output
        joined = workspace.root / _JOINED
        shutil.rmtree(joined, ignore_errors=True)
        joined.mkdir()
        for name in RAW_FILES:
            if name == SINGLE_FEATURES:
                continue
            with (joined / name).open("wb") as out:
                for one in ran:
                    if not strict and not self._is_storable(one, name):
                        continue
                    _append(out, one.workspace.output / name, strict=strict)
                    if name == FEATURES and len(one.part.records) == 1:
                        record_id = self._items[one.part.records[0]].record_id
                        _append_single(out, one.workspace.output, record_id, strict=strict)
                is_empty = not out.tell()
            if is_empty:
                (joined / name).unlink()
        return joined

    def _is_storable(self, ran: _Ran, name: str) -> bool:
        """Return whether a failed part's file can be read and is within its limit."""
        storable, _ = storable_files(ran.workspace.output, self._request.limits.scratch_bytes)
        return name in storable or (name == FEATURES and SINGLE_FEATURES in storable)

    def _adopt(self, output: Path) -> None:
        """Make the folder the run's output."""
        workspace = self._request.workspace
        if output != workspace.output:
            workspace.clear_output()
            workspace.output.rmdir()
            output.rename(workspace.output)


def _position(part: Part) -> int:
    return part.records[0]


def _as_invalid(ran: _Ran, error: InvalidInputError) -> _Ran:
    """Return a successful part as one whose output cannot be read."""
    *others, last = ran.run.starts
    facts = RuntimeFacts(
        FailureKind.INVALID_OUTPUT,
        str(error),
        exit_code=0,
        memory_limit_bytes=last.memory_limit_bytes,
    )
    last = replace(last, result=replace(last.result, failure=facts))
    decision = GiveUp(facts.reason)
    run = replace(ran.run, starts=(*others, last), failure=facts, decision=decision)
    return replace(ran, run=run)


def _as_reason(text: str) -> str:
    """Return a reason that every store can hold."""
    cut = text if len(text) <= _REASON_CHARACTERS else f"{text[:_REASON_CHARACTERS]}..."
    return cut.replace("\x00", "\ufffd").encode("utf-8", "backslashreplace").decode()


def _note(file: CappedLog, text: str) -> None:
    line = " ".join(text.splitlines())
    file.write(f"[feature_pipeline] {line}\n".encode("utf-8", "backslashreplace"))


def _has_single(workspace: Workspace) -> bool:
    return os.path.lexists(workspace.output / SINGLE_FEATURES)


def _read_items(workspace: Workspace) -> list[_Item]:
    items = []
    with (workspace.inputs / _RECORDS).open("rb") as lines:
        for line in lines:
            record_id = json.loads(line)["id"]
            folder = workspace.files_of(record_id)
            files = () if folder is None else folder.rglob("*")
            size = len(line) + sum(path.stat().st_size for path in files if path.is_file())
            items.append(_Item(record_id, line if line.endswith(b"\n") else line + b"\n", size))
    return items


def _lay_out(whole: Workspace, part: Workspace, items: Sequence[_Item]) -> None:
    """Write the part's inputs: its own lines, and links to the batch's files."""
    shutil.rmtree(part.root, ignore_errors=True)
    part.create()
    wanted = {item.record_id for item in items}
    (part.inputs / _RECORDS).write_bytes(b"".join(item.line for item in items))
    for path in whole.inputs.iterdir():
        if path.is_file() and path.name != _RECORDS:
            _link(str(path), str(part.inputs / path.name))
    for path in (whole.inputs / "features").glob("*.jsonl"):
        (part.inputs / "features").mkdir(exist_ok=True)
        with path.open("rb") as lines, (part.inputs / "features" / path.name).open("wb") as out:
            out.writelines(line for line in lines if json.loads(line)["id"] in wanted)
    for record_id in wanted:
        source, target = whole.files_of(record_id), part.files_of(record_id)
        if source is not None and target is not None and source.is_dir():
            shutil.copytree(source, target, copy_function=_link)
    for path in whole.code.iterdir():
        _link(str(path), str(part.code / path.name))


def _link(source: str, target: str) -> None:
    """Create a second name for a file: inputs are read-only, and may be large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class _Shared:
    """One monitor for several parts: keeps lines whole, and passes an interrupt to all."""

    def __init__(self, monitor: RunMonitor) -> None:
        self._monitor = monitor
        self._lock = threading.Lock()
        self._is_interrupted = threading.Event()

    def interrupt_if(self, is_so: bool) -> None:
        """Make every part's monitor raise from now on."""
        if is_so:
            self._is_interrupted.set()

    def monitor(self, label: str) -> RunMonitor:
        """Return a part's own monitor."""
        return _PartMonitor(label, self._log, self._is_cancelled)

    def _log(self, line: str) -> None:
        with self._lock:
            self._monitor.log(line)

    def _is_cancelled(self, now: bool) -> bool:
        # A part that is being interrupted wants to know what becomes of its hook, not to be
        # interrupted once more.
        if self._is_interrupted.is_set() and not now:
            raise InterruptedPartError("another part of the batch was interrupted")
        with self._lock:
            return self._monitor.is_cancelled(now=now)


@dataclass(frozen=True, slots=True)
class _PartMonitor:
    label: str
    forward: Callable[[str], None]
    forward_cancelled: Callable[[bool], bool]

    def log(self, line: str) -> None:
        self.forward(f"[{self.label}] {line}")

    def is_cancelled(self, *, now: bool = False) -> bool:
        return self.forward_cancelled(now)


def _append(out: BinaryIO, source: Path, *, strict: bool) -> None:
    """Append a part's file to a longer one.

    Its last line is ended, so that it does not run into the next part's first, and a byte order
    mark is left out if it is not the first thing in the file.
    """
    file = _opened(source, strict=strict)
    if file is None:
        return
    begun = out.tell()
    with file:
        if begun and file.read(len(BOM_UTF8)) != BOM_UTF8:
            file.seek(0)
        shutil.copyfileobj(file, out)
        if out.tell() > begun:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                out.write(b"\n")


def _append_single(out: BinaryIO, output: Path, record_id: str, *, strict: bool) -> None:
    """Append a one-record part's single document as the equivalent line.

    Its values keep their spelling: outside of strings all white space is equivalent in JSON, and
    inside of strings there is no line end.

    Raises:
        InvalidInputError: It is not a document, and `strict` is set.
    """
    file = _opened(output / SINGLE_FEATURES, strict=strict)
    if file is None:
        return
    with file:
        data = file.read(MOST_LINE_BYTES + 1)
    if len(data) > MOST_LINE_BYTES and not strict:
        return
    if strict:
        # text that is not a complete document could become part of a line
        read_document(SINGLE_FEATURES, data)
    value = _LINE_ENDS.sub(b" ", data.removeprefix(BOM_UTF8)).strip()
    if value.startswith(b"{"):
        value = b"[" + value + b"]"
    name = json.dumps(record_id, ensure_ascii=False).encode()
    out.write(b'{"id": ' + name + b', "features": ' + value + b"}\n")


def _opened(source: Path, *, strict: bool) -> BinaryIO | None:
    """Open a part's file; None if there is none, or it is something else and `strict` is not set.

    Raises:
        InvalidInputError: It is not a regular file, and `strict` is set.
    """
    try:
        return open_regular(source, follow_links=False)
    except FileNotFoundError:
        return None
    except InvalidInputError as error:
        if strict:
            raise InvalidInputError(f"{source.name} of a part {error}") from error
        return None
