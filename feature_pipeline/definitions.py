"""The Dagster code location: the hooks of `defs/`, and what every deployment has. Assembly only."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from feature_pipeline import settings
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.measure import report_counts
from feature_pipeline.model.definition import HookDefinition, find_clashes
from feature_pipeline.orchestration.assets.features import (
    DEFINITION_METADATA,
    FOLDER_METADATA,
    IO_MANAGER_KEY,
)
from feature_pipeline.orchestration.assets.io_manager import FeatureIOManager
from feature_pipeline.orchestration.assets.records import records_asset
from feature_pipeline.orchestration.assets.wrong_definitions import wrong_definition_assets
from feature_pipeline.orchestration.checks.integrity import (
    census_job,
    census_schedule,
    integrity_checks,
    verify_job,
)
from feature_pipeline.orchestration.checks.outcomes import (
    feature_checks,
    outcomes_job,
    outcomes_schedule,
    table_checks,
)
from feature_pipeline.orchestration.component_docs import component_docs
from feature_pipeline.orchestration.defs_folder import (
    PACKAGED,
    LoadedFolder,
    WrongDefinition,
    is_validating,
    load_defs_folder,
)
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.operations.reconcile import reconcile_job, reconcile_schedule
from feature_pipeline.orchestration.operations.remember_answers import answers_job, answers_schedule
from feature_pipeline.orchestration.operations.report_job import report_job
from feature_pipeline.orchestration.resources import default_resources, without_run_config
from feature_pipeline.orchestration.sensors.automation import automation_sensors
from feature_pipeline.orchestration.sensors.dead_runs import dead_runs_sensor
from feature_pipeline.orchestration.sensors.inbox import inbox_sensor
from feature_pipeline.orchestration.sensors.inbox_ticks import InboxTicks
from feature_pipeline.orchestration.sensors.repeats import repeats_sensor
from feature_pipeline.orchestration.sensors.webhook import webhook_sensor
from feature_pipeline.orchestration.source_location import declared_at


@dataclass(frozen=True, slots=True)
class DefinedHook:
    """A hook of a code location, and the folder its code files are relative to."""

    definition: HookDefinition
    folder: Path
    spec: dg.AssetSpec
    """Of its feature asset."""


def hooks_of(definitions: dg.Definitions) -> list[DefinedHook]:
    """Return the hooks whose feature assets are in `definitions`, in order of dataset and name."""
    hooks = []
    assets = [a for a in definitions.assets or () if isinstance(a, dg.AssetsDefinition)]
    for spec in (spec for asset in assets for spec in asset.specs):
        if (stored := spec.metadata.get(DEFINITION_METADATA)) is not None:
            hook = HookDefinition.model_validate(stored.value)
            folder = Path(spec.metadata[FOLDER_METADATA].value)
            hooks.append(DefinedHook(hook, folder, spec))
    return sorted(hooks, key=lambda each: (each.definition.dataset, each.definition.name))


def shared_definitions(
    hooks: Sequence[HookDefinition], more_datasets: Collection[str] = ()
) -> dg.Definitions:
    """Return the definitions shared by all hooks: records, sensors, checks, reconciliation.

    Args:
        hooks: The usable ones.
        more_datasets: Datasets of unusable hooks.
    """
    datasets = sorted({hook.dataset for hook in hooks} | set(more_datasets))
    ticks = InboxTicks()
    return dg.Definitions(
        assets=[records_asset(dataset) for dataset in datasets],
        asset_checks=[
            check
            for hook in hooks
            for check in (*feature_checks(hook), *integrity_checks(hook), *table_checks(hook))
        ],
        sensors=[
            inbox_sensor(hooks, ticks),
            *automation_sensors(hooks, ticks),
            dead_runs_sensor(),
            repeats_sensor(),
            webhook_sensor(),
        ],
        jobs=[
            reconcile_job(hooks),
            verify_job(),
            census_job(),
            report_job(),
            answers_job(),
            *([outcomes_job(hooks)] if hooks else []),
        ],
        schedules=[
            reconcile_schedule(),
            census_schedule(),
            answers_schedule(),
            *([outcomes_schedule()] if hooks else []),
        ],
        # One process a run: a run has one step that matters, and a second process costs seconds.
        executor=dg.in_process_executor,
    )


def build_defs(*own: dg.Definitions, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Assemble a code location of the hooks in `own`, or of the project's folder of definitions.

    In the folder, a definition that cannot be used affects its own hook only: placeholder assets
    fail with its error. `dg check defs` and `dagster definitions validate` refuse it instead.

    Args:
        own: Definitions of hooks (`FeatureHook(...).definitions()`) and of anything else.
        resources: Replacements for the resources that the environment configures, by name.

    Raises:
        InvalidInputError: A definition cannot be used, and either `own` is given or Dagster is
        validating.
    """
    report_counts()
    loaded = (
        LoadedFolder(dg.Definitions.merge(*own))
        if own
        else load_defs_folder(settings.defs_folder(PACKAGED))
    )
    merged, wrong = loaded.definitions, list(loaded.wrong)
    defined = hooks_of(merged)
    specs = {id(hook.definition): hook.spec for hook in defined}
    unusable = {(each.dataset, each.name) for each in wrong if each.dataset and each.name}
    clashes = list(
        find_clashes(
            [hook.definition for hook in defined],
            lambda hook, field: declared_at(specs[id(hook)], hook, field),
            unusable,
        )
    )
    if own or is_validating():
        refuse([*(each.sentence for each in wrong), *(clash.reason for clash in clashes)])
    clashing: dict[int, str] = {}
    for clash in clashes:
        for hook in clash.hooks:
            clashing.setdefault(id(hook), clash.reason)
    wrong += [
        _clashing(each, clashing[id(each.definition)])
        for each in defined
        if id(each.definition) in clashing
    ]
    merged = _without(merged, [each for each in defined if id(each.definition) in clashing])
    hooks = [hook.definition for hook in hooks_of(merged)]
    given = dict(resources or {})
    provided = {**default_resources(), **given}
    provided.setdefault(IO_MANAGER_KEY, FeatureIOManager(archive=provided["archive"]))
    # What the deployment decides is no run's to change; what is handed in is the caller's.
    provided = {
        name: given[name] if name in given else without_run_config(resource)
        for name, resource in provided.items()
    }
    return dg.Definitions.merge(
        merged,
        dg.Definitions(assets=wrong_definition_assets(wrong, declared=_asset_keys(merged))),
        shared_definitions(hooks, {each.dataset for each in wrong if each.dataset}),
        dg.Definitions(resources=provided, metadata=component_docs()),
    )


def refuse(reasons: Sequence[str]) -> None:
    """Raise if there are reasons to refuse.

    Raises:
        InvalidInputError: The reasons, one per line.
    """
    if reasons:
        raise InvalidInputError("\n".join(reasons)) from None


def _clashing(hook: DefinedHook, reason: str) -> WrongDefinition:
    definition = hook.definition
    table = definition.table_name if definition.has_table else None
    return WrongDefinition(hook.folder, None, reason, definition.dataset, definition.name, table)


def _without(definitions: dg.Definitions, hooks: Sequence[DefinedHook]) -> dg.Definitions:
    """Return the definitions without the assets of these hooks."""
    removed = {key for hook in hooks for key in _keys(hook.definition)}
    if not removed:
        return definitions
    assets = [
        each
        for each in definitions.assets or ()
        if not (isinstance(each, dg.AssetsDefinition) and not each.keys.isdisjoint(removed))
    ]
    return dg.Definitions(
        assets=assets,
        asset_checks=definitions.asset_checks,
        schedules=definitions.schedules,
        sensors=definitions.sensors,
        jobs=definitions.jobs,
        resources=definitions.resources,
        executor=definitions.executor,
        loggers=definitions.loggers,
        metadata=definitions.metadata,
        component_tree=definitions.component_tree,
    )


def _asset_keys(definitions: dg.Definitions) -> set[dg.AssetKey]:
    assets = [each for each in definitions.assets or () if isinstance(each, dg.AssetsDefinition)]
    return {key for asset in assets for key in asset.keys}


def _keys(hook: HookDefinition) -> list[dg.AssetKey]:
    return [features_key(hook.dataset, hook.name), table_key(hook.dataset, hook.table_name)]


@dg.definitions
def defs() -> dg.Definitions:
    """Return the code location that `workspace.yaml` loads."""
    return build_defs()
