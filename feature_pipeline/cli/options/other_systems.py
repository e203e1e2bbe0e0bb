"""Options and help of the commands in `commands/other_systems`."""

from pathlib import Path
from typing import Any, Final

import click

from feature_pipeline.cli.shared_options import json_option


@click.group()
def osa() -> None:
    """Work beside an Open Science Archive server: read its database and its storage."""


@osa.command()
@click.option(
    "--convention",
    "conventions",
    multiple=True,
    metavar="ID[=DATASET]",
    help="Follow this convention, as this dataset; repeatable. By default all conventions.",
)
@click.option("--hook", "hooks", multiple=True, help="Follow only this hook; repeatable.")
@click.option(
    "--server",
    metavar="NAME",
    help="Also write <folder>/NAME/defs.yaml, the component that follows the server in Dagster.",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write definitions, as <folder>/<hook>/defs.yaml; by default the"
    " folder that FEATURE_PIPELINE_DEFS names.",
)
@json_option
def scaffold(**arguments: Any) -> None:
    """Define the server's hooks, as hooks computed elsewhere.

    Each hook of each convention becomes a defs.yaml with its columns and its live release. Existing
    files are not overwritten: then nothing is written. Only reads from the server.
    """
    from feature_pipeline.cli.commands.other_systems.osa import scaffold as carry_out

    carry_out(**arguments)


@osa.command()
@json_option
def plan(**arguments: Any) -> None:
    """Show how the definitions differ from the server's hooks.

    Changes nothing. Exits with 0 if nothing differs, with 2 if something does, and with 1 if they
    could not be compared.
    """
    from feature_pipeline.cli.commands.other_systems.osa import plan as carry_out

    carry_out(**arguments)


@osa.command()
@click.option("--once", is_flag=True, help="Take what is complete now, and exit.")
@json_option
def sync(**arguments: Any) -> None:
    """Take the completed hook outputs of the server into the archive.

    Only reads from the server. Without --once it looks again every minute until it is interrupted;
    the component's sensor does the same. With --once it exits with 2 if an output cannot be taken,
    and with 1 if the server or the archive could not be read.
    """
    from feature_pipeline.cli.commands.other_systems.osa import sync as carry_out

    carry_out(**arguments)


@osa.command("import")
@click.option("--hook", "hooks", multiple=True, help="Import only this hook; repeatable.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Show what would be imported.")
@click.option(
    "--without-storage",
    is_flag=True,
    help="The server's storage is gone: import every row whose output the archive lacks.",
)
@click.option(
    "--ids",
    "keeps_ids",
    is_flag=True,
    help="Also keep the ids and times of rows whose output the archive has, for `osa restore`.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    help="Maximum number of processes that import, each over its own connection to the server's"
    " database. Default: one per core, at most 4.",
)
@json_option
def import_rows(**arguments: Any) -> None:
    """Import rows of the server's tables whose hook output is gone.

    They become artifacts that are marked as reconstructed; the output of the same hook run, if it
    appears later, takes their place. Ends with a comparison of every imported row with the
    server's. Only reads from the server. Exits with 2 if rows cannot be imported, or differ, and
    with 1 after an error.
    """
    from feature_pipeline.cli.commands.other_systems.osa import import_rows

    import_rows(**arguments)


@osa.command()
@click.option("--hook", "hooks", multiple=True, help="Compare only this hook; repeatable.")
@json_option
def compare(**arguments: Any) -> None:
    """Compare the archive's features with the server's tables.

    Changes nothing. Some differences are marked as expected: they follow from how the server
    publishes, and stay. Exits with 0 if there are no others, with 2 if there are, and with 1 if
    the two could not be compared.
    """
    from feature_pipeline.cli.commands.other_systems.osa import compare as carry_out

    carry_out(**arguments)


@osa.command()
@click.argument("hooks", nargs=-1, metavar="[HOOK]...")
@click.option("--all", "is_all", is_flag=True, help="All hooks of the followed conventions.")
@click.option("--dry-run", "is_dry_run", is_flag=True, help="Compare, and change nothing.")
@click.option(
    "--only-there",
    type=click.Choice(["refuse", "keep", "drop"]),
    default="refuse",
    show_default=True,
    help="What to do with the server's rows that the archive does not have.",
)
@click.option("--drop-old", is_flag=True, help="Drop the tables that earlier restores replaced.")
@json_option
def restore(**arguments: Any) -> None:
    """Rebuild the server's tables features.HOOK from the archive.

    A table that equals the archive is left as it is. Any other is filled beside the server's, read
    back, and put in its place by renaming, while the server runs. The old one stays until
    --drop-old. With --dry-run it exits with 2 if a table would be restored; after an error, it
    exits with 1.
    """
    from feature_pipeline.cli.commands.other_systems.osa import restore as carry_out

    carry_out(**arguments)


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
    help="Seconds between two readings; more if a reading takes long.",
)
@click.option(
    "--objects-every",
    type=click.FloatRange(min=1),
    default=3600.0,
    show_default=True,
    help="Seconds between two listings of all stored objects.",
)
@click.option(
    "--once", is_flag=True, help="Print one reading in Prometheus's text format, and exit."
)
def metrics(**arguments: Any) -> None:
    """Read the archive, the tables and Dagster repeatedly, and serve the readings.

    GET /metrics is for Prometheus. POST /v1/metrics takes, by OTLP, what run workers and sensors
    count: set FEATURE_PIPELINE_METRICS_URL for them to this command's address. With
    FEATURE_PIPELINE_OTLP_URL everything is sent to that collector, too. Needs the extra `otel`.

    Readings are kept in memory only: after a restart they are the same.
    """
    from feature_pipeline.cli.commands.other_systems.metrics import metrics as carry_out

    carry_out(**arguments)
