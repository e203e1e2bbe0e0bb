"""What people do to tables, views and bookkeeping by hand, and what becomes of it."""

from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.errors import ConflictError, NotFoundError, ProjectionError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog import generation, own_views
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.preview import PlanAction, plan_table
from feature_pipeline.projections.proof.missing_batches import check_progress
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline.projections.rollback import rollback, unpin
from feature_pipeline.projections.switch import finalize
from feature_pipeline.projections.switch.finalize import batches_to_load, table_report
from feature_pipeline_tests.fixtures.feature_archive import (
    COUNT,
    LABEL,
    FeatureArchive,
    load_all,
    load_batch,
    three_batches,
)

pytestmark = pytest.mark.postgres

NOTE = Column(name="note", type="string", default="none")
LIVE, BUILDING = "{live}", "{building}"


@pytest.fixture
def archive() -> FeatureArchive:
    return three_batches()


def rebuild(archive: FeatureArchive, database: Database) -> None:
    begun = begin_rebuild(archive.store, database, archive.spec())
    list(fill(archive.store, database, begun))


def one_by_one(archive: FeatureArchive, database: Database) -> None:
    """As runs of single partitions do."""
    for batch in ("b0", "b1", "b2"):
        load_batch(archive.store, database, archive.spec(), batch)


def labels(connection: psycopg.Connection, view: str = "features.pockets") -> list[str]:
    query = f"select label from {view} order by record_id".encode()
    return [row[0] for row in connection.execute(query)]


def harm(connection: psycopg.Connection, statements: str, spec: TableSpec) -> None:
    """Carry out statements in which the generations' tables and partitions are named."""
    rows = connection.execute(
        "select g.id, g.relation, t.live from feature_pipeline.generations g"
        " join feature_pipeline.tables t on t.name = g.table_name where t.name = %s order by g.id",
        [spec.name],
    ).fetchall()
    names = {}
    for number, relation, live in rows:
        role = "live" if number == live else "building"
        names[role] = f'feature_pipeline."{relation}"'
        names[f"{role}_outcomes"] = f"feature_pipeline._outcomes_{number}"
        names[f"{role}_key"] = f'"{relation}_pkey"'
    connection.execute(statements.format(**names).encode())


def exists(connection: psycopg.Connection, name: str) -> bool:
    return connection.execute("select to_regclass(%s) is not null", [name]).fetchone() == (True,)


WAYS = [rebuild, load_all, one_by_one]
HARM = {
    "live": "drop table {live} cascade",
    "live and its outcomes": "drop table {live}, {live_outcomes} cascade",
    "live's outcomes": "drop table {live_outcomes}",
    "live's outcomes detached": "alter table feature_pipeline.outcomes"
    " detach partition {live_outcomes}",
    "building": "drop table {building}",
    "building's outcomes": "drop table {building_outcomes}",
    "both": "drop table {live}, {building} cascade",
    "a column of live": "alter table {live} drop column label cascade",
    "a column of building": "alter table {building} drop column note",
    "a type of building": "alter table {building} alter column count type text",
    "the key of live": "alter table {live} drop constraint {live_key}",
    "a column that no load fills": "truncate {building};"
    " alter table {building} add column more int not null",
    "live renamed": "alter table {live} rename to somebodys",
    "the view": "drop view features.pockets cascade",
    "the view replaced": "create or replace view features.pockets as"
    " select * from {live} where record_id <> 'r1'",
    "a column of the view": "alter view features.pockets rename column label to name",
    "a column on the view": "create or replace view features.pockets as"
    " select record_id, ordinal, batch, label, count, 1 as more from {live}",
    "what is read": "drop schema features cascade",
    "the bookkeeping": "drop schema feature_pipeline cascade",
    "the list of tables": "drop table feature_pipeline.tables cascade",
    "the list of generations": "drop table feature_pipeline.generations cascade",
    "progress": "drop table feature_pipeline.progress cascade",
    "all outcomes": "drop table feature_pipeline.outcomes cascade",
    "later additions": "drop table feature_pipeline.views, feature_pipeline.proofs,"
    " feature_pipeline.discarded",
}


EVERY_WAY = {"live", "building", "the view replaced"}
"""Of these, and one way of each other."""


@pytest.mark.parametrize(
    ("harm_name", "way"),
    [
        (name, way)
        for place, name in enumerate(HARM)
        for way in (WAYS if name in EVERY_WAY else WAYS[place % 3 : place % 3 + 1])
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_the_right_table_is_had_again(archive, database, connection, harm_name, way) -> None:
    load_all(archive, database)
    is_building = "building" in HARM[harm_name]
    if is_building:
        archive.columns = (LABEL, COUNT, NOTE)
        load_batch(archive.store, database, archive.spec(), "b0")
    spec = archive.spec()
    harm(connection, HARM[harm_name], spec)

    # Nothing that only looks fails, or takes the table for what it is not.
    plan = plan_table(archive.store, database, spec)
    assert plan.action is not PlanAction.NOTHING or harm_name in {"later additions"}
    assert not plan.blocked
    table_report(archive.store, database, spec)
    check_progress(archive.store, database, spec)
    assert batches_to_load(archive.store, database, spec) or harm_name == "later additions"
    way(archive, database)

    assert labels(connection) == ["l0", "l1", "l2"]
    proof = prove(archive.store, database, spec)
    assert proof.is_equal, proof
    assert len(connection.execute("table features._outcomes").fetchall()) == 3
    assert plan_table(archive.store, database, spec).action is PlanAction.NOTHING
    report = table_report(archive.store, database, spec)
    assert report is not None
    assert report.is_settled, report


def test_a_dropped_table_is_named_before_it_is_had_again(archive, database, connection) -> None:
    load_all(archive, database)
    archive.columns = (LABEL, COUNT, NOTE)
    spec = archive.spec()
    load_batch(archive.store, database, spec, "b0")
    harm(connection, "drop table {live} cascade", spec)

    assert check_progress(archive.store, database, spec).missing == ("b0", "b1", "b2")
    with pytest.raises(NotFoundError, match="table 'pockets' has no live generation yet"):
        prove(archive.store, database, spec)
    report = table_report(archive.store, database, spec)
    assert report is not None
    assert "was dropped or altered by hand" in report.summary()
    [repair] = plan_table(archive.store, database, spec).repairs
    assert repair.endswith("was dropped or altered by hand: it is built again")


def test_a_live_table_that_was_altered_is_read_until_another_is_built(
    archive, database, connection
) -> None:
    load_all(archive, database)
    harm(connection, "drop table {live_outcomes}", archive.spec())
    with pytest.raises(ProjectionError, match="was altered by hand: load any batch"):
        prove(archive.store, database, archive.spec())

    load_batch(archive.store, database, archive.spec(), "b0")

    assert labels(connection) == ["l0", "l1", "l2"]
    report = table_report(archive.store, database, archive.spec())
    assert report is not None
    assert (report.missing, report.is_settled) == (("b1", "b2"), False)
    load_batch(archive.store, database, archive.spec(), "b1")
    load_batch(archive.store, database, archive.spec(), "b2")
    assert prove(archive.store, database, archive.spec()).is_equal


def test_older_code_makes_a_lost_table_again_and_newer_code_its_own(
    archive, database, connection
) -> None:
    """The order of the two is still known, so that neither builds the other's backwards."""
    old = archive.spec()
    load_all(archive, database)
    archive.columns = (LABEL, COUNT, NOTE)
    load_all(archive, database)
    for _ in range(2):
        harm(connection, "drop table {live} cascade", old)
        list(load_batches(archive.store, database, old))
        assert labels(connection) == ["l0", "l1", "l2"]
        list(load_batches(archive.store, database, archive.spec()))
        assert connection.execute("select distinct note from features.pockets").fetchall() == [
            ("none",)
        ]
        assert plan_table(archive.store, database, old).action is PlanAction.OLDER_CODE


def test_going_back_to_what_was_dropped_is_refused_and_to_what_is_there_is_not(
    archive, database, connection
) -> None:
    load_all(archive, database)
    archive.columns = (LABEL, COUNT, NOTE)
    load_all(archive, database)
    harm(connection, "drop table {live} cascade", archive.spec())
    done = rollback(archive.store, database, archive.spec())
    assert labels(connection) == ["l0", "l1", "l2"]
    assert done.behind == ()

    list(load_batches(archive.store, database, archive.spec()))
    assert unpin(archive.store, database, archive.spec()).is_settled
    load_all(archive, database)
    before = connection.execute(
        "select relation from feature_pipeline.generations order by switched_at limit 1"
    ).fetchone()
    connection.execute(f'drop table feature_pipeline."{before[0]}"'.encode())
    with pytest.raises(NotFoundError, match="no earlier generation"):
        rollback(archive.store, database, archive.spec())


def test_an_earlier_generation_changed_by_hand_is_not_rolled_back_to(
    archive, database, connection
) -> None:
    load_all(archive, database)
    archive.columns = (LABEL, COUNT, NOTE)
    load_all(archive, database)
    harm(connection, "update {building} set count = 7 where record_id = 'r1'", archive.spec())

    with pytest.raises(ProjectionError, match="differs from the archive in batches b1"):
        rollback(archive.store, database, archive.spec())

    assert connection.execute("select note from features.pockets").fetchone() == ("none",)


IN_THE_WAY = {
    "a view of the same columns": (
        "create view features.pockets as select record_id, ordinal, batch, label from public.mine",
        "view features.pockets of role",
    ),
    "another view": ("create view features.pockets as select 1 as one", "view features.pockets of"),
    "a table": ("create table features.pockets (label text)", "table features.pockets of"),
    "a materialized view": (
        "create materialized view features.pockets as table public.mine",
        "materialized view features.pockets of",
    ),
    "a sequence": ("create sequence features.pockets", "sequence features.pockets of"),
    "a row type": ("create type features.pockets as (a int)", "composite type features.pockets of"),
    "an enum": ("create type features.pockets as enum ('a')", "type features.pockets of"),
    "an index": (
        "create table features.other (a int); create index pockets on features.other (a)",
        "index features.pockets of",
    ),
}


def describe(connection: psycopg.Connection) -> list:
    return connection.execute(
        "select c.oid::text, c.relname, c.relkind, c.relowner::regrole, c.relacl::text,"
        " case when c.relkind in ('v', 'm') then pg_get_viewdef(c.oid) end"
        " from pg_class c where relnamespace = 'features'::regnamespace union all"
        " select t.oid::text, t.typname, t.typtype, t.typowner::regrole, null, null from pg_type t"
        " where typnamespace = 'features'::regnamespace and typname not like '\\_%' order by 1"
    ).fetchall()


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_a_foreign_object_with_the_tables_name_stays(archive, database, connection, name) -> None:
    made, named = IN_THE_WAY[name]
    connection.execute(
        'create schema features; create table public.mine (record_id text collate "C",'
        ' ordinal int, batch text collate "C", label text, count bigint);'
        " insert into public.mine values ('x', 1, 'y', 'own', 2)"
    )
    connection.execute(made.encode())
    before = describe(connection)
    spec = archive.spec()

    plan = plan_table(archive.store, database, spec)

    assert plan.is_refused
    assert named in plan.blocked[0]
    assert "rename or drop it" in plan.blocked[0]
    for way in (load_all, rebuild):
        with pytest.raises(ConflictError, match="which the pipeline did not create: rename"):
            way(archive, database)
    kept = [row for row in describe(connection) if row[1] != "_outcomes"]
    assert [row for row in before if row[1] != "_outcomes"] == kept
    connection.execute("alter schema features rename to own; create schema features")
    load_all(archive, database)
    assert labels(connection) == ["l0", "l1", "l2"]


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_a_foreign_object_in_place_of_the_view_stays(archive, database, connection, name) -> None:
    load_all(archive, database)
    connection.execute(
        "create table public.mine as table features.pockets; drop view features.pockets"
    )
    connection.execute(IN_THE_WAY[name][0].encode())
    before = describe(connection)
    archive.columns = (LABEL, COUNT, NOTE)

    assert IN_THE_WAY[name][1] in plan_table(archive.store, database, archive.spec()).blocked[0]
    for way in (load_all, rebuild):
        with pytest.raises(ConflictError, match=r"features\.pockets is not the view of"):
            way(archive, database)
    assert not check_progress(archive.store, database, archive.spec()).is_shown
    assert not prove(archive.store, database, archive.spec(), ["b0"]).is_equal
    with database.connect("test") as own:
        generation.drop_table(own, archive.spec())

    assert describe(connection) == before


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            "create schema features; create table features._outcomes (a int)",
            r"features\._outcomes cannot be created: table features\._outcomes of role",
        ),
        (
            "create schema features; create view features._outcomes as select 1 as a",
            r"features\._outcomes cannot be created: view features\._outcomes of role",
        ),
        (
            "create schema feature_pipeline; create view feature_pipeline.progress as select 1 a",
            r"feature_pipeline\.progress cannot be created: view feature_pipeline",
        ),
        (
            "create schema feature_pipeline; create table feature_pipeline.tables (a int)",
            r"schema feature_pipeline has tables, and no table `bookkeeping`",
        ),
    ],
)
def test_what_is_in_the_way_of_the_bookkeeping_is_named(
    archive, database, connection, made, message
) -> None:
    connection.execute(made.encode())
    with pytest.raises(ConflictError, match=message):
        load_all(archive, database)


def test_a_view_that_hides_rows_is_detected_by_the_proof_and_restored(
    archive, database, connection
) -> None:
    load_all(archive, database)
    spec = archive.spec()
    connection.execute("create view public.mine as select record_id, label from features.pockets")
    connection.execute("alter view features.pockets set (security_barrier = true)")
    harm(
        connection,
        "create or replace view features.pockets with (security_barrier = true) as"
        " select * from {live} where record_id <> 'r1'",
        spec,
    )

    for may_reuse in (True, False):
        proof = prove(archive.store, database, spec, may_reuse=may_reuse)
        assert (proof.rows, proof.unequal_batches) == (2, ("b1",))
    progress = check_progress(archive.store, database, spec)
    assert not progress.is_complete
    assert "the view is missing or is another object" in progress.summary()
    plan = plan_table(archive.store, database, spec)
    assert plan.action is PlanAction.ADJUST
    assert "was changed by hand: its definition is restored" in plan.repairs[0]

    load_batch(archive.store, database, spec, "b0")

    assert prove(archive.store, database, spec).is_equal
    assert labels(connection, "public.mine") == ["l0", "l1", "l2"]
    options = connection.execute(
        "select reloptions from pg_class where oid = 'features.pockets'::regclass"
    ).fetchone()
    assert options == (["security_barrier=true"],)


def test_a_changed_view_of_outcomes_is_restored(archive, database, connection) -> None:
    load_all(archive, database)
    query = "select rtrim(pg_get_viewdef('features._outcomes'::regclass), ';')"
    replacing = "create or replace view features._outcomes as select * from ({}) o where false"
    definition = connection.execute(query).fetchone()[0]
    connection.execute(replacing.format(definition).encode())
    assert connection.execute("select count(*) from features._outcomes").fetchone() == (0,)
    load_batch(archive.store, database, archive.spec(), "b0")
    assert connection.execute("select count(*) from features._outcomes").fetchone() == (3,)


def test_views_of_a_restored_database_are_known_again(archive, database, connection) -> None:
    """A dump holds neither oids nor stored rules: they are compared with what would be made."""
    load_all(archive, database)
    definitions = {
        name: connection.execute("select pg_get_viewdef(%s::regclass)", [name]).fetchone()[0]
        for name in ("features.pockets", "features._outcomes")
    }
    for name, definition in definitions.items():
        connection.execute(f"drop view {name}; create view {name} as {definition}".encode())
    assert plan_table(archive.store, database, archive.spec()).blocked == ()

    load_batch(archive.store, database, archive.spec(), "b0")

    assert prove(archive.store, database, archive.spec()).is_equal
    with database.connect("test") as own:
        assert own_views.has_own_definition(own, "pockets")
        assert own_views.has_own_definition(own, "_outcomes")


def test_views_that_earlier_code_made_are_taken_over(archive, database, connection) -> None:
    load_all(archive, database)
    connection.execute("drop table feature_pipeline.views")
    assert check_progress(archive.store, database, archive.spec()).is_complete
    assert prove(archive.store, database, archive.spec()).is_equal
    load_batch(archive.store, database, archive.spec(), "b0")
    with database.connect("test") as own:
        assert own_views.has_own_definition(own, "pockets")


def test_nothing_is_read_before_it_is_proved(archive, database, connection, monkeypatch) -> None:
    seen: list[bool] = []
    original: Callable[..., object] = finalize.prove_once

    def watched(*arguments: object) -> object:
        seen.append(exists(connection, "features.pockets"))
        return original(*arguments)

    monkeypatch.setattr(finalize, "prove_once", watched)
    load_batch(archive.store, database, archive.spec(), "b0")
    assert seen == [False]
    assert labels(connection) == ["l0"]
    load_all(archive, database)
    assert labels(connection) == ["l0", "l1", "l2"]


@pytest.mark.parametrize("is_always", [True, False])
def test_a_first_generation_with_wrong_rows_is_never_read(
    archive, database, connection, monkeypatch, is_always
) -> None:
    connection.execute(
        "create function public.spoil() returns trigger language plpgsql as"
        " 'begin new.count = 99; return new; end'"
    )
    original = generation._create_generation
    made: list[str] = []

    def spoilt(own, spec, token=""):
        created = original(own, spec, token)
        if is_always or not made:
            trigger = "create trigger s before insert on {} for each row execute function spoil()"
            own.execute(sql.SQL(trigger).format(created.identifier))
        made.append(created.relation)
        return created

    monkeypatch.setattr(generation, "_create_generation", spoilt)
    if is_always:
        with pytest.raises(ProjectionError, match="built again less than 1 hour ago"):
            load_all(archive, database)
        assert not exists(connection, "features.pockets")
        assert check_progress(archive.store, database, archive.spec()).missing
    else:
        load_batch(archive.store, database, archive.spec(), "b1")
        load_all(archive, database)
        assert prove(archive.store, database, archive.spec()).is_equal
    assert len(made) == 2


def test_what_comes_while_a_first_generation_is_proved_is_proved_as_well(
    archive, database, connection, monkeypatch
) -> None:
    proven: list[object] = []
    once, some = finalize.prove_once, finalize.prove_generation
    spec = archive.spec()

    def first(*arguments):
        proof = once(*arguments)
        monkeypatch.setattr(finalize, "prove_once", once)
        with monkeypatch.context() as beside:
            beside.setattr("feature_pipeline.projections.load.settle_table", settled)
            load_batch(archive.store, database, spec, "b1")
        return proof

    def settled(store, database, spec):
        return table_report(store, database, spec)

    def rest(store, own, spec, building, batches=None, *others):
        proven.append(batches)
        return some(store, own, spec, building, batches, *others)

    monkeypatch.setattr(finalize, "prove_once", first)
    monkeypatch.setattr(finalize, "prove_generation", rest)
    load_batch(archive.store, database, spec, "b0")

    assert proven == [["b1"]]
    assert labels(connection) == ["l0", "l1"]
