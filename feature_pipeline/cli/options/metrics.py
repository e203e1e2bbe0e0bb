"""Options and help of `feature-pipeline metrics`."""

from typing import Any, Final

import click

PORT: Final = 9464
"""OpenTelemetry's for the text endpoint."""


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True)
@click.option(
    "--every",
    type=click.FloatRange(min=1),
    default=30.0,
    show_default=True,
    help="Seconds between two readings; more, if one takes long.",
)
@click.option(
    "--objects-every",
    type=click.FloatRange(min=1),
    default=3600.0,
    show_default=True,
    help="Seconds between two listings of all stored objects.",
)
@click.option("--once", is_flag=True, help="Print one reading as Prometheus's text, and end.")
def metrics(**arguments: Any) -> None:
    """Read the archive, the tables and Dagster repeatedly, and serve the readings.

    GET /metrics is for Prometheus. POST /v1/metrics takes, by OTLP, what run workers and sensors
    count: set FEATURE_PIPELINE_METRICS_URL for them to this command's address. With
    FEATURE_PIPELINE_OTLP_URL everything is sent to that collector, too. Needs the extra `otel`.

    Readings are kept in memory only: after a restart they are the same.
    """
    from feature_pipeline.cli.commands.metrics import metrics as carry_out

    carry_out(**arguments)
