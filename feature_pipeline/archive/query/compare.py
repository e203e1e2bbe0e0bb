"""Compare the artifacts of two releases of a hook over the same batches, record by record.

Records are compared by their canonical digests: equal rows in equal order, equal status and reason.
A batch whose content digest is the same under both releases is not read.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from feature_pipeline.archive import read
from feature_pipeline.archive.format.align_columns import align_rows, can_become
from feature_pipeline.archive.format.encode import decode_outcomes
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.erasures import Erased, erased
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry, Verdict
from feature_pipeline.archive.logs.tombstones import withdrawn
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.column_sources import pair_columns
from feature_pipeline.model.columns import Column, row_encoder
from feature_pipeline.model.digest import Digest, RowEncoder, Value
from feature_pipeline.model.outcomes import Outcome
from feature_pipeline.model.text.counted import counted
from feature_pipeline.parallel import map_threads

MAX_EXAMPLES: Final = 20
_BATCHES_AHEAD: Final = 64
"""Number of manifests read together; rows are read for one batch at a time."""


@dataclass(frozen=True, slots=True)
class Example:
    """One record whose outcome or rows differ."""

    batch: str
    record_id: str
    before: str
    """`passed, 3 rows`, or `rejected: reason`; empty if the record was absent."""
    after: str
    columns: tuple[str, ...] = ()
    """The columns whose values differ in rows of the same ordinal."""


@dataclass
class Difference:
    """The differences over all batches. Records are counted once, rows by ordinal."""

    batches: int = 0
    """Number of batches compared; `equal_batches` of them have equal content."""
    equal_batches: int = 0
    records_equal: int = 0
    records_added: int = 0
    records_removed: int = 0
    records_changed: int = 0
    """Records with another status or reason, or other rows."""
    rows_equal: int = 0
    rows_added: int = 0
    rows_removed: int = 0
    rows_changed: int = 0
    """Rows whose values differ from those of the row of the same record and ordinal."""
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By (status before, status after), the records whose status changed."""
    reasons_changed: int = 0
    """Records with the same status and another reason."""
    columns: Counter[str] = field(default_factory=Counter)
    """By column, the number of rows present in both whose value differs."""
    examples: list[Example] = field(default_factory=list)
    """The first `MAX_EXAMPLES` records that were added, removed or changed."""

    @property
    def is_equal(self) -> bool:
        """Whether all records are equal."""
        return not (self.records_added or self.records_removed or self.records_changed)

    def add(self, other: "Difference") -> None:
        """Add the counts of `other`."""
        for name in (
            *("batches", "equal_batches", "reasons_changed"),
            *(f"{artifact}_{how}" for artifact in ("records", "rows") for how in _HOW),
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.outcomes.update(other.outcomes)
        self.columns.update(other.columns)
        self.examples.extend(other.examples[: MAX_EXAMPLES - len(self.examples)])

    def to_json(self) -> dict[str, object]:
        """Return the difference for programs."""
        return {
            "equal": self.is_equal,
            "batches": self.batches,
            "equal_batches": self.equal_batches,
            "records": {how: getattr(self, f"records_{how}") for how in _HOW},
            "rows": {how: getattr(self, f"rows_{how}") for how in _HOW},
            "outcomes": [
                {"before": before, "after": after, "records": count}
                for (before, after), count in self.outcomes.most_common()
            ],
            "reasons_changed": self.reasons_changed,
            "columns": dict(self.columns.most_common()),
            "examples": [
                {
                    "batch": example.batch,
                    "record_id": example.record_id,
                    "before": example.before,
                    "after": example.after,
                    "columns": list(example.columns),
                }
                for example in self.examples
            ],
        }


_HOW: Final = ("equal", "added", "removed", "changed")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two releases of a hook over the batches that both have computed."""

    before: ReleaseEntry
    after: ReleaseEntry
    difference: Difference
    columns_added: tuple[str, ...] = ()
    columns_removed: tuple[str, ...] = ()
    columns_retyped: tuple[str, ...] = ()
    """Columns whose type changed: their values are not compared."""
    only_before: tuple[str, ...] = ()
    """Batches that the later release has not computed."""
    only_after: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        """Return the comparison for programs."""
        return {
            "from": release_json(self.before),
            "to": release_json(self.after),
            **self.difference.to_json(),
            "columns_added": list(self.columns_added),
            "columns_removed": list(self.columns_removed),
            "columns_retyped": list(self.columns_retyped),
            "only_from": list(self.only_before),
            "only_to": list(self.only_after),
        }


def release_json(entry: ReleaseEntry) -> dict[str, object]:
    """Return a release for programs."""
    return {
        "seq": entry.seq,
        "version": entry.release.document.version,
        "digest": str(entry.release.digest),
    }


def find_release(store: BlobStore, dataset: str, hook: str, name: str) -> ReleaseEntry:
    """Return the release with this version or seq: `#3`, or `3` if no version is `3`.

    Raises:
        NotFoundError: There is none; names the releases.
        InvalidInputError: Several releases have this version: the seq is needed.
    """
    entries = log.releases(store, dataset, hook)
    known = ", ".join(f"{e.release.document.version} (#{e.seq})" for e in entries)
    matches = [e for e in entries if e.release.document.version == name]
    if len({entry.release.digest for entry in matches}) > 1:
        raise InvalidInputError(
            f"hook {hook!r}: several releases are {name!r}; write #seq: {known}"
        )
    number = name.removeprefix("#")
    if not matches and number.isdecimal():
        matches = [entry for entry in entries if entry.seq == int(number)]
    if not matches:
        raise NotFoundError(f"hook {hook!r} has no release {name!r}; it has {known or 'none'}")
    return matches[-1]


def last_two_releases(
    store: BlobStore, dataset: str, hook: str
) -> tuple[ReleaseEntry, ReleaseEntry]:
    """Return the last release, preceded by the last different one registered before it.

    Raises:
        NotFoundError: The hook never had two.
    """
    entries = log.releases(store, dataset, hook)
    others = [e for e in entries[:-1] if e.release.digest != entries[-1].release.digest]
    if not others:
        count = "one release" if entries else "no release"
        raise NotFoundError(f"hook {hook!r} of dataset {dataset!r} has {count}: two are needed")
    return others[-1], entries[-1]


def compare_releases(
    store: BlobStore,
    dataset: str,
    hook: str,
    before: ReleaseEntry,
    after: ReleaseEntry,
    batches: Collection[str] | None = None,
) -> Comparison:
    """Compare `after` with `before` over the batches that both have computed.

    For each batch, the last artifact that was current under each release is compared. Withdrawn
    records are left out. Only columns that both declare with comparable types are compared: a
    renamed column with its former self, integers as numbers. Memory is bounded by one batch.

    Raises:
        NotFoundError: No batch, or not one that is named, has an artifact under both releases.
        InvalidInputError: `before` and `after` are one release; or an integer of `before` is not
            exact as a number, which its column has become.
        CorruptDataError: Stored bytes do not match their name.
    """
    if before.release.digest == after.release.digest:
        raise InvalidInputError(
            f"#{before.seq} and #{after.seq} of hook {hook!r} are the same release"
        )
    pairs, only_before, only_after = _pairs(store, dataset, hook, before, after, batches)
    known, withdrawn_ids = erased(store, dataset), withdrawn(store, dataset)
    total = Difference()
    matching = _Matching()
    for batch, old, new in _manifests(store, pairs, known):
        matching.note(old, new)
        total.add(_compare_batch(store, batch, old, new, withdrawn_ids))
    return Comparison(
        before=before,
        after=after,
        difference=total,
        columns_added=tuple(sorted(matching.added)),
        columns_removed=tuple(sorted(matching.removed)),
        columns_retyped=tuple(sorted(matching.retyped)),
        only_before=only_before,
        only_after=only_after,
    )


Pair = tuple[FeatureEntry, FeatureEntry]


def _pairs(
    store: BlobStore,
    dataset: str,
    hook: str,
    before: ReleaseEntry,
    after: ReleaseEntry,
    batches: Collection[str] | None,
) -> tuple[dict[str, Pair], tuple[str, ...], tuple[str, ...]]:
    """Return each batch's last artifact under each release; and batches with only one."""
    if batches is None:
        logs = log.feature_logs(store, dataset, hook)
    else:
        logs = {batch: log.read_log(store, dataset, hook, batch) for batch in batches}
    old, new = (_last_under(logs, entry.release.digest) for entry in (before, after))
    both = {batch: (old[batch], new[batch]) for batch in logs if batch in old and batch in new}
    if batches is not None and (absent := sorted(set(batches) - both.keys())):
        raise NotFoundError(
            f"batch {absent[0]!r} has no artifact of hook {hook!r} under both releases"
            f" #{before.seq} and #{after.seq}; see `feature-pipeline history {hook} {absent[0]}`"
        )
    if not both:
        raise NotFoundError(
            f"no batch has artifacts of hook {hook!r} under both releases #{before.seq} and"
            f" #{after.seq}; `feature-pipeline backfill {hook} --select old-release` makes them"
        )
    return both, tuple(sorted(old.keys() - new.keys())), tuple(sorted(new.keys() - old.keys()))


def _last_under(logs: Mapping[str, list[FeatureEntry]], release: Digest) -> dict[str, FeatureEntry]:
    return {
        batch: entry
        for batch, entries in logs.items()
        for entry in entries
        if entry.verdict is Verdict.CURRENT and entry.release == release
    }


def _manifests(
    store: BlobStore, pairs: Mapping[str, Pair], known: Erased
) -> Iterator[tuple[str, Manifest, Manifest]]:
    def manifests(batch: str) -> tuple[str, Manifest, Manifest]:
        # Where an artifact was erased, its successor says what may still be read of it.
        old, new = (manifest(entry) for entry in pairs[batch])
        return batch, old, new

    def manifest(entry: FeatureEntry) -> Manifest:
        successor = known.manifest_now(entry.manifest)
        if successor == entry.manifest:
            return read.manifest_of(store, entry)
        return read.read_manifest(store, successor)

    batches = list(pairs)
    for start in range(0, len(batches), _BATCHES_AHEAD):
        yield from map_threads(manifests, batches[start : start + _BATCHES_AHEAD])


@dataclass(slots=True)
class _Matching:
    """The columns, classified by their change over all batches."""

    added: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    retyped: set[str] = field(default_factory=set)

    def note(self, old: Manifest, new: Manifest) -> None:
        pairs = pair_columns(old.columns, new.columns)
        unclear = {name for names in pairs.unclear.values() for name in names}
        compared = _compared_columns(old, new)
        for column, source in zip(new.columns, pairs.sources, strict=True):
            if source is None and column.name not in unclear:
                self.added.add(column.name)
            elif column not in compared:
                self.retyped.add(column.name)
        sources = {source.name for source in pairs.sources if source is not None}
        self.removed |= {column.name for column in old.columns} - sources - pairs.unclear.keys()


def _compared_columns(old: Manifest, new: Manifest) -> tuple[Column, ...]:
    """Return the later columns under which the earlier rows can be read."""
    pairs = pair_columns(old.columns, new.columns)
    return tuple(
        column
        for column, source in zip(new.columns, pairs.sources, strict=True)
        if source is not None and can_become(source, column)
    )


def _compare_batch(
    store: BlobStore, batch: str, old: Manifest, new: Manifest, withdrawn_ids: Collection[str]
) -> Difference:
    if old.content_digest == new.content_digest and not withdrawn_ids:
        counts = new.counts
        return Difference(
            batches=1, equal_batches=1, records_equal=counts.records, rows_equal=counts.rows
        )
    columns = _compared_columns(old, new)
    before, after = (_outcomes(store, each, columns, withdrawn_ids) for each in (old, new))
    difference = Difference(batches=1)
    compared = _Records(
        batch, row_encoder(columns), {c.name: row_encoder([c]) for c in columns}, difference
    )
    for record_id in sorted(before.keys() | after.keys()):
        compared.add(record_id, before.get(record_id), after.get(record_id))
    del difference.examples[MAX_EXAMPLES:]
    difference.equal_batches = int(difference.is_equal)
    return difference


def _outcomes(
    store: BlobStore,
    manifest: Manifest,
    columns: tuple[Column, ...],
    withdrawn_ids: Collection[str],
) -> dict[str, Outcome]:
    """Return outcomes by record, their rows in the order of `columns`."""
    artifact = f"{manifest.dataset}/{manifest.hook}, batch {manifest.batch!r}"
    rows: pa.Table = read.read_rows(store, manifest)
    aligned = align_rows(rows, manifest.columns, columns, artifact)
    outcomes = decode_outcomes(columns, aligned, read.read_outcomes(store, manifest))
    return {o.record_id: o for o in outcomes if o.record_id not in withdrawn_ids}


@dataclass(frozen=True, slots=True)
class _Records:
    """Compare records of one batch and add the differences to `difference`."""

    batch: str
    encoder: RowEncoder
    cells: Mapping[str, RowEncoder]
    """For each column, in order, an encoder of it alone."""
    difference: Difference

    def add(self, record_id: str, old: Outcome | None, new: Outcome | None) -> None:
        difference = self.difference
        if old is not None and new is not None and self._digest(old) == self._digest(new):
            difference.records_equal += 1
            difference.rows_equal += len(new.rows)
            return
        if old is None or new is None:
            difference.records_added += old is None
            difference.records_removed += new is None
        else:
            difference.records_changed += 1
            if old.status is not new.status:
                difference.outcomes[old.status.value, new.status.value] += 1
            elif old.reason != new.reason:
                difference.reasons_changed += 1
        names = self._rows(old.rows if old else (), new.rows if new else ())
        difference.examples.append(
            Example(self.batch, record_id, _described(old), _described(new), names)
        )

    def _digest(self, outcome: Outcome) -> bytes:
        encoded = self.encoder.rows(outcome.rows)
        return self.encoder.outcome_digest(
            outcome.record_id, outcome.status.value, outcome.reason, encoded
        )

    def _rows(
        self, old: tuple[tuple[Value, ...], ...], new: tuple[tuple[Value, ...], ...]
    ) -> tuple[str, ...]:
        """Count the record's rows by ordinal; return the columns in which they differ."""
        difference = self.difference
        difference.rows_removed += max(0, len(old) - len(new))
        difference.rows_added += max(0, len(new) - len(old))
        names: dict[str, None] = {}
        for before, after in zip(old, new, strict=False):
            if self.encoder.rows([before]) == self.encoder.rows([after]):
                difference.rows_equal += 1
                continue
            difference.rows_changed += 1
            for (name, cell), *values in zip(self.cells.items(), before, after, strict=True):
                one, other = (cell.rows([(value,)]) for value in values)
                if one != other:
                    difference.columns[name] += 1
                    names[name] = None
        return tuple(names)


def _described(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    if outcome.reason is not None:
        return f"{outcome.status.value}: {outcome.reason}"
    return f"{outcome.status.value}, {counted(len(outcome.rows), 'row')}"
