"""The Dagster code location: the hooks of `defs/`, and what every deployment has. Assembly only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from feature_pipeline.hooks.definition import HookDefinition, check_definitions
from feature_pipeline.orchestration.automation import automation_sensors
from feature_pipeline.orchestration.care import integrity_checks, verify_job
from feature_pipeline.orchestration.checks import (
    feature_checks,
    outcomes_job,
    outcomes_schedule,
    table_checks,
)
from feature_pipeline.orchestration.dead_runs import dead_runs_sensor
from feature_pipeline.orchestration.declared_at import declared_at
from feature_pipeline.orchestration.features import (
    DEFINITION_METADATA,
    FOLDER_METADATA,
    IO_MANAGER_KEY,
)
from feature_pipeline.orchestration.inbox_sensor import inbox_sensor
from feature_pipeline.orchestration.io_manager import FeatureIOManager
from feature_pipeline.orchestration.reconcile import reconcile_job, reconcile_schedule
from feature_pipeline.orchestration.records import records_asset
from feature_pipeline.orchestration.reports import report_job
from feature_pipeline.orchestration.resources import default_resources
from feature_pipeline.orchestration.webhook import webhook_sensor


@dataclass(frozen=True, slots=True)
class DefinedHook:
    """A hook of a code location, and the folder its code files are relative to."""

    definition: HookDefinition
    folder: Path
    spec: dg.AssetSpec
    """Of its feature asset."""


def hooks_of(definitions: dg.Definitions) -> list[DefinedHook]:
    """The hooks whose feature assets are in `definitions`, in order of dataset and name."""
    found = []
    assets = [a for a in definitions.assets or () if isinstance(a, dg.AssetsDefinition)]
    for spec in (spec for asset in assets for spec in asset.specs):
        if (stored := spec.metadata.get(DEFINITION_METADATA)) is not None:
            hook = HookDefinition.model_validate(stored.value)
            folder = Path(spec.metadata[FOLDER_METADATA].value)
            found.append(DefinedHook(hook, folder, spec))
    return sorted(found, key=lambda each: (each.definition.dataset, each.definition.name))


def shared_definitions(hooks: Sequence[HookDefinition]) -> dg.Definitions:
    """What the hooks have in common: records assets, sensors, checks, reconciliation."""
    datasets = sorted({hook.dataset for hook in hooks})
    return dg.Definitions(
        assets=[records_asset(dataset) for dataset in datasets],
        asset_checks=[
            check
            for hook in hooks
            for check in (*feature_checks(hook), *integrity_checks(hook), *table_checks(hook))
        ],
        sensors=[
            inbox_sensor(hooks),
            *automation_sensors(hooks),
            dead_runs_sensor(),
            webhook_sensor(),
        ],
        jobs=[
            reconcile_job(hooks),
            verify_job(),
            report_job(),
            *([outcomes_job(hooks)] if hooks else []),
        ],
        schedules=[reconcile_schedule(), *([outcomes_schedule()] if hooks else [])],
        # One process a run: a run has one step that matters, and a second process costs seconds.
        executor=dg.in_process_executor,
    )


def build_defs(*own: dg.Definitions, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """A code location of the hooks in `own`, or of the project's `defs/` folder if none are given.

    Args:
        own: Definitions of hooks (`FeatureHook(...).definitions()`) and of anything else.
        resources: Replacements for the resources that the environment configures, by name.
    """
    merged = dg.Definitions.merge(*own) if own else _project_definitions()
    defined = hooks_of(merged)
    hooks = [hook.definition for hook in defined]
    specs = {id(hook.definition): hook.spec for hook in defined}
    check_definitions(hooks, lambda hook, field: declared_at(specs[id(hook)], hook, field))
    provided = {**default_resources(), **(resources or {})}
    provided.setdefault(IO_MANAGER_KEY, FeatureIOManager(archive=provided["archive"]))
    return dg.Definitions.merge(
        merged, shared_definitions(hooks), dg.Definitions(resources=provided)
    )


def _project_definitions() -> dg.Definitions:
    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)


@dg.definitions
def defs() -> dg.Definitions:
    """The code location that `workspace.yaml` loads."""
    return build_defs()
