"""Errors as messages of the command line, and exit statuses."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from feature_pipeline.errors import FULL_DISK, FeaturePipelineError
from feature_pipeline.model.text.printable import printable

ERROR: Final = 1
"""Exit status of a command that was used wrongly, or could not do what it was asked for."""
FINDINGS: Final = 2
"""Exit status of a command that did what it could, and named what is not as it should be.

Damage, loss, a difference, something that would be refused, or that is left to be done. A scheduler
can tell it from an error, after which nothing is known.
"""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Report errors of this package as messages, without a traceback.

    A wrong option or argument is an error like others: click's own status for it is `FINDINGS`.
    """
    try:
        yield
    except FeaturePipelineError as error:
        raise click.ClickException(printable(str(error))) from error
    except click.ClickException as error:
        if type(error) is not click.ClickException:  # a wrong option: click's own words
            error.show()
            raise SystemExit(ERROR) from error
        raise click.ClickException(printable(error.message)) from error
    except OSError as error:
        if error.filename is None and error.errno in FULL_DISK:
            where = f"where output is written or in {tempfile.gettempdir()}, the temporary folder"
            raise click.ClickException(f"{error.strerror}: free space {where}") from error
        if error.filename is None:
            raise
        # A path that was given on the command line, or one below it.
        message = f"{os.fsdecode(error.filename)}: {error.strerror}"
        raise click.ClickException(printable(message)) from error
