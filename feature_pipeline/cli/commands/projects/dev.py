"""`feature-pipeline dev`: run local servers and Dagster's UI until Ctrl-C."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType

from watchdog.utils.dirsnapshot import DirectorySnapshot, EmptyDirectorySnapshot

import feature_pipeline
from feature_pipeline import settings
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project
from feature_pipeline.cli.servers import local_servers
from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline.local.dagster_processes import DagsterProcesses
from feature_pipeline.local.services import LocalServices
from feature_pipeline.local.supervisor import Supervisor

CHECK_SECONDS = 1.0
LOCATION_SECONDS = 5.0
"""Interval between checks that the code location loads."""


class DefinitionsWatch:
    """Load the code location again when definitions have changed.

    Args:
        folder: Where the definitions are.
    """

    def __init__(self, folder: Path, dagster: DagsterProcesses, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._dagster = dagster
        self._say = say
        self._loaded = self._before = self._read()

    def look(self) -> None:
        """Compare the folder's files; what has changed is loaded once nothing changes any more."""
        files, before = self._read(), self._before
        self._before = files
        if _is_changed(before, files) or not _is_changed(self._loaded, files):
            return
        with suppress(StoreUnavailableError):  # the supervisor sees to the webserver
            self._dagster.reload()
            self._loaded = files
            self._say("Definitions have changed, and are loaded again.")

    def _read(self) -> DirectorySnapshot:
        try:
            return DirectorySnapshot(str(self._folder), listdir=_definitions)
        except OSError:  # the folder, or a part of it, is being replaced
            return EmptyDirectorySnapshot()


def _definitions(folder: str | None) -> Iterator[os.DirEntry[str]]:
    """List a folder without what Python and editors leave in it."""
    with os.scandir(folder) as entries:
        yield from (each for each in entries if not each.name.startswith((".", "__pycache__")))


def _is_changed(old: DirectorySnapshot, new: DirectorySnapshot) -> bool:
    changes = new - old
    return bool(
        changes.files_created
        or changes.files_deleted
        or changes.files_modified
        or changes.files_moved
    )


class CodeLocationWatch:
    """Report when the code location stops loading, and when it loads again."""

    def __init__(self, dagster: DagsterProcesses, say: Callable[[str], None]) -> None:
        self._dagster = dagster
        self._say = say
        self._next = 0.0
        self._error: str | None = None

    def look(self) -> None:
        """Ask Dagster's webserver, unless it was asked a short time ago."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOCATION_SECONDS
        try:
            error = self._dagster.load_error()
        except StoreUnavailableError:
            return  # The supervisor sees to the webserver.
        if error is not None and error != self._error:
            self._say(f"The code location does not load, so nothing is accepted or run:\n{error}")
        elif error is None and self._error is not None:
            self._say("The code location loads again.")
        self._error = error


def dev(folder: Path | None) -> None:
    """Carry out `feature-pipeline dev`."""
    project = Project.find()
    output = Output()
    folder = folder or project.data_folder
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()

    # Also where SIGINT came ignored, as it does to a shell's background jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Before anything starts: a signal then ends the start-up in order too.
    signal.signal(signal.SIGTERM, stop)
    output.say("Starting local servers ...")
    with local_servers(project, folder, output) as services:
        dagster = DagsterProcesses(
            folder / "dagster-processes", project.root, project.workspace_file, {}
        )
        output.say("Starting Dagster ...")
        try:
            _serve(project, dagster, services, output, stopping)
        finally:  # nothing is printed before: the reader of standard output may have closed it
            dagster.stop()
    output.say("Stopped.")


def _serve(
    project: Project,
    dagster: DagsterProcesses,
    services: LocalServices,
    output: Output,
    stopping: threading.Event,
) -> None:
    """Start Dagster, and watch every server until a signal comes."""
    packaged = Path(feature_pipeline.__file__).parent / "defs"
    definitions = DefinitionsWatch(settings.defs_folder(packaged), dagster, output.say)
    dagster.start()
    with suppress(KeyboardInterrupt):
        output.say(f"Dagster         {dagster.url}")
        output.say(f"settings        {project.dotenv}")
        output.say("\nStatus: feature-pipeline status")
        output.say("Submit: feature-pipeline submit FOLDER --dataset structures --source import")
        output.say("Ctrl-C stops everything; the data is kept.")
        servers = Supervisor({**services.servers(), **dagster.servers()}, output.say)
        location = CodeLocationWatch(dagster, output.say)
        while not stopping.wait(CHECK_SECONDS):
            servers.look()
            definitions.look()
            location.look()
    output.say("\nStopping ...")
