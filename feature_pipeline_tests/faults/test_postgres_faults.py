"""The PostgreSQL drill's short form: each fault at each place, and a life under all of them.

The loader names what happened, and the same load done again ends with the archive's digest.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

import psycopg
import pytest

from feature_pipeline.errors import ProjectionError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline_tests.faults.postgres_drill import (
    BATCHES,
    COUNT,
    LABEL,
    NOTE,
    answers,
    drill,
)
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive, three_batches
from feature_pipeline_tests.fixtures.postgres_faults import (
    BY_PROXY,
    RATES,
    Fault,
    FaultPlan,
    Place,
    PostgresProxy,
    postgres_proxy,
)
from feature_pipeline_tests.fixtures.table_catalog import leftovers

pytestmark = [pytest.mark.postgres, pytest.mark.faults]

NEVER = dict.fromkeys(Place, 0.0)
QUICK = tuple(fault for fault in BY_PROXY if fault is not Fault.SERVER_KILLED)


@pytest.fixture
def archive() -> FeatureArchive:
    archive = FeatureArchive((LABEL, COUNT))
    for number in range(BATCHES):
        archive.add(f"b{number}", answers(f"b{number}", "first"))
    return archive


@pytest.fixture
def proxy(database_url: str) -> Iterator[PostgresProxy]:
    with postgres_proxy(database_url) as proxy:
        yield proxy


@pytest.mark.parametrize("fault", QUICK)
def test_a_switch_ends_or_is_done_again(
    fault: Fault, proxy: PostgresProxy, database_url: str, archive: FeatureArchive
) -> None:
    """Once at each place that the fault can have: the next load ends it, and leaves nothing."""
    direct, faulty = Database(database_url), Database(proxy.url(database_url))
    list(load_batches(archive.store, direct, archive.spec()))
    for place in (place for place in Place if FaultPlan.can_happen(fault, place)):
        # A generation of its own; every other view is dropped and created again.
        note = Column(name="note", type="string", default=place.value)
        archive.columns = (LABEL, COUNT, note) if len(archive.columns) == 2 else (note, LABEL)
        spec = archive.spec()
        rate = 0.1 if place is Place.STATEMENT else 1.0
        proxy.plan = plan = FaultPlan((fault,), {**NEVER, place: rate}, seed=3)
        with suppress(ProjectionError):
            list(fill(archive.store, faulty, begin_rebuild(archive.store, faulty, spec)))
        assert plan.injected or fault in (Fault.CANCELED, Fault.TIMEOUT), place
        proxy.plan = FaultPlan()
        list(load_batches(archive.store, faulty, spec))
        assert prove(archive.store, direct, spec).is_equal, place
        assert leftovers(database_url) == [], place


def test_the_answer_to_a_switch_is_lost(
    proxy: PostgresProxy, database_url: str, archive: FeatureArchive
) -> None:
    """It was committed, the loader cannot know, and says that the connection ended."""
    direct, faulty = Database(database_url), Database(proxy.url(database_url))
    list(load_batches(archive.store, direct, archive.spec()))
    archive.columns = (LABEL, COUNT, NOTE)
    proxy.plan = plan = FaultPlan((Fault.RESET_AFTER,), {**NEVER, Place.SWITCH: 1.0})
    with pytest.raises(ProjectionError):
        list(load_batches(archive.store, faulty, archive.spec()))
    assert plan.injected == {(Fault.RESET_AFTER, Place.SWITCH): 1}
    with direct.connect("test") as connection:
        [names] = connection.execute("select count(note) from features.pockets").fetchall()
    assert names[0] > 0
    list(load_batches(archive.store, direct, archive.spec()))
    assert leftovers(database_url) == []


# Cancels a statement that sleeps, if there is one.
CANCEL = """
select pg_cancel_backend(pid) from pg_stat_activity where datname = current_database()
and pid <> pg_backend_pid() and state = 'active' and wait_event = 'PgSleep'"""


def test_a_view_that_could_not_be_filled_just_now_is_not_to_be_dropped(
    database_url: str, connection: psycopg.Connection, archive: FeatureArchive
) -> None:
    """The switch is canceled while it fills a materialized view on the new columns."""
    database = Database(database_url)
    list(load_batches(archive.store, database, archive.spec()))
    connection.execute(
        "create materialized view public.slow as"
        " select count(label), (select pg_sleep(0.5)::text) from features.pockets"
    )
    archive.columns = (NOTE, LABEL)
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(lambda: list(load_batches(archive.store, database, archive.spec())))
        while not connection.execute(CANCEL).fetchall() and not load.done():
            pass
        with pytest.raises(ProjectionError, match="canceling statement") as caught:
            load.result()
    assert "drop it" not in str(caught.value)
    list(load_batches(archive.store, database, archive.spec()))
    assert prove(archive.store, database, archive.spec()).is_equal
    assert leftovers(database_url) == []


def prove_slowly(database_url: str) -> None:
    """Load and prove a table; each answer ends a while after it began."""
    archive = three_batches()
    plan = FaultPlan((Fault.SLOW,), {**NEVER, Place.STATEMENT: 1.0})
    with postgres_proxy(database_url) as proxy:
        database = Database(proxy.url(database_url))
        list(load_batches(archive.store, database, archive.spec()))
        proxy.plan = plan
        assert prove(archive.store, database, archive.spec()).is_equal


def test_a_slow_end_of_an_answer_stops_no_other_thread(database_url: str) -> None:
    """Neither the proxy's: it is in the same process, and would never send that end."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["feature_pipeline_tests.faults.test_postgres_faults"])
    child = context.Process(target=prove_slowly, args=[database_url])
    child.start()
    child.join(120)
    child.kill()
    child.join()
    assert child.exitcode == 0


@pytest.mark.slow
def test_a_life_under_faults() -> None:
    """The server is killed, its connections are used up, and its disk is full, if it has one."""
    with drill() as running:
        running.round(FaultPlan(tuple(Fault), RATES, seed=5))
    assert running.tally.problems == []
    assert running.tally.injected.total() > 10, running.tally.injected
