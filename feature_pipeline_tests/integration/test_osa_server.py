"""The recorded server's database."""

import secrets

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.errors import InvalidInputError, ProjectionError
from feature_pipeline.osa.server import Server
from feature_pipeline.projections.catalog.database import Database

pytestmark = pytest.mark.postgres


def test_the_server_is_read_without_writing(osa_server: Server) -> None:
    with osa_server.session() as reader:
        found = reader.definitions()
        assert sorted(found.hooks) == ["alignment", "pockets", "qc"]
        assert [release.version for release in found.hooks["qc"].releases] == [1, 2]
        assert found.hooks["qc"].live_release().version == 2
        assert found.conventions["pdb-structures"].hooks == ("pockets", "qc")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            reader.connection.execute("delete from public.hook_runs")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("drop table public.conventions", "there is no table public.conventions"),
        (
            "alter table public.hook_releases rename column source_ref to source",
            "public.hook_releases has no column 'source_ref'",
        ),
    ],
)
def test_another_schema_version_is_named_with_what_was_looked_at(
    osa_url: str, change: str, said: str
) -> None:
    with psycopg.connect(osa_url) as connection:
        connection.execute("update alembic_version set version_num = 'abc123'")
        connection.execute(change)
    with pytest.raises(InvalidInputError) as caught, Server(Database(osa_url)).session():
        pass
    message = str(caught.value)
    assert said in message
    assert "its schema version is abc123" in message
    assert "looked at public.hooks, public.hook_releases" in message


def test_a_table_without_access_is_named_with_the_grant(osa_url: str) -> None:
    with psycopg.connect(osa_url, autocommit=True) as connection:
        role = f"follower_{secrets.token_hex(4)}"
        name = sql.Identifier(role)
        connection.execute(sql.SQL("create role {} login password 'x'").format(name))
        connection.execute(sql.SQL("grant select on public.hooks to {}").format(name))
        try:
            other = psycopg.conninfo.conninfo_to_dict(osa_url) | {
                "user": role,
                "password": "x",
            }
            url = psycopg.conninfo.make_conninfo(**other)
            with pytest.raises(InvalidInputError) as caught, Server(Database(url)).session():
                pass
        finally:
            connection.execute(sql.SQL("revoke all on public.hooks from {}").format(name))
            connection.execute(sql.SQL("drop role {}").format(name))
    message = str(caught.value)
    assert "has no access to public.hook_releases, public.conventions" in message
    assert "grant select on public.hook_releases, public.conventions" in message


def test_a_database_that_is_not_there_is_an_error() -> None:
    with (
        pytest.raises(ProjectionError, match="Open Science Archive server's database"),
        Server(Database("postgresql://reader@127.0.0.1:1/none")).session(),
    ):
        pass
