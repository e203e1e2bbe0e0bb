"""The `OsaServer` component: the followed server, declared in `defs/<name>/defs.yaml`."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

import dagster as dg
from pydantic import BaseModel, Field

from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.records import check_dataset
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.orchestration.assets.features import DEFINITION_METADATA
from feature_pipeline.orchestration.dagster_internals import UnresolvedAssetJobDefinition
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.resources import ArchiveResource
from feature_pipeline.osa.compare import compare_hooks
from feature_pipeline.osa.definitions import Drift, find_drift, followed_hooks
from feature_pipeline.osa.restore.extra_rows import OnlyThere
from feature_pipeline.osa.settings import (
    STORAGE,
    OsaSettings,
    component_text,
    followed_datasets,
)
from feature_pipeline.osa.sync.follower import Follower

DRIFT_CHECK: Final = "definitions_match"
ROWS_CHECK: Final = "rows_match"
SHOWN: Final = 20
PASS_SECONDS: Final = 60
TAKING_SECONDS: Final = 30.0
"""Dagster gives an evaluation a minute; nothing is begun after this time."""


class OsaServerScaffolder(dg.Scaffolder[Any]):
    """Writes a commented `defs.yaml`."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Write `defs.yaml` to the new folder; it loads unchanged."""
        folder = request.target_path
        name = check_dataset(folder.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "defs.yaml").write_text(component_text(name), encoding="utf-8")


@dg.scaffold_with(OsaServerScaffolder)
class OsaServer(dg.Component, OsaSettings, dg.Resolvable):
    """An Open Science Archive server whose hooks are defined here and computed there.

    A sensor takes the outputs of its hook runs into the archive.
    """

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return the model of `attributes`: the settings themselves."""
        return OsaSettings

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Return the server of a parsed `attributes` section, with each text unevaluated."""
        return cls.model_validate(model.model_dump(mode="json", exclude_unset=True))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the server's definitions, without a connection."""
        tables = followed_datasets(context.path.parent, self) if self.restore_tables else {}
        return self.definitions(tables)

    def definitions(self, tables: Mapping[str, Sequence[str]] | None = None) -> dg.Definitions:
        """Return the asset of the server's hooks, its checks and their schedules, the sensor.

        Args:
            tables: The hooks whose tables have assets, with the datasets of each.
        """
        key = dg.AssetKey([self.name, "hooks"])
        drift = _check_job(
            f"compare_{self.name}_hooks",
            dg.AssetCheckKey(key, DRIFT_CHECK),
            "Compares the definitions of this project with the server's hooks.",
        )
        rows = _check_job(
            f"compare_{self.name}_rows",
            dg.AssetCheckKey(key, ROWS_CHECK),
            "Compares the features in the archive with the rows in the server's tables.",
        )
        return dg.Definitions(
            assets=[
                dg.AssetSpec(
                    key,
                    group_name=self.name,
                    description="The hooks that this Open Science Archive server runs. They are"
                    " defined here as hooks computed elsewhere.",
                ),
                *(_table_asset(self, hook, datasets) for hook, datasets in (tables or {}).items()),
            ],
            asset_checks=[_drift_check(self, key), _rows_check(self, key)],
            jobs=[drift, rows],
            sensors=[_completions_sensor(self)],
            schedules=[
                dg.ScheduleDefinition(
                    name=f"{drift.name}_hourly",
                    job=drift,
                    cron_schedule="23 * * * *",
                    default_status=dg.DefaultScheduleStatus.RUNNING,
                ),
                # It reads every row, and needs access to more tables: the operator starts it.
                dg.ScheduleDefinition(
                    name=f"{rows.name}_daily",
                    job=rows,
                    cron_schedule="41 4 * * *",
                    default_status=dg.DefaultScheduleStatus.STOPPED,
                ),
            ],
        )


def _check_job(
    name: str, check: dg.AssetCheckKey, description: str
) -> UnresolvedAssetJobDefinition:
    selection = dg.AssetSelection.checks(check)
    return dg.define_asset_job(name, selection=selection, description=description)


class RestoreRunConfig(dg.Config):
    """The run config of an asset that restores a table of the server."""

    only_there: OnlyThere = Field(
        default=OnlyThere.REFUSE,
        description="What to do with the server's rows that the archive does not have.",
    )


def _table_asset(server: OsaSettings, hook: str, datasets: Sequence[str]) -> dg.AssetsDefinition:
    @dg.asset(
        key=[server.name, "features", hook],
        deps=[features_key(dataset, hook) for dataset in datasets],
        group_name=server.name,
        kinds={"postgres"},
        description=f'The server\'s own table features."{hook}". A run restores it out of the'
        f" archive, as `feature-pipeline osa restore {hook}` does.",
    )
    def restored_table(
        context: dg.AssetExecutionContext, config: RestoreRunConfig, archive: ArchiveResource
    ) -> dg.MaterializeResult[Any]:
        # pyarrow, which a process that loads definitions does not need
        from feature_pipeline.osa.restore.tables import restore_tables

        (restored,) = restore_tables(
            archive.store(),
            server.restore_server(),
            server,
            {(each.dataset, each.name): each for each in _defined(context.repository_def)},
            [hook],
            only_there=config.only_there,
        )
        for line in restored.lines():
            context.log.info("%s", line)
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": restored.rows,
                "state": restored.state.value,
                "left_out": restored.left_out.number,
                "result": dg.MetadataValue.json(restored.to_json()),
            }
        )

    return restored_table


def _drift_check(server: OsaSettings, key: dg.AssetKey) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=key,
        name=DRIFT_CHECK,
        description="The definitions of this project state what the server's hooks are: their live"
        " releases, columns and cardinality. `feature-pipeline osa plan` shows the same.",
    )
    def definitions_match(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        defined = _defined(context.op_execution_context.repository_def)
        with server.server().session() as reader:
            followed = followed_hooks(reader.definitions(), server)
        return _result(find_drift(followed, defined), len(followed))

    return definitions_match


def _rows_check(server: OsaSettings, key: dg.AssetKey) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=key,
        name=ROWS_CHECK,
        description="The features in the archive and the rows in the server's tables are equal,"
        " record by record. `feature-pipeline osa compare` shows the same.",
    )
    def rows_match(archive: ArchiveResource) -> dg.AssetCheckResult:
        with server.server().session() as reader:
            followed = followed_hooks(reader.definitions(), server)
        compared = list(compare_hooks(archive.store(), server.server(), followed))
        differing = {f"{each.dataset}/{each.hook}": each for each in compared if not each.is_equal}
        return dg.AssetCheckResult(
            passed=not differing,
            severity=dg.AssetCheckSeverity.WARN,
            description="; ".join(each.summary() for each in compared),
            metadata={
                name: dg.MetadataValue.json(each.to_json()) for name, each in differing.items()
            },
        )

    return rows_match


def _defined(repository: dg.RepositoryDefinition) -> list[HookDefinition]:
    """Return the hooks of this project."""
    return [
        HookDefinition.model_validate(stored.value)
        for asset in repository.assets_defs_by_key.values()
        for spec in asset.specs
        if (stored := spec.metadata.get(DEFINITION_METADATA)) is not None
    ]


def _completions_sensor(server: OsaSettings) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{server.name}_completions",
        minimum_interval_seconds=PASS_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Takes the outputs of the server's completed hook runs into the archive's inbox"
        " as batches and artifacts. `feature-pipeline osa sync` does the same.",
    )
    def completions(context: dg.SensorEvaluationContext, archive: ArchiveResource) -> dg.SkipReason:
        if not server.names_storage():
            return dg.SkipReason(
                "no outputs are taken: the server's storage is not named; set `storage`, or"
                f" {STORAGE}"
            )
        repository = context.repository_def
        if repository is None:
            raise dg.DagsterInvariantViolationError("the sensor was evaluated without a repository")
        follower = Follower(
            store=archive.store(),
            server=server.server(),
            storage=server.open_storage(),
            settings=server,
            definitions={(each.dataset, each.name): each for each in _defined(repository)},
        )
        result = follower.follow(seconds=TAKING_SECONDS, is_patient=True)
        for name, reason in result.unreadable.items():
            context.log.error("cannot be taken: %s: %s", name, reason)
        for name, reason in result.waiting.items():
            context.log.info("waiting: %s: %s", name, reason)
        for name in result.undefined:
            context.log.warning("the server's hook %s is not defined here", name)
        return dg.SkipReason(result.summary())

    return completions


def _result(drift: list[Drift], hooks: int) -> dg.AssetCheckResult:
    equal = f"no difference from {counted(hooks, 'hook')} of the server"
    return dg.AssetCheckResult(
        passed=not drift,
        severity=dg.AssetCheckSeverity.WARN,
        description=first_few(drift, SHOWN, "; ") or equal,
        metadata={"hooks": hooks, "differences": len(drift)},
    )
