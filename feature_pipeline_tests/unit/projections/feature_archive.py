"""An archive in memory with one hook, to be filled with batches and what the hook said of them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import MappingProxyType

from feature_pipeline.archive import accept, blobs, log
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.inbox import Completion, CompletionStatus, Submission
from feature_pipeline.archive.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.manifest import RunInfo
from feature_pipeline.archive.publish import Artifact, publish_artifact
from feature_pipeline.archive.stores.memory import MemoryStore
from feature_pipeline.columns import Column, decode_row
from feature_pipeline.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.projections.table_spec import TableSpec
from feature_pipeline.records import Record, RecordBatch, Source
from feature_pipeline.release import HookRelease, ReleaseDocument

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)

Said = Mapping[str, object]
"""Per record id: a list of features, or text: the reason of a rejection."""


class FeatureArchive:
    """Submits batches and accepts artifacts of one hook.

    `columns` may be replaced between publications, as a hook's definition would be.
    """

    def __init__(self, columns: Sequence[Column], store: BlobStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.columns = tuple(columns)
        self.release = self._register("1")
        self._numbers = count(1)

    def spec(self, **changes: object) -> TableSpec:
        values: dict = {"dataset": "demo", "hook": "pockets", "name": "pockets"}
        return TableSpec(**{**values, "columns": self.columns, **changes})

    def register(self, version: str) -> None:
        self.release = self._register(version)

    def submit(self, batch: str, record_ids: Iterable[str], at_seconds: int | None = None) -> None:
        """Batches are in the order of `at_seconds`, by default of submission."""
        records = tuple(Record(id=record_id) for record_id in record_ids)
        built = RecordBatch.create("demo", batch, Source.IMPORT, records)
        blobs.put_blob(self.store, built.encode())
        offset = next(self._numbers) if at_seconds is None else at_seconds
        accept.accept_batch(
            self.store,
            Submission(
                dataset="demo",
                batch=batch,
                digest=built.digest,
                source=Source.IMPORT,
                submitted_at=EPOCH + timedelta(seconds=offset),
            ),
        )

    def say(
        self, batch: str, said: Said, raw: Mapping[str, Path] = MappingProxyType({})
    ) -> FeatureEntry:
        """Publish and accept what the hook says of every record of the batch."""
        outcomes = [self._outcome(record_id, value) for record_id, value in said.items()]
        return self.accept(batch, outcomes, raw)

    def accept(
        self,
        batch: str,
        outcomes: Sequence[Outcome],
        raw: Mapping[str, Path] = MappingProxyType({}),
    ) -> FeatureEntry:
        number = next(self._numbers)
        run = RunInfo(
            id=f"run-{number}",
            runner="subprocess",
            started_at=EPOCH,
            finished_at=EPOCH + timedelta(seconds=number),
        )
        published = publish_artifact(
            self.store,
            Artifact(
                batch=log.read_batch(self.store, "demo", batch),
                release=self.release,
                columns=self.columns,
                cardinality="many",
                run=run,
                outcomes=tuple(outcomes),
                raw=raw,
                log=None,
            ),
        )
        entries = log.read_log(self.store, "demo", "pockets", batch)
        return accept.accept(
            self.store,
            Completion(
                id=run.id,
                dataset="demo",
                hook="pockets",
                batch=batch,
                release_seq=self.release.seq,
                release_digest=self.release.release.digest,
                base=len(entries),
                manifest=published.manifest_digest,
                status=CompletionStatus.SUCCEEDED,
            ),
        )

    def add(self, batch: str, said: Said) -> FeatureEntry:
        """Submit the batch of these records and accept what is said of them."""
        self.submit(batch, said)
        return self.say(batch, said)

    def heads(self) -> dict[str, FeatureEntry]:
        """The current entry of every batch."""
        return log.heads(self.store, "demo", "pockets")

    def _outcome(self, record_id: str, said: object) -> Outcome:
        if isinstance(said, str):
            return Outcome(record_id, Status.REJECTED, reason=said)
        if isinstance(said, Exception):
            return Outcome(record_id, Status.ERRORED, reason=str(said), kind=OutcomeKind.HOOK)
        assert isinstance(said, list)
        return Outcome(
            record_id, Status.PASSED, rows=tuple(decode_row(self.columns, row) for row in said)
        )

    def _register(self, version: str) -> ReleaseEntry:
        document = ReleaseDocument(
            dataset="demo", hook="pockets", version=version, command=("python", "hook.py")
        )
        return log.register_release(self.store, HookRelease.of(document), {})
