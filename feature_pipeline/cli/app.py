"""The command `feature-pipeline`: finds a command by its section, and imports no other."""

import os
from importlib import import_module
from typing import Any, Final

import click

from feature_pipeline.cli.errors import translated_errors
from feature_pipeline.projections.catalog.libpq import PREFIX

SECTIONS: Final = {
    "Projects": {
        "demo": "Run the example hooks over real structures on local servers.",
        "dev": "Run local servers and Dagster's UI until Ctrl-C.",
        "init": "Create a project: a folder for your hooks, and Dagster's files.",
        "hook": "Write a new hook, or define existing ones.",
    },
    "Runs": {
        "submit": "Submit records as batches.",
        "publish": "Publish the output of a hook that ran elsewhere.",
        "status": "Show how many batches are archived, loaded, waiting and quarantined.",
        "backfill": "Run batches again that are missing, failed, stale or of an old release.",
        "quarantine": "List entries that could not be accepted, and retry them.",
    },
    "Tables": {
        "plan": "Preview what loading a hook's table would change, cost and refuse.",
        "rebuild": "Rebuild tables from S3, beside the ones that are read.",
        "rollback": "Switch a table back to its previous generation.",
        "retire": "List and drop tables that no definition declares, and tables of the past.",
        "recover": "Recover Dagster's storage and the tables from S3 and the code alone.",
        "sql": "Run one SQL statement on the tables' database.",
    },
    "Archive": {
        "read": "Print a hook's features or outcomes from the archive.",
        "compare": "Compare two releases of a hook.",
        "history": "List the log entries of a hook's batches.",
        "verify": "Read every stored object again and report problems.",
        "repair": "Plan the repair of damaged or lost objects, and carry it out.",
        "erase": "Withdraw records and erase their data from the archive.",
        "gc": "Delete blobs that nothing needs.",
        "answers": "Compare the memory of answers with the archive's logs.",
        "check-store": "Test which required S3 properties a store lacks.",
    },
    "Other systems": {
        "osa": "Work beside an Open Science Archive server.",
        "metrics": "Serve metrics for Prometheus and OpenTelemetry until Ctrl-C.",
    },
}
"""Commands by section of the help."""

FOLDERS: Final = {
    name: section.lower().replace(" ", "_") for section, names in SECTIONS.items() for name in names
}
"""Each command's module in `cli.options`, which is its folder in `cli.commands`."""


class LazyGroup(click.Group):
    """Import a command's module only when it is used: `--help` must not import Dagster."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a user needs them."""
        return list(FOLDERS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command's object, from the module of its section."""
        if (folder := FOLDERS.get(cmd_name)) is None:
            return None
        options = import_module(f"feature_pipeline.cli.options.{folder}")
        command: click.Command = getattr(options, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of each section without importing them."""
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()))

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Parse the arguments; errors are those of `translated_errors`."""
        with translated_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and print errors of this package as messages, without a traceback.

        libpq's variables are removed before there are threads: connections are made by URL alone,
        and a variable that goes while another thread reads the environment breaks that thread.
        """
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            del os.environ[name]
        with translated_errors():
            return super().invoke(ctx)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="feature-pipeline")
def main() -> None:
    """Store hook output in S3 and rebuild PostgreSQL tables from it.

    `feature-pipeline demo` shows it on local servers; `feature-pipeline dev` opens Dagster's UI.
    For runs and schedules, use Dagster's own command: see `dagster --help`.
    """


if __name__ == "__main__":
    main()
