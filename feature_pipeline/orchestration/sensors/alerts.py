"""Find what operators are alerted to: failed runs, failing checks, quarantined entries."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import dagster as dg
from pydantic import BaseModel, Field

from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.logs import inbox
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.json_values import json_instant
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.orchestration.dagster_internals import BACKFILL_ID_TAG, PARTITION_NAME_TAG
from feature_pipeline.orchestration.keys import RECONCILE_TAG

EVENTS_PER_POLL = 500
RECONCILE_JOB = "reconcile"
RUNS_REMEMBERED = 5_000
_WHY_LENGTH = 1_000
_BATCHES_SHOWN = 20
_NAMED_BY = ("failing_batches", "batches", "problems", "wrong")
"""Metadata entries in which this project's checks name what fails, the most informative first."""


class AlertKind(StrEnum):
    """The kind of an alert. Append only: receivers distinguish alerts by it."""

    RUN_FAILED = "run_failed"
    CHECK_FAILED = "check_failed"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class Alert:
    """The alert for one cause, posted once."""

    cause: str
    """Identifies the cause: the same for every repetition."""
    kind: AlertKind
    summary: str
    """One line."""
    where: Mapping[str, Any]
    why: str
    at: datetime
    path: str | None = None
    """Path in the UI, below its address."""

    def document(self, ui_url: str | None) -> dict[str, Any]:
        """Return the JSON to post."""
        link = f"{ui_url.rstrip('/')}/{self.path}" if ui_url and self.path else None
        return {
            "id": Digest.of(f"{self.cause} {self.at.isoformat()}".encode()).hex[:32],
            "kind": self.kind.value,
            # What chat services show of a message they know nothing else about.
            "text": f"{self.summary}: {self.why}" + (f" {link}" if link else ""),
            "what": self.summary,
            "why": self.why,
            "where": dict(self.where),
            "link": link,
            "at": json_instant(self.at),
        }


class AlertState(BaseModel):
    """Alert state between polls: the causes that were found already."""

    cursor: int | None = None
    """Dagster's events were read up to this storage id; None before the first poll."""
    horizon: int = 0
    """The last event at the time of the previous poll."""
    runs: list[str] = Field(default_factory=list)
    """Causes of failed runs, the oldest first."""
    checks: dict[str, str] = Field(default_factory=dict)
    """For each failing check, the digest of what it named."""
    quarantined: list[str] = Field(default_factory=list)


def poll(instance: dg.DagsterInstance, store: BlobStore, state: AlertState) -> list[Alert]:
    """Return the new alerts since the last poll, and update `state`.

    An event is read at the poll after the one that saw it: by then every event with a lower storage
    id is committed, and none can be missed.
    """
    alerts = list(_quarantined(store, state))
    newest = instance.event_log_storage.get_maximum_record_id() or 0
    if state.cursor is None:
        state.cursor = state.horizon = newest
        return alerts
    entries: dict[int, dg.EventLogEntry] = {}
    frontier = state.horizon
    for kind in (dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        events = instance.event_log_storage.get_logs_for_all_runs_by_log_id(
            after_cursor=state.cursor, dagster_event_type=kind, limit=EVENTS_PER_POLL
        )
        entries.update(events)
        if len(events) == EVENTS_PER_POLL:
            frontier = min(frontier, max(events))
    for storage_id, entry in sorted(entries.items()):
        if storage_id <= frontier:
            alerts.extend(_of_event(instance, entry, state))
    state.cursor, state.horizon = frontier, newest
    del state.runs[:-RUNS_REMEMBERED]
    return alerts


def _of_event(
    instance: dg.DagsterInstance, entry: dg.EventLogEntry, state: AlertState
) -> Iterator[Alert]:
    event = entry.dagster_event
    if event is None:
        return
    at = datetime.fromtimestamp(entry.timestamp, UTC)
    if event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        yield from _failing_check(event.asset_check_evaluation_data, entry.run_id, at, state)
    else:
        yield from _failed_run(instance, entry.run_id, at, state)


def _failed_run(
    instance: dg.DagsterInstance, run_id: str, at: datetime, state: AlertState
) -> Iterator[Alert]:
    run = instance.get_run_by_id(run_id)
    if run is None:
        return  # deleted since
    backfill = run.tags.get(BACKFILL_ID_TAG)
    assets = [key.to_user_string() for key in _assets(instance, run)]
    why = _why_failed(instance, run_id)
    if RECONCILE_TAG in run.tags or run.job_name == RECONCILE_JOB:
        # Requested every hour as long as it fails: posted once a day.
        fingerprint = Digest.of(document_bytes([assets, why])).short
        cause = f"reconcile/{fingerprint}/{at:%Y-%m-%d}"
    else:
        cause = f"backfill/{backfill}" if backfill else f"run/{run.root_run_id or run_id}"
    if cause in state.runs:
        return
    state.runs.append(cause)
    partition = run.tags.get(PARTITION_NAME_TAG)
    subject = first_few(assets, limit=3) or run.job_name
    summary = f"run of {subject} failed" + (f" for batch {partition}" if partition else "")
    if backfill:
        summary = f"backfill {backfill}: {summary}; further failures of it are not posted"
    yield Alert(
        cause=cause,
        kind=AlertKind.RUN_FAILED,
        summary=summary,
        where={
            "run": run_id,
            "job": run.job_name,
            "assets": assets,
            "partition": partition,
            "backfill": backfill,
        },
        why=why,
        at=at,
        path=f"runs/{run_id}",
    )


def _assets(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[dg.AssetKey]:
    """Return the assets of the run, in order; none for other jobs."""
    if run.asset_selection:
        return sorted(run.asset_selection)
    planned = instance.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED, limit=100
    ).records
    events = [record.event_log_entry.dagster_event for record in planned]
    return sorted({event.asset_key for event in events if event and event.asset_key})


def _why_failed(instance: dg.DagsterInstance, run_id: str) -> str:
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.RUN_FAILURE):
        for record in instance.get_records_for_run(run_id, of_type=kind, limit=1).records:
            event = record.event_log_entry.dagster_event
            if event is None:
                continue
            if kind is dg.DagsterEventType.STEP_FAILURE:
                failure = event.step_failure_data
                if failure.user_failure_data and failure.user_failure_data.description:
                    return _short(failure.user_failure_data.description)
                error = failure.error
                while error is not None and error.cause is not None:
                    error = error.cause
                if error is not None:
                    return _short(error.message)
            return _short(event.message or "no reason was recorded")
    return "no reason was recorded"


def _failing_check(
    evaluation: dg.AssetCheckEvaluation, run_id: str, at: datetime, state: AlertState
) -> Iterator[Alert]:
    key = f"{evaluation.asset_key.to_user_string()}:{evaluation.check_name}"
    if evaluation.passed:
        state.checks.pop(key, None)
        return
    named = _named(evaluation)
    digest = Digest.of(document_bytes([evaluation.partition, named])).short
    if state.checks.get(key) == digest:
        return
    state.checks[key] = digest
    asset = evaluation.asset_key.to_user_string()
    yield Alert(
        cause=f"check/{key}/{digest}",
        kind=AlertKind.CHECK_FAILED,
        summary=f"check {evaluation.check_name} of {asset} fails",
        where={
            "asset": asset,
            "check": evaluation.check_name,
            "severity": evaluation.severity.value.lower(),
            "batches": named[:_BATCHES_SHOWN],
            "run": run_id or None,
        },
        why=_short(evaluation.description or "the check has no description"),
        at=at,
        path=f"assets/{quote(asset)}?view=checks&checkDetail={quote(evaluation.check_name)}",
    )


def _named(evaluation: dg.AssetCheckEvaluation) -> list[str]:
    """Return the batches that a check names, without counts, which change with every run."""
    for name in _NAMED_BY:
        value = evaluation.metadata.get(name)
        if isinstance(value, dg.JsonMetadataValue) and value.data:
            return sorted(_keys(value.data))
    return []


def _keys(data: Any) -> Iterator[str]:
    if isinstance(data, Mapping):
        for key, value in data.items():
            if isinstance(value, list):  # batches by what is wrong with them
                yield from map(str, value)
            else:
                yield str(key)
    elif isinstance(data, list):
        yield from map(str, data)


def _quarantined(store: BlobStore, state: AlertState) -> Iterator[Alert]:
    readable = inbox.readable_quarantined(store)
    known = set(state.quarantined)
    state.quarantined = [*readable.intact, *readable.damage]
    for entry_id, damage in readable.damage.items():
        if entry_id not in known:
            yield Alert(
                cause=f"quarantine/{entry_id}",
                kind=AlertKind.QUARANTINED,
                summary=f"entry {entry_id} of the quarantine cannot be read",
                where={"entry": entry_id, "archive": store.identity},
                why=_short(str(damage.error)),
                at=utc_now(),
            )
    for entry in readable.intact.values():
        if entry.id not in known:
            yield Alert(
                cause=f"quarantine/{entry.id}",
                kind=AlertKind.QUARANTINED,
                summary=f"inbox entry {entry.id} was quarantined",
                where={"entry": entry.id, "archive": store.identity},
                why=_short(entry.reason),
                at=entry.quarantined_at,
            )


def _short(text: str) -> str:
    return quoted(" ".join(text.split()), _WHY_LENGTH)
