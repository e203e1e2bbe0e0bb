"""`feature-pipeline`: arguments only; each command's work is in the module of its name."""

from importlib import import_module
from typing import Any

import click

from feature_pipeline.cli.output import translated_errors

COMMANDS = {
    "demo": "Run the example hooks over real structures on local servers; print what happened.",
    "dev": "Run local servers and Dagster's UI until Ctrl-C.",
    "init": "Make a project: a folder for hooks of your own, and Dagster's files.",
    "submit": "Submit records as batches.",
    "publish": "Publish the output of a hook that ran elsewhere.",
    "status": "Show what is archived, loaded, waiting and quarantined.",
    "backfill": "Run again what is missing, failed, stale or of an old release.",
    "recover": "Rebuild Dagster's storage and the tables from S3 and the code alone.",
    "read": "Print what the archive holds of a hook, with or without a table.",
    "plan": "Show what loading a hook's table would change, cost and refuse.",
    "rebuild": "Rebuild tables from S3, beside the ones that people read.",
    "rollback": "Read the generation of a table that was read before its last switch.",
    "retire": "Show the tables that no definition declares, and drop them.",
    "compare": "Show what two releases of a hook say differently.",
    "history": "Show what became of a hook's batches, entry by entry.",
    "verify": "Read the archive again: every object there, and right.",
    "check-store": "Try which properties of S3 a store has, and name what it lacks.",
    "repair": "Bring back what is damaged or lost in the archive.",
    "quarantine": "Show what could not be accepted, and why; let it try again.",
    "erase": "Take withdrawn records out of the archive.",
    "gc": "Delete blobs that nothing needs any more.",
    "answers": "Bring the memory of what was answered in line with the archive's logs.",
    "hook": "Define hooks that were written elsewhere.",
    "sql": "Run one SQL statement on the tables' database.",
}


class LazyGroup(click.Group):
    """Imports a command's module when it is used: `--help` must not import Dagster."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands, in the order in which people need them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command's object, from the module of its name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(
            import_module(f"feature_pipeline.cli.commands.{cmd_name.replace('-', '_')}"),
            cmd_name.replace("-", "_"),
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; this package's errors are messages, not tracebacks."""
        with translated_errors():
            return super().invoke(ctx)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="feature-pipeline")
def main() -> None:
    """S3 keeps every hook's output; PostgreSQL tables are rebuilt from it.

    `feature-pipeline demo` shows it on local servers; `feature-pipeline dev` opens Dagster's UI.
    Runs and schedules are Dagster's own: see `dagster --help`.
    """


if __name__ == "__main__":
    main()
