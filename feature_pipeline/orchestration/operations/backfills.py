"""Select partitions that are missing, failed, stale or of an old release, and launch a backfill."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

import dagster as dg

from feature_pipeline.errors import ConflictError, InvalidInputError, NotFoundError
from feature_pipeline.model.definition import Compute, HookDefinition, Materialize, inputs_first
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.orchestration.dagster_internals import (
    BULK_ACTION_TERMINAL_STATUSES,
    BulkActionsFilter,
    BulkActionStatus,
)
from feature_pipeline.orchestration.events.backfill_request import request_backfill
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.operations.batch_status import (
    AssetStatus,
    BatchFacts,
    HookStatus,
    Reason,
)

SELECT_TAG: Final = "feature_pipeline/select"
_DAEMON: Final = "BACKFILL"
_TITLE_LENGTH: Final = 100
"""Dagster refuses longer titles."""


class Select(StrEnum):
    """The state of partitions that a backfill selects."""

    MISSING = "missing"
    FAILED = "failed"
    STALE = "stale"
    OLD_RELEASE = "old-release"
    ALL = "all"

    def selects(self, facts: BatchFacts) -> bool:
        """Return whether it selects a partition with these facts."""
        return self is Select.ALL or Reason(self.value) in facts.reasons()


@dataclass(frozen=True, slots=True)
class Target:
    """The assets of one hook that a backfill is about."""

    definition: HookDefinition
    features: bool = True
    table: bool = False
    is_named: bool = False
    """Whether the user named this hook."""


def find_targets(
    definitions: Sequence[HookDefinition], names: Collection[str], tables: bool | None = None
) -> list[Target]:
    """Return the assets named by `names`; those of all hooks if there are none.

    A hook's name, alone or as `dataset/hook`, means its features and, if it is always materialized,
    its table. The name of a table that no hook has, and an asset's key (`dataset/features/hook`,
    `dataset/tables/table`), mean that asset alone.

    Args:
        definitions: All hooks.
        names: The given names.
        tables: True includes tables that are materialized on request; False leaves out all tables.

    Raises:
        NotFoundError: A name is unknown.
        InvalidInputError: A name means hooks of several datasets; or a table is named and tables
            are left out.
    """
    if not names:
        return [Target(d, table=_wants_table(d, tables)) for d in definitions]
    targets: dict[tuple[str, str], Target] = {}
    for name in names:
        target = _find(definitions, name, tables)
        key = target.definition.dataset, target.definition.name
        before = targets.get(key, Target(target.definition, features=False))
        targets[key] = replace(
            target,
            features=before.features or target.features,
            table=before.table or target.table,
        )
    return list(targets.values())


def _wants_table(definition: HookDefinition, tables: bool | None) -> bool:
    if not definition.has_table or tables is False:
        return False
    return tables is True or definition.table.materialize is Materialize.ALWAYS


def _find(definitions: Sequence[HookDefinition], name: str, tables: bool | None) -> Target:
    by_hook = [d for d in definitions if name in (d.name, f"{d.dataset}/{d.name}")]
    by_table = [d for d in definitions if d.has_table and name == d.table_name]
    for d in definitions:
        if name == features_key(d.dataset, d.name).to_user_string():
            return Target(d, is_named=True)
        if d.has_table and name == table_key(d.dataset, d.table_name).to_user_string():
            by_hook, by_table = [], [d]
    matches = by_hook or by_table
    if not matches:
        known = ", ".join(f"{d.dataset}/{d.name}" for d in definitions)
        raise NotFoundError(f"no hook and no table {name!r}; hooks are {known or 'none'}")
    if len(matches) > 1:
        raise InvalidInputError(
            f"{name!r} is in datasets {', '.join(d.dataset for d in matches)}: write"
            f" {matches[0].dataset}/{matches[0].name}"
        )
    if by_hook:
        return Target(by_hook[0], table=_wants_table(by_hook[0], tables), is_named=True)
    if tables is False:
        raise InvalidInputError(
            f"{name!r} is a table, and --no-tables leaves tables out: give only one of the two"
        )
    return Target(by_table[0], features=False, table=True, is_named=True)


@dataclass(frozen=True, slots=True)
class AssetPart:
    """The partitions of one asset that a backfill takes."""

    key: dg.AssetKey
    batches: tuple[str, ...]
    """In the order of submission."""


@dataclass(frozen=True, slots=True)
class BackfillPlan:
    """The partitions of a backfill, and those left out with the reason."""

    select: Select
    parts: tuple[AssetPart, ...]
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.parts

    def to_json(self) -> dict[str, object]:
        """Return every key as JSON."""
        return {
            "select": self.select.value,
            "assets": {part.key.to_user_string(): list(part.batches) for part in self.parts},
            "notes": list(self.notes),
        }


def plan_backfill(
    select: Select,
    chosen: Iterable[tuple[Target, HookStatus]],
    partitions: Mapping[str, Collection[str]],
) -> BackfillPlan:
    """Select the partitions of a backfill, features and tables in one.

    A table's partitions are those selected themselves, and those whose features are computed. The
    notes name what is left out: batches that Dagster is running already, batches that are no
    partitions yet, batches for which an input hook has no artifact, and, unless they are named, the
    missing batches of hooks that compute on request.

    Args:
        select: The state to select.
        chosen: The assets, and the state of their batches.
        partitions: By dataset, the keys that Dagster has.
    """
    statuses = list(chosen)
    notes: list[str] = []
    features: dict[tuple[str, str], list[str]] = {}
    by_name = {(s.definition.dataset, s.definition.name): (target, s) for target, s in statuses}
    for name in inputs_first(s.definition for _, s in statuses):
        if name not in by_name:
            continue
        target, status = by_name[name]
        if target.features:
            wanted = _feature_batches(select, target, status, features, notes)
            known = partitions.get(name[0], ())
            features[name] = _launchable(select, status.features, wanted, known, notes)
            _note_release(status, features[name], notes)
    parts = []
    for target, status in statuses:
        name = status.definition.dataset, status.definition.name
        computed = features.get(name, [])
        parts.append(AssetPart(status.features.key, tuple(computed)))
        if target.table and status.table is not None:
            own = {b for b, facts in status.table.facts.items() if select.selects(facts)}
            own.update(computed)
            wanted = [b for b in status.features.facts if b in own]
            known = partitions.get(name[0], ())
            loaded = _launchable(select, status.table, wanted, known, notes)
            parts.append(AssetPart(status.table.key, tuple(loaded)))
    return BackfillPlan(select, tuple(part for part in parts if part.batches), tuple(notes))


def _feature_batches(
    select: Select,
    target: Target,
    status: HookStatus,
    features: Mapping[tuple[str, str], Sequence[str]],
    notes: list[str],
) -> list[str]:
    definition, key = status.definition, status.features.key.to_user_string()
    batches = [b for b, facts in status.features.facts.items() if select.selects(facts)]
    if definition.compute is Compute.ELSEWHERE:
        if batches:
            notes.append(
                f"{key}: {counted(len(batches), 'batch')} left out: another system computes it"
                f" ({first_few(batches)})"
            )
        return []
    if definition.compute is not Compute.AUTOMATICALLY and not target.is_named:
        not_computed = {b for b in batches if not status.features.facts[b].is_there}
        if not_computed:
            notes.append(
                f"{key}: {counted(len(not_computed), 'batch')} not computed yet left out: it"
                " computes on request; name it to have them computed"
            )
        batches = [b for b in batches if b not in not_computed]
    blocked: set[str] = set()
    for source, absent in status.without_input.items():
        coming = set(features.get((definition.dataset, source), ()))
        blocked.update(b for b in batches if b in absent and b not in coming)
    if blocked:
        notes.append(
            f"{key}: {counted(len(blocked), 'batch')} left out without an artifact of"
            f" {' or '.join(definition.inputs)} ({first_few(sorted(blocked))})"
        )
    return [b for b in batches if b not in blocked]


def _launchable(
    select: Select,
    asset: AssetStatus,
    batches: Sequence[str],
    known: Collection[str],
    notes: list[str],
) -> list[str]:
    name, running = asset.key.to_user_string(), asset.running
    if unknown := [b for b in batches if b not in known]:
        notes.append(
            f"{name}: {counted(len(unknown), 'batch')} not yet a partition in Dagster"
            f" ({first_few(unknown)}): the inbox sensor adds them, or the job reconcile"
        )
    busy = [] if select is Select.ALL else [b for b in batches if b in running and b in known]
    if busy:
        notes.append(f"{name}: {counted(len(busy), 'batch')} running already ({first_few(busy)})")
    left_out = {*unknown, *busy}
    return [b for b in batches if b not in left_out]


def _note_release(status: HookStatus, computed: Sequence[str], notes: list[str]) -> None:
    if computed and not status.is_registered:
        document = status.release.document
        notes.append(
            f"{document.dataset}/{document.hook}: release {document.version} as it is declared is"
            " not the last one registered; the first run registers it. Dagster must have loaded"
            " this definition: press Reload definitions if it was changed"
        )


def launch_backfill(instance: dg.DagsterInstance, plan: BackfillPlan) -> str:
    """Request one Dagster backfill of all partitions of the plan; return its id.

    The daemon runs it: features one batch per run, tables many batches per run, each table
    partition after its features. Without a daemon it waits.

    Raises:
        InvalidInputError: The plan is empty.
    """
    if plan.is_empty:
        raise InvalidInputError("nothing to run: no backfill was launched")
    return request_backfill(
        instance,
        {part.key: part.batches for part in plan.parts},
        title=_title(plan),
        description=f"Partitions chosen by `feature-pipeline backfill --select {plan.select}`.",
        tags={SELECT_TAG: plan.select.value},
    )


def _title(plan: BackfillPlan) -> str:
    names = ", ".join(part.key.to_user_string() for part in plan.parts)
    title = f"{plan.select.value}: {names}"
    return title if len(title) <= _TITLE_LENGTH else f"{title[: _TITLE_LENGTH - 3]}..."


def active_backfills(instance: dg.DagsterInstance) -> list[str]:
    """Return the ids of backfills launched here before that are not done."""
    active = [s for s in BulkActionStatus if s not in BULK_ACTION_TERMINAL_STATUSES]
    backfills = instance.get_backfills(filters=BulkActionsFilter(statuses=active))
    return [backfill.backfill_id for backfill in backfills if SELECT_TAG in backfill.tags]


def is_daemon_running(instance: dg.DagsterInstance) -> bool:
    """Return whether a daemon that carries out backfills sent a heartbeat lately."""
    return bool(instance.get_daemon_statuses([_DAEMON])[_DAEMON].healthy)


def cancel_backfill(instance: dg.DagsterInstance, backfill_id: str) -> None:
    """Request that the daemon cancels the backfill and its runs; finished runs stay.

    Raises:
        NotFoundError: There is no such backfill.
        ConflictError: It is done already.
    """
    backfill = instance.get_backfill(backfill_id)
    if backfill is None:
        raise NotFoundError(f"Dagster has no backfill {backfill_id!r}")
    if backfill.status in BULK_ACTION_TERMINAL_STATUSES:
        raise ConflictError(f"backfill {backfill_id} is done: {backfill.status.value}")
    cancelled = backfill.with_status(BulkActionStatus.CANCELING)  # type: ignore[no-untyped-call]
    instance.update_backfill(cancelled)
