"""What libpq would take from the environment is out of it while connections are made."""

import os
import threading

import pytest
from psycopg import pq

from feature_pipeline.projections.catalog.libpq import PREFIX, nothing_ambient


def ambient() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}


@pytest.fixture
def shell(monkeypatch) -> dict[str, str]:
    # the last is of a libpq that is yet to come
    variables = {"PGSERVICE": "nowhere", "PGHOSTADDR": "10.0.0.1", "PGREQUIREAUTH": "md5"}
    variables["PGOFTOMORROW"] = "yes"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return variables


def test_they_are_gone_inside_and_back_afterwards(shell):
    with nothing_ambient():
        assert ambient() == {}
        with nothing_ambient():
            assert ambient() == {}
        assert ambient() == {}
    assert ambient() == shell


def test_also_when_something_fails(shell):
    with pytest.raises(ZeroDivisionError), nothing_ambient():
        raise ZeroDivisionError
    assert ambient() == shell


def test_no_thread_inside_sees_those_that_another_has_put_back(shell):
    """The first to leave must not put back what the second has to be without."""
    entered, leave = threading.Barrier(2), threading.Event()
    environments: list[dict[str, str]] = []

    def stay() -> None:
        with nothing_ambient():
            entered.wait(10)
            leave.wait(10)
            environments.append(ambient())

    thread = threading.Thread(target=stay)
    with nothing_ambient():
        thread.start()
        entered.wait(10)
    leave.set()
    thread.join(10)
    assert environments == [{}]
    assert ambient() == shell


def test_a_variable_set_meanwhile_is_not_overwritten(shell):
    with nothing_ambient():
        os.environ["PGSERVICE"] = "newer"
    assert ambient() == shell | {"PGSERVICE": "newer"}


def test_all_that_libpq_reads_begins_alike():
    names = [option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar]
    assert {"PGHOST", "PGPASSWORD", "PGSSLMODE", "PGCHANNELBINDING", "PGOPTIONS"} <= set(names)
    assert all(name.startswith(PREFIX) for name in names)
