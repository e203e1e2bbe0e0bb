"""Dagster's instance, for commands that ask it or tell it something."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from dagster import DagsterInstance


@contextmanager
def dagster_instance() -> Iterator["DagsterInstance"]:
    """The instance of DAGSTER_HOME, while the block runs. Imports Dagster: seconds.

    Raises:
        ClickException: DAGSTER_HOME is not set, or Dagster's storage cannot be reached.
    """
    import dagster as dg
    from dagster._core.errors import DagsterHomeNotSetError
    from dagster_postgres.utils import DagsterPostgresException
    from sqlalchemy.exc import OperationalError

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
