"""A generation is filled without its primary key, which is there once a record must be found."""

import psycopg
import pytest

from feature_pipeline.model.columns import Column
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline.projections.switch import finalize
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

pytestmark = pytest.mark.postgres

LABEL = Column(name="label", type="string")


class KilledError(Exception):
    """Stands for the end of the process before the key is built."""


@pytest.fixture
def archive() -> FeatureArchive:
    archive = FeatureArchive((LABEL,))
    for number in range(3):
        archive.add(f"b{number}", {f"r{number}": [{"label": "x"}, {"label": "y"}]})
    return archive


@pytest.fixture
def connection(database_url):
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def load_and_die(archive, database, monkeypatch) -> None:
    """Load every batch into the generation that is being built; its key is not yet built then."""

    def die(*_: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(finalize, "ensure_key", die)
        with pytest.raises(KilledError):
            list(load_batches(archive.store, database, archive.spec()))


def keys(connection) -> list[tuple[str, bool]]:
    """Return the real tables, oldest first, and whether each has its key."""
    return connection.execute(
        "select g.relation, exists (select from pg_constraint c join pg_class t"
        " on t.oid = c.conrelid where t.relname = g.relation and c.contype = 'p'"
        " and c.conname = g.relation || '_pkey')"
        " from feature_pipeline.generations g order by g.id"
    ).fetchall()


def test_a_load_that_ends_before_the_key_is_built_is_continued(
    archive, database, connection, monkeypatch
) -> None:
    load_and_die(archive, database, monkeypatch)
    ((relation, is_keyed),) = keys(connection)
    assert not is_keyed
    reports = list(load_batches(archive.store, database, archive.spec()))
    assert all(report.is_unchanged for report in reports)
    assert keys(connection) == [(relation, True)]
    assert prove(archive.store, database, archive.spec()).is_equal


def test_a_rebuild_that_ends_before_the_key_is_built_is_continued(
    archive, database, connection, monkeypatch
) -> None:
    spec = archive.spec()
    list(load_batches(archive.store, database, spec))
    begun = begin_rebuild(archive.store, database, spec)
    load_and_die(archive, database, monkeypatch)
    assert [is_keyed for _, is_keyed in keys(connection)] == [True, False]
    again = begin_rebuild(archive.store, database, spec)
    assert (again.generation, again.batches) == (begun.generation, ())
    list(fill(archive.store, database, again))
    assert (begun.generation, True) in keys(connection)
    proof = prove(archive.store, database, spec)
    assert proof.is_equal
    assert proof.rows == 6


def test_the_key_is_built_before_a_record_is_replaced(
    archive, database, connection, monkeypatch
) -> None:
    archive.add("b3", {"r0": [{"label": "z"}]})
    load_and_die(archive, database, monkeypatch)
    assert [is_keyed for _, is_keyed in keys(connection)] == [True]
    list(load_batches(archive.store, database, archive.spec()))
    proof = prove(archive.store, database, archive.spec())
    assert proof.is_equal
    assert proof.rows == 5


def test_two_loads_that_need_the_key_build_it_once(archive, database, connection) -> None:
    for number in range(4, 12):
        archive.add(f"b{number}", {f"r{number % 3}": [{"label": str(number)}] * 3})
    spec = archive.spec()
    list(load_batches(archive.store, database, spec, workers=4))
    assert [is_keyed for _, is_keyed in keys(connection)] == [True]
    assert prove(archive.store, database, spec).is_equal


def test_a_generation_with_a_row_twice_is_discarded(
    archive, database, connection, monkeypatch
) -> None:
    load_and_die(archive, database, monkeypatch)
    ((wrong, _),) = keys(connection)
    table = f'feature_pipeline."{wrong}"'
    connection.execute(f"insert into {table} select * from {table} where record_id = 'r1'".encode())
    list(load_batches(archive.store, database, archive.spec()))
    reasons = connection.execute("select relation, reason from feature_pipeline.discarded")
    ((relation, reason),) = reasons.fetchall()
    assert relation == wrong
    assert "its key cannot be built" in reason
    assert "(record_id, ordinal)=(r1, " in reason
    assert prove(archive.store, database, archive.spec()).is_equal


def test_the_key_of_a_table_that_is_read_is_not_optional(archive, database, connection) -> None:
    list(load_batches(archive.store, database, archive.spec()))
    ((relation, _),) = keys(connection)
    connection.execute(
        f'alter table feature_pipeline."{relation}" drop constraint "{relation}_pkey"'.encode()
    )
    list(load_batches(archive.store, database, archive.spec()))
    assert all(is_keyed for name, is_keyed in keys(connection) if name != relation)
    assert prove(archive.store, database, archive.spec()).is_equal
