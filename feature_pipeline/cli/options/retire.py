"""Options and help of `feature-pipeline retire`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--yes", is_flag=True, help="Drop TABLES. Without it, nothing is changed.")
@json_option
def retire(**arguments: Any) -> None:
    """List the tables that no definition declares, and drop TABLES among them.

    If a hook is deleted or renamed, or its table is renamed, the old table stays and can be
    queried. Tables of the past (`rebuild --as-of`) stay until they are dropped. Without TABLES,
    lists both. With TABLES, previews the drop; with --yes, drops the view, its generations and
    their bookkeeping. The archive is unchanged.

    Tables that a definition declares, or that an invalid definition may declare, are not dropped.
    Exits with 1 if one of TABLES cannot be dropped.
    """
    from feature_pipeline.cli.commands.retire import retire as carry_out

    carry_out(**arguments)
