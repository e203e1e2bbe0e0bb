"""The job `feature_report`: its configuration, its op, and the observation that it leaves.

`reports` makes what it shows, and is imported by a run: reading and plotting need libraries that
loading the code location does not.
"""

import dagster as dg
from pydantic import Field

from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.resources import ArchiveResource


class ReportConfig(dg.Config):
    """What a report is about."""

    hook: str = Field(description="The hook's name.")
    dataset: str | None = Field(
        default=None, description="The hook's dataset, if hooks of several datasets have this name."
    )
    batches: list[str] = Field(
        default=[], description="Only these batches; by default all that have an artifact."
    )
    columns: list[str] = Field(
        default=[], description="Numeric columns to show; by default all of them."
    )
    compare: bool = Field(
        default=False, description="Compare two releases: those below, or the last two."
    )
    from_release: str | None = Field(default=None, description="A version, or #seq.")
    to_release: str | None = Field(default=None, description="A version, or #seq.")


def report_job() -> dg.JobDefinition:
    """Return the job `feature_report`; its result is one observation of the feature asset."""

    @dg.op(
        name="report_features",
        description="Makes the report; it is the run's event ASSET_OBSERVATION.",
    )
    def report_features(
        context: dg.OpExecutionContext, config: ReportConfig, archive: ArchiveResource
    ) -> None:
        from feature_pipeline.archive.query.api import Archive
        from feature_pipeline.orchestration.operations.reports import report, report_comparison

        store = archive.store()
        features = Archive(store).features(
            config.hook,
            dataset=config.dataset,
            batches=config.batches or None,
            skip_damaged=True,
        )
        metadata = report(features, config.columns)
        if config.compare or config.from_release or config.to_release:
            metadata["comparison"] = report_comparison(
                store, features, config.from_release, config.to_release, config.batches or None
            )
        # Without data version and partition: an observation of an asset that is materialized
        # changes neither what is stale nor what is missing.
        context.log_event(
            dg.AssetObservation(
                asset_key=features_key(features.dataset, features.hook), metadata=metadata
            )
        )

    @dg.job(
        name="feature_report",
        description=(
            "Outcomes, rejected and errored records with reasons, statistics and histograms of a"
            " hook's features, and the differences between two releases; made from S3 on"
            " request. The result is an observation in the run's events and on the feature"
            " asset's page."
        ),
    )
    def feature_report() -> None:
        report_features()

    return feature_report
