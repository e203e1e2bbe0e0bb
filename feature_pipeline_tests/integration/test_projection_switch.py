"""Generations: built beside the live one, switched to in one step, with all that hangs on them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from feature_pipeline.archive.logs import log
from feature_pipeline.errors import ConflictError, ProjectionError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition
from feature_pipeline.projections.catalog import generation, indexes
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof import proof
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline.projections.rows.prepare import prepare_batch
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline.projections.rows.write import TableChangedError, replace_batch
from feature_pipeline.projections.switch import finalize, switch
from feature_pipeline.projections.switch.finalize import TableReport, request_fill, table_report
from feature_pipeline_tests.fixtures.feature_archive import (
    COUNT,
    LABEL,
    FeatureArchive,
    load_all,
    load_batch,
    three_batches,
)

pytestmark = pytest.mark.postgres

NOTE = Column(name="note", type="string", default="none", description="Why.")


@pytest.fixture
def archive(database: Database) -> FeatureArchive:
    """Three batches, all loaded into a table of two columns."""
    archive = three_batches()
    load_all(archive, database)
    return archive


def columns_of(connection: psycopg.Connection, view: str = "pockets") -> list[str]:
    rows = connection.execute(
        "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
        " and not attisdropped order by attnum",
        [f"features.{view}"],
    )
    return [row[0] for row in rows][3:]


def drop_role(connection: psycopg.Connection, name: str) -> None:
    # Roles belong to the server; their grants are in this test's database.
    role = psycopg.sql.Identifier(name)
    for statement in ("grant {} to current_user", "drop owned by {}", "drop role {}"):
        connection.execute(psycopg.sql.SQL(statement).format(role))


def relations(connection: psycopg.Connection) -> list[str]:
    rows = connection.execute("select relation from feature_pipeline.generations order by id")
    return [row[0] for row in rows]


def index_names(connection: psycopg.Connection) -> list[tuple[str, bool]]:
    """The indexes' declared names, and whether each is valid."""
    rows = connection.execute(
        "select i.relname, x.indisvalid from pg_index x join pg_class i on i.oid = x.indexrelid"
        " join pg_class t on t.oid = x.indrelid join feature_pipeline.generations g"
        " on g.relation = t.relname where not x.indisprimary"
    )
    return [(name.rpartition("_")[0], is_valid) for name, is_valid in rows]


def report_of(archive: FeatureArchive, database: Database, spec: TableSpec) -> TableReport:
    report = table_report(archive.store, database, spec)
    assert report is not None
    return report


def test_live_serves_the_old_columns_until_every_batch_is_there(
    archive, database, connection
) -> None:
    archive.columns = (LABEL, COUNT, NOTE)
    spec = archive.spec()

    first = load_batch(archive.store, database, spec, "b0")

    assert columns_of(connection) == ["label", "count"]
    assert connection.execute("select count(*) from features.pockets").fetchone() == (3,)
    assert first.live is None, "it holds the batch already"
    report = report_of(archive, database, spec)
    assert report.missing == ("b1", "b2")
    assert "building 1 of 3" in report.summary()
    assert "backfill all partitions" in report.summary()

    list(load_batches(archive.store, database, spec, ["b1", "b2"]))

    assert columns_of(connection) == ["label", "count", "note"]
    assert connection.execute("select distinct note from features.pockets").fetchall() == [
        ("none",)
    ]
    assert prove(archive.store, database, spec).is_equal
    assert report_of(archive, database, spec).is_settled


def test_a_fill_is_requested_once(archive, database, connection) -> None:
    archive.columns = (LABEL, COUNT, NOTE)
    spec = archive.spec()
    with database.connect("test") as own:
        assert not request_fill(own, spec)
        generation.ensure_table(own, spec)
        assert [request_fill(own, spec) for _ in range(3)] == [True, False, False]
        own.execute(
            "update feature_pipeline.generations"
            " set fill_requested_at = now() - interval '61 minutes'"
        )
        assert request_fill(own, spec)


def test_grants_comments_and_views_survive_an_added_column(archive, database, connection) -> None:
    connection.execute("create role reader_a nologin")
    try:
        connection.execute("grant select on features.pockets to reader_a with grant option")
        connection.execute("create view public.mine as select label from features.pockets")
        before = connection.execute(
            "select relacl::text, oid from pg_class where oid = 'features.pockets'::regclass"
        ).fetchone()
        archive.columns = (LABEL, COUNT, NOTE)

        load_all(archive, database, description="Said.")

        after = connection.execute(
            "select relacl::text, oid from pg_class where oid = 'features.pockets'::regclass"
        ).fetchone()
        assert after == before
        assert len(connection.execute("select * from public.mine").fetchall()) == 3
        assert connection.execute(
            "select obj_description('features.pockets'::regclass),"
            " col_description('features.pockets'::regclass, 6)"
        ).fetchone() == ("Said.", "Why.")
        dump = connection.execute(
            "select grants, dependents from feature_pipeline.switches"
        ).fetchone()
        assert dump[0] == [["reader_a", "SELECT", True, None, None]]
        assert [view["name"] for view in dump[1]] == [["public", "mine"]]

        connection.execute("drop view features.pockets cascade")
        load_batch(archive.store, database, archive.spec(description="Said."), "b0")
        assert connection.execute(
            "select has_table_privilege('reader_a', 'features.pockets', 'select with grant option')"
        ).fetchone() == (True,)
    finally:
        drop_role(connection, "reader_a")


def test_everything_on_the_view_is_made_again_when_columns_are_others(
    archive, database, connection
) -> None:
    connection.execute(
        """
        create role reader_b nologin;
        grant select (label), references (count) on features.pockets to reader_b;
        alter view features.pockets set (security_barrier = true);
        create view features."a 'view'" with (security_barrier) as
            select label as "the label", record_id from features.pockets;
        comment on view features."a 'view'" is 'mine';
        comment on column features."a 'view'"."the label" is 'its label';
        grant select on features."a 'view'" to reader_b, public;
        create view public.on_view as select v.*, p.batch
            from features."a 'view'" v join features.pockets p using (record_id);
        create materialized view public.counted as
            select batch, count(*) as n from public.on_view group by batch;
        create unique index counted_batch on public.counted (batch);
        create materialized view public.never as select label from features.pockets with no data;
        create function public.no_insert() returns trigger language plpgsql
            as 'begin return null; end';
        create trigger swallow instead of insert on public.on_view
            for each row execute function public.no_insert();
        """
    )
    try:
        archive.columns = (LABEL, Column(name="total", type="number", renamed_from="count"))

        load_all(archive, database)

        assert columns_of(connection) == ["label", "total"]
        assert connection.execute("select * from public.counted order by 1").fetchall() == [
            ("b0", 1),
            ("b1", 1),
            ("b2", 1),
        ]
        facts = connection.execute(
            """
            select has_column_privilege('reader_b', 'features.pockets', 'label', 'select'),
                has_column_privilege('reader_b', 'features.pockets', 'total', 'references'),
                has_table_privilege('reader_b', 'features."a ''view''"', 'select'),
                (select reloptions from pg_class where oid = 'features.pockets'::regclass),
                (select reloptions from pg_class where oid = 'features."a ''view''"'::regclass),
                obj_description('features."a ''view''"'::regclass),
                col_description('features."a ''view''"'::regclass, 1),
                (select relispopulated from pg_class where oid = 'public.never'::regclass),
                to_regclass('public.counted_batch') is not null,
                (select count(*) from pg_trigger where tgrelid = 'public.on_view'::regclass)
            """
        ).fetchone()
        assert facts == (
            True,
            True,
            True,
            ["security_barrier=true"],
            ["security_barrier=true"],
            "mine",
            "its label",
            False,
            True,
            1,
        )
        assert prove(archive.store, database, archive.spec()).is_equal
    finally:
        drop_role(connection, "reader_b")


def test_a_view_on_a_dropped_column_refuses_the_switch_by_name(
    archive, database, connection
) -> None:
    connection.execute("create view public.counts as select count from features.pockets")
    archive.columns = (LABEL,)

    with pytest.raises(
        ConflictError, match=r"view public\.counts cannot be created on the new columns"
    ):
        load_all(archive, database)

    assert columns_of(connection) == ["label", "count"]
    assert len(connection.execute("select * from public.counts").fetchall()) == 3
    connection.execute("drop view public.counts")
    load_all(archive, database)
    assert columns_of(connection) == ["label"]


def test_what_cannot_be_made_again_refuses_the_switch_by_name(
    archive, database, connection
) -> None:
    connection.execute(
        "create function public.lister() returns setof features.pockets language sql"
        " begin atomic select * from features.pockets; end"
    )
    archive.columns = (LABEL,)

    with pytest.raises(ConflictError, match="lister"):
        load_all(archive, database)
    connection.execute("drop function public.lister")

    connection.execute("create view public.ruled as select label from features.pockets")
    connection.execute("create rule quiet as on insert to public.ruled do instead nothing")
    with pytest.raises(ConflictError, match=r"view public\.ruled has rule quiet"):
        load_all(archive, database)
    assert columns_of(connection) == ["label", "count"]


def test_a_renamed_column_is_renamed_in_views_too(archive, database, connection) -> None:
    connection.execute("create view public.mine as select label, count from features.pockets")
    archive.columns = (Column(name="title", type="string", renamed_from="label"), COUNT)

    load_all(archive, database)

    assert columns_of(connection) == ["title", "count"]
    assert connection.execute("select label from public.mine order by 1").fetchall() == [
        ("l0",),
        ("l1",),
        ("l2",),
    ]
    assert prove(archive.store, database, archive.spec()).is_equal

    archive.say("b1", {"r1": [{"title": "l1", "count": 1}]})
    archive.columns = (
        Column(name="heading", type="string", renamed_from=["title", "label"]),
        COUNT,
    )
    load_all(archive, database)

    assert connection.execute(
        "select heading, count from features.pockets order by 1"
    ).fetchall() == [("l0", 0), ("l1", 1), ("l2", 2)]
    assert len(connection.execute("select label from public.mine").fetchall()) == 3
    assert prove(archive.store, database, archive.spec()).is_equal


def test_views_follow_a_rename_beside_a_dropped_column(archive, database, connection) -> None:
    """The name that a column gets may be that of one that goes."""
    connection.execute(
        """
        create view public.mine as
            select p.label || '!' as loud from features.pockets p where p.label <> 'l0';
        create materialized view public.top as select max(loud) as loud from public.mine;
        """
    )
    archive.columns = (Column(name="count", type="string", renamed_from="label"), NOTE)

    load_all(archive, database)

    assert columns_of(connection) == ["count", "note"]
    assert connection.execute("select loud from public.mine order by 1").fetchall() == [
        ("l1!",),
        ("l2!",),
    ]
    assert connection.execute("select loud from public.top").fetchall() == [("l2!",)]
    archive.columns = (Column(name="remark", type="string", renamed_from="note"),)
    with pytest.raises(ConflictError, match=r"view public\.mine .* column .*count \(0, dropped\)"):
        load_all(archive, database)


def test_a_refused_batch_leaves_live_up_to_date_and_others_loaded(
    archive, database, connection
) -> None:
    archive.add("b3", {"r3": [{"label": None}, {"label": "x"}]})
    archive.columns = (Column(name="label", type="string", required=True), COUNT)
    spec = archive.spec()

    with pytest.raises(CannotEvolveError, match=r"demo/features/pockets(.|\n)*'b3'.*'r3'"):
        load_all(archive, database)

    assert connection.execute("select count(*) from features.pockets").fetchone() == (5,)
    assert report_of(archive, database, spec).missing == ("b3",)
    archive.say("b3", {"r3": [{"label": "now"}]})
    load_batch(archive.store, database, spec, "b3")
    assert report_of(archive, database, spec).is_settled
    assert prove(archive.store, database, spec).is_equal


def test_rows_that_live_cannot_store_wait_and_are_reported(archive, database, connection) -> None:
    archive.columns = (LABEL, Column(name="count", type="number"))
    archive.add("b3", {"r3": [{"label": "x", "count": 1.5}]})

    report = load_batch(archive.store, database, archive.spec(), "b3")

    assert report.waiting is not None
    assert "'count'" in report.waiting
    assert connection.execute("select count(*) from features.pockets").fetchone() == (3,)
    load_all(archive, database)
    assert connection.execute("select max(count) from features.pockets").fetchone() == (2.0,)


def test_older_code_feeds_and_never_builds_backwards(archive, database, connection) -> None:
    """A rolling deployment: both codes load, in any order."""
    old = archive.spec()
    archive.columns = (LABEL, COUNT, NOTE)
    new = archive.spec(description="New words.")
    load_batch(archive.store, database, new, "b0")
    building = relations(connection)

    archive.add("b3", {"r3": [{"label": "x", "count": 3}]})
    load_batch(archive.store, database, old, "b3")

    assert relations(connection) == building
    assert report_of(archive, database, old).is_older_code
    list(load_batches(archive.store, database, new))
    assert columns_of(connection) == ["label", "count", "note"]
    load_batch(archive.store, database, old, "b0")
    assert columns_of(connection) == ["label", "count", "note"]
    assert connection.execute(
        "select obj_description('features.pockets'::regclass)"
    ).fetchone() == ("New words.",)

    with database.connect("test") as own:
        generation.adopt_definition(own, old)
    list(load_batches(archive.store, database, old))
    assert columns_of(connection) == ["label", "count"]


def test_a_loader_that_read_before_a_switch_writes_to_the_table_after_it(
    archive, database, connection
) -> None:
    old = archive.spec()
    with database.connect("test") as own:
        state = generation.ensure_table(own, old)
        archive.say("b0", {"r0": [{"label": "newer", "count": 9}]})
        batch = log.batch_entry(archive.store, "demo", "b0")
        head = log.head(archive.store, "demo", "pockets", "b0")
        assert head is not None
        prepared = prepare_batch(archive.store, state.live, batch, head)
        archive.columns = (LABEL, COUNT, NOTE)
        load_all(archive, database)

        with pytest.raises(TableChangedError):
            replace_batch(own, state, state.live, prepared)


def test_arrivals_that_only_older_code_loaded_are_caught_up(
    archive, database, connection, monkeypatch
) -> None:
    """Between verification and switch a loader that knows only the live generation is faster."""
    archive.columns = (LABEL, COUNT, NOTE)
    spec = archive.spec()
    original = switch.wait_for_older_snapshots
    arrived: list[log.FeatureEntry] = []

    def late(own, table) -> None:
        original(own, table)
        if not arrived:
            arrived.append(archive.say("b1", {"r1": [{"label": "late", "count": 1}]}))
            with database.connect("test") as other:
                state = generation.require_table(other, spec)
                batch = log.batch_entry(archive.store, "demo", "b1")
                prepared = prepare_batch(archive.store, state.live, batch, arrived[0])
                replace_batch(other, state, state.live, prepared)

    monkeypatch.setattr(finalize, "wait_for_older_snapshots", late)
    list(load_batches(archive.store, database, spec))

    assert columns_of(connection) == ["label", "count", "note"]
    assert ("late",) in connection.execute("select label from features.pockets").fetchall()
    assert prove(archive.store, database, spec).is_equal


def test_rows_that_differ_from_the_archive_are_never_switched_to(
    archive, database, connection
) -> None:
    """A generation that holds them is discarded, and another one built."""
    archive.columns = (LABEL, COUNT, NOTE)
    spec = archive.spec()
    list(load_batches(archive.store, database, spec, ["b0", "b1"]))
    building = relations(connection)[-1]
    connection.execute(f"update feature_pipeline.{building} set count = 99".encode())

    load_batch(archive.store, database, spec, "b2")

    assert columns_of(connection) == ["label", "count"]
    report = report_of(archive, database, spec)
    assert report.missing == ("b0", "b1", "b2")
    assert f"{building} was discarded: 2 batches unequal to the archive's: b0" in report.summary()
    list(load_batches(archive.store, database, spec, ["b0", "b1", "b2"]))
    assert columns_of(connection) == ["label", "count", "note"]
    assert building not in relations(connection)
    assert prove(archive.store, database, spec).is_equal
    assert report_of(archive, database, spec).discarded is None


@pytest.mark.parametrize("is_rebuild", [True, False])
def test_a_rebuild_ends_with_the_right_table_wherever_it_continues(
    archive, database, connection, is_rebuild
) -> None:
    archive.columns = (LABEL, COUNT, NOTE)
    spec = archive.spec()
    list(load_batches(archive.store, database, spec, ["b0", "b1"]))
    building = relations(connection)[-1]
    connection.execute(
        f"insert into feature_pipeline.{building} values ('ghost', 0, 'b9', 'x', 1)".encode()
    )

    if is_rebuild:
        list(fill(archive.store, database, begin_rebuild(archive.store, database, spec)))
    else:
        load_all(archive, database)

    assert columns_of(connection) == ["label", "count", "note"]
    assert prove(archive.store, database, spec).is_equal


def test_a_process_that_keeps_changing_rows_is_named_and_loading_ends(
    archive, database, connection, monkeypatch
) -> None:
    connection.execute(
        "create function public.spoil() returns trigger language plpgsql as"
        " 'begin new.count = 99; return new; end'"
    )
    original = generation._create_generation

    def spoilt(own, spec, token=""):
        made = original(own, spec, token)
        trigger = "create trigger spoil before insert on {} for each row execute function spoil()"
        own.execute(psycopg.sql.SQL(trigger).format(made.identifier))
        return made

    archive.columns = (LABEL, COUNT, NOTE)
    with monkeypatch.context() as spoiling:
        spoiling.setattr(generation, "_create_generation", spoilt)
        for _ in range(2):
            with pytest.raises(ProjectionError, match="built again less than 1 hour ago: remove"):
                load_all(archive, database)
            assert columns_of(connection) == ["label", "count"]
    assert len(relations(connection)) <= 3
    spec = archive.spec()

    list(fill(archive.store, database, begin_rebuild(archive.store, database, spec)))

    assert columns_of(connection) == ["label", "count", "note"]
    assert prove(archive.store, database, spec).is_equal


def test_a_generation_is_proven_once_as_long_as_nothing_changes(
    archive, database, database_url, connection, monkeypatch
) -> None:
    """A switch that readers held up, the next run's, and what `recover` prints: one reading."""
    proven: list[str] = []
    original = proof.prove_generation

    def counted(store, own, spec, which, *rest):
        proven.append(which.relation)
        return original(store, own, spec, which, *rest)

    monkeypatch.setattr(proof, "prove_generation", counted)
    monkeypatch.setattr(switch, "SNAPSHOT_WAIT_SECONDS", 0.1)
    archive.columns = (LABEL, COUNT, NOTE)
    spec = archive.spec()
    with (
        transaction_of(database_url, "select * from features.pockets"),
        pytest.raises(ConflictError, match="still open"),
    ):
        load_all(archive, database)
    load_all(archive, database)
    again = prove(archive.store, database, spec, may_reuse=True)

    live = relations(connection)[-1]
    assert proven == [live]
    assert again.is_equal
    assert again == prove(archive.store, database, spec)
    for damage in ("update features.pockets set count = count", "delete from features.pockets"):
        connection.execute(damage.encode())
        prove(archive.store, database, spec, may_reuse=True)
    assert proven == [live] * 4
    assert not prove(archive.store, database, spec, may_reuse=True).is_equal


@contextmanager
def transaction_of(url: str, *statements: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url) as reader:
        for statement in statements:
            reader.execute(statement.encode())
        yield reader


def test_the_switch_waits_for_transactions_that_would_see_an_empty_table(
    archive, database, database_url, monkeypatch
) -> None:
    monkeypatch.setattr(switch, "SNAPSHOT_WAIT_SECONDS", 0.2)
    archive.columns = (LABEL, COUNT, NOTE)
    with transaction_of(
        database_url, "set transaction isolation level repeatable read", "select 1"
    ) as reader:
        with pytest.raises(ConflictError, match=r"still open, in server processes \d+"):
            load_all(archive, database)
        assert reader.execute("select count(*) from features.pockets").fetchone() == (3,)

    load_all(archive, database)
    assert report_of(archive, database, archive.spec()).is_settled


def test_the_switch_lets_readers_through_between_attempts(
    archive, database, database_url, monkeypatch
) -> None:
    monkeypatch.setattr(switch, "wait_for_older_snapshots", lambda *_: None)
    monkeypatch.setattr(finalize, "wait_for_older_snapshots", lambda *_: None)
    monkeypatch.setattr(switch, "ATTEMPTS", 2)
    monkeypatch.setattr(switch, "LOCK_TIMEOUT", "50ms")
    archive.columns = (LABEL, COUNT, NOTE)
    with transaction_of(database_url, "select * from features.pockets") as reader:
        process = reader.info.backend_pid
        with pytest.raises(ConflictError, match=rf"at each of 2 attempts.*process {process} of"):
            load_all(archive, database)
    load_all(archive, database)
    assert report_of(archive, database, archive.spec()).is_settled


@pytest.mark.slow
def test_readers_never_see_an_error_an_empty_table_or_a_mixture(
    archive, database, database_url
) -> None:
    """Over four changes of columns and 36 rebuilds."""
    stop = threading.Event()
    problems: list[object] = []
    seen: set[tuple[str, ...]] = set()

    def read(isolation: str, selection: str, prepare_threshold: int | None) -> None:
        # A prepared `select *` fails whenever the columns of what it reads change: PostgreSQL's
        # own rule for every view and table. Prepared with named columns it must not.
        with psycopg.connect(
            database_url, autocommit=True, prepare_threshold=prepare_threshold
        ) as reader:
            query = f"select {selection} from features.pockets".encode()
            while not stop.is_set():
                try:
                    with reader.transaction():
                        reader.execute(f"set transaction isolation level {isolation}".encode())
                        cursor = reader.execute(query)
                        rows = cursor.fetchall()
                except psycopg.Error as error:
                    problems.append(error)
                    return
                if selection == "*":
                    seen.add(tuple(column.name for column in cursor.description or ())[3:])
                if len(rows) != 3:
                    problems.append(rows)
                stop.wait(0.02)  # leaves the cores to what is watched

    readers = [
        threading.Thread(target=read, args=arguments)
        for arguments in (
            ("read committed", "*", None),
            ("repeatable read", "*", None),
            ("read committed", "record_id, label", 0),
        )
    ]
    for reader in readers:
        reader.start()
    try:
        for columns in ((LABEL, COUNT, NOTE), (LABEL,), (LABEL, COUNT), (LABEL, COUNT, NOTE)):
            archive.columns = columns
            with database.connect("test") as own:
                generation.adopt_definition(own, archive.spec())
            load_all(archive, database)
            for _ in range(9):
                started = begin_rebuild(archive.store, database, archive.spec())
                list(fill(archive.store, database, started))
    finally:
        stop.set()
        for reader in readers:
            reader.join()

    assert problems == []
    assert seen == {("label", "count", "note"), ("label",), ("label", "count")}


def test_readers_of_a_view_on_the_table_do_not_keep_the_switch_away(
    archive, database, database_url, connection, monkeypatch
) -> None:
    """They lock that view first and then the table's: the switch must take both in this order."""
    monkeypatch.setattr(switch, "ATTEMPTS", 3)
    connection.execute("create view public.labels as select label from features.pockets")
    stop = threading.Event()
    counts: set[int] = set()

    def read() -> None:
        with psycopg.connect(database_url, autocommit=True, prepare_threshold=None) as reader:
            while not stop.is_set():
                counts.add(reader.execute("select *, pg_sleep(0.005) from public.labels").rowcount)

    readers = [threading.Thread(target=read) for _ in range(8)]
    for reader in readers:
        reader.start()
    archive.columns = (LABEL, NOTE)
    try:
        load_all(archive, database)
    finally:
        stop.set()
        for reader in readers:
            reader.join()

    assert columns_of(connection) == ["label", "note"]
    assert counts == {3}


def test_indexes_are_built_on_the_new_generation_before_it_is_read(
    archive, database, connection
) -> None:
    archive.columns = (LABEL, COUNT, NOTE)
    index = IndexDefinition(columns=("note", "label"), unique=True, name="notes")

    load_all(archive, database, indexes=(index,))

    live = relations(connection)[-1]
    assert (
        connection.execute(
            "select indexdef from pg_indexes where tablename = %s and indexname like 'notes%%'",
            [live],
        )
        .fetchone()[0]
        .endswith("USING btree (note, label)")
    )


def test_a_unique_index_that_rows_violate_leaves_live_serving(
    archive, database, connection
) -> None:
    archive.columns = (LABEL, COUNT, NOTE)
    unique = (IndexDefinition(columns=("note",), unique=True, name="notes"),)

    with pytest.raises(
        ProjectionError, match=r"index 'notes' cannot be built: Key \(note\)=\(none\)"
    ):
        load_all(archive, database, indexes=unique)

    assert columns_of(connection) == ["label", "count"]
    load_all(archive, database)
    assert columns_of(connection) == ["label", "count", "note"]


def test_an_index_change_loads_nothing_and_a_violated_one_stops_no_load(
    archive, database, connection
) -> None:
    before = relations(connection)
    archive.add("b3", {"r3": [{"label": "l0", "count": 7}]})
    unique = (IndexDefinition(columns=("label",), unique=True, name="labels"),)

    with pytest.raises(ProjectionError, match=r"index 'labels'.*\(label\)=\(l0\)"):
        load_all(archive, database, indexes=unique)

    assert connection.execute("select count(*) from features.pockets").fetchone() == (4,)
    assert relations(connection) == before
    left = connection.execute(
        "select count(*) from pg_class where relname like 'labels%'"
    ).fetchone()
    assert left == (0,)


def test_an_index_that_cannot_become_unique_stays_as_it_is(archive, database, connection) -> None:
    archive.add("b3", {"r3": [{"label": "l0", "count": 7}]})
    plain = IndexDefinition(columns=("label",), name="labels")
    load_all(archive, database, indexes=(plain,))
    before = index_names(connection)

    with pytest.raises(ProjectionError, match=r"index 'labels'.*\(label\)=\(l0\)"):
        load_all(archive, database, indexes=(plain.model_copy(update={"unique": True}),))

    assert index_names(connection) == before == [("labels", True)]
    archive.say("b3", {"r3": [{"label": "l3", "count": 7}]})
    load_all(archive, database, indexes=(plain.model_copy(update={"unique": True}),))
    assert index_names(connection) == [("labels", True)]
    assert connection.execute(
        "select indisunique from pg_index x join pg_class i on i.oid = x.indexrelid"
        " where i.relname like 'labels%'"
    ).fetchall() == [(True,)]


def test_indexes_of_a_live_table_change_beside_readers_and_writers(
    archive, database, database_url, connection, monkeypatch
) -> None:
    """A session that waits for a stronger lock makes every later session wait too."""
    monkeypatch.setattr(indexes, "LOCK_TIMEOUT", "100ms")
    one, other = (IndexDefinition(columns=(name,), name=name) for name in ("label", "count"))
    load_all(archive, database, indexes=(one,))
    isolation = "set transaction isolation level repeatable read"
    with transaction_of(database_url, isolation, "select from features.pockets") as reader:
        for changed, done in (((), "dropped"), ((other, one), "built")):
            with pytest.raises(ProjectionError, match=rf"index .* cannot be {done} while .*100ms"):
                load_all(archive, database, indexes=changed, description=done)
            if done == "dropped":
                reader.rollback()
                load_all(archive, database, indexes=changed, description=done)
                reader.execute(isolation.encode())
                reader.execute("select from features.pockets")
            with psycopg.connect(database_url, options="-c lock_timeout=1s") as beside:
                beside.execute("update features.pockets set count = count")
        assert index_names(connection) == [("count", False)]
        reader.rollback()

    # What a build that was cut short leaves is not taken for an index.
    load_all(archive, database, indexes=(other, one), description=done)
    assert sorted(index_names(connection)) == [("count", True), ("label", True)]


def test_old_generations_go_but_the_last(archive, database, connection) -> None:
    for columns in ((LABEL,), (LABEL, NOTE), (LABEL, COUNT, NOTE)):
        archive.columns = columns
        load_all(archive, database)

    left = relations(connection)
    assert len(left) == 2
    tables = connection.execute(
        "select count(*) from pg_class where relname like '\\_outcomes\\_%' and relkind = 'r'"
    ).fetchone()
    assert tables == (2,)


def test_old_generations_that_are_in_use_are_kept_named_and_dropped_later(
    archive, database, database_url, connection
) -> None:
    first, read = relations(connection)[0], None
    connection.execute(f"create view public.direct as table feature_pipeline.{first}".encode())
    for columns in ((LABEL,), (LABEL, NOTE)):
        archive.columns = columns
        load_all(archive, database)
        read = read or relations(connection)[-1]

    report = report_of(archive, database, archive.spec())
    assert f"generation {first} is not dropped because view public.direct" in report.summary()
    assert report.is_settled
    connection.execute("drop view public.direct")
    with transaction_of(database_url, f"select from feature_pipeline.{first}"):
        load_batch(archive.store, database, archive.spec(), "b0")
        assert first in relations(connection)
    load_batch(archive.store, database, archive.spec(), "b0")
    assert first not in relations(connection)
    assert report_of(archive, database, archive.spec()).kept == ()


def test_a_definition_given_up_half_way_does_not_wait_for_a_reader(
    archive, database, database_url, connection
) -> None:
    archive.columns = (LABEL, NOTE)
    load_batch(archive.store, database, archive.spec(), "b0")
    left = relations(connection)[-1]
    archive.columns = (LABEL, COUNT, NOTE)

    with transaction_of(database_url, "select from features._outcomes"):
        load_batch(archive.store, database, archive.spec(), "b0")
        assert left in relations(connection)
    load_batch(archive.store, database, archive.spec(), "b0")

    assert left not in relations(connection)


def test_a_rebuild_is_a_new_generation_with_the_same_columns(archive, database, connection) -> None:
    before = relations(connection)
    with database.connect("test") as own:
        for _ in range(2):
            generation.request_rebuild(own, archive.spec(), "backfill-1")

    load_all(archive, database)

    with database.connect("test") as own:
        state = generation.request_rebuild(own, archive.spec(), "backfill-1")
    assert state.building is None
    assert relations(connection) == [*before, state.live.relation]
    assert prove(archive.store, database, archive.spec()).is_equal


def test_batches_that_differ_are_loaded_again_and_then_switched_to(
    archive, database, connection
) -> None:
    archive.columns = (LABEL, COUNT, NOTE)
    spec = archive.spec()
    list(load_batches(archive.store, database, spec, ["b0", "b1"]))
    building = relations(connection)[-1]
    connection.execute(f"update feature_pipeline.{building} set count = 99".encode())
    list(load_batches(archive.store, database, spec, ["b0", "b1"], is_forced=True))

    load_batch(archive.store, database, spec, "b2")

    assert report_of(archive, database, spec).is_settled
    assert relations(connection)[-1] == building
