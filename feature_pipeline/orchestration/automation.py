"""When features and tables are run without being asked.

Belongs here: the automation conditions and their sensor. Not here: accepting completions
(`inbox_sensor`), mending drift (`reconcile`). Automation alone owns runs: no other sensor here
requests any.
"""

import dagster as dg

TICK_SECONDS = 5

Condition = dg.AutomationCondition[dg.AssetKey | dg.AssetCheckKey]


def _quiet() -> Condition:
    """True while neither the partition nor anything it is made from is being run."""
    return (
        ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
    )


def _input_changed() -> Condition:
    # AutomationCondition.eager() looks at events, not data versions: an identical re-run would
    # run everything downstream again.
    return dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.data_version_changed()
    ).since_last_handled()


def tables() -> Condition:
    """Run when what a loaded batch is made from says something new."""
    return (_input_changed() & _quiet()).with_label("features changed")


def features() -> Condition:
    """Run for new batches, and when input features say something new. A failed run waits."""
    absent = dg.AutomationCondition.missing() & ~dg.AutomationCondition.execution_failed()
    return ((absent | _input_changed()) & _quiet()).with_label("batch missing or inputs changed")


def automation_sensor() -> dg.AutomationConditionSensorDefinition:
    """Evaluates every condition of the code location every `TICK_SECONDS`; running by default."""
    return dg.AutomationConditionSensorDefinition(
        "automation",
        target=dg.AssetSelection.all(),
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=TICK_SECONDS,
    )
