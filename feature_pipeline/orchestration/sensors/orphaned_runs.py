"""Recover the results of hook runs whose worker died, once no Dagster run waits for them."""

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import dagster as dg

from feature_pipeline.archive.format.documents import NewerVersionError, utc_now
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.in_flight import (
    InFlightKey,
    InFlightRun,
    list_in_flight,
    read_in_flight,
)
from feature_pipeline.compute.recover_results import (
    AlreadyLogged,
    Enqueued,
    NotPublished,
    NotUsable,
    Recovery,
    is_published,
    recover_results,
    remove_uploads,
)
from feature_pipeline.errors import FeaturePipelineError, InvalidInputError
from feature_pipeline.hooks.runners.kubernetes.transfer_protocol import AttemptKey
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.parallel import map_threads

logger = logging.getLogger(__name__)

SECONDS_PER_TICK = 15.0
"""Dagster gives a tick a minute; the rest is recovered at the next one."""
CANCELLED_RETENTION = timedelta(days=1)
"""A cancelled run's Job is deleted with it. If deleting the Job fails, its late result is recorded
as superseded. We poll for it for this long.
"""
_RUNS_PER_QUERY = 500

_awaited: dict[tuple[str, str], AttemptKey] = {}
"""By store and in-flight run, the Job whose result was missing last: one poll asks for it again.
Losing it costs a few requests.
"""
_last_tried: dict[tuple[str, str], float] = {}
"""By store and in-flight run, when it was last tried: the one that waits longest goes first."""
_enqueued: set[tuple[str, str]] = set()
"""By store, in-flight runs whose completion waits. Losing it repeats the announcement."""


@dataclass
class OrphanedRuns:
    """The results for orphaned hook runs."""

    enqueued: list[str] = field(default_factory=list)
    """Inbox entries that wait now."""
    waiting: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)


def recover_orphaned_runs(
    store: BlobStore,
    instance: dg.DagsterInstance,
    work: WorkFolders | None = None,
    seconds: float = SECONDS_PER_TICK,
) -> OrphanedRuns:
    """Announce the results of hook runs that no live Dagster run waits for. Idempotent.

    Costs one listing, one query of Dagster, and one request per orphaned run while its pod has no
    result. Begins nothing new after `seconds`.
    """
    result = OrphanedRuns()
    keys = list_in_flight(store)
    if not keys:
        return result
    orphaned, cancelled = _orphaned(instance, keys)
    ready = _ready(store, orphaned, cancelled, result)
    end = time.monotonic() + seconds
    ready.sort(key=lambda key: _last_tried.get((store.identity, key.key), 0.0))
    for number, key in enumerate(ready):
        if number and time.monotonic() > end:
            break
        _last_tried[store.identity, key.key] = time.monotonic()
        run = read_in_flight(store, [key]).get(key)
        if run is None:
            continue
        _recover(store, key, run, result, work, key.dagster_run_id in cancelled)
    return result


def _orphaned(
    instance: dg.DagsterInstance, keys: Sequence[InFlightKey]
) -> tuple[list[InFlightKey], set[str | None]]:
    """Return the runs that no live Dagster run waits for, and the cancelled Dagster runs.

    Several workers may have waited for one hook run, one after the other.
    """
    ids = sorted({key.dagster_run_id for key in keys if key.dagster_run_id is not None})
    known: dict[str, dg.DagsterRun] = {}
    for start in range(0, len(ids), _RUNS_PER_QUERY):
        some = instance.get_runs(dg.RunsFilter(run_ids=ids[start : start + _RUNS_PER_QUERY]))
        known |= {run.run_id: run for run in some}
    live = {run_id for run_id, run in known.items() if not run.is_finished}
    awaited = {key.run_id for key in keys if key.dagster_run_id in live}
    cancelled: set[str | None] = {
        run_id for run_id, run in known.items() if run.status is dg.DagsterRunStatus.CANCELED
    }
    return [key for key in keys if key.run_id not in awaited], cancelled


def _ready(
    store: BlobStore,
    keys: Iterable[InFlightKey],
    cancelled: Collection[str | None],
    result: OrphanedRuns,
) -> list[InFlightKey]:
    """Return the runs that may have a new result: those not polled yet, or with another result."""

    def has_news(key: InFlightKey) -> bool:
        job = _awaited.get((store.identity, key.key))
        is_over = key.is_late(now) or _is_expired(key, now, key.dagster_run_id in cancelled)
        return job is None or is_over or is_published(store, job)

    keys, now = list(keys), utc_now()
    news = map_threads(has_news, keys)
    for key, is_new in zip(keys, news, strict=True):
        if not is_new:
            _wait(store, key, _awaited[store.identity, key.key], result)
    return [key for key, is_new in zip(keys, news, strict=True) if is_new]


def _recover(
    store: BlobStore,
    key: InFlightKey,
    run: InFlightRun | FeaturePipelineError,
    result: OrphanedRuns,
    work: WorkFolders | None,
    is_cancelled: bool,
) -> None:
    if isinstance(run, FeaturePipelineError) and not _is_broken(run):
        result.waiting.append(str(run))
        return
    if isinstance(run, FeaturePipelineError):
        result.unusable.append(str(run))
        _forget(store, key, result)
        return
    try:
        recovery = _recovery(store, key, run, work, is_cancelled)
    except (FeaturePipelineError, OSError) as error:
        # one that cannot be recovered must not keep the others, or the inbox, waiting
        result.waiting.append(f"{key.run_id}: {quoted(str(error), MOST_REASON)}")
        return
    except Exception as error:
        # whatever a pod has left
        logger.exception("results of hook run %s cannot be recovered", key.run_id)
        reason = quoted(f"{type(error).__name__}: {error}", MOST_REASON)
        result.unusable.append(f"{key.run_id}: {reason}")
        if key.is_late(utc_now()):
            _forget(store, key, result)
        return
    match recovery:
        case AlreadyLogged():
            _forget(store, key, result)
        case Enqueued(inbox_id):
            # Until it is in the log, another worker may ask the same, and finds what is there.
            result.enqueued.append(inbox_id)
            _enqueued.add((store.identity, key.key))
        case NotUsable(reason):
            result.unusable.append(f"{key.run_id}: {reason}")
            _forget(store, key, result)
        case NotPublished(attempt):
            if _is_expired(key, utc_now(), is_cancelled):
                _forget(store, key, result)
            elif key.is_late(utc_now()):
                result.unusable.append(f"{key.run_id}: Job {attempt} left no result")
                _forget(store, key, result)
            else:
                _awaited[store.identity, key.key] = attempt
                _wait(store, key, attempt, result)
        case None:
            if key.is_late(utc_now()):
                _forget(store, key, result)
            else:
                result.waiting.append(f"{key.run_id}: its completion is not accepted yet")


def _is_broken(error: FeaturePipelineError) -> bool:
    """Return whether the error is permanent: an invalid document is never rewritten."""
    return isinstance(error, InvalidInputError) and not isinstance(error, NewerVersionError)


def _recovery(
    store: BlobStore,
    key: InFlightKey,
    run: InFlightRun,
    work: WorkFolders | None,
    is_cancelled: bool,
) -> Recovery | None:
    """Return the result for the run; None if its completion still waits."""
    if (store.identity, key.key) in _enqueued:
        entries = log.read_log(store, run.dataset, run.hook, run.batch)
        is_logged = any(entry.completion == run.id for entry in entries)
        return AlreadyLogged() if is_logged else None
    if work is None:
        return recover_results(store, run, is_cancelled=is_cancelled)
    folder = work.open(run.hook)
    try:
        return recover_results(store, run, folder.path / "run", is_cancelled=is_cancelled)
    finally:
        folder.cleanup()


def _is_expired(key: InFlightKey, now: datetime, is_cancelled: bool) -> bool:
    return is_cancelled and now - key.begun_at > CANCELLED_RETENTION


def _wait(store: BlobStore, key: InFlightKey, attempt: AttemptKey, result: OrphanedRuns) -> None:
    result.waiting.append(f"{key.run_id}: Job {attempt} has left no result in {store.identity} yet")


def _forget(store: BlobStore, key: InFlightKey, result: OrphanedRuns) -> None:
    """Remove the pods' uploads, then the document of the finished run."""
    try:
        remove_uploads(store, key.run_id)
        store.delete(key.key)
    except FeaturePipelineError as error:
        result.waiting.append(f"{key.run_id}: the uploads of its pods are not removed: {error}")
        return
    _awaited.pop((store.identity, key.key), None)
    _last_tried.pop((store.identity, key.key), None)
    _enqueued.discard((store.identity, key.key))
