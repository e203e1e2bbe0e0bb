"""The job that compares the memory of answers with the logs, and its schedule."""

from collections.abc import Iterator

import dagster as dg
from pydantic import Field

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.orchestration.resources import ArchiveResource
from feature_pipeline.parallel import map_threads

ANSWERS_JOB = "remember_answers"


class RememberConfig(dg.Config):
    """The memories to compare with their logs."""

    due_only: bool = Field(
        default=False, description="Compare only memories that have not been compared for a day."
    )


def hooks_due(store: BlobStore) -> list[tuple[str, str]]:
    """Return the (dataset, hook) pairs whose memory was not compared for a day."""
    from feature_pipeline.archive.maintenance.rebuild_answers import is_due

    pairs = list(_hooks(store))
    due = map_threads(lambda pair: is_due(store, *pair), pairs)
    return [pair for pair, is_now in zip(pairs, due, strict=True) if is_now]


def _hooks(store: BlobStore) -> Iterator[tuple[str, str]]:
    for dataset in log.datasets(store):
        for hook in log.hooks(store, dataset):
            yield dataset, hook


def answers_job() -> dg.JobDefinition:
    """Return the job `remember_answers`: completes the memory of answers from the logs."""

    @dg.op(name="compare_with_logs", description="Adds the answers that the memory lacks.")
    def compare_with_logs(
        context: dg.OpExecutionContext, config: RememberConfig, archive: ArchiveResource
    ) -> None:
        from feature_pipeline.archive.maintenance.rebuild_answers import complete

        store = archive.store()
        unreadable: dict[str, str] = {}
        for dataset, hook in hooks_due(store) if config.due_only else list(_hooks(store)):
            try:
                report = complete(store, dataset, hook)
            except CorruptDataError as error:
                unreadable[f"{dataset}/{hook}"] = str(error)
                continue
            context.log.info(report.summary())
            for problem in report.problems:
                context.log.warning("answers cannot be added to the memory of answers: %s", problem)
        if unreadable:
            raise dg.Failure(
                description=(
                    f"the logs of {', '.join(unreadable)} cannot be read, so that records may be"
                    " computed again: `feature-pipeline verify` names what is damaged"
                ),
                metadata={"unreadable": dg.MetadataValue.json(unreadable)},
                allow_retries=False,
            )

    @dg.job(
        name=ANSWERS_JOB,
        description=(
            "Brings the memory of answers in line with the archive's logs: the index by which a"
            " record that was computed in another batch is not computed again."
        ),
    )
    def remember_answers() -> None:
        compare_with_logs()

    return remember_answers


def answers_schedule() -> dg.ScheduleDefinition:
    """Return the schedule of `remember_answers`: daily, or within the hour without a memory."""

    @dg.schedule(
        name="remember_answers_hourly",
        job_name=ANSWERS_JOB,
        cron_schedule="37 * * * *",
        description=(
            "Runs `remember_answers` for the hooks whose memory of answers is absent, or was not"
            " compared with the logs for a day."
        ),
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
    def remember_answers_hourly(
        archive: ArchiveResource,
    ) -> dg.RunRequest | dg.SkipReason:
        due = hooks_due(archive.store())
        if not due:
            return dg.SkipReason("every memory of answers was compared with its logs today")
        config = RememberConfig(due_only=True)
        return dg.RunRequest(run_config=dg.RunConfig(ops={"compare_with_logs": config}))

    return remember_answers_hourly
