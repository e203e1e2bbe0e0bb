"""Asset keys and partitions of a dataset.

Belongs here: how datasets, hooks and tables are named in Dagster. Not here: what the assets do.
"""

from functools import cache
from typing import Final

import dagster as dg

REQUEST_TAG: Final = "feature_pipeline/request"
"""On a run that repeats another: whose request to compute again it carries out."""


@cache
def batches_partitions(dataset: str) -> dg.DynamicPartitionsDefinition:
    """One partition per batch of the dataset, added as batches are accepted."""
    return dg.DynamicPartitionsDefinition(name=dataset)


def records_key(dataset: str) -> dg.AssetKey:
    """The asset of the dataset's submitted batches."""
    return dg.AssetKey([dataset, "records"])


def features_key(dataset: str, hook: str) -> dg.AssetKey:
    """The asset of a hook's artifacts."""
    return dg.AssetKey([dataset, "features", hook])


def table_key(dataset: str, table: str) -> dg.AssetKey:
    """The asset of a PostgreSQL table."""
    return dg.AssetKey([dataset, "tables", table])


def pool_of(dataset: str, hook: str) -> str:
    """The concurrency pool that all runs of a hook share."""
    return f"{dataset}/{hook}"
