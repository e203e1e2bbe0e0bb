"""Decode a hook's output into exactly one outcome per record.

A mistake about one record makes that record `errored` (`kind: invalid_output`) and does not affect
the others. Only a file that cannot be read as lines that name their records fails the hook run.
Where the contract leaves it open:

- A rejection or error whose text is empty or blank is accepted, with a placeholder as its reason;
  one whose text is missing or not text is invalid.
- `retryable` is false when absent; anything but true or false makes the line invalid.
- `features.json` beside a batch of several records makes the output unparsable.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Final

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.json_lines import MOST_LINE_BYTES, Line, read_document, read_lines
from feature_pipeline.hooks.output_folder import ERRORS as ERRORS
from feature_pipeline.hooks.output_folder import FEATURES as FEATURES
from feature_pipeline.hooks.output_folder import PROGRESS as PROGRESS
from feature_pipeline.hooks.output_folder import RAW_FILES as RAW_FILES
from feature_pipeline.hooks.output_folder import REJECTIONS as REJECTIONS
from feature_pipeline.hooks.output_folder import SINGLE_FEATURES as SINGLE_FEATURES
from feature_pipeline.hooks.output_folder import folder_problem, storable_files
from feature_pipeline.model.column_sources import RawKeys, own_keys
from feature_pipeline.model.columns import Column, decode_row
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.digest import MAX_NESTING, Digest, Value, check_text
from feature_pipeline.model.outcomes import DecodedOutput, Outcome, OutcomeKind, Status
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.model.text.quoting import storable as _shown
from feature_pipeline.regular_files import DigestingReader, open_regular

_NO_REASON: Final = "(no reason given)"
_MOST_NOTED: Final = 1_000
"""How many different unknown ids and keys are remembered."""
_READ: Final = frozenset({FEATURES, REJECTIONS, ERRORS, SINGLE_FEATURES})
_READ_BYTES: Final = 1 << 18
_CHECKED_MEMBERS: Final = frozenset({"id", "features"})


def raw_files(output: Path) -> dict[str, Path]:
    """Return the files in `output` that are stored byte for byte, by name.

    Absent ones are left out, and so is everything that is not a regular file: links are not
    followed, since a container's link would name a file of this machine. `decode_output` refuses
    such a folder.
    """
    return storable_files(output)[0]


def decode_output(
    output: Path | Mapping[str, Path | bytes | BinaryIO],
    record_ids: Sequence[str],
    columns: Sequence[Column],
    cardinality: Cardinality,
    actions: Mapping[str, Digest],
    keys: Sequence[RawKeys] | None = None,
) -> DecodedOutput:
    """Return one outcome for each of `record_ids`, in their order, from a hook's output.

    Args:
        output: The hook's output folder; or its files by name (`RAW_FILES`), as paths, bytes or
            streams, absent ones left out. Only a folder results in a note on files that are not
            read.
        record_ids: The records that the hook got, each once.
        columns: Rows become tuples of typed values in their order.
        cardinality: With `one`, a record with more than one row is errored.
        actions: Actions by record id, copied into the outcomes.
        keys: For each column the keys of its values, if they were written under other columns; the
            columns' own if None.

    Raises:
        InvalidInputError: A file is truncated or unparsable, so that its records are unknown, or is
            not a regular file. The message names file, line and column.
    """
    reader = _OutputReader(record_ids, columns, cardinality, keys)
    digesting: dict[str, DigestingReader] = {}
    with ExitStack() as stack:
        files: dict[str, bytes | BinaryIO] = {}
        for name, source in (_entries(output) if isinstance(output, Path) else output).items():
            if isinstance(source, Path):
                digesting[name] = DigestingReader(stack.enter_context(_open(source)))
                files[name] = io.BufferedReader(digesting[name], _READ_BYTES)
            else:
                files[name] = source
        reader.read(files)
        digests = {name: _digest(files[name], digesting[name]) for name in digesting.keys() & _READ}
    return DecodedOutput(
        outcomes=tuple(
            replace(reader.outcome(record_id), action=actions.get(record_id))
            for record_id in record_ids
        ),
        unknown_ids=tuple(reader.unknown),
        undeclared_keys=tuple(sorted(reader.undeclared)),
        notes=_unread(output) if isinstance(output, Path) else (),
        read=digests,
    )


def _digest(stream: bytes | BinaryIO, digesting: DigestingReader) -> Digest:
    """Return the digest of the whole file, whose reader may have stopped before its end."""
    while not isinstance(stream, bytes) and stream.read(_READ_BYTES):
        pass
    return Digest(digesting.hexdigest())


def _entries(output: Path) -> dict[str, Path]:
    is_there = os.path.lexists(output)
    if is_there and (problem := folder_problem(output)) is not None:
        raise InvalidInputError(problem)
    paths = {name: output / name for name in RAW_FILES}
    return {name: path for name, path in paths.items() if os.path.lexists(path)}


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path, follow_links=False)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path.name} {error}") from error
    except OSError as error:
        raise InvalidInputError(f"{path.name} cannot be read: {error.strerror}") from error


def _unread(output: Path) -> tuple[str, ...]:
    if not output.exists():
        return ()
    others = sorted(_shown(path.name) for path in output.iterdir() if path.name not in RAW_FILES)
    return (f"not stored from the output: {first_few(others)}",) if others else ()


class _OutputReader:
    """Collects the lines about each record, with their places."""

    def __init__(
        self,
        record_ids: Sequence[str],
        columns: Sequence[Column],
        cardinality: Cardinality,
        keys: Sequence[RawKeys] | None,
    ) -> None:
        self._ids = record_ids
        self._columns = columns
        own = own_keys(columns)
        self._keys = None if keys is None else [each.all for each in keys]
        self._names = {name for each in (*own, *(keys or ())) for name in each.all}
        self._synonyms = [each.names for each in keys or own if len(each.names) > 1]
        self._is_one = cardinality is Cardinality.ONE
        self._places: dict[str, list[str]] = {record_id: [] for record_id in record_ids}
        self._outcomes: dict[str, Outcome] = {}
        self.unknown: dict[str, None] = {}
        self.undeclared: set[str] = set()

    def read(self, files: Mapping[str, bytes | BinaryIO]) -> None:
        """Read all files of one hook run."""
        readers: dict[str, Callable[[Line], Outcome]] = {
            FEATURES: self.passed,
            REJECTIONS: self.rejected,
            ERRORS: self.errored,
        }
        for name, read in readers.items():
            if name in files:
                for line in read_lines(name, files[name]):
                    self.add_line(name, line, read)
        if SINGLE_FEATURES in files:
            self.add_single(files[SINGLE_FEATURES])

    def add_line(self, name: str, line: Line, read: Callable[[Line], Outcome]) -> None:
        """Record a line and its place."""
        places = self._places.get(line.record_id)
        if places is None:
            if len(self.unknown) < _MOST_NOTED:
                self.unknown[quoted(line.record_id)] = None
            return
        place = f"{name} line {line.number}"
        places.append(place)
        if len(places) > 1:
            return
        try:
            if line.problem is not None:
                raise InvalidInputError(line.problem)
            for key in line.members.keys() - _CHECKED_MEMBERS:
                _check_nesting(key, line.members[key])
            self._outcomes[line.record_id] = read(line)
        except InvalidInputError as error:
            self._outcomes[line.record_id] = _invalid(line.record_id, f"{place}: {error}")

    def add_single(self, data: bytes | BinaryIO) -> None:
        """Record the content of `features.json`: the rows of a batch of one, or its only row."""
        if len(self._ids) != 1:
            raise InvalidInputError(
                f"{SINGLE_FEATURES} speaks of one record, and the hook got {len(self._ids)}: "
                f"write {FEATURES}"
            )
        content = data if isinstance(data, bytes) else data.read(MOST_LINE_BYTES + 1)
        value, problem = read_document(SINGLE_FEATURES, content)
        features = [value] if isinstance(value, dict) else value
        self.add_line(
            SINGLE_FEATURES, Line(1, self._ids[0], {"features": features}, problem), self.passed
        )

    def outcome(self, record_id: str) -> Outcome:
        """Return the record's one outcome."""
        places = self._places[record_id]
        if len(places) == 1:
            return self._outcomes[record_id]
        if not places:
            return _invalid(
                record_id, f"no outcome: it is in none of {FEATURES}, {REJECTIONS}, {ERRORS}"
            )
        return _invalid(record_id, f"{len(places)} outcomes instead of one: {first_few(places)}")

    def passed(self, line: Line) -> Outcome:
        """Return the outcome of a line with features."""
        if "features" not in line.members:
            raise InvalidInputError("has no features: write [] for none")
        features = line.members["features"]
        if not isinstance(features, list):
            raise InvalidInputError(f"features: expected a list, found {_kind(features)}")
        rows = tuple(
            self._row(number, feature)
            for number, feature in enumerate(features, 1)
            if feature is not None
        )
        if self._is_one and len(rows) > 1:
            raise InvalidInputError(f"{len(rows)} features, where cardinality is one")
        return Outcome(line.record_id, Status.PASSED, rows)

    def _row(self, number: int, feature: object) -> tuple[Value, ...]:
        if not isinstance(feature, dict):
            raise InvalidInputError(f"feature {number}: expected an object, found {_kind(feature)}")
        try:
            if not self._names.issuperset(feature):
                undeclared = feature.keys() - self._names
                for key in undeclared:
                    if len(self.undeclared) < _MOST_NOTED:
                        self.undeclared.add(quoted(key))
                    _check_nesting(key, feature[key])
            for names in self._synonyms:
                _check_agreement(feature, names)
            return decode_row(self._columns, feature, self._keys)
        except InvalidInputError as error:
            raise InvalidInputError(f"feature {number}, {error}") from error

    def rejected(self, line: Line) -> Outcome:
        """Return the outcome of a line with a rejection."""
        return Outcome(line.record_id, Status.REJECTED, reason=_text(line, "reason"))

    def errored(self, line: Line) -> Outcome:
        """Return the outcome of a line with an error."""
        reason = _text(line, "error")
        retryable = line.members.get("retryable", False)
        if not isinstance(retryable, bool):
            raise InvalidInputError(f"retryable: expected true or false, found {_kind(retryable)}")
        return Outcome(
            line.record_id,
            Status.ERRORED,
            reason=reason,
            kind=OutcomeKind.HOOK,
            is_retryable=retryable,
        )


def _check_agreement(feature: Mapping[str, object], names: Sequence[str]) -> None:
    """Refuse a row that has two values for one column, since either may be meant."""
    there = [name for name in names if name in feature]
    if len({repr(feature[name]) for name in there}) > 1:
        raise InvalidInputError(
            f"column {names[0]!r}: {first_few(map(repr, there))} are names of this one column,"
            " and their values differ: write one of them"
        )


def _check_nesting(key: str, value: object) -> None:
    """Refuse deep nesting, also in values that are not read.

    Beyond some depth, which differs between interpreters, a line cannot be parsed at all; its
    record's outcome must not depend on that.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_NESTING):
        level = [
            item
            for parent in level
            for item in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(item, dict | list)
        ]
        if not level:
            return
    raise InvalidInputError(f"key {quoted(key)!r}: nested deeper than {MAX_NESTING} levels")


def _text(line: Line, name: str) -> str:
    text = line.members.get(name)
    if not isinstance(text, str):
        kind = _kind(text) if name in line.members else "nothing"
        raise InvalidInputError(f"{name}: expected text, found {kind}")
    try:
        check_text(text)
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from error
    return text if text.strip() else _NO_REASON


def _invalid(record_id: str, reason: str) -> Outcome:
    # It quotes what the hook wrote.
    return Outcome(
        record_id,
        Status.ERRORED,
        reason=quoted(reason, MOST_REASON),
        kind=OutcomeKind.INVALID_OUTPUT,
    )


def _kind(value: object) -> str:
    """Return the JSON name of a value's type, with the value if it is short."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = _shown(repr(value))
    return shown if len(shown) <= 40 else shown[:37] + "..."
