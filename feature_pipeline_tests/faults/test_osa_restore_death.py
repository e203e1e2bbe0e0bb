"""SIGKILL while a server's table is restored: readers keep the old one, a second run ends it."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

import pytest

from feature_pipeline.osa.restore import replace, runs, tables
from feature_pipeline.osa.restore.result import State
from feature_pipeline_tests.integration.test_osa_restore import Archived, archived, taken

__all__ = ["archived", "taken"]
pytestmark = [pytest.mark.postgres, pytest.mark.faults]

# Where the process is killed: module or class, function, how many calls before, and after it?
STEPS = {
    "before the first row": (tables, "_write", 0, False),
    "amid the rows": (tables, "_write", 3, False),
    "when read back": (tables, "_prove", 0, True),
    "amid hook runs": (runs, "fetch_one", 1, False),
    "with indexes and keys": (tables, "_complete", 0, True),
    "in the switch": (replace, "_rename", 2, True),
    "after it": (tables, "replace_table", 0, True),
}


def killed_at(
    action: Callable[[], object], module: ModuleType, name: str, call: int, is_after: bool
) -> None:
    """Carry out the action in a process that is killed there."""

    def child() -> None:
        original, calls = getattr(module, name), iter(range(1_000_000))

        @wraps(original)
        def fatal(*args: Any, **kwargs: Any) -> Any:
            if next(calls) != call:
                return original(*args, **kwargs)
            if is_after:
                original(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        setattr(module, name, fatal)
        try:
            action()
        finally:
            os._exit(0)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


def lose(beside: Archived) -> None:
    """The server's tables, their hook runs and releases are gone."""
    beside.sql("drop schema features cascade")
    beside.sql("update hooks set live_release_id = null")
    beside.sql("delete from hook_runs")
    beside.sql("delete from hook_releases")


def names(beside: Archived) -> list[tuple[Any, ...]]:
    return beside.query(
        "select c.relname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace"
        " where n.nspname = 'features' order by 1"
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_killed_restore_of_a_lost_table_is_completed(archived: Archived, step: str) -> None:
    definitions = archived.definitions
    lose(archived)
    killed_at(lambda: archived.restore("qc"), *STEPS[step])
    is_there = ("qc",) in names(archived)
    assert is_there == (step == "after it")
    again = archived.restore("qc")["qc"]
    assert again.state is (State.EQUAL if is_there else State.RESTORED)
    rows, shape = archived.whole("qc"), names(archived)
    assert archived.query("select count(*) from hook_runs") == [(9,)]
    assert archived.query("select count(*) from hook_releases") == [(2,)]
    # as if nothing had happened
    archived.definitions = definitions
    lose(archived)
    archived.restore("qc")
    assert archived.whole("qc") == rows
    assert names(archived) == shape


@pytest.mark.parametrize("step", ["amid the rows", "with indexes and keys", "in the switch"])
def test_a_killed_restore_leaves_the_table_as_it_was(archived: Archived, step: str) -> None:
    before, shape = archived.whole("qc"), names(archived)
    killed_at(lambda: archived.restore("qc"), *STEPS[step])
    assert archived.whole("qc") == before
    assert {name for (name,) in names(archived)} >= {name for (name,) in shape}
    assert archived.restore("qc")["qc"].state is State.RESTORED
    assert archived.whole("qc-replaced") == before
    assert not [name for (name,) in names(archived) if "restoring" in name]
    assert archived.restore("qc")["qc"].state is State.EQUAL
