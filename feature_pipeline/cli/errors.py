"""Errors of this package as messages of the command line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import click

from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.model.text.printable import printable


@contextmanager
def translated_errors() -> Iterator[None]:
    """Report errors of this package as messages, without a traceback."""
    try:
        yield
    except FeaturePipelineError as error:
        raise click.ClickException(printable(str(error))) from error
    except click.ClickException as error:
        if type(error) is not click.ClickException:  # a wrong option: click's own words
            raise
        raise click.ClickException(printable(error.message)) from error
    except OSError as error:
        if error.filename is None:
            raise
        # A path that was given on the command line, or one below it.
        message = f"{os.fsdecode(error.filename)}: {error.strerror}"
        raise click.ClickException(printable(message)) from error
