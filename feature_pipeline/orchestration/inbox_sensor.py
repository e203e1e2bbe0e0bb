"""The inbox sensor: accepts what was submitted or finished, and tells Dagster.

Belongs here: one tick over the inbox, as events and partitions. Not here: the rules of acceptance
(`archive.accept`), requesting runs (`automation`).

A tick costs what is waiting, not what is archived. An entry is deleted on a later tick, once its
event is found in Dagster: a daemon that dies in between repeats an event of the same data version,
which changes nothing, and loses none.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import dagster as dg

from feature_pipeline.archive import accept, log
from feature_pipeline.archive.accept import (
    Accepted,
    InboxEntry,
    Quarantined,
    Submission,
    Waiting,
)
from feature_pipeline.archive.blob_store import BlobStore, ObjectInfo
from feature_pipeline.archive.log import FeatureEntry
from feature_pipeline.archive.logs import answers
from feature_pipeline.archive.publish import Completion, CompletionStatus
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.hooks.definition import HookDefinition
from feature_pipeline.hooks.runner import HookRunner
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.orchestration.events import features_events, reports
from feature_pipeline.orchestration.keys import features_key, records_key
from feature_pipeline.orchestration.outlived_runs import take_outlived
from feature_pipeline.orchestration.pools import set_pools
from feature_pipeline.orchestration.provenance import latest_events
from feature_pipeline.orchestration.records import records_event
from feature_pipeline.orchestration.resources import ArchiveResource, HookRunnerResource
from feature_pipeline.orchestration.sensors.leftovers import remove_left_now_and_then

logger = logging.getLogger(__name__)

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
    unusable: list[str] = field(default_factory=list)
    """Results of hook runs whose worker died, and which can never be accepted."""
    damaged: list[str] = field(default_factory=list)
    """Accepted entries of which Dagster cannot be told: what they name is gone or damaged."""

    left_over: list[str] = field(default_factory=list)
    """What workers had left that died, and is removed."""

    def summary(self) -> str:
        """One line for the tick's log."""
        return (
            f"{self.accepted} accepted, {self.removed} done, {len(self.waiting)} waiting,"
            f" {len(self.quarantined)} quarantined"
        )


def settle_inbox(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    limit: int = ENTRIES_PER_TICK,
    work: WorkFolders | None = None,
    runner: HookRunner | None = None,
) -> InboxTick:
    """Accept up to `limit` waiting entries, batches before completions.

    Results of hook runs whose worker died are among them from this tick on, by way of `work`. What
    dead workers left there and with `runner` is removed once nothing can come of it. Idempotent:
    repeating a tick appends nothing to any log that is there already.
    """
    tick = InboxTick()
    outlived = take_outlived(store, instance, work)
    if work is not None:
        tick.left_over, problems = remove_left_now_and_then(store, work, runner)
        tick.waiting.extend(problems)
    tick.waiting.extend(outlived.waiting)
    tick.unusable.extend(outlived.unusable)
    chosen = _usable(store, instance, tick, choose(accept.list_waiting(store), limit))
    batches: dict[str, list[tuple[InboxEntry, Submission]]] = {}
    completions: dict[tuple[str, str], list[tuple[InboxEntry, Completion]]] = {}
    settled = accept.settle_all(store, chosen)
    for entry, result in zip(chosen, settled, strict=True):
        if not _note(tick, entry, result):
            continue
        match entry.content:
            case Submission() as submission:
                batches.setdefault(submission.dataset, []).append((entry, submission))
            case Completion() as completion:
                pair = completion.dataset, completion.hook
                completions.setdefault(pair, []).append((entry, completion))
    for dataset, hook in completions:
        _compact_answers(store, dataset, hook)
    for dataset, submissions in batches.items():
        _report_batches(store, instance, tick, dataset, submissions)
    for (dataset, hook), accepted in completions.items():
        _report_completions(store, archive_uri, instance, tick, dataset, hook, accepted)
    return tick


def _compact_answers(store: BlobStore, dataset: str, hook: str) -> None:
    """Merge what acceptances have added to the hook's memory of answers, if it has become much."""
    try:
        answers.compact(store, dataset, hook)
    except (StoreUnavailableError, OutcomeUnknownError) as error:
        # Nothing is lost: the next plan reads more objects, the next round merges them.
        logger.warning("answers of %s/%s were not merged: %s", dataset, hook, error)


def choose(infos: Sequence[ObjectInfo], limit: int) -> Sequence[ObjectInfo]:
    """At most `limit` of what waits: batches, and completions once no batch is left out.

    A completion that is looked at before its batch counts as one whose batch nobody knows.
    """
    batches = [info for info in infos if accept.is_batch(info)]
    completions = [info for info in infos if not accept.is_batch(info)]
    chosen = _ends(batches, limit)
    return [*chosen, *_ends(completions, limit - len(chosen))]


def _ends(infos: Sequence[ObjectInfo], limit: int) -> Sequence[ObjectInfo]:
    """From both ends: what cannot be accepted yet does not hold up what can."""
    if len(infos) <= limit:
        return infos
    oldest = limit // 2
    return [*infos[:oldest], *infos[len(infos) - limit + oldest :]]


def _usable(
    store: BlobStore, instance: dg.DagsterInstance, tick: InboxTick, infos: Sequence[ObjectInfo]
) -> list[InboxEntry]:
    """The entries that no live Dagster run cares for; the others are noted as waiting."""
    entries = accept.read_waiting(store, infos)
    runs = _runs(instance, entries)
    usable = []
    for entry in entries:
        run_id = entry.content.dagster_run_id if isinstance(entry.content, Completion) else None
        run = None if run_id is None else runs.get(run_id)
        if run is None:
            usable.append(entry)
        elif run.is_finished:
            usable.append(_as_ended(entry, run))
        else:
            tick.waiting.append(f"{entry.id}: its Dagster run is still alive")
    return usable


def _runs(instance: dg.DagsterInstance, entries: Sequence[InboxEntry]) -> dict[str, dg.DagsterRun]:
    said = (e.content.dagster_run_id for e in entries if isinstance(e.content, Completion))
    ids = sorted({run_id for run_id in said if run_id is not None})
    found = instance.get_runs(dg.RunsFilter(run_ids=ids)) if ids else []
    return {run.run_id: run for run in found}


def _as_ended(entry: InboxEntry, run: dg.DagsterRun) -> InboxEntry:
    """The entry, its completion cancelled if its run was: the hook may have ended before that."""
    if run.status is not dg.DagsterRunStatus.CANCELED or not isinstance(entry.content, Completion):
        return entry
    cancelled = entry.content.model_copy(update={"status": CompletionStatus.CANCELLED})
    return replace(entry, content=cancelled)


def _report_batches(
    store: BlobStore,
    instance: dg.DagsterInstance,
    tick: InboxTick,
    dataset: str,
    submissions: Sequence[tuple[InboxEntry, Submission]],
) -> None:
    """Remove the entries that Dagster knows of; events and partitions for the others."""
    known = set(instance.get_dynamic_partitions(dataset))
    keys = [submission.batch for _, submission in submissions]
    events = latest_events(instance, records_key(dataset), keys)
    for entry, submission in submissions:
        accepted = log.batch_entry(store, dataset, submission.batch)
        event = events.get(submission.batch)
        is_current = event is not None and event.data_version == str(accepted.digest)
        if is_current and submission.batch in known:
            _remove(store, tick, entry)
            continue
        try:
            batch = log.batch_of(store, accepted)
        except (NotFoundError, CorruptDataError) as error:
            tick.damaged.append(f"{entry.id}: {error}")
            continue
        tick.events.append(records_event(accepted, batch))
        if submission.batch not in known:
            tick.partitions.setdefault(dataset, []).append(submission.batch)


def _report_completions(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    tick: InboxTick,
    dataset: str,
    hook: str,
    accepted: Sequence[tuple[InboxEntry, Completion]],
) -> None:
    """Remove the entries that are history or that Dagster knows of; events for the others."""
    keys = sorted({completion.batch for _, completion in accepted})
    readable = log.readable_heads(store, dataset, hook, keys)
    known = latest_events(instance, features_key(dataset, hook), keys)
    unreported: dict[str, FeatureEntry] = {}
    waiting: list[tuple[InboxEntry, str]] = []
    for entry, completion in accepted:
        if completion.batch in readable.damage:
            tick.damaged.append(f"{entry.id}: {readable.damage[completion.batch].error}")
            continue
        head = readable.found.get(completion.batch)
        if head is None or head.completion != completion.id:
            # Failed or superseded: history, of which Dagster has no event to wait for.
            _remove(store, tick, entry)
        elif reports(known.get(completion.batch), head):
            _remove(store, tick, entry)
        else:
            unreported[completion.batch] = head
            waiting.append((entry, completion.batch))
    damaged: dict[str, str] = {}
    events = features_events(store, archive_uri, instance, dataset, hook, unreported, damaged)
    tick.events.extend(events.values())
    for entry, batch in waiting:
        if batch in damaged:
            tick.damaged.append(f"{entry.id}: {damaged[batch]}")
        elif batch not in events:
            tick.waiting.append(f"{entry.id}: its batch is not in Dagster yet")


def _remove(store: BlobStore, tick: InboxTick, entry: InboxEntry) -> None:
    accept.remove(store, entry.id)
    tick.removed += 1


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


def inbox_sensor(hooks: Sequence[HookDefinition]) -> dg.SensorDefinition:
    """Accepts batches and completions every `TICK_SECONDS`; running by default.

    Its first tick sets the hooks' concurrency pools: before anything that it accepts is run.
    """
    has_pools = threading.Event()

    @dg.sensor(
        name="inbox",
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Accepts submitted batches and finished hook runs from the archive's inbox.",
    )
    def inbox(
        context: dg.SensorEvaluationContext,
        archive: ArchiveResource,
        hook_runner: HookRunnerResource,
    ) -> dg.SensorResult:
        if not has_pools.is_set():
            set_pools(context.instance, hooks)
            has_pools.set()
        runner = None
        try:
            runner = hook_runner.local_runner(archive)
        except InvalidInputError as error:
            # Runs fail with it; acceptance needs no runner.
            context.log.warning("what dead workers left in containers stays: %s", error)
        tick = settle_inbox(
            archive.store(),
            archive.uri,
            context.instance,
            work=hook_runner.work_folders(archive),
            runner=runner,
        )
        for line in _loud(tick):
            context.log.error(line)
        for line in tick.left_over:
            context.log.info("removed what a worker left that died: %s", line)
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
    for line in tick.unusable:
        yield f"the result of a hook run whose worker died cannot be accepted: {line}"
    for line in tick.damaged:
        yield f"damaged in the archive: {line}; `feature-pipeline verify` names all that is"
