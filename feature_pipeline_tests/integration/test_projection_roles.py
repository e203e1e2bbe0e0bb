"""The pipeline as the owner role of `deploy/postgres/roles.sql`, people as its reader role."""

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rollback import rollback, unpin
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive
from feature_pipeline_tests.fixtures.postgres import PostgresAddress

pytestmark = pytest.mark.postgres

SCRIPT = Path(__file__).parents[2] / "deploy" / "postgres" / "roles.sql"
LABEL = Column(name="label", type="string")
COUNT = Column(name="count", type="integer")


class Roles:
    """The script's roles and database under names of this test's own: roles are the server's."""

    def __init__(self, server: PostgresAddress) -> None:
        self._server = server
        suffix = secrets.token_hex(4)
        self.owner, self.reader = f"feature_pipeline_{suffix}", f"feature_reader_{suffix}"
        self.database = f"features_{suffix}"
        self._password = secrets.token_hex(16)
        before, after = self._script().split("\\connect features\n")
        self._run(server.url, before)
        self._run(server.database_url(self.database), after)

    def _script(self) -> str:
        text = "\n".join(
            line for line in SCRIPT.read_text().splitlines() if not line.strip().startswith("--")
        )
        for old, new in (
            (r":owner_password|:reader_password", f"'{self._password}'"),
            (r"\bfeature_reader\b", self.reader),
            (r"\b(role|to|authorization|grant|revoke) feature_pipeline\b", rf"\1 {self.owner}"),
            (r"database features\b", f"database {self.database}"),
        ):
            text = re.sub(old, new, text)
        return text + "\n"

    def _run(self, url: str, text: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in filter(str.strip, text.split(";\n")):
                connection.execute(statement.encode())

    def url(self, role: str) -> str:
        parts = urlsplit(self._server.database_url(self.database))
        address = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{role}:{self._password}@{address}"))

    def drop(self) -> None:
        self._server.drop_database(self._server.database_url(self.database))
        with psycopg.connect(self._server.url, autocommit=True) as connection:
            for role in (self.owner, self.reader):
                connection.execute(sql.SQL("drop role {}").format(sql.Identifier(role)))


@pytest.fixture
def roles(postgres_server: PostgresAddress) -> Iterator[Roles]:
    roles = Roles(postgres_server)
    yield roles
    roles.drop()


def test_the_pipeline_needs_no_more_than_the_owner_role_has(roles: Roles) -> None:
    archive = FeatureArchive((LABEL, COUNT))
    for number in range(3):
        archive.add(f"b{number}", {f"r{number}": [{"label": "x", "count": number}]})
    database = Database(roles.url(roles.owner))
    list(load_batches(archive.store, database, archive.spec()))
    with psycopg.connect(roles.url(roles.reader), autocommit=True) as reader:
        assert reader.execute("select count(*) from features.pockets").fetchone() == (3,)

        archive.columns = (LABEL,)
        index = IndexDefinition(columns=("label",))
        spec = archive.spec(indexes=(index,), description="Words.")
        list(load_batches(archive.store, database, spec))
        rollback(archive.store, database, spec)
        assert unpin(archive.store, database, spec).is_settled

        assert prove(archive.store, database, spec).is_equal
        # the view was dropped and made again on the way, twice
        assert reader.execute("select count(*) from features.pockets").fetchone() == (3,)
        assert reader.execute("select count(*) from features._outcomes").fetchone() == (3,)


def test_what_people_make_as_the_owner_role_is_not_among_the_bookkeeping(roles: Roles) -> None:
    """By default "$user" comes first in search_path: the schema in which everything is dropped."""
    archive = FeatureArchive((LABEL,))
    archive.add("b1", {"r1": [{"label": "x"}]})
    list(load_batches(archive.store, Database(roles.url(roles.owner)), archive.spec()))

    with psycopg.connect(roles.url(roles.owner), autocommit=True) as owner:
        owner.execute("create view mine as select label from pockets")
        assert owner.execute("select 'mine'::regclass::oid = 'features.mine'::regclass").fetchone()


@pytest.mark.parametrize(
    "statement",
    [
        "insert into features.pockets (record_id, ordinal, batch) values ('r', 0, 'b')",
        "delete from features.pockets",
        "drop view features.pockets",
        "select * from feature_pipeline.generations",
        "select * from feature_pipeline.outcomes",
        "create table features.own (a int)",
        "create table feature_pipeline.own (a int)",
        "create table public.own (a int)",
    ],
)
def test_the_reader_role_only_reads(roles: Roles, statement: str) -> None:
    archive = FeatureArchive((LABEL, COUNT))
    archive.add("b1", {"r1": [{"label": "x", "count": 1}]})
    list(load_batches(archive.store, Database(roles.url(roles.owner)), archive.spec()))
    with (
        psycopg.connect(roles.url(roles.reader)) as reader,
        pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.WrongObjectType)),
    ):
        reader.execute(statement.encode())
