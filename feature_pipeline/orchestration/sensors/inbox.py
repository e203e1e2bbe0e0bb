"""The inbox sensor: accepts submissions and completions, and reports them to Dagster.

The cost of a tick depends on what is waiting, not on what is archived. An entry is deleted on a
later tick, once its event is found in Dagster. If a daemon dies in between, the event is repeated
with the same data version, which changes nothing.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import dagster as dg

from feature_pipeline.archive import accept
from feature_pipeline.archive.accept import Accepted, InboxEntry, Quarantined, Submission, Waiting
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.inbox import BATCH_ID
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry
from feature_pipeline.archive.publish import Completion, CompletionStatus
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo
from feature_pipeline.errors import (
    CorruptDataError,
    FeaturePipelineError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.hooks.runner import HookRunner
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.orchestration.assets.records import records_event
from feature_pipeline.orchestration.events.latest_events import latest_events
from feature_pipeline.orchestration.events.materializations import features_events, reports
from feature_pipeline.orchestration.keys import features_key, records_key
from feature_pipeline.orchestration.pools import set_pools
from feature_pipeline.orchestration.resources import ArchiveResource, HookRunnerResource
from feature_pipeline.orchestration.sensors.inbox_ticks import TICK_SECONDS, InboxTicks
from feature_pipeline.parallel import map_threads

logger = logging.getLogger(__name__)

ENTRIES_PER_TICK = 500
ACCEPTING_SECONDS = 20.0
"""Dagster gives a tick a minute; no more entries are accepted and reported after this time."""
_ENTRIES_AT_ONCE = 50
_ENTRIES_KEPT = 4 * ENTRIES_PER_TICK
"""In the cache between ticks: an entry of a log is read again by the next ticks at most."""
_RECORDS_KEPT = 2_000

E = TypeVar("E")
BatchEntries = Sequence[tuple[InboxEntry, Submission]]
RunEntries = Sequence[tuple[InboxEntry, Completion]]


@dataclass
class InboxTick:
    """The result of one tick; its events and partitions are yet to be stored."""

    events: list[dg.AssetMaterialization] = field(default_factory=list)
    partitions: dict[str, list[str]] = field(default_factory=dict)
    accepted: int = 0
    waiting: list[str] = field(default_factory=list)
    quarantined: list[str] = field(default_factory=list)
    removed: int = 0
    unusable: list[str] = field(default_factory=list)
    """Results of hook runs whose worker died, and which can never be accepted."""
    damaged: list[str] = field(default_factory=list)
    """Accepted entries that cannot be reported to Dagster: what they name is gone or damaged."""

    left_over: list[str] = field(default_factory=list)
    """Removed leftovers of dead workers."""
    in_vain: set[str] = field(default_factory=set)
    """Ids of entries that were processed and stay as they were."""

    def wait(self, entry: InboxEntry, reason: str) -> None:
        """Record that the entry stays in the inbox, and why."""
        self.waiting.append(f"{quoted(entry.id)}: {quoted(reason, MOST_REASON)}")
        self.in_vain.add(entry.id)

    def damage(self, entry: InboxEntry, reason: str) -> None:
        """Record that the entry cannot be reported to Dagster, and why."""
        self.damaged.append(f"{quoted(entry.id)}: {quoted(reason, MOST_REASON)}")
        self.in_vain.add(entry.id)

    def add(self, other: "InboxTick") -> None:
        """Add the results of a part of the same tick."""
        for dataset, keys in other.partitions.items():
            self.partitions.setdefault(dataset, []).extend(keys)
        self.events += other.events
        self.waiting += other.waiting
        self.damaged += other.damaged
        self.removed += other.removed
        self.in_vain |= other.in_vain

    def summary(self) -> str:
        """Return one line for the tick's log."""
        return (
            f"{self.accepted} accepted, {self.removed} done, {len(self.waiting)} waiting,"
            f" {len(self.quarantined)} quarantined"
        )


@dataclass
class FailedTries:
    """Counts how often this process tried entries without success; untried ones go first."""

    _counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def of(self, infos: Iterable[ObjectInfo]) -> Mapping[str, int]:
        """Return the counts of waiting entries, by key, and forget those of others."""
        there = [(info.key, info.etag) for info in infos]
        self._counts = {one: self._counts[one] for one in there if one in self._counts}
        return {key: count for (key, _), count in self._counts.items()}

    def add(self, infos: Iterable[ObjectInfo], in_vain: Collection[str]) -> None:
        """Count a try of these objects, which failed for the entries of these ids."""
        for info in infos:
            if info.key.removeprefix(layout.INBOX) in in_vain:
                one = info.key, info.etag
                self._counts[one] = self._counts.get(one, 0) + 1


def accept_inbox(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    limit: int = ENTRIES_PER_TICK,
    work: WorkFolders | None = None,
    runner: HookRunner | None = None,
    failed_tries: FailedTries | None = None,
) -> InboxTick:
    """Accept up to `limit` waiting entries, batches before completions.

    A bad entry does not affect others. Batches and completions have shares of `limit` and of the
    time, and entries that `failed_tries` counts come after new ones. Through `work`, results
    of hook runs whose worker died are among them from this tick on. Leftovers of dead workers,
    there and with `runner`, are removed once they are no longer needed. Idempotent: repeating a
    tick appends nothing to any log.
    """
    from feature_pipeline.orchestration.sensors.leftovers import remove_left_now_and_then
    from feature_pipeline.orchestration.sensors.orphaned_runs import recover_orphaned_runs

    tick = InboxTick()
    orphaned = recover_orphaned_runs(store, instance, work)
    if work is not None:
        tick.left_over, problems = remove_left_now_and_then(store, work, runner)
        tick.waiting.extend(problems)
    tick.waiting.extend(orphaned.waiting)
    tick.unusable.extend(orphaned.unusable)
    failed_tries = failed_tries or FailedTries()
    infos = accept.list_waiting(store)
    chosen = choose(infos, limit, failed_tries.of(infos))
    report = _Reporting(store, archive_uri, instance, tick)
    for entries in _accepted(store, instance, tick, infos, chosen):
        report.add(entries)
    for dataset, hook in sorted(report.hooks):
        _compact_answers(store, dataset, hook)
    failed_tries.add(chosen, tick.in_vain)
    log.trim_read_entries(_ENTRIES_KEPT, _RECORDS_KEPT)
    return tick


def _accepted(
    store: BlobStore,
    instance: dg.DagsterInstance,
    tick: InboxTick,
    infos: Sequence[ObjectInfo],
    chosen: Sequence[ObjectInfo],
) -> Iterator[list[InboxEntry]]:
    """Accept the chosen entries, a few at a time, while there is time; yield the accepted ones.

    What the caller does with them takes of the same time.
    """
    start, read_keys = time.monotonic(), {info.key for info in chosen}
    deferred = {info.key for info in infos if accept.is_batch(info)} - read_keys
    for are_batches, seconds in ((True, ACCEPTING_SECONDS / 2), (False, ACCEPTING_SECONDS)):
        of_kind = [info for info in chosen if accept.is_batch(info) is are_batches]
        for first in range(0, len(of_kind), _ENTRIES_AT_ONCE):
            if first and time.monotonic() - start > seconds:
                if are_batches:
                    deferred.update(info.key for info in of_kind[first:])
                break
            some = of_kind[first : first + _ENTRIES_AT_ONCE]
            entries = _usable(store, instance, tick, some, deferred)
            results = accept.accept_entries(store, entries)
            yield [
                entry
                for entry, result in zip(entries, results, strict=True)
                if _note(tick, entry, result)
            ]


class _Reporting:
    """Reports the accepted entries of one tick, a few at a time."""

    def __init__(
        self, store: BlobStore, archive_uri: str, instance: dg.DagsterInstance, tick: InboxTick
    ) -> None:
        self.hooks: set[tuple[str, str]] = set()
        """Dataset and hook of the accepted completions."""
        self._store = store
        self._archive_uri = archive_uri
        self._instance = instance
        self._tick = tick
        self._partitions: dict[str, set[str]] = {}
        """By dataset, those that Dagster had when the first batch was reported."""

    def add(self, entries: Sequence[InboxEntry]) -> None:
        """Report these entries, or remove those that Dagster knows."""
        batches: dict[str, list[tuple[InboxEntry, Submission]]] = {}
        completions: dict[tuple[str, str], list[tuple[InboxEntry, Completion]]] = {}
        for entry in entries:
            match entry.content:
                case Submission() as submission:
                    batches.setdefault(submission.dataset, []).append((entry, submission))
                case Completion() as completion:
                    pair = completion.dataset, completion.hook
                    completions.setdefault(pair, []).append((entry, completion))
        for dataset, submissions in batches.items():
            _each_alone(self._tick, partial(self._batches, dataset), submissions)
        for (dataset, hook), runs in completions.items():
            self.hooks.add((dataset, hook))
            report = partial(
                _report_completions, self._store, self._archive_uri, self._instance, dataset, hook
            )
            _each_alone(self._tick, report, runs)

    def _batches(self, dataset: str, tick: InboxTick, submissions: BatchEntries) -> None:
        # Once a tick: there may be a hundred thousand of them.
        if dataset not in self._partitions:
            self._partitions[dataset] = set(self._instance.get_dynamic_partitions(dataset))
        known = self._partitions[dataset]
        _report_batches(self._store, self._instance, dataset, known, tick, submissions)


Report = Callable[[InboxTick, Sequence[tuple[InboxEntry, E]]], None]


def _each_alone(
    tick: InboxTick, report: Report[E], entries: Sequence[tuple[InboxEntry, E]]
) -> None:
    """Report accepted entries together; if that fails, one by one, to isolate the failure."""
    part = InboxTick()
    try:
        report(part, entries)
    except Exception as error:
        if len(entries) > 1:
            for one in entries:
                _each_alone(tick, report, [one])
            return
        entry, _ = entries[0]
        logger.exception("inbox entry %s cannot be reported", quoted(entry.id))
        part = InboxTick()
        part.damage(entry, f"{type(error).__name__}: {error}")
    tick.add(part)


def _compact_answers(store: BlobStore, dataset: str, hook: str) -> None:
    """Merge the hook's memory of answers if acceptances have added many segments."""
    from feature_pipeline.archive.logs import answers

    try:
        answers.compact(store, dataset, hook)
    except (StoreUnavailableError, OutcomeUnknownError) as error:
        # Nothing is lost: the next plan reads more objects, the next round merges them.
        logger.warning("answers of %s/%s were not merged: %s", dataset, hook, error)


def choose(
    infos: Sequence[ObjectInfo], limit: int, read_keys: Mapping[str, int]
) -> Sequence[ObjectInfo]:
    """Return at most `limit` waiting entries: half of them batches, or as many as the rest leaves.

    Args:
        infos: The waiting entries, as from `accept.list_waiting`.
        limit: Maximum number.
        read_keys: By key, how often it was tried without success: the fewer, the sooner.
    """
    batches = [info for info in infos if accept.is_batch(info)]
    completions = [info for info in infos if not accept.is_batch(info)]
    share = max(limit - limit // 2, limit - len(completions))
    chosen = _fewest(batches, share, read_keys)
    return [*chosen, *_fewest(completions, limit - len(chosen), read_keys)]


def _fewest(
    infos: Sequence[ObjectInfo], limit: int, read_keys: Mapping[str, int]
) -> Sequence[ObjectInfo]:
    """Return those that were tried the fewest times, in the order given."""
    by_count: dict[int, list[ObjectInfo]] = {}
    for info in infos:
        by_count.setdefault(read_keys.get(info.key, 0), []).append(info)
    chosen: set[str] = set()
    for _, group in sorted(by_count.items()):
        chosen.update(info.key for info in _ends(group, limit - len(chosen)))
    return [info for info in infos if info.key in chosen]


def _ends(infos: Sequence[ObjectInfo], limit: int) -> Sequence[ObjectInfo]:
    """Return entries from both ends, so that unacceptable ones do not block others."""
    if len(infos) <= limit:
        return infos
    oldest = limit // 2
    return [*infos[:oldest], *infos[len(infos) - limit + oldest :]]


def _usable(
    store: BlobStore,
    instance: dg.DagsterInstance,
    tick: InboxTick,
    infos: Sequence[ObjectInfo],
    deferred: Collection[str],
) -> list[InboxEntry]:
    """Return the entries that can be accepted or refused now; record the others as waiting.

    Entries of live Dagster runs wait. So do completions whose batch was not chosen yet, which would
    count as those of an unknown batch.
    """
    batches = {key.rpartition(".")[0] for key in deferred}
    entries = accept.read_waiting(store, infos)
    runs = _runs(instance, entries)
    usable = []
    for entry in entries:
        run_id = entry.content.dagster_run_id if isinstance(entry.content, Completion) else None
        run = None if run_id is None else runs.get(run_id)
        if isinstance(entry.content, Completion) and _batch_key(entry.content) in batches:
            tick.wait(entry, "its batch waits too, and was not processed yet")
        elif run is None:
            usable.append(entry)
        elif run.is_finished:
            usable.append(_as_ended(entry, run))
        else:
            tick.wait(entry, "its Dagster run is still alive")
    return usable


def _batch_key(completion: Completion) -> str:
    """Return the prefix of the keys of submissions of the completion's batch."""
    return f"{layout.INBOX}{BATCH_ID}{completion.dataset}.{completion.batch}"


def _runs(instance: dg.DagsterInstance, entries: Sequence[InboxEntry]) -> dict[str, dg.DagsterRun]:
    run_ids = (e.content.dagster_run_id for e in entries if isinstance(e.content, Completion))
    ids = sorted({run_id for run_id in run_ids if run_id is not None})
    runs = instance.get_runs(dg.RunsFilter(run_ids=ids)) if ids else []
    return {run.run_id: run for run in runs}


def _as_ended(entry: InboxEntry, run: dg.DagsterRun) -> InboxEntry:
    """Return the entry, its completion cancelled if its run was.

    The hook may have ended before the cancellation.
    """
    if run.status is not dg.DagsterRunStatus.CANCELED or not isinstance(entry.content, Completion):
        return entry
    cancelled = entry.content.model_copy(update={"status": CompletionStatus.CANCELLED})
    return replace(entry, content=cancelled)


def _report_batches(
    store: BlobStore,
    instance: dg.DagsterInstance,
    dataset: str,
    known: Collection[str],
    tick: InboxTick,
    submissions: BatchEntries,
) -> None:
    """Remove the entries that Dagster knows; return events and partitions for the others.

    Args:
        store: The archive.
        instance: The Dagster instance.
        dataset: The dataset.
        known: Its partitions in Dagster.
        tick: Receives the result.
        submissions: The accepted entries.
    """
    keys = sorted({submission.batch for _, submission in submissions})
    accepted = log.readable_batches(store, dataset, keys)
    events = latest_events(instance, records_key(dataset), keys)
    done: list[InboxEntry] = []
    unreported: list[tuple[InboxEntry, BatchEntry]] = []
    for entry, submission in submissions:
        if submission.batch in accepted.damage:
            tick.damage(entry, str(accepted.damage[submission.batch].error))
            continue
        batch_entry = accepted.intact.get(submission.batch)
        if batch_entry is None:
            tick.damage(entry, f"dataset {dataset!r} has no batch {submission.batch!r} any more")
            continue
        event = events.get(submission.batch)
        is_current = event is not None and event.data_version == str(batch_entry.digest)
        if is_current and submission.batch in known:
            done.append(entry)
        else:
            unreported.append((entry, batch_entry))
    _remove(store, tick, done)
    batches = map_threads(lambda each: _try_batch(store, each[1]), unreported)
    for (entry, batch_entry), batch in zip(unreported, batches, strict=True):
        if isinstance(batch, FeaturePipelineError):
            tick.damage(entry, str(batch))
            continue
        tick.events.append(records_event(batch_entry, batch))
        if batch_entry.batch not in known:
            tick.partitions.setdefault(dataset, []).append(batch_entry.batch)


def _try_batch(store: BlobStore, entry: BatchEntry) -> RecordBatch | FeaturePipelineError:
    try:
        return log.batch_of(store, entry)
    except (NotFoundError, CorruptDataError) as error:
        return error


def _report_completions(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    dataset: str,
    hook: str,
    tick: InboxTick,
    accepted: RunEntries,
) -> None:
    """Remove the entries that are history or known to Dagster; return events for the others."""
    keys = sorted({completion.batch for _, completion in accepted})
    readable = log.readable_heads(store, dataset, hook, keys)
    known = latest_events(instance, features_key(dataset, hook), keys)
    unreported: dict[str, FeatureEntry] = {}
    waiting: list[tuple[InboxEntry, str]] = []
    done: list[InboxEntry] = []
    for entry, completion in accepted:
        if completion.batch in readable.damage:
            tick.damage(entry, str(readable.damage[completion.batch].error))
            continue
        head = readable.intact.get(completion.batch)
        if head is None or head.completion != completion.id:
            # Failed or superseded: history, of which Dagster has no event to wait for.
            done.append(entry)
        elif reports(known.get(completion.batch), head):
            done.append(entry)
        else:
            unreported[completion.batch] = head
            waiting.append((entry, completion.batch))
    _remove(store, tick, done)
    damaged: dict[str, str] = {}
    events = features_events(store, archive_uri, instance, dataset, hook, unreported, damaged)
    tick.events.extend(events.values())
    for entry, batch in waiting:
        if batch in damaged:
            tick.damage(entry, damaged[batch])
        elif batch not in events:
            tick.wait(entry, "its batch is not in Dagster yet")


def _remove(store: BlobStore, tick: InboxTick, entries: Sequence[InboxEntry]) -> None:
    map_threads(lambda entry: accept.remove(store, entry.id), entries)
    tick.removed += len(entries)


def _note(tick: InboxTick, entry: InboxEntry, result: Accepted | Waiting | Quarantined) -> bool:
    """Return whether the entry was accepted; otherwise record its result."""
    if isinstance(result, Accepted):
        tick.accepted += result.is_new
        return True
    if isinstance(result, Waiting):
        tick.wait(entry, result.reason)
    else:
        tick.quarantined.append(f"{quoted(entry.id)}: {result.reason}")
    return False


def inbox_sensor(hooks: Sequence[HookDefinition], ticks: InboxTicks) -> dg.SensorDefinition:
    """Return the sensor that accepts batches and completions; running by default.

    Its first tick sets the hooks' concurrency pools, before anything that it accepts is run.
    """
    has_pools, failed_tries = threading.Event(), FailedTries()

    @dg.sensor(
        name="inbox",
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Accepts submitted batches and finished hook runs from the archive's inbox: adds the"
            " batches as partitions, and reports what was accepted as materializations."
        ),
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
            context.log.warning("containers of dead workers are kept: %s", error)
        with ticks.tick():
            tick = accept_inbox(
                archive.store(),
                archive.uri,
                context.instance,
                work=hook_runner.work_folders(archive),
                runner=runner,
                failed_tries=failed_tries,
            )
            ticks.reports(tick.events, tick.partitions)
        for line in _loud(tick):
            context.log.error(line)
        for line in tick.left_over:
            context.log.info("removed leftovers of a dead worker: %s", line)
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
        yield f"damaged in the archive: {line}; `feature-pipeline verify` lists all problems"
