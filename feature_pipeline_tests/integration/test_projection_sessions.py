"""Sessions with PostgreSQL: the same bytes, whatever environment, database and role have set."""

import math
from collections.abc import Iterator
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.errors import ProjectionError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive
from feature_pipeline_tests.fixtures.postgres import PostgresAddress, silence_of

pytestmark = pytest.mark.postgres

LABEL = Column(name="label", type="string")
COLUMNS = (
    LABEL,
    Column(name="score", type="number"),
    Column(name="parts", type="array"),
    Column(name="day", type="string", format="date"),
    Column(name="at", type="string", format="date-time"),
)
ROWS = [
    {
        "label": "α-helix, Å",
        "score": 0.1 + 0.2,
        "parts": [1, "é\\"],
        "day": "2026-02-01",
        "at": "2026-02-01T10:00:00.000001Z",
    },
    {"label": "NULL", "score": math.nan},
    {"score": 1.7976931348623157e308},
]

HOSTILE_SETTINGS = {
    "client_encoding": "latin1",
    "datestyle": "German, DMY",
    "intervalstyle": "iso_8601",
    "timezone": "Asia/Kolkata",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "search_path": "nowhere",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "statement_timeout": "99",
    "lock_timeout": "99",
    "idle_in_transaction_session_timeout": "99",
    "transaction_timeout": "99",
    "tcp_keepalives_idle": "9999",
    "tcp_keepalives_interval": "999",
    "tcp_keepalives_count": "99",
}
HOSTILE_VARIABLES = {
    "PGCLIENTENCODING": "LATIN1",
    "PGDATESTYLE": "German",
    "PGTZ": "Asia/Kolkata",
    "PGOPTIONS": "-c extra_float_digits=0 -c intervalstyle=sql_standard",
}


@pytest.fixture
def owner(database_url: str) -> Iterator[psycopg.Connection]:
    """A session as people have it, opened before anything hostile is set."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def set_for_database(owner: psycopg.Connection, name: str, value: str) -> None:
    database = sql.Identifier(owner.info.dbname)
    owner.execute(
        sql.SQL("alter database {} set {} = {}").format(
            database, sql.Identifier(name), sql.Literal(value)
        )
    )


def set_for_role(owner: psycopg.Connection, name: str, value: str) -> None:
    owner.execute(
        sql.SQL("alter role current_user in database {} set {} = {}").format(
            sql.Identifier(owner.info.dbname), sql.Identifier(name), sql.Literal(value)
        )
    )


def check_all_arrives(url: str, owner: psycopg.Connection) -> None:
    """Load, load something else over it, read back and prove."""
    archive, database = FeatureArchive(COLUMNS), Database(url)
    archive.add("b1", {"r-α": ROWS, "r2": "no ‘site’", "r3": "x\\y"})
    list(load_batches(archive.store, database, archive.spec()))
    archive.say("b1", {"r-α": [*ROWS, {"label": "‰"}], "r2": "no ‘site’", "r3": []})
    list(load_batches(archive.store, database, archive.spec()))

    proof = prove(archive.store, database, archive.spec())
    assert proof.is_equal, proof.summary()
    rows = owner.execute("select record_id, label from features.pockets order by 2, 1").fetchall()
    assert rows == [("r-α", "NULL"), ("r-α", "α-helix, Å"), ("r-α", "‰"), ("r-α", None)]
    reasons = owner.execute("select reason from features._outcomes order by record_id").fetchall()
    assert reasons == [(None,), ("no ‘site’",), (None,)]


def current_settings(connection: psycopg.Connection) -> dict[str, str]:
    rows = connection.execute("select lower(name), current_setting(name) from pg_settings")
    return {name: value for name, value in rows if name in HOSTILE_SETTINGS}


def test_no_setting_of_role_or_database_reaches_a_session(database_url, owner) -> None:
    with Database(database_url).connect("test") as connection:
        before = current_settings(connection)
    for name in before:  # those that this server has
        set_for_database(owner, name, HOSTILE_SETTINGS[name])
        set_for_role(owner, name, HOSTILE_SETTINGS[name])

    with Database(database_url).connect("test") as connection:
        assert current_settings(connection) == before
    with psycopg.connect(database_url) as others:
        assert current_settings(others).keys() == before.keys()
        assert not current_settings(others).items() & before.items()


def test_a_session_ends_once_its_peer_is_silent_for_a_minute_and_a_half(database_url) -> None:
    """A network that drops packets, and a machine without power, send no reset."""
    names = [f"tcp_keepalives_{name}" for name in ("idle", "interval", "count")]
    with Database(database_url).connect("test") as connection:
        ours = silence_of(connection.fileno())
        query = "select current_setting(name)::int from unnest(%s::text[]) as name"
        servers = [value for (value,) in connection.execute(query, [names]).fetchall()]
    assert ours == servers == [30, 10, 6]


def test_the_databases_url_decides_how_long_a_silent_server_is_waited_for(database_url) -> None:
    url = f"{database_url}{'&' if '?' in database_url else '?'}keepalives_idle=7"
    with Database(url).connect("test") as connection:
        assert silence_of(connection.fileno()) == [7, 10, 6]


@pytest.mark.parametrize("name", [*HOSTILE_VARIABLES, "role", "database"])
def test_tables_are_right_whatever_surrounds_the_session(
    database_url, owner, monkeypatch, name
) -> None:
    # Those that would stop this test's own session are looked at above.
    harmless = {n: v for n, v in HOSTILE_SETTINGS.items() if not n.endswith("timeout")}
    known = {row[0] for row in owner.execute("select lower(name) from pg_settings").fetchall()}
    if name in HOSTILE_VARIABLES:
        monkeypatch.setenv(name, HOSTILE_VARIABLES[name])
    for setting in harmless.keys() & known if name in {"role", "database"} else ():
        {"role": set_for_role, "database": set_for_database}[name](
            owner, setting, harmless[setting]
        )

    check_all_arrives(database_url, owner)


def test_loads_beside_each_other_do_not_fail_where_transactions_are_serializable(
    database_url, owner
) -> None:
    set_for_role(owner, "default_transaction_isolation", "serializable")
    archive, database = FeatureArchive((LABEL,)), Database(database_url)
    for number in range(40):
        archive.add(f"b{number}", {f"r{number}": [{"label": "x"}], "shared": [{"label": "y"}]})

    reports = list(load_batches(archive.store, database, archive.spec(), workers=4))

    assert len(reports) == 40
    assert prove(archive.store, database, archive.spec()).is_equal


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_is_not_utf8_is_refused(
    postgres_server: PostgresAddress, encoding: str
) -> None:
    name = f"test_{encoding.lower()}_{id(encoding)}"
    with psycopg.connect(postgres_server.url, autocommit=True) as server:
        server.execute(
            sql.SQL("create database {} encoding {} locale 'C' template template0").format(
                sql.Identifier(name), sql.Literal(encoding)
            )
        )
    url = postgres_server.database_url(name)
    archive = FeatureArchive((LABEL,))
    archive.add("b1", {"r1": [{"label": "α"}]})
    try:
        with pytest.raises(ProjectionError) as refused:
            list(load_batches(archive.store, Database(url), archive.spec()))
        with psycopg.connect(url) as connection:
            made = connection.execute("select 1 from pg_namespace where nspname like 'feature%'")
            assert made.fetchall() == []
    finally:
        postgres_server.drop_database(url)

    address = f"{urlsplit(url).hostname}:{urlsplit(url).port}/{name}"
    assert f"database {address} has the encoding {encoding}" in str(refused.value)
    assert "encoding 'UTF8' template template0" in str(refused.value)
    assert "\n" not in str(refused.value)


class TestWhatABatchHeldUnderOtherIds:
    """Rows and outcomes that were loaded with a garbled id go when the batch is loaded again."""

    @pytest.fixture
    def database(self, database_url: str) -> Database:
        return Database(database_url)

    @pytest.fixture
    def archive(self, database: Database, owner: psycopg.Connection) -> FeatureArchive:
        """Two batches, one of them garbled in the table behind the pipeline's back."""
        archive = FeatureArchive((LABEL,))
        archive.add("b1", {"ré": [{"label": "x"}], "ü": "no protein", "plain": [{"label": "y"}]})
        archive.add("b2", {"other": [{"label": "z"}]})
        list(load_batches(archive.store, database, archive.spec()))
        [relation] = owner.execute("select relation from feature_pipeline.generations").fetchone()
        for table in (relation, "outcomes"):
            owner.execute(
                sql.SQL(
                    "update {} set record_id"
                    " = convert_from(convert_to(record_id, 'UTF8'), 'LATIN1')"
                ).format(sql.Identifier("feature_pipeline", table))
            )
        return archive

    def loaded(self, owner: psycopg.Connection) -> tuple[list[str], list[str]]:
        rows = owner.execute("select record_id from features.pockets order by 1").fetchall()
        outcomes = owner.execute("select record_id from features._outcomes order by 1").fetchall()
        return [row[0] for row in rows], [row[0] for row in outcomes]

    def test_when_its_content_is_the_same(self, archive, database, owner) -> None:
        list(load_batches(archive.store, database, archive.spec(), ["b1"], is_forced=True))

        assert self.loaded(owner) == (["other", "plain", "ré"], ["other", "plain", "ré", "ü"])
        assert prove(archive.store, database, archive.spec()).is_equal

    def test_when_its_content_changed(self, archive, database, owner) -> None:
        archive.say("b1", {"ré": [{"label": "new"}], "ü": "no protein", "plain": []})

        list(load_batches(archive.store, database, archive.spec(), ["b1"]))

        assert self.loaded(owner) == (["other", "ré"], ["other", "plain", "ré", "ü"])
        assert prove(archive.store, database, archive.spec()).is_equal

    def test_when_it_was_loaded_right_beside_them_since(self, archive, database, owner) -> None:
        """As code did that removed what the ids matched."""
        [relation] = owner.execute("select relation from feature_pipeline.generations").fetchone()
        for table, columns in (
            (relation, "ordinal, batch, label"),
            ("outcomes", "generation, status, reason, batch, submitted_at"),
        ):
            name = sql.Identifier("feature_pipeline", table)
            statement = (
                "insert into {table} (record_id, {columns}) select"
                " convert_from(convert_to(record_id, 'LATIN1'), 'UTF8'), {columns} from {table}"
                " where record_id ~ '[^[:ascii:]]'"
            )
            owner.execute(sql.SQL(statement).format(table=name, columns=sql.SQL(columns)))
        assert not prove(archive.store, database, archive.spec()).is_equal

        list(load_batches(archive.store, database, archive.spec(), ["b1"], is_forced=True))

        assert self.loaded(owner) == (["other", "plain", "ré"], ["other", "plain", "ré", "ü"])
        assert prove(archive.store, database, archive.spec()).is_equal

    def test_rows_without_an_outcome_go_too(self, archive, database, owner) -> None:
        owner.execute("delete from feature_pipeline.outcomes where record_id = 'rÃ©'")
        archive.say("b1", {"ré": [], "ü": "no protein", "plain": [{"label": "new"}]})

        list(load_batches(archive.store, database, archive.spec(), ["b1"]))

        assert self.loaded(owner) == (["other", "plain"], ["other", "plain", "ré", "ü"])
        assert prove(archive.store, database, archive.spec()).is_equal
