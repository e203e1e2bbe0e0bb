"""The Dagster instance, for commands that query it or report to it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import click

from feature_pipeline import settings
from feature_pipeline.cli.output import Output

if TYPE_CHECKING:
    from dagster import DagsterInstance


@contextmanager
def dagster_instance() -> Iterator["DagsterInstance"]:
    """Open the instance of DAGSTER_HOME for the block. Imports Dagster, which takes seconds.

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
            "DAGSTER_HOME is not set; `feature-pipeline dev` writes it to .env, in a deployment set"
            " it yourself"
        ) from error
    except (OperationalError, DagsterPostgresException) as error:
        raise click.ClickException(
            f"Dagster's storage cannot be reached: {error}; on a laptop, is `feature-pipeline dev`"
            " running?"
        ) from error


def configured_instance(stack: ExitStack) -> "DagsterInstance | None":
    """Open Dagster's instance on the stack; None if DAGSTER_HOME is not set.

    Raises:
        ClickException: Dagster's storage cannot be reached.
    """
    if settings.optional(settings.DAGSTER_HOME) is None:
        return None
    return stack.enter_context(dagster_instance())


def known_instance(stack: ExitStack, output: Output) -> "DagsterInstance | None":
    """Open Dagster's instance on the stack; if there is none, print that and return None."""
    try:
        instance = configured_instance(stack)
    except click.ClickException as error:
        # A table comes from S3 alone: a database that is away must not keep people from it.
        output.say(f"Nothing is reported to Dagster, and its UI does not change: {error.message}")
        return None
    if instance is None:
        output.say("DAGSTER_HOME is not set: nothing is reported to Dagster")
    return instance
