"""The one module that imports private names of Dagster.

Each name has a line on its purpose and the public name that would replace it. Other modules import
it from here, so that an upgrade of Dagster that moves or removes a name fails in one place.
`dagster` is pinned to one minor version for the same reason.
"""

import dagster as dg

# What resolves `EnvVar` in a resource's configuration. Public: the resource's
# `process_config_and_initialize_cm`, which makes an in-memory Dagster instance at every call.
# What a Postgres storage class needs to be configured by dagster.yaml. Public: none; the base class
# `DagsterPostgresStorage` has both in its signatures.
from dagster._config.config_schema import UserConfigSchema as UserConfigSchema
from dagster._config.post_process import post_process_config as post_process_config

# The graph in which the sensor that repeats runs looks up definitions. Public: none;
# `Definitions.resolve_asset_graph()` returns one.
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph as AssetGraph

# What a backfill of several assets with their own partitions takes. Public: the GraphQL mutation
# `launchPartitionBackfill`, which needs a webserver.
from dagster._core.definitions.assets.graph.asset_graph_subset import (
    AssetGraphSubset as AssetGraphSubset,
)

# The tags of a materialization that say what it was made from. Inside a run Dagster writes them;
# events that are reported without a run need them too. Public: `DataVersion` and `code_version`
# cover the asset's own version, nothing covers its inputs'.
from dagster._core.definitions.data_version import CODE_VERSION_TAG as CODE_VERSION_TAG
from dagster._core.definitions.data_version import (
    DATA_VERSION_IS_USER_PROVIDED_TAG as DATA_VERSION_IS_USER_PROVIDED_TAG,
)
from dagster._core.definitions.data_version import DATA_VERSION_TAG as DATA_VERSION_TAG
from dagster._core.definitions.data_version import DEFAULT_DATA_VERSION as DEFAULT_DATA_VERSION
from dagster._core.definitions.data_version import NULL_EVENT_POINTER as NULL_EVENT_POINTER
from dagster._core.definitions.data_version import (
    extract_data_version_from_entry as extract_data_version_from_entry,
)
from dagster._core.definitions.data_version import (
    get_input_data_version_tag as get_input_data_version_tag,
)
from dagster._core.definitions.data_version import (
    get_input_event_pointer_tag as get_input_event_pointer_tag,
)

# The type of what `dg.define_asset_job` returns. Public: none.
from dagster._core.definitions.unresolved_asset_job_definition import (
    UnresolvedAssetJobDefinition as UnresolvedAssetJobDefinition,
)

# What `DagsterInstance.get` raises without DAGSTER_HOME. Public: its base
# `DagsterInvariantViolationError`, which is raised for much else.
from dagster._core.errors import DagsterHomeNotSetError as DagsterHomeNotSetError

# Backfills as the instance stores them: to ask for one from a sensor or a command, and to see which
# are going on. Public: the GraphQL API, which needs a webserver.
from dagster._core.execution.backfill import (
    BULK_ACTION_TERMINAL_STATUSES as BULK_ACTION_TERMINAL_STATUSES,
)
from dagster._core.execution.backfill import BulkActionsFilter as BulkActionsFilter
from dagster._core.execution.backfill import BulkActionStatus as BulkActionStatus
from dagster._core.execution.backfill import PartitionBackfill as PartitionBackfill

# What the metrics of sensors and checks are read by. Public: the GraphQL API, which needs a
# webserver.
from dagster._core.scheduler.instigation import InstigatorState as InstigatorState
from dagster._core.scheduler.instigation import InstigatorType as InstigatorType
from dagster._core.scheduler.instigation import TickStatus as TickStatus
from dagster._core.storage.asset_check_execution_record import (
    AssetCheckExecutionRecordStatus as AssetCheckExecutionRecordStatus,
)

# Which partitions failed or are in progress, without reading every event. Public:
# `DagsterInstance.get_status_by_partition` answers one asset at a time and leaves failures out.
from dagster._core.storage.partition_status_cache import (
    get_and_update_asset_status_cache_value as get_and_update_asset_status_cache_value,
)

# Names of tags that Dagster documents as text (`dagster/partition`, `dagster/priority`, ...).
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG as ASSET_PARTITION_RANGE_END_TAG,
)
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_START_TAG as ASSET_PARTITION_RANGE_START_TAG,
)
from dagster._core.storage.tags import AUTO_MATERIALIZE_TAG as AUTO_MATERIALIZE_TAG
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG as AUTO_RETRY_RUN_ID_TAG
from dagster._core.storage.tags import AUTOMATION_CONDITION_TAG as AUTOMATION_CONDITION_TAG
from dagster._core.storage.tags import BACKFILL_ID_TAG as BACKFILL_ID_TAG
from dagster._core.storage.tags import PARTITION_NAME_TAG as PARTITION_NAME_TAG
from dagster._core.storage.tags import PRIORITY_TAG as PRIORITY_TAG
from dagster._core.storage.tags import SCHEDULE_NAME_TAG as SCHEDULE_NAME_TAG
from dagster._core.storage.tags import SENSOR_NAME_TAG as SENSOR_NAME_TAG

# How a storage class knows its own configuration. Public: none.
from dagster._serdes import ConfigurableClassData as ConfigurableClassData


def database_id(instance: dg.DagsterInstance) -> str | None:
    """Return the id that Dagster's database was given when it was made; None if it has none.

    Public: none. The import is for this call, since SQLAlchemy is not loaded with the definitions.
    """
    from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

    storage = instance.run_storage
    return storage.get_run_storage_id() if isinstance(storage, SqlRunStorage) else None
