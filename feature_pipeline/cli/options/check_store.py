"""Options and help of `feature-pipeline check-store`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command("check-store")
@json_option
def check_store(**arguments: Any) -> None:
    """Test each S3 property that the archive needs, on the store in the settings.

    Writes small objects below `probe/` and removes them. Exits with 0 if the store has every
    required property, with 2 if it lacks one, with 1 if the test could not be run.
    """
    from feature_pipeline.cli.commands.check_store import check_store as carry_out

    carry_out(**arguments)
