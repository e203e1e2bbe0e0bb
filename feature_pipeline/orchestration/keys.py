"""Asset keys, partitions, pools and tags."""

from functools import cache
from typing import Final

import dagster as dg

REQUEST_TAG: Final = "feature_pipeline/request"
"""On a run that repeats another: the forced request that it carries out."""
REPEAT_TAG: Final = "feature_pipeline/repeat"
"""On a run that repeats another: the number of this repetition."""
RECONCILE_TAG: Final = "feature_pipeline/reconcile"
"""On a run that reconciliation requested."""
_TABLES: Final = "tables"


@cache
def batches_partitions(dataset: str) -> dg.DynamicPartitionsDefinition:
    """Return the partitions of a dataset: one per batch, added as batches are accepted."""
    return dg.DynamicPartitionsDefinition(name=dataset)


def records_key(dataset: str) -> dg.AssetKey:
    """Return the asset of the dataset's submitted batches."""
    return dg.AssetKey([dataset, "records"])


def features_key(dataset: str, hook: str) -> dg.AssetKey:
    """Return the asset of a hook's artifacts."""
    return dg.AssetKey([dataset, "features", hook])


def table_key(dataset: str, table: str) -> dg.AssetKey:
    """Return the asset of a PostgreSQL table."""
    return dg.AssetKey([dataset, _TABLES, table])


def tables_group(dataset: str) -> str:
    """Return the group of the dataset's tables.

    Records and features are in the group that has the dataset's name. The UI's sidebar shows an
    asset by the last part of its key, and a table has the name of its hook.
    """
    return f"{dataset}_{_TABLES}"


def is_table_key(key: dg.AssetKey) -> bool:
    """Return whether it is a key of `table_key`."""
    return len(key.path) == 3 and key.path[1] == _TABLES


def pool_of(dataset: str, hook: str) -> str:
    """Return the concurrency pool that all runs of a hook share."""
    return f"{dataset}/{hook}"
