"""What a backfill takes: a table of facts, and plans over several hooks."""

from collections.abc import Mapping
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.execution.backfill import BulkActionStatus

from feature_pipeline.errors import ConflictError, InvalidInputError, NotFoundError
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.operations.backfills import (
    AssetPart,
    BackfillPlan,
    Select,
    Target,
    active_backfills,
    cancel_backfill,
    find_targets,
    is_daemon_running,
    launch_backfill,
    plan_backfill,
)
from feature_pipeline.orchestration.operations.batch_status import (
    AssetStatus,
    BatchFacts,
    HookStatus,
)

THERE = BatchFacts(is_there=True)
ABSENT = BatchFacts(is_there=False)
BATCHES = ("b3", "b1", "b2")  # in the order of submission


@pytest.mark.parametrize(
    ("facts", "taken_by"),
    [
        (THERE, set()),
        (ABSENT, {"missing"}),
        (BatchFacts(is_there=False, is_failed=True), {"missing", "failed"}),
        (BatchFacts(is_there=True, is_failed=True), {"failed"}),
        (BatchFacts(is_there=True, has_retryable_errors=True), {"failed"}),
        (BatchFacts(is_there=True, is_behind=True), {"stale"}),
        (BatchFacts(is_there=True, is_stale_in_dagster=True), {"stale"}),
        (BatchFacts(is_there=True, is_other_release=True), {"old-release"}),
        # what is not there cannot be stale, whatever Dagster remembers of it
        (BatchFacts(is_there=False, is_stale_in_dagster=True, is_behind=True), {"missing"}),
    ],
)
def test_which_selections_take_a_partition(facts: BatchFacts, taken_by: set[str]) -> None:
    assert {select.value for select in Select if select.selects(facts)} == taken_by | {"all"}


def hook(name: str, dataset: str = "letters", **changes: object) -> HookDefinition:
    return HookDefinition.model_validate(
        {
            "name": name,
            "dataset": dataset,
            "release": {"version": "1", "command": ["python", "p.py"], "image": IMAGE},
            "feature": {"columns": [{"name": "x", "type": "string"}]},
            **changes,
        }
    )


IMAGE = f"example.org/p@sha256:{'0' * 64}"
COUNTS = hook("counts")
SUMS = hook("sums", inputs=("counts", "checked"))
SLOW = hook("slow", compute="on_request", table={"materialize": "on_request", "name": "slowly"})
CHECK = hook("checked", feature={"columns": []})
HOOKS = [COUNTS, SUMS, SLOW, CHECK]


def standing(
    definition: HookDefinition,
    features: dict[str, BatchFacts],
    table: dict[str, BatchFacts] | None = None,
    *,
    running: frozenset[str] = frozenset(),
    without_input: Mapping[str, set[str]] | None = None,
    is_registered: bool = True,
) -> HookStatus:
    order = {batch: features[batch] for batch in BATCHES if batch in features}
    dataset = definition.dataset
    return HookStatus(
        definition=definition,
        release=definition.hook_release(Path()),
        is_registered=is_registered,
        features=AssetStatus(features_key(dataset, definition.name), order, running),
        table=None
        if table is None
        else AssetStatus(table_key(dataset, definition.table_name), table),
        heads={},
        without_input={n: frozenset(b) for n, b in (without_input or {}).items()},
    )


def taken(plan: BackfillPlan) -> dict[str, list[str]]:
    assets = plan.to_json()["assets"]
    assert isinstance(assets, dict)
    return assets


def plan(select: Select, *chosen: tuple[Target, HookStatus]) -> BackfillPlan:
    return plan_backfill(select, chosen, {"letters": set(BATCHES)})


def test_names_mean_features_and_the_table_that_is_always_there() -> None:
    def chosen(*names: str, tables: bool | None = None) -> set[tuple[str, bool, bool]]:
        targets = find_targets(HOOKS, names, tables)
        return {(t.definition.name, t.features, t.table) for t in targets}

    everything = {
        ("counts", True, True),
        ("sums", True, True),
        ("slow", True, False),
        ("checked", True, False),
    }
    assert chosen() == everything
    assert chosen(tables=True) == everything - {("slow", True, False)} | {("slow", True, True)}
    assert chosen(tables=False) == {(name, True, False) for name, _, _ in everything}
    assert chosen("letters/counts") == chosen("counts") == {("counts", True, True)}
    assert chosen("slowly") == chosen("letters/tables/slowly") == {("slow", False, True)}
    assert chosen("letters/features/counts") == {("counts", True, False)}
    assert chosen("slow", "slowly") == {("slow", True, True)}
    with pytest.raises(NotFoundError, match=r"no hook and no table 'conuts'; .* letters/counts"):
        chosen("conuts")
    with pytest.raises(InvalidInputError, match="--no-tables"):
        chosen("slowly", tables=False)
    with pytest.raises(InvalidInputError, match="write letters/counts"):
        find_targets([COUNTS, hook("counts", dataset="digits")], ["counts"])


def test_a_table_is_loaded_for_its_own_sake_and_after_its_features() -> None:
    whole = Target(COUNTS, table=True)
    facts = standing(
        COUNTS,
        {"b1": THERE, "b2": ABSENT, "b3": THERE},
        {"b1": THERE, "b3": BatchFacts(is_there=False)},
    )
    assert taken(plan(Select.MISSING, (whole, facts))) == {
        "letters/features/counts": ["b2"],
        "letters/tables/counts": ["b3", "b2"],
    }
    table_only = Target(COUNTS, features=False, table=True, is_named=True)
    assert taken(plan(Select.MISSING, (table_only, facts))) == {"letters/tables/counts": ["b3"]}
    nothing = plan(Select.FAILED, (whole, facts))
    assert nothing.is_empty
    assert nothing.notes == ()


def test_features_of_features_are_left_out_unless_their_input_comes_along() -> None:
    absent = dict.fromkeys(BATCHES, ABSENT)
    sums = (
        Target(SUMS),
        standing(SUMS, absent, without_input={"counts": {"b1", "b2"}, "checked": set()}),
    )
    alone = plan(Select.MISSING, sums)
    assert taken(alone) == {"letters/features/sums": ["b3"]}
    assert "2 batches left out without an artifact of counts or checked (b1, b2)" in alone.notes[0]
    counts = Target(COUNTS), standing(COUNTS, {"b1": ABSENT, "b2": THERE, "b3": THERE})
    together = plan(Select.MISSING, sums, counts)  # in whatever order they are named
    assert taken(together) == {
        "letters/features/sums": ["b3", "b1"],
        "letters/features/counts": ["b1"],
    }


def test_batches_left_out_are_named() -> None:
    facts = standing(COUNTS, dict.fromkeys(BATCHES, ABSENT), running=frozenset({"b1"}))
    backfill = plan_backfill(Select.MISSING, [(Target(COUNTS), facts)], {"letters": {"b1", "b2"}})
    assert taken(backfill) == {"letters/features/counts": ["b2"]}
    assert "1 batch not yet a partition in Dagster (b3)" in backfill.notes[0]
    assert "1 batch running already (b1)" in backfill.notes[1]
    everything = plan(Select.ALL, (Target(COUNTS), facts))
    assert taken(everything) == {"letters/features/counts": list(BATCHES)}

    status = standing(SLOW, {"b1": ABSENT, "b2": BatchFacts(is_there=True, is_failed=True)})
    unnamed = plan(Select.ALL, (Target(SLOW), status))
    assert taken(unnamed) == {"letters/features/slow": ["b2"]}
    assert "it computes on request; name it" in unnamed.notes[0]
    named = plan(Select.ALL, (Target(SLOW, is_named=True), status))
    assert taken(named) == {"letters/features/slow": ["b1", "b2"]}

    new = standing(COUNTS, {"b1": BatchFacts(True, is_other_release=True)}, is_registered=False)
    old = plan(Select.OLD_RELEASE, (Target(COUNTS), new))
    assert "release 1 as it is declared is not the last one registered" in old.notes[0]


def test_an_empty_plan_is_not_launched_and_a_title_is_never_too_long(tmp_path: Path) -> None:
    with dg.instance_for_test(temp_dir=str(tmp_path)) as instance:
        with pytest.raises(InvalidInputError, match="nothing to run"):
            launch_backfill(instance, BackfillPlan(Select.ALL, ()))
        keys = [features_key("letters", f"{'h' * 38}_{number}") for number in range(9)]
        parts = tuple(AssetPart(key, ("b1",)) for key in keys)
        launched = instance.get_backfill(launch_backfill(instance, BackfillPlan(Select.ALL, parts)))
        assert launched is not None
        assert launched.title is not None
        assert launched.title.startswith(f"all: letters/features/{'h' * 38}_0, ")
        assert active_backfills(instance) == [launched.backfill_id]
        assert not is_daemon_running(instance)
        instance.update_backfill(launched.with_status(BulkActionStatus.COMPLETED_SUCCESS))
        assert active_backfills(instance) == []
        with pytest.raises(ConflictError, match="is done: COMPLETED_SUCCESS"):
            cancel_backfill(instance, launched.backfill_id)


def test_what_another_system_computes_is_never_run() -> None:
    """Its asset has no op: a backfill with it would be refused as a whole."""
    elsewhere = hook("elsewhere", compute="elsewhere")
    facts = standing(elsewhere, {"b1": ABSENT, "b2": THERE}, {"b2": ABSENT})
    backfill = plan(Select.MISSING, (Target(elsewhere, table=True, is_named=True), facts))
    assert taken(backfill) == {"letters/tables/elsewhere": ["b2"]}
    assert backfill.notes == (
        "letters/features/elsewhere: 1 batch left out: another system computes it (b1)",
    )
