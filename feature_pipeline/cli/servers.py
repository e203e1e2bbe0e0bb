"""Local servers for `demo`, `dev` and `recover`."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feature_pipeline import settings
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project
from feature_pipeline.local.environment import environment, usable_cores, write_dotenv
from feature_pipeline.local.services import LocalServices
from feature_pipeline.model.text.quantities import format_size

ENOUGH_BYTES = 1 << 30


@contextmanager
def local_servers(project: Project, folder: Path, output: Output) -> Iterator[LocalServices]:
    """Run S3 and PostgreSQL during the block; write their addresses to `.env` and os.environ.

    A signal that would end this process ends the block first, as Ctrl-C does.
    """
    home = folder.resolve() / "dagster"
    with _signals_interrupt(), LocalServices(folder) as services:
        variables = environment(services, home)
        project.prepare_dagster_home(home, usable_cores())
        write_dotenv(project.dotenv, variables)
        for name in settings.S3_SETTINGS | settings.DAGSTER_SETTINGS:
            os.environ.pop(name, None)
        os.environ.update(variables)
        project.load_environment()  # what else .env sets: the folder of definitions, say
        output.say(f"S3 (SeaweedFS)  {services.s3.endpoint_url}, bucket {services.s3.bucket}")
        output.say(f"PostgreSQL      {services.database_url.rpartition('@')[2]}")
        if services.free_bytes < ENOUGH_BYTES:
            left = format_size(services.free_bytes)
            output.say(
                f"The disk of {folder} has {left} left; a store on a full disk refuses writes."
            )
        yield services


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt when the terminal closes or the process is told to end.

    Signals that are ignored, as under nohup, or that the command handles are left alone.
    """
    changed = [
        number
        for number in (signal.SIGHUP, signal.SIGTERM)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in changed:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, signal.SIG_DFL)
