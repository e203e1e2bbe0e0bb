"""`feature-pipeline plan`: preview what loading a hook's table would change, cost and refuse."""

from importlib import import_module

from feature_pipeline import settings
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import project_hooks, undeclared_lines
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.definition import Compute, HookDefinition
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quantities import format_size
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.preview import TablePlan, plan_table
from feature_pipeline.projections.retire import known_tables

SHOWN = 10
_OTHER_SYSTEMS = ("feature_pipeline.cli.commands.other_systems.osa",)
"""Modules with `drift_lines`, one per system that may compute hooks."""


def plan(hook: str, dataset: str | None, as_json: bool) -> None:
    """Carry out `feature-pipeline plan`."""
    from feature_pipeline.orchestration.assets.tables import table_spec

    Project.find().load_environment()
    defined = project_hooks()
    definition = defined.find(hook, dataset).definition
    if not definition.has_table:
        raise InvalidInputError(f"hook {hook!r} declares no columns, so it has no table")
    output = Output(as_json)
    database = Database(settings.database_url())
    table_plan = plan_table(open_archive(is_changed=False), database, table_spec(definition))
    undeclared = defined.undeclared(known_tables(database))
    for line in (
        *plan_lines(table_plan),
        *elsewhere_lines(definition),
        *undeclared_lines(undeclared),
    ):
        output.say(line)
    output.result({**table_plan.to_json(), "undeclared": [table.name for table in undeclared]})
    output.problems("damaged, and not in the plan", table_plan.damaged)
    output.problems("lost in the archive, and not in the plan", table_plan.lost)
    if not table_plan.is_all:
        output.warn("`feature-pipeline repair` shows what can be restored")
    if table_plan.is_refused or not table_plan.is_all:
        raise SystemExit(FINDINGS)


def elsewhere_lines(definition: HookDefinition) -> list[str]:
    """Return how a hook computed elsewhere differs from its definition there; empty for others.

    The module is named, not imported: one package alone knows each other system.
    """
    if definition.compute is not Compute.ELSEWHERE:
        return []
    lines: list[str] = []
    for module in _OTHER_SYSTEMS:
        lines += import_module(module).drift_lines(definition)
    return lines


def plan_lines(plan: TablePlan) -> list[str]:
    """Return the plan as text."""
    lines = [f"{plan.table}: {plan.action.value.replace('_', ' ')}"]
    for what, names in (
        ("columns added", plan.added),
        ("columns dropped", plan.dropped),
        ("columns changed", plan.changed),
        ("indexes built", plan.indexes_added),
        ("indexes dropped", plan.indexes_dropped),
        ("views made again", plan.remade_views),
    ):
        if names:
            lines.append(f"  {what}: {', '.join(names)}")
    lines.extend(f"  column {sentence}" for sentence in plan.without_values)
    if plan.batches:
        table = (
            ""
            if plan.table_bytes is None
            else f", about {format_size(plan.table_bytes)} in PostgreSQL"
        )
        lines.append(
            f"  to load: {counted(plan.batches, 'batch')}, {counted(plan.rows, 'row')},"
            f" {format_size(plan.archive_bytes)} in S3{table}, about {plan.seconds:,.0f} s"
        )
    for batch, why in list(plan.refused.items())[:SHOWN]:
        lines.append(f"  refused: batch {batch}: {why}")
    if len(plan.refused) > SHOWN:
        lines.append(f"  refused: {counted(len(plan.refused) - SHOWN, 'more batch')}")
    lines.extend(f"  {sentence}" for sentence in (*plan.repairs, *plan.not_kept))
    lines.extend(f"  refused: {violation}" for violation in plan.violations)
    lines.extend(f"  refused: the switch, because {reason}" for reason in plan.blocked)
    return lines
