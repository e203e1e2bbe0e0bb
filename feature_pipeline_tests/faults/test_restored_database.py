"""A database is restored from an older copy, while the archive went on: the next load suffices.

The other way round, an older archive under a newer database, is in `test_log_loss`.
"""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.local.postgres import find_binaries
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.preview import plan_table
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild
from feature_pipeline.projections.rollback import rollback, unpin
from feature_pipeline.projections.switch.finalize import table_report
from feature_pipeline_tests.fixtures.feature_archive import (
    COUNT,
    LABEL,
    FeatureArchive,
    three_batches,
)
from feature_pipeline_tests.fixtures.postgres import PostgresAddress
from feature_pipeline_tests.fixtures.table_catalog import leftovers

pytestmark = [pytest.mark.postgres, pytest.mark.faults]

NOTE = Column(name="note", type="string", default="none")
INDEX = IndexDefinition(columns=("label",))
SECRET = "l2"
"""The value of `r2`, which is erased after the copy was made."""

Copy = Callable[[str], str]
"""Returns the URL of a database that is a copy of this one."""


@pytest.fixture(params=["dump", "template"])
def copy(request, postgres_server: PostgresAddress, tmp_path: Path):
    """By pg_dump and pg_restore, in which every object is a new one; or of the files."""
    made = []

    def make(url: str) -> str:
        if request.param == "template":
            made.append(postgres_server.create_database(template=url))
            return made[-1]
        made.append(postgres_server.create_database())
        path, binaries = str(tmp_path / "dump"), find_binaries()
        for command in (
            ["pg_dump", "--format=custom", f"--file={path}", url],
            ["pg_restore", "--exit-on-error", f"--dbname={made[-1]}", path],
        ):
            done = subprocess.run(
                [str(binaries / command[0]), *command[1:]],
                env={**os.environ, "LC_ALL": "C"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        return made[-1]

    yield make
    for url in made:
        postgres_server.drop_database(url)


def load(archive: FeatureArchive, database: Database) -> None:
    list(load_batches(archive.store, database, archive.spec(indexes=(INDEX,))))


def loaded_table(database: Database) -> FeatureArchive:
    """A table that was switched once, with a view and a grant of others."""
    archive = three_batches()
    archive.columns = (LABEL,)
    load(archive, database)
    archive.columns = (LABEL, COUNT)
    load(archive, database)
    with database.connect("test") as connection:
        connection.execute("create view public.labels as select label from features.pockets")
        connection.execute("grant select on features.pockets to public")
    return archive


def go_on(archive: FeatureArchive) -> None:
    """Batches are computed anew and added, a record is erased, a column is declared."""
    archive.say("b1", {"r1": [{"label": "anew", "count": 1}]})
    archive.add("b3", {"r3": [{"label": "l3", "count": 3}]})
    erase(archive.store, "demo", ["r2"], "asked for")
    archive.columns = (LABEL, COUNT, NOTE)


def check(archive: FeatureArchive, database: Database) -> None:
    """Nothing but the archive's current content is in the database."""
    spec = archive.spec(indexes=(INDEX,))
    assert plan_table(archive.store, database, spec).is_all
    load(archive, database)
    assert prove(archive.store, database, spec).is_equal
    report = table_report(archive.store, database, spec)
    assert report is not None
    assert report.is_settled, report.summary()
    with database.connect("test") as connection:
        rows = connection.execute("select record_id, label, note from features.pockets order by 1")
        expected = [("r0", "l0", "none"), ("r1", "anew", "none"), ("r3", "l3", "none")]
        assert rows.fetchall() == expected
        labels = connection.execute("select label from public.labels order by 1").fetchall()
        assert labels == [("anew",), ("l0",), ("l3",)]
        [granted] = connection.execute(
            "select has_table_privilege('public', 'features.pockets', 'select')"
        ).fetchall()
        assert granted == (True,)
    assert leftovers(database.url) == []


def test_a_database_that_is_older_than_the_archive(database: Database, copy: Copy) -> None:
    archive = loaded_table(database)
    restored = Database(copy(database.url))
    go_on(archive)
    load(archive, database)
    check(archive, restored)
    # And the one that is not older, at which nothing happened.
    check(archive, database)


def test_a_copy_that_was_made_while_a_generation_was_built(database: Database, copy: Copy) -> None:
    archive = loaded_table(database)
    archive.columns = (LABEL, COUNT, Column(name="past", type="string"))
    begin_rebuild(archive.store, database, archive.spec())
    list(load_batches(archive.store, database, archive.spec(), ["b0"]))
    report = table_report(archive.store, database, archive.spec())
    assert report is not None
    assert report.missing == ("b1", "b2")
    restored = Database(copy(database.url))
    go_on(archive)
    check(archive, restored)


def test_a_copy_that_was_made_while_the_table_was_rolled_back(
    database: Database, copy: Copy
) -> None:
    archive = loaded_table(database)
    rollback(archive.store, database, archive.spec(indexes=(INDEX,)))
    restored = Database(copy(database.url))
    load(archive, restored)
    report = table_report(archive.store, restored, archive.spec(indexes=(INDEX,)))
    assert report is not None
    assert report.is_pinned
    unpin(archive.store, restored, archive.spec(indexes=(INDEX,)))
    go_on(archive)
    check(archive, restored)


def test_an_erased_value_comes_back_with_no_generation(database: Database, copy: Copy) -> None:
    """Of the copy's generations, the ones that are left after two switches do not have it."""
    archive = loaded_table(database)
    restored = Database(copy(database.url))
    go_on(archive)
    check(archive, restored)
    archive.columns = (LABEL, COUNT, NOTE, Column(name="more", type="string"))
    load(archive, restored)
    assert holding(restored.url, SECRET) == []


def holding(url: str, value: str) -> list[str]:
    """The tables that have this value in any column."""
    with psycopg.connect(url, autocommit=True) as connection:
        tables = connection.execute(
            "select schemaname, tablename from pg_tables"
            " where schemaname not in ('pg_catalog', 'information_schema')"
        ).fetchall()
        return [
            f"{schema}.{name}"
            for schema, name in tables
            if connection.execute(
                sql.SQL("select exists (select from {} t where t::text like %s)").format(
                    sql.Identifier(schema, name)
                ),
                [f"%{value}%"],
            ).fetchall()
            == [(True,)]
        ]
