"""`feature-pipeline dev`: local servers and Dagster's UI, until Ctrl-C."""

import signal
import threading
from pathlib import Path
from types import FrameType

import click

from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project
from feature_pipeline.cli.servers import local_servers
from feature_pipeline.local.dagster_processes import DagsterProcesses

CHECK_SECONDS = 1.0


@click.command()
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the servers keep their data; .feature_pipeline in the project when absent.",
)
def dev(folder: Path | None) -> None:
    """Run S3, PostgreSQL, and Dagster's webserver and daemon on loopback until Ctrl-C.

    Writes every setting to .env, so that plain `dagster` and `dg` commands work beside it.
    """
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
        dagster.start()
        try:
            output.say(f"Dagster         {dagster.url}")
            output.say(f"settings        {project.dotenv}")
            output.say('\nLook:   feature-pipeline sql "select * from pockets limit 5"')
            output.say(
                "Submit: feature-pipeline submit FOLDER --dataset structures --source import"
            )
            output.say("Ctrl-C stops everything; the data stays.")
            while not stopping.wait(CHECK_SECONDS):
                services.check()
                dagster.check()
        except KeyboardInterrupt:
            pass
        finally:
            output.say("\nStopping ...")
            dagster.stop()
    output.say("Stopped.")
