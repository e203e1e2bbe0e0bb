"""Judge the output of a hook run of the server: which of its lines count.

The server never deletes an outcome file, so one of an earlier try can remain beside those of the
last. These are the rules:

- Of several lines on a record, one counts: the last of the latest file, in the order features,
  rejections, errors. The server reads them in the same way.
- A line that cannot be read, or names no record, does not count.
- The record of an accepted deposition passed. So its features count, and rejections and errors are
  of an earlier try.
- `features.json` counts only where no other file names the deposition's record.
- A hook run that the server recorded as `error` gives verdicts on the records that its lines name.
  The hook failed on the others. If it names none of the batch, the hook run has failed.

A file all of whose lines count is stored under its own name, byte for byte. Any other is stored
byte for byte as `server.<name>`, and its lines that count under its own name, so that the stored
files say the same by the archive's rules.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from feature_pipeline.archive.format.manifest import FailureInfo
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.failure import FailureKind
from feature_pipeline.hooks.json_lines import Line, read_document, read_lines
from feature_pipeline.hooks.output import (
    ERRORS,
    FEATURES,
    PROGRESS,
    REJECTIONS,
    SINGLE_FEATURES,
    decode_output,
)
from feature_pipeline.model.definition import FeatureDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import DecodedOutput, Outcome, OutcomeKind, Status
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.json_text import read_json
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.osa.server.database import ERROR, PASSED, HookRun
from feature_pipeline.osa.server.notes import run_note
from feature_pipeline.osa.server.storage import Place

RUN: Final = "run.json"
LOG: Final = "hook.log"
STORED: Final = (FEATURES, REJECTIONS, ERRORS, SINGLE_FEATURES, PROGRESS, LOG)
"""The files of an output that are stored."""
ASIDE: Final = "server."
"""Prefix of the stored name of a file that has lines which do not count."""

_OUTCOMES: Final = (FEATURES, REJECTIONS, ERRORS)
"""Later ones count, rather than earlier ones."""
_LOG_END_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class JudgedOutput:
    """What a hook run of the server said of its batch."""

    raw: dict[str, Path]
    """The stored files by their stored names."""
    log: Path | None
    outcomes: tuple[Outcome, ...]
    """One per record of the batch, in order; none if the run has failed."""
    failure: FailureInfo | None
    notes: tuple[str, ...]
    decoded: DecodedOutput


def judge(
    folder: Path,
    record_ids: Sequence[str],
    feature: FeatureDefinition,
    run: HookRun,
    actions: dict[str, Digest],
    *,
    is_deposition: bool,
) -> JudgedOutput:
    """Judge a copy of an output; files with the lines that count are written beside its own.

    Args:
        folder: The files of the output.
        record_ids: The records of the batch, in order.
        feature: The columns and cardinality of the hook.
        run: The server's row of the hook run.
        actions: Actions by record id, copied into the outcomes.
        is_deposition: Whether the batch is an accepted deposition.

    Raises:
        InvalidInputError: `features.json` counts and is not JSON.
    """
    known = frozenset(record_ids)
    counting = _Counting(folder, is_accepted=is_deposition and run.status == PASSED)
    raw: dict[str, Path] = {}
    notes: list[str] = []
    for name in _OUTCOMES:
        for stored, path, note in counting.files(name):
            raw[stored] = path
            notes += [note] if note else []
    named = {record_id for record_id in counting.winners if record_id in known}
    if (single := folder / SINGLE_FEATURES).exists():
        if is_deposition and not named and run.status == PASSED:
            raw[SINGLE_FEATURES] = single
            named.update(record_ids)
            notes.append(f"the features are those of {SINGLE_FEATURES}: no other file has any")
        else:
            raw[ASIDE + SINGLE_FEATURES] = single
            notes += _compared(single, folder / FEATURES, record_ids)
    if (progress := folder / PROGRESS).exists():
        raw[PROGRESS] = progress
    log = folder / LOG if (folder / LOG).exists() else None
    failure = None
    outcomes: tuple[Outcome, ...] = ()
    decoded = DecodedOutput(())
    if run.status == ERROR and not named:
        failure = FailureInfo(kind=FailureKind.UNKNOWN, reason=_failed(run, log))
    else:
        given = [i for i in record_ids if i in named or run.status != ERROR]
        files = {name: path for name, path in raw.items() if not name.startswith(ASIDE)}
        decoded = decode_output(files, given, feature.columns, feature.cardinality, actions)
        by_id = {outcome.record_id: outcome for outcome in decoded.outcomes}
        # Without the end of the log, which may name another record: erasing that would leave it.
        reason = f"no output about it: {run_note(run)}"
        outcomes = tuple(by_id.get(i) or _lost(i, reason, actions.get(i)) for i in record_ids)
    return JudgedOutput(raw, log, outcomes, failure, tuple(notes), decoded)


class _Counting:
    """Which line of which file counts for each record."""

    def __init__(self, folder: Path, *, is_accepted: bool) -> None:
        self._folder = folder
        self.winners: dict[str, tuple[str, int]] = {}
        """By record: the file and the number of the line that counts."""
        for name in _OUTCOMES[:1] if is_accepted else _OUTCOMES:
            if (folder / name).exists():
                for number, _, line in _lines(folder / name):
                    if line is not None:
                        self.winners[line.record_id] = name, number

    def files(self, name: str) -> Iterator[tuple[str, Path, str | None]]:
        """Yield the stored name, path and note of what is stored of one file."""
        path = self._folder / name
        if not path.exists():
            return
        others = {
            number: line is not None
            for number, _, line in _lines(path)
            if line is None or self.winners.get(line.record_id) != (name, number)
        }
        if not others:
            yield name, path, None
            return
        yield ASIDE + name, path, _note(name, others)
        reduced = self._folder / f"counted.{name}"
        with reduced.open("wb") as file:
            file.writelines(raw for number, raw, _ in _lines(path) if number not in others)
        if reduced.stat().st_size:
            yield name, reduced, None


def _lines(path: Path) -> Iterator[tuple[int, bytes, Line | None]]:
    """Yield the number and bytes of each line that is not blank; None if it names no record."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = next(iter(read_lines(path.name, raw)), None)
            except InvalidInputError:
                yield number, raw, None
            else:
                if line is not None:
                    yield number, raw, line


def _note(name: str, others: Mapping[int, bool]) -> str:
    unread = [number for number, names_record in others.items() if not names_record]
    overruled = [number for number, names_record in others.items() if names_record]
    parts = []
    if unread:
        parts.append(
            f"{counted(len(unread), 'line')} that cannot be read or without a record's id"
            f" (the first is line {unread[0]})"
        )
    if overruled:
        parts.append(
            f"{counted(len(overruled), 'line')} overruled by what else the output has on the record"
            f" (the first is line {overruled[0]})"
        )
    return f"{name}: {'; '.join(parts)}; the server's file is stored as {ASIDE}{name}"


def _compared(single: Path, features: Path, record_ids: Sequence[str]) -> list[str]:
    """Return a note if `features.json`, which the server inserts, differs from what counts."""
    stored = f"the server's file is stored as {ASIDE}{SINGLE_FEATURES}"
    try:
        value, _ = read_document(SINGLE_FEATURES, single.read_bytes())
    except InvalidInputError as error:
        return [f"{error}; {stored}"]
    rows = [value] if isinstance(value, dict) else value
    counting = None
    if features.exists():
        for _, _, line in _lines(features):
            if line is not None and line.record_id in record_ids:
                counting = line.members.get("features")
    if repr(counting) == repr(rows):
        return []
    return [
        f"{SINGLE_FEATURES}, which the server inserts into its table, differs from what counts here"
        f" ({FEATURES} and the other outcome files); {stored}"
    ]


def _lost(record_id: str, reason: str, action: Digest | None) -> Outcome:
    return Outcome(
        record_id,
        Status.ERRORED,
        reason=reason,
        kind=OutcomeKind.LOST,
        is_retryable=True,
        action=action,
        is_from_output=False,
    )


def _failed(run: HookRun, log: Path | None) -> str:
    sentence = run_note(run)
    if log is None:
        return f"{sentence}; it has no {LOG}"
    with log.open("rb") as file:
        _seek_end(file)
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"{sentence}; its log ends with {quoted(last)!r}" if last else f"{sentence}; empty log"


def _seek_end(file: BinaryIO) -> None:
    size = file.seek(0, 2)
    file.seek(max(0, size - _LOG_END_BYTES))


def stated_ids(text: bytes, place: Place) -> tuple[str, str]:
    """Return the ids of the hook run and of the release that `run.json` names.

    Raises:
        InvalidInputError: It does not name two ids.
    """
    content = read_json(text, str(place))
    try:
        if not isinstance(content, dict):
            raise ValueError(content)
        return str(uuid.UUID(content.get("run_id"))), str(uuid.UUID(content.get("release_id")))
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(
            f"{place}: expected an object with run_id and release_id, both UUIDs; found"
            f" {quoted(text.decode(errors='backslashreplace'))!r}"
        ) from error
