"""The inbox sensor: accepts what was submitted or finished, and tells Dagster.

Belongs here: one tick over the inbox, as events and partitions. Not here: the rules of acceptance
(`archive.accept`), requesting runs (`automation`).

A tick costs what is waiting, not what is archived. An entry is deleted on a later tick, once its
event is found in Dagster: a daemon that dies in between repeats an event of the same data version,
which changes nothing, and loses none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import dagster as dg

from feature_pipeline.archive import accept, log
from feature_pipeline.archive.accept import (
    Accepted,
    InboxEntry,
    Quarantined,
    Submission,
    Waiting,
)
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.publish import Completion
from feature_pipeline.orchestration.events import COMPLETION_TAG, features_event
from feature_pipeline.orchestration.keys import features_key, records_key
from feature_pipeline.orchestration.provenance import latest_events
from feature_pipeline.orchestration.records import records_event
from feature_pipeline.orchestration.resources import ArchiveResource

ENTRIES_PER_TICK = 500
TICK_SECONDS = 5


@dataclass
class InboxTick:
    """What one look at the inbox found and did; events and partitions are yet to be stored."""

    events: list[dg.AssetMaterialization] = field(default_factory=list)
    partitions: dict[str, list[str]] = field(default_factory=dict)
    accepted: int = 0
    waiting: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    removed: int = 0

    def summary(self) -> str:
        """One line for the tick's log."""
        return (
            f"{self.accepted} accepted, {self.removed} done, {len(self.waiting)} waiting,"
            f" {len(self.quarantined)} quarantined"
        )


def settle_inbox(
    store: BlobStore, archive_uri: str, instance: dg.DagsterInstance, limit: int = ENTRIES_PER_TICK
) -> InboxTick:
    """Accept up to `limit` waiting entries, batches before completions.

    Idempotent: repeating a tick appends nothing to any log that is there already.
    """
    tick = InboxTick()
    entries = accept.waiting(store)[:limit]
    _settle_batches(store, instance, tick, _of_kind(entries, Submission))
    _settle_completions(store, archive_uri, instance, tick, _of_kind(entries, Completion))
    return tick


def _of_kind(entries: Iterable[InboxEntry], kind: type) -> list[InboxEntry]:
    return [entry for entry in entries if isinstance(entry.content, kind)]


def _settle_batches(
    store: BlobStore, instance: dg.DagsterInstance, tick: InboxTick, entries: list[InboxEntry]
) -> None:
    by_dataset: dict[str, list[tuple[InboxEntry, Submission]]] = {}
    for entry in entries:
        assert isinstance(entry.content, Submission)
        by_dataset.setdefault(entry.content.dataset, []).append((entry, entry.content))
    for dataset, submissions in by_dataset.items():
        keys = [submission.batch for _, submission in submissions]
        known = set(instance.get_dynamic_partitions(dataset))
        events = latest_events(instance, records_key(dataset), keys)
        for entry, submission in submissions:
            settled = accept.settle(store, entry)
            if not _note(tick, entry, settled):
                continue
            batch_entry = log.batch_entry(store, dataset, submission.batch)
            event = events.get(submission.batch)
            if (
                event is not None
                and event.data_version == str(batch_entry.digest)
                and submission.batch in known
            ):
                accept.remove(store, entry.id)
                tick.removed += 1
                continue
            batch = log.read_batch(store, dataset, submission.batch)
            tick.events.append(records_event(batch_entry, batch))
            if submission.batch not in known:
                tick.partitions.setdefault(dataset, []).append(submission.batch)


def _settle_completions(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    tick: InboxTick,
    entries: list[InboxEntry],
) -> None:
    for entry in entries:
        completion = entry.content
        assert isinstance(completion, Completion)
        if _run_is_alive(instance, completion.dagster_run_id):
            tick.waiting.append(f"{entry.id}: its Dagster run is still alive")
            continue
        settled = accept.settle(store, entry)
        if not _note(tick, entry, settled):
            continue
        head = log.head(store, completion.dataset, completion.hook, completion.batch)
        if head is None or head.completion != completion.id:
            # Failed or superseded: history, of which Dagster has no event to wait for.
            accept.remove(store, entry.id)
            tick.removed += 1
            continue
        known = latest_events(
            instance, features_key(completion.dataset, completion.hook), [completion.batch]
        ).get(completion.batch)
        if known is not None and known.tags.get(COMPLETION_TAG) == completion.id:
            accept.remove(store, entry.id)
            tick.removed += 1
        elif known is not None and known.run_id == completion.dagster_run_id:
            accept.remove(store, entry.id)
            tick.removed += 1
        else:
            event = features_event(
                store,
                archive_uri,
                instance,
                completion.dataset,
                completion.hook,
                completion.batch,
                head,
            )
            if event is None:
                tick.waiting.append(f"{entry.id}: its batch is not in Dagster yet")
            else:
                tick.events.append(event)


def _note(tick: InboxTick, entry: InboxEntry, settled: Accepted | Waiting | Quarantined) -> bool:
    """Whether the entry was accepted; otherwise what became of it is noted."""
    if isinstance(settled, Accepted):
        tick.accepted += settled.is_new
        return True
    if isinstance(settled, Waiting):
        tick.waiting.append(f"{entry.id}: {settled.reason}")
    else:
        tick.quarantined.append(f"{entry.id}: {settled.reason}")
    return False


def _run_is_alive(instance: dg.DagsterInstance, run_id: str | None) -> bool:
    run = instance.get_run_by_id(run_id) if run_id else None
    return run is not None and not run.is_finished


def inbox_sensor() -> dg.SensorDefinition:
    """Accepts batches and completions every `TICK_SECONDS`; running by default."""

    @dg.sensor(
        name="inbox",
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Accepts submitted batches and finished hook runs from the archive's inbox.",
    )
    def inbox(context: dg.SensorEvaluationContext, archive: ArchiveResource) -> dg.SensorResult:
        tick = settle_inbox(archive.store(), archive.uri, context.instance)
        for line in _loud(tick):
            context.log.error(line)
        skip = None if tick.events else tick.summary()
        return dg.SensorResult(
            asset_events=tick.events,
            dynamic_partitions_requests=[
                dg.AddDynamicPartitionsRequest(dataset, keys)
                for dataset, keys in tick.partitions.items()
            ],
            skip_reason=skip,
        )

    return inbox


def _loud(tick: InboxTick) -> Iterator[str]:
    for line in tick.quarantined:
        yield f"quarantined {line}; `feature-pipeline status` lists it"
