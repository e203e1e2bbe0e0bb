"""Dagster's instance, for commands that ask it or tell it something."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from feature_pipeline.cli.output import Output

if TYPE_CHECKING:
    from dagster import DagsterInstance


@contextmanager
def dagster_instance() -> Iterator["DagsterInstance"]:
    """The instance of DAGSTER_HOME, while the block runs. Imports Dagster: seconds.

    Raises:
        ClickException: DAGSTER_HOME is not set, or Dagster's storage cannot be reached.
    """
    import dagster as dg
    from dagster_postgres.utils import DagsterPostgresException
    from sqlalchemy.exc import OperationalError

    from feature_pipeline.orchestration.dagster_internals import DagsterHomeNotSetError

    try:
        with dg.DagsterInstance.get() as instance:
            yield instance
    except DagsterHomeNotSetError as error:
        raise click.ClickException(
            "DAGSTER_HOME is not set; `feature-pipeline dev` writes it to .env, a deployment sets"
            " it itself"
        ) from error
    except (OperationalError, DagsterPostgresException) as error:
        raise click.ClickException(
            f"Dagster's storage cannot be reached: {error}; on a laptop, is `feature-pipeline dev`"
            " running?"
        ) from error


def known_instance(stack: ExitStack, output: Output) -> "DagsterInstance | None":
    """Dagster's instance, open as long as the stack; None, and a line that says so, without one."""
    if not os.environ.get("DAGSTER_HOME"):
        output.say("DAGSTER_HOME is not set: Dagster is not told, and shows partitions as before")
        return None
    try:
        return stack.enter_context(dagster_instance())
    except click.ClickException as error:
        # A table comes from S3 alone: a database that is away must not keep people from it.
        output.say(f"Dagster is not told, and shows partitions as before: {error.message}")
        return None
