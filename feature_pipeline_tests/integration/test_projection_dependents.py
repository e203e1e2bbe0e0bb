"""What people set on views of theirs is there after a switch that makes these views again."""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.errors import ConflictError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog import dependents, generation
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.preview import plan_table
from feature_pipeline_tests.fixtures.feature_archive import COUNT, LABEL, FeatureArchive

pytestmark = pytest.mark.postgres

OTHER = Column(name="other", type="string")

ROOT = sql.Identifier("features", "pockets")

ON_A_MATERIALIZED_VIEW = """
    create materialized view public.totals
        with (fillfactor = 70, autovacuum_enabled = off, toast.autovacuum_enabled = off) as
        select label, count, record_id, label || '!' as loud from features.pockets;
    create index by_label on public.totals (label) with (fillfactor = 60);
    create unique index by_key on public.totals (record_id, count);
    create index by_expression on public.totals (lower(loud));
    alter index public.by_expression alter column 1 set statistics 321;
    comment on index public.by_label is 'Wanted by ''the'' dashboard.';
    alter materialized view public.totals cluster on by_key;
    alter materialized view public.totals alter column label set statistics 1234;
    alter materialized view public.totals alter column loud set storage external;
    alter materialized view public.totals alter column loud set compression pglz;
    alter materialized view public.totals alter column count set (n_distinct = 5);
    create statistics public.together (ndistinct, dependencies) on label, count
        from public.totals;
    alter statistics public.together set statistics 77;
    comment on statistics public.together is 'They go together, 100%.';
    comment on materialized view public.totals is 'Mine.';
    comment on column public.totals.loud is 'Louder.';
    create view public."On top" as select * from public.totals
"""


@pytest.fixture
def archive(database: Database) -> FeatureArchive:
    """A batch in a table of three columns."""
    archive = FeatureArchive((LABEL, COUNT, OTHER))
    archive.add("b0", {"r0": [{"label": "l0", "count": 1}, {"label": "l1", "count": 2}]})
    list(load_batches(archive.store, database, archive.spec()))
    return archive


def drop_a_column(archive: FeatureArchive, database: Database) -> None:
    """Which makes every view on the table again."""
    archive.columns = (LABEL, COUNT)
    list(load_batches(archive.store, database, archive.spec()))


def views_of(database: Database) -> dict[str, dict]:
    with database.connect("test") as connection:
        views = dependents.read_views(connection, ROOT)
    # Who made it and where it lies in the catalog is no matter.
    return {view.label: view.to_json() for view in views[1:]}


def test_everything_that_can_be_set_on_a_materialized_view_is_kept(
    archive, database, connection
) -> None:
    for statement in filter(str.strip, ON_A_MATERIALIZED_VIEW.split(";")):
        connection.execute(statement.encode())
    before = views_of(database)
    assert len(before["materialized view public.totals"]["settings"]) == 12

    drop_a_column(archive, database)

    assert views_of(database) == before
    assert connection.execute('select count(*) from public."On top"').fetchone() == (2,)


def test_comments_on_triggers_are_kept(archive, database, connection) -> None:
    for statement in (
        "create view public.mine as select label from features.pockets",
        "create function public.refuse() returns trigger language plpgsql as"
        " 'begin raise exception ''read only''; end'",
        "create trigger refusing instead of insert on public.mine for each row"
        " execute function public.refuse()",
        "comment on trigger refusing on public.mine is 'Nobody writes here.'",
    ):
        connection.execute(statement)
    before = views_of(database)

    drop_a_column(archive, database)

    assert views_of(database) == before
    [settings] = [view["settings"] for view in before.values()]
    assert settings == ("comment on trigger refusing on mine is 'Nobody writes here.'",)


class Roles:
    """Roles of this test's own: they belong to the server."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection, self._suffix = connection, secrets.token_hex(4)
        self.names: list[str] = []

    def make(self, name: str, *, is_ours: bool) -> str:
        """A role; `is_ours` lets the pipeline act in its name."""
        role = f"{name}_{self._suffix}"
        self.names.append(role)
        self.run("create role {}", role)
        if is_ours:
            self.run("grant {} to current_user", role)
        return role

    def run(self, statement: str, *roles: str) -> None:
        self._connection.execute(sql.SQL(statement).format(*map(sql.Identifier, roles)))

    def grant_as(self, role: str, statement: str, *roles: str) -> None:
        with self._connection.transaction():
            self.run("grant {} to current_user", role)
            self.run("set local role {}", role)
            self.run(statement, *roles)

    def drop(self) -> None:
        # With what the roles have rights on.
        self._connection.execute("drop schema features, feature_pipeline cascade")
        for statement in ("grant {} to current_user", "drop owned by {} cascade", "drop role {}"):
            for role in reversed(self.names):
                self.run(statement, role)


@pytest.fixture
def roles(connection: psycopg.Connection) -> Iterator[Roles]:
    roles = Roles(connection)
    yield roles
    roles.drop()


@pytest.mark.parametrize("view", ["features.pockets", "public.mine"])
@pytest.mark.parametrize("is_ours", [True, False])
def test_a_grant_is_its_grantors_again_or_named_beforehand(
    archive, database, connection, roles, view: str, is_ours: bool
) -> None:
    connection.execute("create view public.mine as select label, count from features.pockets")
    first, second, third = (roles.make(n, is_ours=is_ours) for n in ("first", "second", "third"))
    for schema in ("features", "public"):
        roles.run(f"grant usage on schema {schema} to {{}}, {{}}", first, second)
    roles.run(f"grant select on {view} to {{}} with grant option", first)
    roles.grant_as(first, f"grant select on {view} to {{}} with grant option", second)
    roles.grant_as(second, f"grant select (label) on {view} to {{}}", third)
    if not is_ours:
        for role in (first, second):
            roles.run("revoke {} from current_user", role)

    def chain() -> set[tuple[str, str | None]]:
        with database.connect("test") as own:
            views = dependents.read_views(own, ROOT)
        [chosen] = [each for each in views if f"{each.schema}.{each.name}" == view]
        return {(g.grantee, g.grantor) for g in chosen.grants if g.grantee in roles.names}

    before = chain()
    assert before == {(first, None), (second, first), (third, second)}
    with database.connect("test") as own:
        named = dependents.changed_by_restore(dependents.read_views(own, ROOT))
    planned = plan_table(archive.store, database, archive.spec(columns=(LABEL, COUNT)))
    assert planned.not_kept == tuple(named)

    drop_a_column(archive, database)

    if is_ours:
        assert (chain(), named) == (before, [])
    else:
        assert chain() == {(first, None), (second, None), (third, None)}
        assert [line.split("'")[1] for line in named] == sorted([first, second])


def test_what_cannot_be_restored_keeps_the_view_from_being_made_again(
    archive, database, connection
) -> None:
    connection.execute(
        "create materialized view public.totals as select label from features.pockets"
    )
    connection.execute("create index by_label on public.totals (label)")
    connection.execute("alter index public.by_label depends on extension plpgsql")
    with database.connect("test") as own:
        reasons = dependents.unrestorable(dependents.read_views(own, ROOT))
    assert reasons == ["materialized view public.totals has a dependence on extension plpgsql"]


SLOW = """
    create table public.may_go (); insert into public.may_go default values;
    create function public.slow() returns boolean volatile language plpgsql as $$
    begin
        while not exists (select from public.may_go) loop perform pg_sleep(0.01); end loop;
        return true;
    end $$;
    create materialized view public.totals as
        select label, public.slow() as is_slow from features.pockets;
    create index by_label on public.totals (label);
    create view public.on_top as select label from public.totals
"""


def test_readers_do_not_wait_while_a_materialized_view_is_filled(
    archive, database, connection, database_url
) -> None:
    """It was filled inside the switch, under the locks of all views on the table."""
    connection.execute(SLOW)
    before = views_of(database)
    connection.execute("truncate public.may_go; set lock_timeout = '5s'")
    archive.columns = (LABEL, COUNT)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(lambda: list(load_batches(archive.store, database, archive.spec())))
        with psycopg.connect(database_url, autocommit=True) as watching:
            filling = (
                "select from pg_stat_activity where state = 'active' and pid <> pg_backend_pid()"
                " and query ilike 'create materialized view%'"
            )
            while not watching.execute(filling).fetchall() and not loading.done():
                time.sleep(0.02)
        try:
            for view in ("features.pockets", "public.totals", "public.on_top"):
                read = connection.execute(f"select label from {view} order by 1".encode())
                assert [row[0] for row in read] == ["l0", "l1"]
        finally:
            connection.execute("insert into public.may_go default values")
        loading.result()

    assert views_of(database) == before
    columns = connection.execute("select * from features.pockets").description or ()
    assert [column.name for column in columns][3:] == ["label", "count"]
    left = "select relname from pg_class where relnamespace = 'feature_pipeline'::regnamespace"
    assert not {row[0] for row in connection.execute(left)} & {"pockets", "totals", "on_top"}


def test_a_view_that_has_no_meaning_on_the_new_columns_is_in_the_plan(
    archive, database, connection
) -> None:
    connection.execute(
        "create view public.halves as select label, count % 2 as odd from features.pockets;"
        "create view public.fine as select count + 1 as next from features.pockets"
    )
    archive.columns = (LABEL, Column(name="count", type="number"))
    objects = "select relname, xmin::text from pg_class order by oid"
    before = connection.execute(objects).fetchall()

    planned = plan_table(archive.store, database, archive.spec())

    [why] = planned.blocked
    assert why.startswith("view public.halves cannot be created on the new columns: operator")
    assert connection.execute(objects).fetchall() == before
    with pytest.raises(
        ConflictError, match=r"view public\.halves cannot be created on the new columns"
    ):
        list(load_batches(archive.store, database, archive.spec()))
    connection.execute("drop view public.halves")
    assert not plan_table(archive.store, database, archive.spec()).is_refused
    list(load_batches(archive.store, database, archive.spec()))
    assert connection.execute("select next from public.fine order by 1").fetchall() == [(2,), (3,)]


ON_THE_TABLE: dict[str, str] = {
    "view": "create view public.mine as select label, count from features.pockets",
    "all columns": "create view public.mine as select * from features.pockets",
    "alias": 'create view public.mine as select p.label as "A b" from features.pockets p',
    "filter": "create view public.mine as select record_id from features.pockets where count > 1",
    "aggregate": "create view public.mine as select count(*) as n from features.pockets",
    "grouped by key": "create view public.mine as select record_id, ordinal, label"
    " from features.pockets group by record_id, ordinal, label",
    "window": "create view public.mine as select row_number() over (order by count) as n"
    " from features.pockets",
    "common table": "create view public.mine as with p as (select * from features.pockets)"
    " select label from p",
    "recursive": "create recursive view public.mine (n) as select 1 union all"
    " select n + 1 from mine join features.pockets on n < 3",
    "union": "create view public.mine as select label from features.pockets union"
    " select record_id from features.pockets",
    "self join": "create view public.mine as select a.label, b.count from features.pockets a"
    " join features.pockets b using (record_id)",
    "whole row": "create view public.mine as select p from features.pockets p",
    "outcomes": "create view public.mine as select p.label, o.status from features.pockets p"
    " join features._outcomes o using (record_id, batch)",
    "progress": "create view public.mine as select batch, label from features.pockets"
    " join feature_pipeline.progress using (batch)",
    "check option": "create view public.mine as select * from features.pockets where count > 0"
    " with local check option",
    "security": "create view public.mine with (security_invoker, security_barrier) as"
    " select label from features.pockets",
    "column default": "create view public.mine as select label, count from features.pockets;"
    " alter view public.mine alter column label set default 'x'",
    "comment": "create view public.mine as select label from features.pockets;"
    " comment on view public.mine is 'it''s mine'; comment on column public.mine.label is '%'",
    "grants": "create view public.mine as select label from features.pockets;"
    " grant select on public.mine to public; grant select on features.pockets to public",
    "views on views": "create view public.first as select label, count from features.pockets;"
    " create view public.mine as select label from public.first;"
    " create view public.third as select m.label, f.count from public.mine m, public.first f",
    "a name of odd letters": 'create view public."mine ""and"" %s {x}" as'
    " select label from features.pockets",
    "another schema": "create schema if not exists other;"
    " create view other.mine as select label from features.pockets",
    "materialized": "create materialized view public.mine as select label from features.pockets",
    "materialized without data": "create materialized view public.mine as"
    " select label from features.pockets with no data",
    "materialized with index": "create materialized view public.mine as"
    " select label, count from features.pockets;"
    " create unique index on public.mine (label) include (count) where count > 0",
    "view on materialized": "create materialized view public.first as"
    " select count from features.pockets; create view public.mine as select * from public.first",
    "trigger": "create view public.mine as select label from features.pockets;"
    " create or replace function public.nothing() returns trigger language plpgsql as"
    " 'begin return null; end'; create trigger t instead of delete on public.mine"
    " for each row execute function public.nothing()",
    "function in text": "create function public.mine() returns bigint language sql as"
    " 'select count(*) from features.pockets'",
    "function of the row type": "create function public.mine(p features.pockets) returns text"
    " language sql begin atomic select p.label; end",
    "function with a body": "create function public.mine() returns bigint language sql"
    " begin atomic select count(*) from features.pockets; end",
    "rule": "create view public.mine as select label from features.pockets;"
    " create rule quiet as on insert to public.mine do instead nothing",
    "the dropped column": "create view public.mine as select other from features.pockets",
    "a table of the row type": "create table public.mine (p features.pockets)",
}
SCHEMAS = "drop schema if exists other cascade; drop schema public cascade; create schema public"


@pytest.mark.slow
def test_whatever_people_made_on_the_table_is_kept_or_refused_beforehand(
    archive, database, connection
) -> None:
    """What a plan allows is there afterwards as before; what it refuses stays untouched."""
    columns = {True: (LABEL, COUNT, OTHER), False: (LABEL, COUNT)}
    refused, wrong = set(), []

    def declare(now: tuple[Column, ...]) -> None:
        archive.columns = now
        with database.connect("test") as own:
            generation.adopt_definition(own, archive.spec())

    for name, statements in ON_THE_TABLE.items():
        declare(columns[True])
        list(load_batches(archive.store, database, archive.spec()))
        connection.execute(statements.encode())
        before = views_of(database)
        declare(columns[False])
        planned = plan_table(archive.store, database, archive.spec())
        if planned.is_refused:
            refused.add(name)
        try:
            list(load_batches(archive.store, database, archive.spec()))
        except ConflictError:
            is_switched = False
        else:
            is_switched = True
        shown = connection.execute("select * from features.pockets").description or ()
        if is_switched is planned.is_refused or len(shown) != 3 + len(columns[not is_switched]):
            wrong.append((name, planned.is_refused, is_switched, [c.name for c in shown]))
        if views_of(database) != before:
            wrong.append((name, before, views_of(database)))
        connection.execute(SCHEMAS)
    assert wrong == []
    must_be = {"the dropped column", "rule", "function with a body", "a table of the row type"}
    assert must_be <= refused
    assert len(refused) < len(ON_THE_TABLE) / 2
