"""Remove leftovers of dead workers on this machine once they are no longer needed.

A hook run is finished once its batch's log has it, or has gone past the entry that it was planned
on: from then on no worker makes it again, so that nothing of it can be attached to or recovered.
Its leftovers are removed then, or two weeks after the last worker, and never while a living worker
works on it.
"""

import shutil
import time
from collections.abc import Collection, Mapping
from typing import Final

from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.in_flight import RETENTION
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.hooks.runner import HookRunner, RunsContainers
from feature_pipeline.hooks.runners.process_tree import end_processes_of
from feature_pipeline.hooks.work_folders import LeftFolder, Question, WorkFolders

INTERVAL_SECONDS: Final = 60.0
"""Interval between removals by a process that ticks more often."""
CONTAINER: Final = "container"
"""The runner whose containers use a dead worker's folder."""

_next_removal: dict[str, float] = {}
"""Per store."""


def remove_left_now_and_then(
    store: BlobStore, work: WorkFolders, runner: HookRunner | None
) -> tuple[list[str], list[str]]:
    """Call `remove_left` every `INTERVAL_SECONDS`; return what is removed, and problems."""
    now = time.monotonic()
    if now < _next_removal.get(store.identity, now):
        return [], []
    _next_removal[store.identity] = now + INTERVAL_SECONDS
    return remove_left(store, work, runner)


def remove_left(
    store: BlobStore, work: WorkFolders, runner: HookRunner | None
) -> tuple[list[str], list[str]]:
    """Remove leftovers of dead workers on this machine that are no longer needed.

    These are containers and ended attempts of finished or abandoned hook runs; the folders of
    workers, at once if nothing in them can be attached to; and processes of hooks that no worker
    can attach to. Without leftovers, the archive is not read; otherwise one log per hook run is
    listed.

    Args:
        store: The archive.
        work: The folders on this machine.
        runner: Starts the containers on this machine, if there are any.

    Returns:
        What is removed, and what could not be checked, which stays.
    """
    leftovers = _Leftovers(store, work, runner)
    try:
        leftovers.remove()
    except (FeaturePipelineError, OSError) as error:
        leftovers.problems.append(f"leftovers of dead workers are not removed: {error}")
    return leftovers.removed, leftovers.problems


class _Leftovers:
    """One pass over the leftovers of dead workers."""

    def __init__(self, store: BlobStore, work: WorkFolders, runner: HookRunner | None) -> None:
        self.removed: list[str] = []
        self.problems: list[str] = []
        self._store = store
        self._work = work
        self._containers = runner if isinstance(runner, RunsContainers) else None
        self._now = utc_now()
        self._over: dict[Question, bool] = {}

    def remove(self) -> None:
        """Remove what is no longer needed."""
        runs, attempts = self._work.left_runs(), self._work.left_attempts()
        questions = {
            left.question.run_id: left.question
            for left in (*runs, *attempts)
            if left.question is not None
        }
        kept = self._remove_containers(questions)
        for left in runs:
            if self._is_done_with(left, kept):
                end_processes_of(left.path)
                self._remove(left)
        for left in attempts:
            if left.path.name not in kept and self._is_over(left.question, left.modified_at):
                self._remove(left)

    def _remove_containers(self, questions: Mapping[str, Question]) -> set[str]:
        """Remove containers of finished hook runs; return the runs of those that stay."""
        if self._containers is None:
            return set()
        living, kept = set(self._work.living()), set()
        for run_id, created_at in self._containers.runs_left().items():
            is_over = self._is_over(questions.get(run_id), created_at.timestamp())
            if run_id in living or not is_over:
                kept.add(run_id)
            else:
                self._containers.remove_run(run_id)
                self.removed.append(f"containers of hook run {run_id}")
        return kept

    def _is_done_with(self, left: LeftFolder, kept: Collection[str]) -> bool:
        question = left.question
        if question is None:
            return True
        if question.run_id in kept:
            # a container of it writes here
            return False
        # What a message names, or another process may attach to, stays as long as possible.
        may_be_needed = left.is_left or question.runner == CONTAINER
        return not may_be_needed or self._is_over(question, left.modified_at)

    def _is_over(self, question: Question | None, used_at: float) -> bool:
        """Return whether its leftovers are no longer needed."""
        if self._now.timestamp() - used_at > RETENTION.total_seconds():
            return True
        if question is None:
            return False
        if question not in self._over:
            entries = log.read_log(self._store, question.dataset, question.hook, question.batch)
            self._over[question] = any(
                entry.completion == question.run_id or entry.seq > question.base
                for entry in entries
            )
        return self._over[question]

    def _remove(self, left: LeftFolder) -> None:
        shutil.rmtree(left.path, ignore_errors=True)
        self.removed.append(str(left.path))
