"""The outcomes of an artifact as columns: what is stored, without an object per record."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any, Final, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.encode import (
    OUTCOMES_SCHEMA,
    decode_outcomes,
    outcomes_table,
    rows_schema,
    rows_table,
)
from feature_pipeline.model.columns import Column
from feature_pipeline.model.outcomes import Outcome, Status

_compute: Final[Any] = pc
_DIGEST: Final = r"\Asha256:[0-9a-f]{64}\z"
_MICROSECONDS_A_DAY: Final = 86_400_000_000
_FIRST_DAY: Final = date.min.toordinal() - date(1970, 1, 1).toordinal()
_LAST_DAY: Final = date.max.toordinal() - date(1970, 1, 1).toordinal()
_LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "date": (_FIRST_DAY, _LAST_DAY),
    "date-time": (_FIRST_DAY * _MICROSECONDS_A_DAY, (_LAST_DAY + 1) * _MICROSECONDS_A_DAY - 1),
}
"""By kind of column, the days or microseconds since 1970 that Python can represent."""


class OutcomeColumns(Sequence[Outcome]):
    """The outcomes of an artifact, as its two tables.

    As a sequence it has an `Outcome` per record, in the order of the table of outcomes; these are
    made when the first one is asked for.

    Args:
        columns: The declared columns.
        rows: The rows, as `rows_table` has them. A record's are together, by ordinal.
        outcomes: The table of `OUTCOMES_SCHEMA`, one row per record.
        without_output: By record, the outcome of each one about which the hook wrote nothing.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        rows: pa.Table,
        outcomes: pa.Table,
        without_output: Mapping[str, Outcome] | None = None,
    ) -> None:
        self.columns = tuple(columns)
        self.rows = rows
        self.outcomes = outcomes
        self.without_output = without_output or {}

    @classmethod
    def of(cls, columns: Sequence[Column], outcomes: Sequence[Outcome]) -> "OutcomeColumns":
        """Return the columns of outcomes whose rows are in the order of `columns`."""
        if isinstance(outcomes, OutcomeColumns):
            return outcomes
        without = {each.record_id: each for each in outcomes if not each.is_from_output}
        return cls(columns, rows_table(columns, outcomes), outcomes_table(outcomes), without)

    @classmethod
    def with_rows(
        cls,
        columns: Sequence[Column],
        record_ids: Sequence[str],
        rows: pa.Table,
        others: Mapping[str, Outcome],
    ) -> "OutcomeColumns":
        """Return outcomes of records that passed with rows, and of others.

        Args:
            columns: The declared columns.
            record_ids: All records, in order.
            rows: The rows of those that passed, as `rows_table` has them.
            others: The outcome of each record without rows, by id.
        """
        starts = np.flatnonzero(np.asarray(rows.column(1)) == 0)
        places: Any = pa.array(starts)
        counts = np.diff(starts, append=rows.num_rows).astype(np.int32)
        nothing = pa.nulls(len(starts), pa.string())
        arrays: list[Any] = [
            rows.column(0).take(places),
            pa.repeat(Status.PASSED.value, len(starts)),
            *(nothing, nothing, pa.repeat(False, len(starts))),
            pa.array(counts),
            *(nothing, nothing),
        ]
        passed = pa.Table.from_arrays(arrays, schema=OUTCOMES_SCHEMA)
        known = pa.concat_tables([passed, outcomes_table(list(others.values()))]).combine_chunks()
        order = _compute.index_in(pa.array(record_ids, pa.string()), known.column("record_id"))
        without = {i: each for i, each in others.items() if not each.is_from_output}
        return cls(columns, rows, known.take(order), without)

    @cached_property
    def record_ids(self) -> list[str]:
        """The ids of the records, in order."""
        ids: list[Any] = self.outcomes.column("record_id").to_pylist()
        return ids

    @cached_property
    def _decoded(self) -> list[Outcome]:
        decoded = decode_outcomes(self.columns, self.rows, self.outcomes)
        return [self.without_output.get(each.record_id, each) for each in decoded]

    def __len__(self) -> int:
        return self.outcomes.num_rows

    @overload
    def __getitem__(self, index: int) -> Outcome: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Outcome]: ...
    def __getitem__(self, index: int | slice) -> Outcome | Sequence[Outcome]:
        return self._decoded[index]

    def __iter__(self) -> Iterator[Outcome]:
        return iter(self._decoded)

    def is_sound(self) -> bool:
        """Return whether both tables can be decoded: whether `decode_outcomes` raises no error."""
        for table, schema in (
            (self.outcomes, OUTCOMES_SCHEMA),
            (self.rows, rows_schema(self.columns)),
        ):
            if not table.schema.equals(schema, check_metadata=False):
                return False
            if any(table.column(f.name).null_count for f in schema if not f.nullable):
                return False
            try:
                table.validate(full=True)  # the bytes of texts, too
            except pa.ArrowInvalid:
                return False
        return self._are_values() and self._are_outcomes() and self._are_rows_of_outcomes()

    def _are_values(self) -> bool:
        for at, column in enumerate(self.columns):
            if (limits := _LIMITS.get(column.kind)) is not None:
                values = _compute.drop_null(self.rows.column(2 + at))
                numbers = np.asarray(values).astype(np.int64)
                if not ((limits[0] <= numbers) & (numbers <= limits[1])).all():
                    return False
        return True

    def _are_outcomes(self) -> bool:
        ids, statuses, reasons, kinds, _, counts, actions, carried = self.outcomes.columns
        if _compute.count_distinct(ids).as_py() != len(ids):
            return False
        has_passed = _compute.equal(statuses, Status.PASSED.value)
        has_errored = _compute.equal(statuses, Status.ERRORED.value)
        has_rows = _compute.greater(counts, 0)
        rules = [
            _compute.is_in(statuses, pa.array([each.value for each in Status])),
            _compute.equal(has_passed, _compute.is_null(reasons)),
            _compute.not_equal(_compute.fill_null(reasons, "-"), ""),
            _compute.equal(has_errored, _compute.is_valid(kinds)),
            _compute.greater_equal(counts, 0),
            _compute.or_(has_passed, _compute.invert(has_rows)),
            *(_compute.match_substring_regex(each, _DIGEST) for each in (actions, carried)),
        ]
        return all(_compute.all(rule).as_py() is not False for rule in rules)

    def _are_rows_of_outcomes(self) -> bool:
        """Return whether rows are together, with ordinals from 0, as many as outcomes state."""
        counts = np.asarray(self.outcomes.column("row_count")).astype(np.int64)
        count = self.rows.num_rows
        if counts.sum() != count:
            return False
        if not count:
            return True
        ordinals = np.asarray(self.rows.column(1)).astype(np.int64)
        starts = np.flatnonzero(ordinals == 0)
        if not len(starts) or starts[0] != 0:
            return False
        sizes = np.diff(starts, append=count)
        if not np.array_equal(ordinals, np.arange(count) - np.repeat(starts, sizes)):
            return False
        ids: Any = self.rows.column(0).combine_chunks()
        is_same = np.asarray(_compute.equal(ids[1:], ids[:-1]))
        places_of_first: Any = pa.array(starts)
        first = ids.take(places_of_first)
        places = _compute.index_in(first, self.outcomes.column("record_id").combine_chunks())
        return bool(
            np.all(is_same | (ordinals[1:] == 0))
            and _compute.count_distinct(first).as_py() == len(first)
            and not places.null_count
            and np.array_equal(counts[np.asarray(places)], sizes)
        )
