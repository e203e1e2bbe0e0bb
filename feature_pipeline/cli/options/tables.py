"""Options and help of the commands in `commands/tables`."""

from typing import Any

import click

from feature_pipeline.cli.shared_options import json_option


@click.command()
@click.argument("hook")
@click.option("--dataset", help="Needed when several datasets have a hook of this name.")
@json_option
def plan(**arguments: Any) -> None:
    """Preview the next runs of HOOK's table; change nothing.

    Also names tables that no definition declares; `feature-pipeline retire` drops them. If batches
    are damaged or lost in the archive, names them and plans the others. Exits with 2 then, and if
    something would be refused.
    """
    from feature_pipeline.cli.commands.tables.plan import plan as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("hooks", nargs=-1)
@click.option("--dataset", help="Needed when several datasets have a hook of this name.")
@click.option("--batch", "batches", multiple=True, help="Load only this batch again; repeatable.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64))
@click.option("--from-raw", is_flag=True, help="First decode the raw output again.")
@click.option(
    "--as-of",
    "time",
    help="Build a separate table of what was current then: a time with a UTC offset.",
)
@json_option
def rebuild(**arguments: Any) -> None:
    """Rebuild the tables of HOOKS, or of all hooks, from S3.

    Builds each table beside the one that users read, verifies it against the archive and switches
    to it. An interrupted rebuild continues where it stopped. With --batch, replaces the rows of
    these batches in the table that is read. Reports what was loaded to the Dagster instance of
    DAGSTER_HOME, if that is set.

    A failure with one table does not stop the others. Failures are listed at the end, and the exit
    status is 1.

    With --from-raw, first decodes the raw output of the current artifacts again with today's
    decoder. If the result differs from an artifact, a successor becomes current in the archive. No
    hook runs.
    """
    from feature_pipeline.cli.commands.tables.rebuild import rebuild as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("hook")
@click.option("--dataset", help="Needed when several datasets have a hook of this name.")
@click.option(
    "--unpin", is_flag=True, help="Return the table to the generation that the definition declares."
)
@json_option
def rollback(**arguments: Any) -> None:
    """Switch HOOK's table back to the generation before its last switch.

    The table stays pinned to that generation until --unpin; both generations are kept up to date
    meanwhile. Reports the columns that are read now to the Dagster instance of DAGSTER_HOME.
    """
    from feature_pipeline.cli.commands.tables.rollback import rollback as carry_out

    carry_out(**arguments)


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
    from feature_pipeline.cli.commands.tables.retire import retire as carry_out

    carry_out(**arguments)


@click.command()
@click.argument("tables", nargs=-1)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1, 64))
@click.option(
    "--local", is_flag=True, help="Run the local servers of `dev` for the time of the recovery."
)
@json_option
def recover(**arguments: Any) -> None:
    """Recover what the databases lost: partitions, materializations, pools and tables.

    Rebuilds every table with `materialize: always`, and TABLES. You can interrupt and repeat it:
    what exists is left unchanged. Ends with the proof that the tables equal the archive. Stop
    Dagster's daemon first.
    """
    from feature_pipeline.cli.commands.tables.recover import recover as carry_out

    carry_out(**arguments)


MAX_ROWS = 1_000


@click.command()
@click.argument("statement")
@click.option(
    "--max-rows", default=MAX_ROWS, show_default=True, type=click.IntRange(0), help="Rows to print."
)
@json_option
def sql(**arguments: Any) -> None:
    """Run STATEMENT, read only, and print its rows.

    Tables are in the schema `features`, which is searched first: select * from pockets limit 5
    """
    from feature_pipeline.cli.commands.tables.sql import sql as carry_out

    carry_out(**arguments)
