"""Read a hook's rows, outcomes and raw bytes over selected batches."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive import read
from feature_pipeline.archive.format.align_columns import align_rows
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.encode import OUTCOMES_SCHEMA, RECORD_ID, rows_schema
from feature_pipeline.archive.format.manifest import LOG, Manifest
from feature_pipeline.archive.logs.erasures import erased
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.logs.tombstones import withdrawn
from feature_pipeline.archive.query.damaged_batches import records_of_batch
from feature_pipeline.archive.query.frames import Frame
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.column_sources import RawKeys, contradictions, own_keys
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted
from feature_pipeline.parallel import WORKERS

BATCH: Final = "batch"
"""The column with the batch of a row; the last one."""

_BATCH_FIELD: Final["pa.Field[Any]"] = pa.field(BATCH, pa.string(), nullable=False)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Selection:
    """The artifacts to read, from the batch submitted last to the first.

    A damaged batch raises, unless `skips_damaged`: then it is left out, `damage` gives the reason,
    and its records are left out of earlier batches, because they belong to it.
    """

    store: BlobStore
    dataset: str
    hook: str
    heads: Mapping[str, FeatureEntry]
    every_batch: bool
    order: Sequence[str]
    """The batches from the one submitted last, including those of `damage`; those of unknown
    position come first.
    """
    skips_damaged: bool = False
    damage: dict[str, str] = field(default_factory=dict)
    """Batches that cannot be read, with the reason; reading may add to it."""

    @cached_property
    def withdrawn(self) -> "pa.Array[Any]":
        """Ids of withdrawn records, which must not be read even if their artifact is current."""
        return pa.array(sorted(withdrawn(self.store, self.dataset)), pa.string())

    def manifest(self, batch: str) -> Manifest:
        """Return the manifest of the batch's artifact."""
        if batch not in self.heads:
            raise NotFoundError(
                f"batch {batch!r} is not among those read of {self.dataset}/{self.hook}"
            )
        return read.manifest_of(self.store, self.heads[batch])

    def newest_columns(self) -> tuple[Column, ...]:
        """The columns of the newest artifact; none if there is no artifact."""
        heads = self.heads
        # The successor of an erased older artifact was accepted late, with the old content.
        redacted = set(erased(self.store, self.dataset).manifests.values())
        candidates = [batch for batch in heads if heads[batch].manifest in redacted]
        others = sorted(
            heads.keys() - candidates, key=lambda batch: (heads[batch].accepted_at, batch)
        )
        manifests = [self._readable(batch, lambda manifest: manifest) for batch in candidates]
        while others:
            manifests.append(self._readable(others.pop(), lambda manifest: manifest))
            if manifests[-1] is not None:
                break
        readable = [manifest for manifest in manifests if manifest is not None]
        newest = max(readable, key=lambda m: (m.run.finished_at, m.batch), default=None)
        return () if newest is None else newest.columns

    def artifacts(self, load: Callable[[Manifest], R]) -> Iterator[tuple[str, R | None]]:
        """Yield the result of `load` for each manifest, reading ahead; None if damaged."""
        return _ahead(lambda batch: self._readable(batch, load), self.order)

    def _readable(self, batch: str, load: Callable[[Manifest], R]) -> R | None:
        if batch in self.damage:
            return None
        try:
            return load(self.manifest(batch))
        except (NotFoundError, CorruptDataError, NewerVersionError) as error:
            if not self.skips_damaged:
                raise
            self.damage[batch] = str(error)
            return None

    def record_ids(self, batch: str) -> frozenset[str]:
        """Return the ids of a damaged batch's records.

        None if they cannot be read either; `damage` then contains the reason.
        """
        try:
            return records_of_batch(self.store, self.dataset, self.hook, batch)
        except NotFoundError as error:
            self.damage[batch] += (
                f"; nor is known which records it has ({error}), so records of it that earlier"
                " batches have, too, are shown as those say"
            )
            return frozenset()


class Features(Frame):
    """Rows of a hook over batches: record_id, ordinal, the declared columns, batch.

    The declared columns are those of the newest artifact; rows written under others are converted
    by `align_rows`. Arrays and objects are canonical JSON text, uuids text, instants microseconds
    in UTC. Batches are in order of submission, the last first.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def __repr__(self) -> str:
        return f"Features({self.dataset}/{self.hook}, {counted(len(self.batches), 'batch')})"

    @property
    def dataset(self) -> str:
        """The hook's dataset."""
        return self._selection.dataset

    @property
    def hook(self) -> str:
        """The hook's name."""
        return self._selection.hook

    @property
    def batches(self) -> list[str]:
        """The batches that are read, from the one submitted last."""
        return [batch for batch in self._selection.order if batch in self._selection.heads]

    @property
    def damage(self) -> Mapping[str, str]:
        """The batches that are left out because they are damaged or lost, with the reason.

        Complete once all rows, or outcomes, have been read.
        """
        return self._selection.damage

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The declared columns, with units and descriptions; none if nothing is read."""
        return self._selection.newest_columns()

    @property
    def schema(self) -> pa.Schema:
        """record_id, ordinal, the declared columns, batch; fields carry type, format and unit."""
        return rows_schema(self.columns).append(_BATCH_FIELD)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the rows of each batch in turn; errors as for `batch_tables`."""
        return (table for _, table in self.batch_tables())

    def batch_tables(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield each batch with its rows, except batches that are left out.

        Raises:
            NotFoundError, CorruptDataError: A blob is missing, or does not match its name.
            InvalidInputError: A batch was written under columns of other types, or a column would
                have different meanings in two batches.
        """
        selection, columns = self._selection, self.columns
        owned = _Owned(selection)
        declarations = _Declarations(f"{self.dataset}/{self.hook}", columns)
        if selection.every_batch:
            for batch, batch_rows in selection.artifacts(self._rows):
                if batch_rows is None:
                    continue
                manifest, rows = batch_rows
                declarations.check(batch, manifest.columns)
                yield batch, self._finished(owned.of_rows(rows), manifest, columns, batch)
            return
        for batch, artifact in selection.artifacts(self._rows_and_outcomes):
            if artifact is None:
                owned.claim(selection.record_ids(batch))
                continue
            manifest, rows, outcomes = artifact
            declarations.check(batch, manifest.columns)
            kept = owned.of_artifact(rows, outcomes.column(0))
            yield batch, self._finished(kept, manifest, columns, batch)

    def outcomes(self) -> "Outcomes":
        """Return the outcome of every record of these batches."""
        return Outcomes(self._selection)

    def manifest(self, batch: str) -> Manifest:
        """Return the manifest of the batch's artifact: release, run, counts, digests, blobs."""
        return self._selection.manifest(batch)

    def raw_sources(self, batch: str) -> dict[Digest, list[str]]:
        """Return the sorted names of raw files by the manifest that has them.

        The first is the batch's own. The others computed outcomes that it carried over, in the
        order of its records: all of them, if its rows were only decoded again. A manifest without
        files is left out.
        """
        return {
            digest: read.raw_names(manifest)
            for digest, manifest in self._computed_by(batch).items()
        }

    def raw_names(self, batch: str) -> list[str]:
        """Return the names of the hook's raw files for the batch, sorted."""
        return sorted({name for names in self.raw_sources(batch).values() for name in names})

    def raw(self, batch: str, name: str, *, manifest: Digest | str | None = None) -> bytes:
        """Return one of the hook's raw files, byte for byte.

        If the batch's own manifest has a file of this name, that one is returned. It does not
        contain records that were carried over: see `carried_from` of `outcomes`. Otherwise the
        file comes from the manifest that computed the carried-over outcomes.

        Args:
            batch: One of those read.
            name: One of `raw_names`.
            manifest: Read this manifest's file: one of `raw_sources`.

        Raises:
            NotFoundError: No hook run wrote such a file for the batch.
            InvalidInputError: Several earlier manifests have such a file, and none was chosen.
        """
        sources = self._computed_by(batch)
        if manifest is not None:
            chosen = Digest.parse(manifest) if isinstance(manifest, str) else manifest
            if chosen not in sources:
                raise NotFoundError(
                    f"manifest {chosen} has no raw files of batch {batch!r} of"
                    f" {self.dataset}/{self.hook}; {_listed(sources) or 'none'} does"
                )
            return read.read_raw(self._selection.store, sources[chosen], name)
        having = {
            d: candidate for d, candidate in sources.items() if name in read.raw_names(candidate)
        }
        own = self._selection.heads[batch].manifest
        if own in having:
            having = {own: having[own]}
        if len(having) > 1:
            raise InvalidInputError(
                f"outcomes of batch {batch!r} of {self.dataset}/{self.hook} were carried over from"
                f" {len(having)} hook runs that wrote {name!r}: choose one with manifest="
                f" {_listed(having)}"
            )
        for candidate in having.values():
            return read.read_raw(self._selection.store, candidate, name)
        raise NotFoundError(
            f"no hook run wrote {name!r} for batch {batch!r} of {self.dataset}/{self.hook};"
            f" they wrote {', '.join(self.raw_names(batch)) or 'no file'}"
        )

    def log(self, batch: str) -> str:
        """Return the hook's log; of several runs, their logs in turn."""
        store = self._selection.store
        having_logs = self._computed_by(batch, has_log=True)
        own = self._selection.heads[batch].manifest
        manifests = [having_logs[own]] if own in having_logs else having_logs.values()
        return "".join(read.read_log_text(store, manifest) for manifest in manifests)

    def _computed_by(self, batch: str, *, has_log: bool = False) -> dict[Digest, Manifest]:
        """Return the manifests with raw files or logs of the batch, its own first."""
        store, selection = self._selection.store, self._selection
        own = selection.manifest(batch)
        digests = [selection.heads[batch].manifest]
        if own.counts.carried:
            erasures = erased(store, self.dataset)
            origins = read.read_outcomes(store, own)["carried_from"].unique().to_pylist()
            # What was erased of an origin since has a successor, which is read instead.
            digests += [erasures.manifest_now(Digest.parse(o)) for o in origins if o is not None]
        manifests = {
            digest: own if n == 0 else read.read_manifest(store, digest)
            for n, digest in enumerate(dict.fromkeys(digests))
        }
        return {
            digest: manifest
            for digest, manifest in manifests.items()
            if (LOG in manifest.blobs if has_log else read.raw_names(manifest))
        }

    def _rows(self, manifest: Manifest) -> tuple[Manifest, pa.Table]:
        return manifest, read.read_rows(self._selection.store, manifest)

    def _rows_and_outcomes(self, manifest: Manifest) -> tuple[Manifest, pa.Table, pa.Table]:
        return *self._rows(manifest), read.read_outcomes(self._selection.store, manifest)

    def _finished(
        self, rows: pa.Table, manifest: Manifest, columns: tuple[Column, ...], batch: str
    ) -> pa.Table:
        artifact = f"{self.dataset}/{self.hook}, batch {batch!r}"
        return _with_batch(align_rows(rows, manifest.columns, columns, artifact), batch)


class _Declarations:
    """The declarations of the batches read so far, to check that they can be read as one."""

    def __init__(self, artifact: str, wanted: tuple[Column, ...]) -> None:
        self._what = artifact
        self._wanted = wanted
        self._examples: dict[tuple[RawKeys, ...], tuple[str, tuple[Column, ...]]] = {}

    def check(self, batch: str, written: tuple[Column, ...]) -> None:
        """Check that the batch may be read together with those before it."""
        keys = own_keys(written)
        if keys in self._examples:
            return
        self._examples[keys] = (batch, written)
        for named, why in contradictions(dict(self._examples.values()), self._wanted).items():
            raise InvalidInputError(f"{self._what}, batch {named!r}: {why}")


class Outcomes(Frame):
    """One row per record: `OUTCOMES_SCHEMA`, then batch.

    Batches are in order of submission, the last first; records in the batch's order.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection

    def __repr__(self) -> str:
        return f"Outcomes({self._selection.dataset}/{self._selection.hook})"

    @property
    def damage(self) -> Mapping[str, str]:
        """See `Features.damage`."""
        return self._selection.damage

    @property
    def schema(self) -> pa.Schema:
        """record_id, status, reason, kind, retryable, row_count, action, carried_from, batch."""
        return OUTCOMES_SCHEMA.append(_BATCH_FIELD)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the outcomes of each batch in turn.

        Raises:
            NotFoundError, CorruptDataError: A blob is missing, or does not match its name.
        """
        selection = self._selection
        owned = _Owned(selection)
        for batch, outcomes in selection.artifacts(
            lambda manifest: read.read_outcomes(selection.store, manifest)
        ):
            if selection.every_batch:
                if outcomes is not None:
                    yield _with_batch(owned.of_rows(outcomes), batch)
            elif outcomes is None:
                owned.claim(selection.record_ids(batch))
            else:
                kept = owned.of_artifact(outcomes, outcomes.column(0))
                yield _with_batch(kept, batch)


def _with_batch(table: pa.Table, batch: str) -> pa.Table:
    repeat: Any = pa.repeat
    values: pa.Array[Any] = repeat(pa.scalar(batch, pa.string()), len(table))
    return table.append_column(_BATCH_FIELD, values)


class _Owned:
    """Leave out withdrawn records, and those of batches read before."""

    def __init__(self, selection: Selection) -> None:
        self._withdrawn = selection.withdrawn
        self._seen: set[str] = set()

    def of_rows(self, table: pa.Table) -> pa.Table:
        """Return the rows of records that are not withdrawn."""
        return _without(table, self._withdrawn)

    def claim(self, ids: Collection[str]) -> None:
        """Leave these records out of the batches that are read from now on."""
        self._seen.update(ids)

    def of_artifact(self, table: pa.Table, record_ids: "pa.ChunkedArray[Any]") -> pa.Table:
        """Claim the artifact's records; return the rows of those not claimed before.

        A record belongs to the batch submitted last, whatever its outcome there: the ids are of all
        outcomes, not only of those with rows.
        """
        listed: list[Any] = record_ids.to_pylist()
        ids: set[str] = set(listed)
        foreign = ids & self._seen
        self.claim(ids)
        return _without(self.of_rows(table), pa.array(sorted(foreign), pa.string()))


def _listed(digests: Iterable[Digest]) -> str:
    return ", ".join(map(str, digests))


def _without(table: pa.Table, ids: "pa.Array[Any]") -> pa.Table:
    if not len(ids):
        return table
    return table.filter(pc.invert(pc.is_in(table.column(RECORD_ID), ids)))


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[T, R]]:
    """Yield `function` of every item, in order, with at most `WORKERS` in progress or waiting."""
    running: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(WORKERS) as pool:
        try:
            for item in items:
                running.append((item, pool.submit(function, item)))
                if len(running) == WORKERS:
                    first, future = running.popleft()
                    yield first, future.result()
            while running:
                first, future = running.popleft()
                yield first, future.result()
        finally:
            # The caller may stop early: what has not begun is not read.
            for _, future in running:
                future.cancel()
