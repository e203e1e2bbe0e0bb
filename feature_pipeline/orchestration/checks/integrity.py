"""Verification of the archive in Dagster: jobs for all of it, a check per feature asset."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.text.json_values import json_instant
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.orchestration.events.check_history import (
    NAMED_BATCHES,
    earlier_values,
    previously_named,
    run_batches,
)
from feature_pipeline.orchestration.events.reported_entries import query_databases
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.markdown import code, plain
from feature_pipeline.orchestration.resources import ArchiveResource, DatabaseResource

if TYPE_CHECKING:
    from feature_pipeline.archive.inspection.verify import VerifyReport

INTEGRITY_CHECK = "archive_integrity"
CENSUS_JOB = "take_census"
_ALL_OF_IT = "all_of_it"
_SHOWN = 50
_STEPS = 10


class VerifyConfig(dg.Config):
    """The part of the archive to verify; all of it by default."""

    dataset: str | None = Field(default=None, description="Only this dataset.")
    hook: str | None = Field(default=None, description="Only this hook of the dataset.")
    batch: str | None = Field(default=None, description="Only this batch of the dataset.")
    sample: float = Field(default=1.0, gt=0, le=1, description="Fraction of the blobs to read.")


def verify_job() -> dg.JobDefinition:
    """Return the job `verify_archive`, which reads stored objects; it fails on any problem."""

    @dg.op(name="read_archive_again", description="Compares every stored object with its name.")
    def read_again(
        context: dg.OpExecutionContext,
        config: VerifyConfig,
        archive: ArchiveResource,
        database: DatabaseResource,
    ) -> None:
        from feature_pipeline.archive.inspection.findings import Scope
        from feature_pipeline.archive.inspection.verify import verify

        scope = Scope(config.dataset, config.hook, config.batch)
        logged = 0

        def progress(done: int, total: int) -> None:
            nonlocal logged
            if done * _STEPS // total > logged:
                logged = done * _STEPS // total
                context.log.info("%d of %d blobs read", done, total)

        store = archive.store()
        report = verify(store, scope, sample=config.sample, progress=progress)
        known = query_databases(database.database(), context.instance, scope)
        report = known.add_lost(report, store)
        context.log.info(report.summary())
        for note in report.notes:
            context.log.warning(note)
        if not report.is_clean:
            raise dg.Failure(
                description=report.summary(), metadata=report_metadata(report), allow_retries=False
            )

    @dg.job(
        name="verify_archive",
        description=(
            "Reads every stored object again, compares it with its digest, and fails with what is"
            " missing or damaged."
        ),
    )
    def verify_all() -> None:
        read_again()

    return verify_all


def census_job() -> dg.JobDefinition:
    """Return the job `take_census`, which records all log lengths; it fails if an end is lost."""

    @dg.op(
        name="compare_logs",
        description="Compares every log with the newest census, and writes another.",
    )
    def compare_logs(context: dg.OpExecutionContext, archive: ArchiveResource) -> None:
        from feature_pipeline.archive.inspection.census import write_census

        report = write_census(archive.store())
        context.log.info(report.summary())
        if not report.is_clean:
            damaged = [shortfall.damage for shortfall in report.shortfalls]
            damaged += report.known.damage.values()
            lines = [f"- {damage.state} {code(damage.key)}" for damage in damaged[:_SHOWN]]
            raise dg.Failure(
                description=(
                    f"damaged or lost logs and censuses: {len(damaged)}, the first:"
                    f" {damaged[0].error}; `feature-pipeline verify` lists all problems"
                ),
                metadata={
                    "wrong": dg.MetadataValue.json(dict(Counter(d.state.value for d in damaged))),
                    "findings": dg.MetadataValue.md("\n".join(lines)),
                },
                allow_retries=False,
            )

    @dg.job(
        name=CENSUS_JOB,
        description=(
            "Compares the length of every log of the archive with the newest census, writes"
            " another, and fails if entries are lost."
        ),
    )
    def compare_with_census() -> None:
        compare_logs()

    return compare_with_census


def census_schedule() -> dg.ScheduleDefinition:
    """Return the schedule that runs `take_census` every day; running by default."""
    return dg.ScheduleDefinition(
        name="take_census_daily",
        job_name=CENSUS_JOB,
        cron_schedule="11 2 * * *",
        description="Compares every log of the archive with the newest census, once a day.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )


def integrity_checks(definition: HookDefinition) -> Sequence[dg.AssetChecksDefinition]:
    """Return the checks of a feature asset: `archive_integrity`."""
    dataset, hook = definition.dataset, definition.name
    key = dg.AssetCheckKey(features_key(dataset, hook), INTEGRITY_CHECK)

    @dg.asset_check(
        asset=key.asset_key,
        name=INTEGRITY_CHECK,
        description=(
            "Every stored object of the hook's artifacts exists, and its bytes have the digest in"
            " its name. In a run, the check covers the run's batches and those that failed it"
            " before. Executed alone, it covers all batches and reads every object. It also"
            " compares the logs with the artifacts that the table and Dagster have recorded. A"
            " problem that was found when the check was executed alone is reported until it is"
            " executed alone again."
        ),
    )
    def archive_integrity(
        context: dg.AssetCheckExecutionContext,
        archive: ArchiveResource,
        database: DatabaseResource,
    ) -> dg.AssetCheckResult:
        from feature_pipeline.archive.inspection.findings import Scope
        from feature_pipeline.archive.inspection.verify import verify

        store, whole = archive.store(), Scope(dataset, hook)
        batches = run_batches(context, dataset)
        if batches is None:
            scopes, names = [whole], None
        else:
            names = sorted({*batches, *previously_named(context.instance, key, "batches")})
            scopes = [Scope(dataset, hook, batch) for batch in names]
        known = query_databases(database.database(), context.instance, whole, names)
        reports = [known.add_lost(verify(store, scope), store) for scope in scopes]
        if batches is None:
            all_of_it = _all_of_it(reports[0])
        else:
            all_of_it = _read_before(context.instance, key)
        wrong = [report for report in reports if not report.is_clean]
        sentences = [report.summary() for report in (wrong or reports[:1])[:_SHOWN]]
        if batches is not None and all_of_it["wrong"]:
            sentences.append(
                f"all of it was read at {all_of_it['at']}, and this was wrong: "
                f"{all_of_it['wrong']}; execute this check alone to read it again"
            )
        sentences += known.notes
        return dg.AssetCheckResult(
            passed=not wrong and not all_of_it["wrong"],
            severity=dg.AssetCheckSeverity.ERROR,
            description="; ".join(sentences),
            metadata={
                "bytes_read": sum(report.bytes_read for report in reports),
                "blobs_read": sum(report.blobs_read for report in reports),
                "batches": [r.scope.batch for r in wrong if r.scope.batch][:NAMED_BATCHES],
                **({_ALL_OF_IT: dg.MetadataValue.json(all_of_it)} if all_of_it["at"] else {}),
                **_findings_metadata(wrong),
            },
        )

    return [archive_integrity]


def _all_of_it(report: "VerifyReport") -> dict[str, str]:
    """Return the result of the last full check as metadata; `wrong` is empty if it passed."""
    wrong = "" if report.is_clean else report.summary()
    return {"at": json_instant(report.started_at.replace(microsecond=0)), "wrong": wrong}


def _read_before(instance: dg.DagsterInstance, key: dg.AssetCheckKey) -> dict[str, str]:
    """Return the result of the last full check, which later evaluations have carried along."""
    evaluations = [
        evaluations
        for evaluations in earlier_values(instance, key, _ALL_OF_IT)
        if isinstance(evaluations, dict)
    ]
    return max(evaluations, key=lambda each: str(each["at"]), default={"at": "", "wrong": ""})


def report_metadata(report: "VerifyReport") -> dict[str, Any]:
    """Return a report's metadata for Dagster."""
    return {
        "documents": report.documents,
        "blobs_read": report.blobs_read,
        "bytes_read": report.bytes_read,
        **_findings_metadata([report]),
    }


def _findings_metadata(reports: "Sequence[VerifyReport]") -> dict[str, Any]:
    findings = [finding for report in reports for finding in report.findings]
    counts = Counter(finding.state.value for finding in findings)
    lines = [
        f"- {f.state} {f.kind} {code(f.key)}, needed by {plain(quoted(f.named_by))}"
        for f in findings[:_SHOWN]
    ]
    if not findings:
        return {}
    return {
        "wrong": dg.MetadataValue.json(dict(counts)),
        "findings": dg.MetadataValue.md("\n".join(lines)),
    }
