"""Compare the features in the archive with the rows in the server's tables, value by value.

The unit is a record of a batch: its rows here, in order, and those of its record on the server. One
batch is in memory at a time.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Value
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.osa.definitions import FollowedHook
from feature_pipeline.osa.history.reconstructed import (
    Ids,
    reconstructed_run,
    row_ids_by_record,
    server_row_ids,
)
from feature_pipeline.osa.server.database import Reader, Server, ServerRecord
from feature_pipeline.osa.server.ids import has_successor
from feature_pipeline.osa.server.schema import COMPARISON
from feature_pipeline.osa.server.values import SHOWN, Row, shown, shown_ids, typed
from feature_pipeline.osa.tally import Tally


class Kind(StrEnum):
    """How a record's rows here and there can differ."""

    VALUES = "values differ"
    MISSING_THERE = "rows missing there"
    """The server published the record, and inserted no rows of the hook."""
    MISSING_HERE = "rows missing here"
    """No outcome here has them, or no log here knows their hook run."""
    ERRORED_HERE = "not passed here"
    """The server published the record, without rows of the hook, and it did not pass here."""
    NO_RECORD = "no record there"
    """The server did not publish the record, or deleted it: its outcome is here alone."""
    IDS = "row ids differ"
    """The rows are equal and have other ids, or times, than when they were imported."""
    OTHER_BATCH = "record of another batch"
    """The server's record and its rows belong to another batch, which is compared with them."""


EXPECTED: Final = frozenset({Kind.ERRORED_HERE, Kind.NO_RECORD, Kind.OTHER_BATCH})
"""Kinds that follow from how the server publishes: its table lacks no row, and has none too many.

They stay after a restore, and no command changes them.
"""


@dataclass
class HookComparison:
    """What was compared of one hook of one dataset."""

    dataset: str
    hook: str
    batches: int = 0
    equal: int = 0
    """Records with equal rows, or with none here and there."""
    differences: dict[Kind, Tally] = field(default_factory=dict)
    """Records by kind of difference; for rows of unknown hook runs, rows."""

    def add(self, kind: Kind, example: str, number: int = 1) -> None:
        """Count a difference."""
        self.differences.setdefault(kind, Tally()).add(example, number)

    @property
    def is_equal(self) -> bool:
        """Whether nothing differs but what is expected."""
        return self.differences.keys() <= EXPECTED

    def to_json(self) -> dict[str, object]:
        """Return the comparison as JSON."""
        return {
            "dataset": self.dataset,
            "hook": self.hook,
            "batches": self.batches,
            "equal": self.equal,
            "differences": {
                kind.name.lower(): {"expected": kind in EXPECTED, **tally.to_json()}
                for kind, tally in self.differences.items()
            },
        }

    def summary(self) -> str:
        """Return one line about the hook."""
        text = (
            f"{self.dataset}/{self.hook}: {counted(self.batches, 'batch')},"
            f" {counted(self.equal, 'record')} equal"
        )
        for prefix, is_expected in (("", False), ("expected: ", True)):
            parts = [
                f"{kind} {self.differences[kind].number:,}"
                for kind in Kind
                if kind in self.differences and (kind in EXPECTED) is is_expected
            ]
            text += f"; {prefix}{', '.join(parts)}" if parts else ""
        return text

    def lines(self) -> list[str]:
        """Return the summary, and the examples of each kind."""
        lines = [self.summary()]
        for kind, tally in self.differences.items():
            name = f"  {kind}{' (expected)' if kind in EXPECTED else ''}: "
            lines += [name + example for example in tally.examples]
            if tally.number > len(tally.examples):
                lines.append(f"{name}{tally.number:,} in all")
        return lines


def compare_hooks(
    store: BlobStore, server: Server, followed: Sequence[FollowedHook]
) -> Iterator[HookComparison]:
    """Compare the followed hooks one after another, each in one snapshot of the server's database.

    Raises:
        InvalidInputError: A table of the server is not there, or may not be read.
        ProjectionError, StoreUnavailableError: The database or the archive did not answer.
        NotFoundError, CorruptDataError: An artifact is missing or damaged.
    """
    with server.connect() as connection:
        for each in followed:
            with server.session(COMPARISON, connection) as reader:
                yield _compare(store, reader, each)


def _compare(store: BlobStore, reader: Reader, followed: FollowedHook) -> HookComparison:
    convention, hook = followed.convention.id, followed.hook.name
    dataset = followed.definition.dataset
    result = HookComparison(dataset, hook)
    table = reader.feature_table(hook)
    if table is None:
        raise NotFoundError(f"public.feature_tables has no table of hook {hook!r}")
    there = reader.feature_columns(table)
    domains = reader.deposition_domains()
    logs = log.feature_logs(store, dataset, hook)
    heads = {batch: log.last_current(entries) for batch, entries in logs.items()}
    current = {batch: head for batch, head in heads.items() if head is not None}
    known = {
        reconstructed_run(entry.completion) or entry.completion
        for batch in current
        for entry in logs[batch]
    }
    for batch, head in sorted(current.items()):
        if has_successor(batch, current):
            continue
        result.batches += 1
        manifest = read.manifest_of(store, head)
        outcomes = read.read_artifact_outcomes(store, manifest)
        ids = [each.record_id for each in outcomes]
        records = reader.records_of(convention, ids, batch, domains)
        places = [i for i, column in enumerate(manifest.columns) if column.name in there]
        columns = [manifest.columns[i] for i in places]
        srns = [record.srn for record in records.values()]
        rows = {
            srn: [typed(columns, row) for row in of_record]
            for srn, of_record in reader.feature_rows(table, columns, srns).items()
        }
        row_ids = _RowIds.of(store, reader, table, manifest, srns)
        for outcome in outcomes:
            record = records.get(outcome.record_id)
            ours = [tuple(row[i] for i in places) for row in outcome.rows]
            theirs = rows.get(record.srn, []) if record is not None else []
            _compare_record(result, batch, outcome, record, columns, ours, theirs, row_ids)
    for run_id, number, srn in reader.rows_by_run(table, convention):
        if run_id not in known:
            example = f"{counted(number, 'row')} of hook run {run_id}, such as those of {srn}"
            result.add(Kind.MISSING_HERE, example, number)
    return result


def _compare_record(
    result: HookComparison,
    batch: str,
    outcome: Outcome,
    record: ServerRecord | None,
    columns: Sequence[Column],
    ours: Sequence[Row],
    theirs: Sequence[Row],
    row_ids: "_RowIds",
) -> None:
    name = f"{batch} {quoted(outcome.record_id, SHOWN)}"
    if record is None:
        if outcome.is_from_output:
            result.add(Kind.NO_RECORD, f"{name}: {outcome.status} here")
        else:
            result.equal += 1
        return
    if not record.is_of(batch):
        result.add(Kind.OTHER_BATCH, f"{name}: {record.srn} is of {record.origin}")
    elif outcome.kind is OutcomeKind.UNKNOWN and not theirs:
        result.equal += 1
    elif outcome.status is not Status.PASSED and not theirs:
        result.add(Kind.ERRORED_HERE, f"{name}: {quoted(outcome.reason or '', SHOWN)}")
    elif ours and not theirs:
        result.add(Kind.MISSING_THERE, f"{name}: {counted(len(ours), 'row')}, {record.srn}")
    elif theirs and not ours:
        why = f"; {outcome.status} here: {quoted(outcome.reason, 200)}" if outcome.reason else ""
        result.add(Kind.MISSING_HERE, f"{name}: {counted(len(theirs), 'row')}, {record.srn}{why}")
    elif (difference := _difference(columns, ours, theirs)) is not None:
        result.add(Kind.VALUES, f"{name}: {difference}")
    elif (difference := row_ids.difference(outcome.record_id, record.srn)) is not None:
        result.add(Kind.IDS, f"{name}: {difference}")
    else:
        result.equal += 1


@dataclass(frozen=True, slots=True)
class _RowIds:
    """`id` and `created_at` of the rows of a reconstructed artifact."""

    here: Mapping[str, Ids]
    """By record."""
    there: Mapping[str, Ids]
    """By SRN."""

    @classmethod
    def of(
        cls, store: BlobStore, reader: Reader, table: str, manifest: Manifest, srns: Sequence[str]
    ) -> "_RowIds":
        """Return those of an artifact; none if it has none."""
        here = row_ids_by_record(server_row_ids(store, manifest))
        return cls(here, reader.row_ids(table, srns) if here else {})

    def difference(self, record_id: str, srn: str) -> str | None:
        """Return how those of a record differ; None if they are equal, or not known here."""
        here, there = self.here.get(record_id), self.there.get(srn)
        if here is None or here == there:
            return None
        return f"{shown_ids(here)} here, {shown_ids(there or [])} there"


def _difference(
    columns: Sequence[Column], ours: Sequence[Row], theirs: Sequence[Row]
) -> str | None:
    if len(ours) != len(theirs):
        return f"{counted(len(ours), 'row')} here, {len(theirs)} there"
    for number, (here, there) in enumerate(zip(ours, theirs, strict=True), 1):
        for column, a, b in zip(columns, here, there, strict=True):
            if not _is_equal(a, b):
                row = f"row {number}, " if len(ours) > 1 else ""
                return f"{row}{column.name}: {shown(a)} here, {shown(b)} there"
    return None


def _is_equal(a: Value, b: Value) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b
