"""Plan a hook run while no other run computes the same records."""

from collections.abc import Callable, Collection
from functools import partial

from feature_pipeline.archive.claims import Claim
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import answers
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.plan import ComputePlan


def plan_claimed(
    store: BlobStore,
    plan: Callable[[], ComputePlan],
    say: Callable[[str], None],
    *,
    force: bool = False,
    force_records: Collection[str] = (),
) -> tuple[ComputePlan, Claim]:
    """Plan, claim what is to be computed, and plan again if there may be answers by then.

    Waits while another run computes one of the records, unless they are forced.

    Args:
        store: The archive.
        plan: Plans on the current state; called again after waiting.
        say: Called with the reason for waiting.
        force: As for `plan_run`.
        force_records: As for `plan_run`.

    Returns:
        The plan, and the claim. Release it once the answers are accepted, or the run has failed.
    """
    current = plan()
    definition, release = current.definition, current.release.release
    claim = Claim(store, definition.dataset, definition.name, release.program, current.batch.key)
    try:
        while current.compute:
            actions = {current.actions[record.id] for record in current.compute}
            if claim.covers(actions):
                break
            contested = {
                current.actions[record.id]
                for record in current.compute
                if not force and record.id not in force_records
            }
            has_news = partial(_has_news, store, current)
            is_at_once = claim.acquire(actions, contested, say, has_news)
            if is_at_once and not (contested and has_news()):
                break
            current = plan()
    except BaseException:
        claim.release()
        raise
    if not current.compute:
        claim.release()
    return current, claim


def _has_news(store: BlobStore, plan: ComputePlan) -> bool:
    """Return whether artifacts may have been accepted since the plan read the memory of answers.

    Acceptance writes an artifact into the memory before its log entry, and a run releases its claim
    after both.
    """
    definition = plan.definition
    prefix = layout.answers(definition.dataset, definition.name, plan.release.release.program)
    return plan.memory is None or not answers.list_answers(store, prefix).keys <= plan.memory
