"""A batch that is too much for one run, run in parts: split, run side by side, joined again.

What belongs here: which records go together, and one `HookRun` out of many. Not here: what a part
is run by (`HookRunner`), what to do about a failed attempt (`FailurePolicy`).

Only for hooks whose outcome for a record depends on that record alone. A part that gives up for
memory, time or space is halved, a few times over: what is lost to a crash is named in the end.
"""

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from feature_pipeline.digest import Digest
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.failure import Abort, FailureKind, FailurePolicy, GiveUp, RuntimeFacts
from feature_pipeline.hooks.log_file import open_log
from feature_pipeline.hooks.output import RAW_FILES, SINGLE_FEATURES
from feature_pipeline.hooks.run import HookRun, run_hook
from feature_pipeline.hooks.runner import HookRunner, RunMonitor, RunRequest, RunResult, Workspace

_HALVED: Final = frozenset(
    {
        FailureKind.OUT_OF_MEMORY,
        FailureKind.DEADLINE,
        FailureKind.OUT_OF_SPACE,
        FailureKind.OUTPUT_TOO_LARGE,
    }
)
_LISTED: Final = 5
_RECORDS: Final = "records.jsonl"


@dataclass(frozen=True, slots=True)
class PartLimits:
    """How much goes into one part.

    Attributes:
        records: Most records of a part.
        input_bytes: Most bytes of their lines and files; a record beyond it is a part of its own.
        at_once: Parts that run side by side.
        halvings: How often what is too much is halved. A hook that hangs on every record would
            otherwise be waited for once per record.
    """

    records: int = 1000
    input_bytes: int = 20 * 2**30
    at_once: int = 4
    halvings: int = 3


class InterruptedPartError(Exception):
    """Another part was interrupted: this one is to be left as an interrupt leaves it."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A record of the batch as it was staged."""

    record_id: str
    line: bytes
    size: int


def run_in_parts(
    runner: HookRunner,
    request: RunRequest,
    policy: FailurePolicy,
    monitor: RunMonitor,
    limits: PartLimits,
) -> HookRun:
    """Run the hook over the batch, in parts if it exceeds `limits` or proves too much for one run.

    The workspace holds the parts' output joined, in the batch's order, and one log. If a part gives
    no verdict the whole run gives none: its reason names the part's records, and what the others
    left is kept.

    Raises:
        BaseException: Whatever interrupts the wait; every part is left as its runner leaves one.
    """
    items = _read_items(request.workspace)
    parts = split(items, limits)
    if len(parts) < 2:
        whole = run_hook(runner, request, policy, monitor)
        is_last = len(items) < 2 or limits.halvings < 1
        if whole.failure is None or not _is_too_much(whole) or is_last:
            return whole
        monitor.log(f"{whole.failure.reason}: running the batch in halves")
        parts, limits = _halves(items), replace(limits, halvings=limits.halvings - 1)
    shared = _Shared(monitor)
    with ThreadPoolExecutor(limits.at_once, thread_name_prefix="part") as pool:

        def one(part: Sequence[_Item]) -> list[_Part]:
            return _run_part(runner, request, policy, shared, part, limits.halvings)

        futures = [pool.submit(one, part) for part in parts]
        try:
            # the first error is enough; and an interrupt comes here, not to the threads
            wait(futures, return_when="FIRST_EXCEPTION")
            shared.interrupt_if(any(f.done() and f.exception() is not None for f in futures))
            wait(futures)
            errors = [error for future in futures if (error := future.exception()) is not None]
            # The other parts end because of the first error; theirs must not hide it.
            errors.sort(key=lambda error: isinstance(error, InterruptedPartError))
            if errors:
                raise errors[0]
            ended = [part for future in futures for part in future.result()]
        except BaseException:
            shared.interrupt_if(True)
            raise
    return _join(runner, request, ended)


def split(items: Sequence[_Item], limits: PartLimits) -> list[list[_Item]]:
    """The records in order, cut before each that would exceed a part."""
    parts: list[list[_Item]] = []
    size = 0
    for item in items:
        is_full = bool(parts) and (
            len(parts[-1]) >= limits.records or size + item.size > limits.input_bytes
        )
        if is_full or not parts:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += item.size
    return parts


def _halves(items: Sequence[_Item]) -> list[list[_Item]]:
    middle = (len(items) + 1) // 2
    return [list(items[:middle]), list(items[middle:])]


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


@dataclass(frozen=True, slots=True)
class _Part:
    """A part that has ended, with its own workspace."""

    items: tuple[_Item, ...]
    workspace: Workspace
    run: HookRun


def _is_too_much(run: HookRun) -> bool:
    return (
        run.failure is not None and run.failure.kind in _HALVED and isinstance(run.decision, GiveUp)
    )


def _run_part(
    runner: HookRunner,
    request: RunRequest,
    policy: FailurePolicy,
    shared: "_Shared",
    items: Sequence[_Item],
    halvings: int,
) -> list[_Part]:
    """Run a part; halves of it, one after the other, if it is too much as well."""
    # named by its records: whoever runs the same part again attaches to it
    name = Digest.of(b"\n".join(item.record_id.encode() for item in items)).hex[:12]
    workspace = Workspace(request.workspace.root / "parts" / name)
    _lay_out(request.workspace, workspace, items)
    part = replace(request, run_id=f"{request.run_id}-{name}", workspace=workspace)
    label = (
        f"{items[0].record_id} to {items[-1].record_id}" if len(items) > 1 else items[0].record_id
    )
    run = run_hook(runner, part, policy, shared.monitor(label))
    if not _is_too_much(run) or len(items) < 2 or halvings < 1:
        return [_Part(tuple(items), workspace, run)]
    return [
        ended
        for half in _halves(items)
        for ended in _run_part(runner, request, policy, shared, half, halvings - 1)
    ]


def _lay_out(whole: Workspace, part: Workspace, items: Sequence[_Item]) -> None:
    """The part's inputs: its own lines, and links to the batch's files."""
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
    """A second name for a file: inputs are read only, and may be large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class _Shared:
    """One monitor for several parts: lines come whole, and an interrupt reaches all."""

    def __init__(self, monitor: RunMonitor) -> None:
        self._monitor = monitor
        self._lock = threading.Lock()
        self._is_interrupted = threading.Event()

    def interrupt_if(self, is_so: bool) -> None:
        """Have every part's monitor raise from now on."""
        if is_so:
            self._is_interrupted.set()

    def monitor(self, label: str) -> RunMonitor:
        """A part's own monitor."""
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
    ask: Callable[[bool], bool]

    def log(self, line: str) -> None:
        self.forward(f"[{self.label}] {line}")

    def is_cancelled(self, *, now: bool = False) -> bool:
        return self.ask(now)


def _join(runner: HookRunner, request: RunRequest, parts: Sequence[_Part]) -> HookRun:
    """The parts' outputs, logs and facts as one run's."""
    workspace = request.workspace
    workspace.clear_output()
    failure, decision = _joined_failure(parts)
    try:
        for name in RAW_FILES:
            _join_files(workspace.output / name, [part.workspace.output / name for part in parts])
    except InvalidInputError as error:
        if failure is None:
            failure = RuntimeFacts(FailureKind.INVALID_OUTPUT, str(error), exit_code=0)
            decision = GiveUp(str(error))
    attempts = [attempt for part in parts for attempt in part.run.attempts]
    log = workspace.log(max(len(part.run.attempts) for part in parts))
    with open_log(log) as file:
        for part in parts:
            file.write(f"[feature_pipeline] {_named(part)}\n".encode())
            with part.run.last.log.open("rb") as source:
                shutil.copyfileobj(source, file)
    peaks = [a.peak_memory_bytes for a in attempts if a.peak_memory_bytes is not None]
    last = RunResult(
        exit_code=failure.exit_code if failure is not None else 0,
        failure=failure,
        started_at=min(attempt.started_at for attempt in attempts),
        finished_at=max(attempt.finished_at for attempt in attempts),
        log=log,
        peak_memory_bytes=max(peaks, default=None),
        node=", ".join(sorted({attempt.node for attempt in attempts})),
    )
    memory = max(part.run.memory_bytes for part in parts)
    joined = (*attempts[:-1], last)
    return HookRun(request.run_id, runner.name, joined, failure, decision, memory)


def _joined_failure(
    parts: Sequence[_Part],
) -> tuple[RuntimeFacts | None, GiveUp | Abort | None]:
    """The failure of the first part that has one, naming what is lost with it and with others."""
    failed = [part for part in parts if part.run.failure is not None]
    if not failed:
        return None, None
    # what says nothing about the batch stops the run, whatever else happened
    first = next((part for part in failed if isinstance(part.run.decision, Abort)), failed[0])
    facts, decision = first.run.failure, first.run.decision
    assert facts is not None  # noqa: S101  (chosen so)
    assert decision is not None  # noqa: S101  (a failed run has one)
    lost = [item.record_id for part in failed for item in part.items]
    names = ", ".join(map(repr, lost[:_LISTED])) + (", ..." if len(lost) > _LISTED else "")
    said = f"no outcome for {len(lost)} of the batch's records: {names}"
    return (
        replace(facts, reason=f"{facts.reason}; {said}"),
        replace(decision, reason=f"{decision.reason}; {said}"),
    )


def _join_files(target: Path, sources: Sequence[Path]) -> None:
    found = [source for source in sources if os.path.lexists(source)]
    if not found:
        return
    if target.name == SINGLE_FEATURES:
        raise InvalidInputError(f"{target.name} is for one record: parts of a batch write lines")
    with target.open("wb") as out:
        for source in found:
            if source.is_symlink() or not source.is_file():
                raise InvalidInputError(f"{source.name}: expected a regular file in every part")
            with source.open("rb") as file:
                shutil.copyfileobj(file, out)
            if out.tell():
                _end_line(source, out.write)


def _end_line(source: Path, write: Callable[[bytes], object]) -> None:
    """A last line without its end must not run into the next part's first."""
    with source.open("rb") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            write(b"\n")


def _named(part: _Part) -> str:
    first, last = part.items[0].record_id, part.items[-1].record_id
    return f"records {first!r} to {last!r} ({len(part.items)})"
