"""`feature-pipeline retire`: list and drop undeclared tables and tables of the past."""

from typing import Any

import click

from feature_pipeline import settings
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project
from feature_pipeline.cli.project_hooks import ProjectHooks, project_hooks
from feature_pipeline.errors import ConflictError, InvalidInputError, ProjectionError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.json_values import json_instant
from feature_pipeline.model.text.quantities import format_size
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.retire import (
    KnownTable,
    Retirement,
    find_tables,
    known_tables,
    plan_retirement,
    retire_table,
)


def retire(tables: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Carry out `feature-pipeline retire`."""
    if yes and not tables:
        raise InvalidInputError("name the tables to drop: feature-pipeline retire TABLE --yes")
    Project.find().load_environment()
    output = Output(as_json)
    database = Database(settings.database_url())
    defined = project_hooks()
    known = known_tables(database)
    chosen = find_tables(known, dict.fromkeys(tables)) if tables else _candidates(defined, known)
    results: list[dict[str, Any]] = []
    problems: list[str] = []
    for table in chosen:
        retirement = plan_retirement(database, table)
        problem = _obstacle(defined, retirement)
        is_dropped = False
        if yes and problem is None:
            try:
                retire_table(database, table)
                is_dropped = True
            except (ConflictError, ProjectionError) as error:
                problem = str(error)
        results.append({**retirement.to_json(), "problem": problem, "is_dropped": is_dropped})
        output.say(_line(retirement, is_dropped=is_dropped))
        problems += [] if problem is None else [problem]
    if not chosen:
        output.say("There are no tables except those that definitions declare.")
    output.result({"tables": results, "wrong_definitions": dict(defined.wrong)})
    if not tables:
        for line in (*problems, *defined.wrong_lines()):
            output.say(line)
    elif problems:
        raise click.ClickException("\n".join(problems))


def _candidates(defined: ProjectHooks, known: list[KnownTable]) -> list[KnownTable]:
    return [table for table in known if defined.needed_by(table) is None]


def _obstacle(defined: ProjectHooks, retirement: Retirement) -> str | None:
    """Return why the table cannot be dropped; None if it can."""
    name = retirement.table.name
    if (needed := defined.needed_by(retirement.table)) is not None:
        return f"table {name!r} is not dropped: {needed}"
    if retirement.blocked:
        users = ", ".join(retirement.blocked)
        return f"table {name!r} is not dropped: {users} uses it: drop that first"
    return None


def _line(retirement: Retirement, *, is_dropped: bool) -> str:
    table = retirement.table
    shown = (
        table.asset if table.as_of is None else f"{table.asset} as of {json_instant(table.as_of)}"
    )
    line = (
        f"{table.name}: {shown}; {counted(retirement.batches, 'batch')},"
        f" {counted(retirement.rows, 'row')},"
        f" {format_size(retirement.size_bytes)} in {counted(retirement.generations, 'generation')}"
    )
    if retirement.left is not None:
        line += f"; {retirement.left} is not the pipeline's and stays"
    return f"{line}: dropped" if is_dropped else line
