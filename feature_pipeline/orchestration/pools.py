"""Concurrency pools of hooks, with the limits of their definitions."""

from collections.abc import Sequence

import dagster as dg

from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.orchestration.keys import pool_of


def set_pools(instance: dg.DagsterInstance, hooks: Sequence[HookDefinition]) -> dict[str, int]:
    """Set each hook's pool to the limit in its definition; return the limits, by pool.

    A hook without `release.concurrency` has a pool without a limit. Pools of other names are not
    ours and are left alone.
    """
    storage = instance.event_log_storage
    known = {limit.name: limit.limit for limit in storage.get_pool_limits()}
    limits: dict[str, int] = {}
    for hook in hooks:
        pool, limit = pool_of(hook.dataset, hook.name), hook.release.concurrency
        if limit is not None:
            limits[pool] = limit
            if known.get(pool) != limit:
                storage.set_concurrency_slots(pool, limit)
        elif pool in known:
            storage.delete_concurrency_limit(pool)
    return limits
