"""`feature-pipeline status`: show the state of every hook's batches, and what is waiting."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_pipeline import settings
from feature_pipeline.archive import accept
from feature_pipeline.archive.logs.inbox import (
    Completion,
    InboxEntry,
    Submission,
    readable_quarantined,
)
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.instance import configured_instance
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.project_hooks import project_hooks, undeclared_lines
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.json_values import json_instant
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.retire import known_tables

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from feature_pipeline.orchestration.operations.batch_status import (
        AssetStatus,
        HookStatus,
        Sources,
    )

_COLUMNS = (
    *("batches", "archived", "missing", "failed", "stale", "old_release"),
    *("damaged", "lost", "waiting", "quarantined", "loaded", "to_load"),
)
_HEADINGS = {"old_release": "old", "to_load": "to load"}
_COUNTS = ("records", "passed", "rejected", "errored", "rows")
_MAX_DAGSTER_REASONS = 20
"""Of how many failed batches of an asset the reason is looked up in Dagster's events."""
Names = Counter[tuple[str, str]]


def status(deep: bool, as_json: bool) -> None:
    """Carry out `feature-pipeline status`."""
    from feature_pipeline.orchestration.operations.batch_status import Sources

    Project.find().load_environment()
    output = Output(as_json)
    store, database = open_archive(is_changed=False), Database(settings.database_url())
    waiting, readable = accept.waiting(store), readable_quarantined(store)
    quarantined = list(readable.intact.values())
    quarantined_entries = [entry.inbox_entry() for entry in quarantined]
    counters = {"waiting": _completions(waiting), "quarantined": _completions(quarantined_entries)}
    with ExitStack() as stack:
        instance = configured_instance(stack)
        defined = project_hooks()
        hooks = [
            _hook(Sources(store, database, instance), hook.definition, hook.folder, deep, counters)
            for hook in defined.usable
        ]
        repeats = [] if instance is None else _repeats(instance)
    _show(output, hooks, deep)
    for row in hooks:
        _say_why(output, row)
    undeclared = defined.undeclared(known_tables(database))
    for line in (*defined.wrong_lines(), *undeclared_lines(undeclared)):
        output.say(line)
    if instance is None:
        output.say("DAGSTER_HOME is not set: what only Dagster knows is not in these counts")
    batches = sum(isinstance(entry.content, Submission) for entry in waiting)
    output.say(f"inbox: {len(waiting)} waiting, {batches} of them batches")
    output.say(f"quarantine: {len(quarantined)}")
    for item in quarantined:
        output.say(f"  {item.id}: {item.reason}")
    output.reasons(
        "failed runs wait to be repeated",
        {f"{one['assets']} of {one['batches']}": one["until"] for one in repeats},
    )
    output.result(
        {
            "hooks": hooks,
            "repeats": repeats,
            "wrong_definitions": dict(defined.wrong),
            "undeclared_tables": [table.name for table in undeclared],
            "waiting": [entry.id for entry in waiting],
            "quarantined": [{"id": item.id, "reason": item.reason} for item in quarantined],
            "damaged_in_quarantine": {k: str(one.error) for k, one in readable.damage.items()},
        }
    )
    if _warn(output, hooks, {k: str(one.error) for k, one in readable.damage.items()}):
        raise SystemExit(FINDINGS)


def _warn(output: Output, hooks: list[dict[str, Any]], quarantine: Mapping[str, str]) -> bool:
    """Name damaged and lost batches; return whether there are any."""
    has_damage = bool(quarantine)
    for row in hooks:
        for what in ("damaged", "lost"):
            problems = row[f"{what}_batches"]
            has_damage = has_damage or bool(problems)
            output.problems(f"{what} in {row['dataset']}/{row['hook']}", problems)
    output.problems("entries of the quarantine cannot be read", quarantine)
    if has_damage:
        output.warn("`feature-pipeline repair` shows what can be restored")
    return has_damage


def _say_why(output: Output, row: Mapping[str, Any]) -> None:
    """Name what could not be computed or loaded, with the reasons."""
    hook = f"{row['dataset']}/{row['hook']}"
    output.reasons(f"batches that {hook} failed over", row["failures"])
    output.reasons(f"records errored in {hook}", row.get("errored_records", {}))
    if "table" in row:
        name = f"table {row['table']['name']}"
        output.reasons(f"batches whose last load into {name} failed", row["table"]["failures"])
        output.reasons(f"records that {name} cannot hold", row["table"]["left_out"])


def _repeats(instance: "DagsterInstance") -> list[dict[str, str]]:
    from feature_pipeline.orchestration.sensors.repeats import waiting_repeats

    return [
        {
            "assets": first_few([key.to_user_string() for key in each.assets]),
            "batches": first_few(each.batches),
            "until": "the definition can be used" if each.at is None else json_instant(each.at),
        }
        for each in waiting_repeats(instance)
    ]


def _failures(state: "AssetStatus", instance: "DagsterInstance | None") -> dict[str, str]:
    """Return why each failed batch failed; ask Dagster about the first few without a log entry."""
    from feature_pipeline.orchestration.sensors.repeat_causes import last_failure

    reasons: dict[str, str] = {}
    looked_up = 0
    for batch, facts in state.facts.items():
        if not facts.is_failed or facts.problem is not None:
            continue
        reason = facts.failure
        if reason is None and instance is not None and looked_up < _MAX_DAGSTER_REASONS:
            looked_up += 1
            reason = last_failure(instance, state.key, batch)
        reasons[batch] = reason or "its last Dagster run failed; its page in the UI says why"
    return reasons


def _completions(entries: Iterable[InboxEntry]) -> Names:
    """Count the waiting completions of each hook."""
    contents = [entry.content for entry in entries]
    return Counter((c.dataset, c.hook) for c in contents if isinstance(c, Completion))


def _hook(
    sources: "Sources",
    definition: HookDefinition,
    folder: Path,
    is_deep: bool,
    counters: dict[str, Names],
) -> dict[str, Any]:
    from feature_pipeline.orchestration.operations.batch_status import hook_status

    state = hook_status(sources, definition, folder, is_deep=is_deep)
    features, table = state.features, state.table
    row: dict[str, Any] = {
        "dataset": definition.dataset,
        "hook": definition.name,
        "batches": len(features.facts),
        "archived": len(state.heads),
        **_reasons(features),
        "damaged": len(state.damaged),
        "lost": len(state.lost),
        "damaged_batches": dict(state.damaged),
        "lost_batches": dict(state.lost),
        "failures": _failures(features, sources.instance),
        **{name: counts[definition.dataset, definition.name] for name, counts in counters.items()},
    }
    if table is not None:
        to_load = sum(not f.is_there or f.is_behind for f in table.facts.values())
        row |= {
            "loaded": len(table.facts) - to_load,
            "to_load": to_load,
            "table": {
                "name": definition.table_name,
                **_reasons(table),
                "failures": _failures(table, sources.instance),
                "left_out": dict(state.left_out),
            },
        }
    if is_deep:
        row |= {**archive_counts(state), "errored_records": dict(state.errored)}
    return row


def _reasons(state: "AssetStatus") -> dict[str, int]:
    from feature_pipeline.orchestration.operations.batch_status import Reason

    return {r.value.replace("-", "_"): len(state.batches(r)) for r in Reason}


def _show(output: Output, hooks: list[dict[str, Any]], is_deep: bool) -> None:
    for dataset in sorted({row["dataset"] for row in hooks}):
        own = [row for row in hooks if row["dataset"] == dataset]
        for title, columns in (("batches", _COLUMNS), ("records", _COUNTS if is_deep else ())):
            if columns:
                output.table(
                    f"{title} of {dataset}",
                    ["hook", *(_HEADINGS.get(name, name) for name in columns)],
                    [[row["hook"], *(row.get(name, "-") for name in columns)] for row in own],
                )
    for row in hooks:
        table = row.get("table", {})
        if table.get("failed") or table.get("stale"):
            output.say(
                f"table {table['name']}: {counted(table['failed'], 'batch')} whose last run failed,"
                f" {table['stale']:,} stale"
            )


def archive_counts(state: "HookStatus") -> dict[str, int]:
    """Sum up the counts of the current artifacts' records, without damaged artifacts."""
    counts = state.counts.values()
    return {name: sum(getattr(count, name) for count in counts) for name in _COUNTS}
