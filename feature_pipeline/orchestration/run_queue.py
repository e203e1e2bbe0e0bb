"""Dagster's run queue, with slots reserved for table loads.

Runs wait in one queue, and hooks take hours. Each run is tagged when it is submitted; with the
limit of `dagster.yaml` on that tag, the other slots are left to loads.
"""

import os
from collections.abc import Collection, Mapping
from typing import Final

import dagster as dg

from feature_pipeline.orchestration.dagster_internals import (
    AUTO_MATERIALIZE_TAG,
    AUTOMATION_CONDITION_TAG,
    PRIORITY_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
)
from feature_pipeline.orchestration.keys import RECONCILE_TAG, REPEAT_TAG, is_table_key

# While the code location does not load, as when its server was killed, backfills wait for it. By
# default Dagster fails them and cancels their runs. The daemon reads this module.
os.environ.setdefault("DAGSTER_BACKFILL_RETRY_DEFINITION_CHANGED_ERROR", "1")

WORK_TAG: Final = "feature_pipeline/work"
LOAD: Final = "load"
"""Only loads tables, which is short."""
COMPUTE: Final = "compute"
"""Runs hooks, or assets of the project's own."""

LOADS_PRIORITY: Final = 10
BY_HAND_PRIORITY: Final = 5
"""Priority of a user's request; automatic runs have 0."""

_BY_ITSELF: Final = (
    AUTO_MATERIALIZE_TAG,
    AUTOMATION_CONDITION_TAG,
    SCHEDULE_NAME_TAG,
    SENSOR_NAME_TAG,
    RECONCILE_TAG,
    REPEAT_TAG,
)


def queue_tags(
    assets: Collection[dg.AssetKey] | None, tags: Mapping[str, str], *, is_counted: bool = True
) -> dict[str, str]:
    """Return the tags to add to a run of these assets; an existing priority stays.

    A run without assets (verification, reconciliation) may take any slot.

    Args:
        assets: The run's assets.
        tags: The run's own.
        is_counted: Whether a computing run counts towards the limit.
    """
    added = {}
    is_load = bool(assets) and all(map(is_table_key, assets or ()))
    if is_load:
        added[WORK_TAG] = LOAD
    elif assets and is_counted:
        added[WORK_TAG] = COMPUTE
    if PRIORITY_TAG not in tags:
        if is_load:
            added[PRIORITY_TAG] = str(LOADS_PRIORITY)
        elif not any(tag in tags for tag in _BY_ITSELF):
            added[PRIORITY_TAG] = str(BY_HAND_PRIORITY)
    return added


class RunQueue(dg.QueuedRunCoordinator):
    """Dagster's queue, which tags each run with its kind and its priority."""

    def submit_run(self, context: dg.SubmitRunContext) -> dg.DagsterRun:
        """Tag the run and put it into the queue."""
        run = context.dagster_run
        added = queue_tags(run.asset_selection, run.tags, is_counted=self._is_counted(run))
        if added:
            self._instance.add_run_tags(run.run_id, added)
        return super().submit_run(context)

    def _is_counted(self, run: dg.DagsterRun) -> bool:
        """Return whether the run counts as computing: not if a pool holds it back earlier.

        Dagster counts a run towards a tag's limit before it considers pools. Runs that wait for
        their hook's pool would take the slots of every other hook.
        """
        pools = run.run_op_concurrency.all_pools if run.run_op_concurrency is not None else None
        if not pools:
            return True
        most = self._limit()
        limits = self._instance.event_log_storage.get_pool_limits()
        return not any(each.name in pools and each.limit < most for each in limits)

    def _limit(self) -> float:
        queue = self._instance.get_concurrency_config().run_queue_config
        limits = queue.tag_concurrency_limits if queue is not None else ()
        return next(
            (
                each["limit"]
                for each in limits
                if (each["key"], each["value"]) == (WORK_TAG, COMPUTE)
            ),
            float("inf"),
        )
