"""What `plan` foretells, what upcasters convert, going back, and tables of the past."""

import secrets
import sys
import types
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.logs import tombstones
from feature_pipeline.archive.maintenance import erase
from feature_pipeline.errors import ConflictError, NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition, UpcasterDefinition
from feature_pipeline.projections.catalog import generation
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.preview import PlanAction, plan_table
from feature_pipeline.projections.proof.missing_batches import check_progress
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill, past_spec
from feature_pipeline.projections.rollback import rollback, unpin
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline.projections.switch.finalize import TableReport, batches_to_load, table_report
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


@pytest.fixture
def archive() -> FeatureArchive:
    return three_batches()


def columns_of(connection: psycopg.Connection) -> list[str]:
    cursor = connection.execute("select * from features.pockets")
    return [column.name for column in cursor.description or ()][3:]


def report_of(archive: FeatureArchive, database: Database, spec: TableSpec) -> TableReport:
    report = table_report(archive.store, database, spec)
    assert report is not None
    return report


def objects(connection: psycopg.Connection) -> list:
    return connection.execute(
        "select n.nspname, c.relname, c.xmin::text from pg_class c"
        " join pg_namespace n on n.oid = c.relnamespace where nspname like 'feature%' order by 1, 2"
    ).fetchall()


def test_a_plan_for_an_empty_database_touches_nothing(archive, database, connection) -> None:
    plan = plan_table(archive.store, database, archive.spec())

    assert (plan.action, plan.batches, plan.rows) == (PlanAction.CREATE, 3, 3)
    assert plan.seconds > 0
    assert plan.archive_bytes > 0
    assert objects(connection) == []


def test_a_plan_lists_the_changes_and_changes_nothing(archive, database, connection) -> None:
    load_all(archive, database)
    connection.execute("create view public.mine as select label from features.pockets")
    before = objects(connection)
    archive.columns = (
        Column(name="title", type="string", renamed_from="label"),
        Column(name="extra", type="string"),
    )
    index = IndexDefinition(columns=("title",), unique=True)

    plan = plan_table(archive.store, database, archive.spec(indexes=(index,)))

    assert plan.action is PlanAction.BUILD
    assert (plan.added, plan.dropped) == (("extra",), ("count",))
    assert plan.changed == ("label is renamed to title",)
    assert plan.indexes_added == ("unique btree (title)",)
    assert plan.remade_views == ("view public.mine",)
    assert (plan.batches, plan.rows, plan.is_refused) == (3, 3, False)
    assert plan.table_bytes
    assert objects(connection) == before


def test_a_plan_tries_indexes(archive, database, connection) -> None:
    """They failed when they were built, after everything had been loaded."""
    archive.add("b3", {"r3": [{"label": secrets.token_hex(4500), "count": 1}]})
    indexes = (
        IndexDefinition(columns=("label",), name="long"),
        IndexDefinition(expression="now()", name="volatile"),
        IndexDefinition(expression="(label)", method="gin", name="plain_text"),
        IndexDefinition(expression="to_tsvector('english', label)", method="gin", name="words"),
        IndexDefinition(columns=("count",), name="fine"),
    )
    [empty, other] = plan_table(archive.store, database, archive.spec(indexes=indexes)).violations
    assert "IMMUTABLE" in empty
    assert "index plain_text cannot be built: data type text has no default operator" in other
    load_all(archive, database)
    before = objects(connection)

    violations = plan_table(archive.store, database, archive.spec(indexes=indexes)).violations

    assert violations[0].startswith(
        "index long cannot hold rows of the table that is read: index row"
    )
    assert list(violations[1:]) == [empty, other]
    assert objects(connection) == before


def test_a_plan_names_what_would_be_refused(archive, database) -> None:
    archive.add("b3", {"r3": [{"label": None, "count": 2**53 + 1}, {"label": "l1", "count": 1}]})
    load_all(archive, database)
    required = Column(name="label", type="string", required=True)
    index = IndexDefinition(columns=("label",), unique=True, where="label <> '50%'", name="labels")
    archive.columns = (required, Column(name="count", type="number"))

    plan = plan_table(archive.store, database, archive.spec(indexes=(index,)))

    assert list(plan.refused) == ["b3"]
    assert "'label': is now required" in plan.refused["b3"]
    assert "9007199254740993 of record 'r3'" in plan.refused["b3"]
    assert plan.violations == ("unique index labels: l1 is there 2 times",)
    with pytest.raises(CannotEvolveError):
        load_all(archive, database)


def test_a_plan_tries_indexes_on_columns_that_are_new_renamed_or_retyped(
    archive, database, connection
) -> None:
    for record_id in ("x", "y"):
        archive.add(record_id, {record_id: [{"label": "Same", "count": 0}]})
    load_all(archive, database)
    archive.columns = (
        Column(name="title", type="string", renamed_from="label"),
        Column(name="count", type="number"),
        NOTE,
    )
    indexes = (
        IndexDefinition(columns=("title",), unique=True, name="renamed"),
        IndexDefinition(expression="lower(title)", unique=True, where="count < 1", name="lowered"),
        IndexDefinition(columns=("count",), unique=True, name="retyped"),
        IndexDefinition(columns=("note",), unique=True, where="title <> 'l1'", name="defaulted"),
        IndexDefinition(columns=("note", "title", "record_id"), unique=True, name="fine"),
        IndexDefinition(expression="1 / count", name="halves"),
        IndexDefinition(expression="lower(labell)", name="misspelt"),
        IndexDefinition(expression="point(count, 1)", method="gist", name="without_equality"),
    )

    plan = plan_table(archive.store, database, archive.spec(indexes=indexes))

    assert plan.violations == (
        "unique index renamed: Same is there 2 times",
        "unique index lowered: same is there 2 times",
        "unique index retyped: 0 is there 3 times",
        "unique index defaulted: none is there 4 times",
        "index halves cannot be built: division by zero",
        'index misspelt cannot be built: column "labell" does not exist',
    )
    # what the table lacks and the artifacts have is unknown without reading them
    archive.say("x", {"x": [{"title": "Same", "count": 0, "note": "own"}]})
    plan = plan_table(archive.store, database, archive.spec(indexes=indexes[3:5]))
    assert plan.violations == ()
    archive.columns = (LABEL, COUNT)
    fresh = archive.spec(name="others", indexes=indexes[6:7])
    assert plan_table(archive.store, database, fresh).violations[0].startswith("index misspelt")


def test_a_plan_names_what_would_keep_the_switch_away(archive, database, connection) -> None:
    load_all(archive, database)
    connection.execute(
        """
        create view public.mine as select label, batch from features.pockets;
        create view public.counts as select count, label from features.pockets;
        create view public.ruled as select batch from public.mine;
        create rule quiet as on insert to public.ruled do instead nothing;
        create function public.lister() returns setof features.pockets language sql
            as 'select * from features.pockets';
        """
    )
    archive.columns = (Column(name="title", type="string", renamed_from="label"),)

    plan = plan_table(archive.store, database, archive.spec())

    assert plan.is_refused
    assert plan.blocked == (
        "view public.ruled has rule quiet",
        "view public.counts uses column 'count', which is dropped",
        "function public.lister() cannot be recreated",
    )
    assert plan.to_json()["blocked"] == list(plan.blocked)
    archive.columns = (LABEL, COUNT, NOTE)
    assert plan_table(archive.store, database, archive.spec()).blocked == ()


def test_a_plan_distinguishes_current_loading_adjusting_and_older_code(archive, database) -> None:
    old = archive.spec()
    load_all(archive, database)
    assert plan_table(archive.store, database, old).action is PlanAction.NOTHING
    archive.add("b3", {"r3": []})
    assert plan_table(archive.store, database, old).action is PlanAction.LOAD
    load_all(archive, database)
    described = archive.spec(description="Words.")
    assert plan_table(archive.store, database, described).action is PlanAction.ADJUST
    assert batches_to_load(archive.store, database, described) == ["b0"]
    load_batch(archive.store, database, described, "b0")
    assert plan_table(archive.store, database, described).action is PlanAction.NOTHING
    assert batches_to_load(archive.store, database, described) == []
    assert plan_table(archive.store, database, old).action is PlanAction.OLDER_CODE


@pytest.fixture
def upcasters() -> Iterator[types.ModuleType]:
    module = types.ModuleType("test_upcasters")

    def split(row: dict) -> dict:
        first, second = row["label"].split("/")
        return {"kind": first, "parts": [second, row["count"]]}

    module.__dict__.update(split=split, broken=lambda row: {"kind": 1})
    sys.modules[module.__name__] = module
    yield module
    del sys.modules[module.__name__]


UPCAST = (
    Column(name="kind", type="string", required=True),
    Column(name="parts", type="array"),
)


def upcaster(function: str = "split", *releases: str) -> UpcasterDefinition:
    return UpcasterDefinition(function=f"test_upcasters:{function}", releases=releases or ("1",))


def test_an_upcaster_converts_what_no_rule_can(database, connection, upcasters) -> None:
    archive = FeatureArchive((LABEL, COUNT))
    archive.add("b1", {"r1": [{"label": "a/x", "count": 1}, {"label": "b/y", "count": 2}]})
    load_all(archive, database)
    archive.columns = UPCAST
    archive.register("2")
    archive.add("b2", {"r2": [{"kind": "c", "parts": [None]}]})

    assert plan_table(archive.store, database, archive.spec()).is_refused
    spec = archive.spec(upcasters=(upcaster(),))
    assert not plan_table(archive.store, database, spec).is_refused
    list(load_batches(archive.store, database, spec))

    rows = connection.execute("select record_id, kind, parts from features.pockets order by 1, 2")
    assert rows.fetchall() == [
        ("r1", "a", ["x", 1]),
        ("r1", "b", ["y", 2]),
        ("r2", "c", [None]),
    ]
    assert prove(archive.store, database, spec).is_equal


def test_an_upcaster_converts_units_of_the_releases_it_names(
    database, connection, upcasters
) -> None:
    """Name, type and format are the same; what the number means is not."""
    upcasters.__dict__["to_nanometres"] = lambda row: {"depth": row["depth"] / 10}
    archive = FeatureArchive((Column(name="depth", type="number", unit="Å"),))
    archive.add("b1", {"r1": [{"depth": 15.0}]})
    load_all(archive, database)
    archive.columns = (Column(name="depth", type="number", unit="nm"),)
    archive.register("2")
    archive.add("b2", {"r2": [{"depth": 2.0}]})
    spec = archive.spec(upcasters=(upcaster("to_nanometres"),))

    assert not plan_table(archive.store, database, spec).is_refused
    list(load_batches(archive.store, database, spec))

    rows = connection.execute("select record_id, depth from features.pockets order by 1")
    assert rows.fetchall() == [("r1", 1.5), ("r2", 2.0)]
    assert prove(archive.store, database, spec).is_equal
    # the same said again under the release that needs no conversion is something else
    archive.say("b1", {"r1": [{"depth": 15.0}]})
    load_batch(archive.store, database, spec, "b1")
    assert connection.execute(
        "select depth from features.pockets where record_id = 'r1'"
    ).fetchone() == (15.0,)
    assert prove(archive.store, database, spec).is_equal


def test_an_upcaster_that_fails_names_batch_record_and_row(database, upcasters) -> None:
    archive = FeatureArchive((LABEL, COUNT))
    archive.add("b1", {"r1": [{"label": "a/x", "count": 1}, {"label": "none", "count": 2}]})
    archive.columns = UPCAST

    def refusal(function: str) -> str:
        with pytest.raises(CannotEvolveError) as raised:
            load_all(archive, database, upcasters=(upcaster(function),))
        return str(raised.value)

    assert "batch 'b1': upcaster test_upcasters:split: record 'r1', row 1: ValueError" in refusal(
        "split"
    )
    assert "record 'r1', row 0: column 'kind': expected a string, found 1" in refusal("broken")
    assert "test_upcasters:absent cannot be imported" in refusal("absent")


def test_rollback_pins_and_both_generations_are_fed(archive, database, connection) -> None:
    load_all(archive, database)
    archive.columns = (LABEL, NOTE)
    load_all(archive, database)
    archive.say("b0", {"r0": [{"label": "newer"}]})
    load_batch(archive.store, database, archive.spec(), "b0")

    done = rollback(archive.store, database, archive.spec())

    assert done.behind == ("b0",)
    names = [
        column.name for column in connection.execute("select * from features.pockets").description
    ]
    assert names[3:] == ["label", "count"]
    assert check_progress(archive.store, database, archive.spec()).behind == ("b0",)
    assert batches_to_load(archive.store, database, archive.spec()) == ["b0"]
    load_batch(archive.store, database, archive.spec(), "b0")
    assert ("newer",) in connection.execute("select label from features.pockets").fetchall()
    report = report_of(archive, database, archive.spec())
    assert report.is_pinned
    assert "pinned" in report.summary()
    with pytest.raises(ConflictError, match="pinned"):
        rollback(archive.store, database, archive.spec())

    assert unpin(archive.store, database, archive.spec()).is_settled

    names = [
        column.name for column in connection.execute("select * from features.pockets").description
    ]
    assert names[3:] == ["label", "note"]
    assert prove(archive.store, database, archive.spec()).is_equal


@pytest.mark.parametrize("is_deleted", [False, True])
@pytest.mark.parametrize("is_lifted", [False, True])
def test_rollback_does_not_bring_withdrawn_records_back(
    archive, database, connection, is_lifted, is_deleted
) -> None:
    """The generation that was left is not fed, nor told of what was erased since."""
    if is_deleted:
        write_census(archive.store)
    load_all(archive, database)
    archive.columns = (LABEL, NOTE)
    load_all(archive, database)
    tombstones.withdraw(archive.store, "demo", ["r0"], "asked for")
    if is_lifted:
        erasure = erase.erase(archive.store, "demo", ["r0"], "asked for")
        assert bool(erasure.deleted) == is_deleted
        tombstones.lift(archive.store, "demo", ["r0"], "may come again")

    rollback(archive.store, database, archive.spec())

    shown = connection.execute("select distinct record_id from features.pockets").fetchall()
    assert shown
    assert ("r0",) not in shown
    assert connection.execute(
        "select count(*) from features._outcomes where record_id = 'r0'"
    ).fetchone() == (0,)
    (counted,) = connection.execute("select count(*) from features.pockets").fetchone()
    assert connection.execute(
        "select sum(p.rows) from feature_pipeline.progress p"
        " join feature_pipeline.tables t on t.live = p.generation"
    ).fetchone() == (counted,)
    load_all(archive, database)
    assert prove(archive.store, database, archive.spec()).is_equal
    assert report_of(archive, database, archive.spec()).is_pinned


def test_rollback_without_an_earlier_generation_is_refused(archive, database) -> None:
    with pytest.raises(NotFoundError, match="does not exist"):
        rollback(archive.store, database, archive.spec())
    load_all(archive, database)
    with pytest.raises(NotFoundError, match="no earlier generation"):
        rollback(archive.store, database, archive.spec())


def test_a_rename_can_be_rolled_back_under_a_view(archive, database, connection) -> None:
    load_all(archive, database)
    connection.execute("create view public.mine as select label from features.pockets")
    archive.columns = (Column(name="title", type="string", renamed_from="label"), COUNT)
    load_all(archive, database)

    rollback(archive.store, database, archive.spec())

    assert connection.execute("select label from features.pockets order by 1").fetchall() == [
        ("l0",),
        ("l1",),
        ("l2",),
    ]
    assert len(connection.execute("select label from public.mine").fetchall()) == 3


def test_going_back_to_earlier_columns_uses_the_generation_that_is_there(
    archive, database, connection
) -> None:
    old = archive.spec()
    load_all(archive, database)
    archive.columns = (LABEL, NOTE)
    load_all(archive, database)
    with database.connect("test") as own:
        state = generation.adopt_definition(own, old)
    assert state.building is not None
    assert state.building.switched_at is not None

    assert plan_table(archive.store, database, old).action is PlanAction.CATCH_UP
    load_batch(archive.store, database, old, "b0")

    assert report_of(archive, database, old).is_settled


def test_a_rebuild_continues_where_it_stopped(archive, database) -> None:
    spec = archive.spec()
    first = begin_rebuild(archive.store, database, spec)
    assert not first.is_resumed
    list(fill(archive.store, database, first))
    begun = begin_rebuild(archive.store, database, spec)
    assert begun.batches == ("b0", "b1", "b2")
    with closing(load_batches(archive.store, database, spec, begun.batches)) as reports:
        assert next(reports).batch == "b2"

    again = begin_rebuild(archive.store, database, spec)

    assert again.is_resumed
    assert again.generation == begun.generation
    assert "b2" not in again.batches
    list(fill(archive.store, database, again))
    assert report_of(archive, database, spec).live == begun.generation
    assert prove(archive.store, database, spec).is_equal


def test_rows_that_went_wrong_are_loaded_again(archive, database, connection) -> None:
    spec = archive.spec()
    load_all(archive, database)
    [relation] = connection.execute("select relation from feature_pipeline.generations").fetchone()
    connection.execute(f"update feature_pipeline.{relation} set count = 99".encode())
    assert prove(archive.store, database, spec).unequal_batches == ("b0", "b1", "b2")

    list(load_batches(archive.store, database, spec, ["b0", "b1"], is_forced=True))

    assert prove(archive.store, database, spec).unequal_batches == ("b2",)


def test_a_table_of_the_past_shows_what_was_current_then(archive, database, connection) -> None:
    load_all(archive, database)
    entry = archive.say("b0", {"r0": [{"label": "newer", "count": 1}]})
    load_all(archive, database)
    past = past_spec(archive.spec(), entry.accepted_at - timedelta(microseconds=1))

    list(fill(archive.store, database, begin_rebuild(archive.store, database, past)))

    view = psycopg.sql.Identifier("features", past.name)
    query = psycopg.sql.SQL("select label from {} where record_id = 'r0'").format(view)
    assert connection.execute(query).fetchall() == [("l0",)]
    assert connection.execute(
        "select label from features.pockets where record_id = 'r0'"
    ).fetchall() == [("newer",)]
    assert prove(archive.store, database, past).is_equal
    before = past_spec(archive.spec(), datetime(2020, 1, 1, tzinfo=UTC))
    list(fill(archive.store, database, begin_rebuild(archive.store, database, before)))
    assert prove(archive.store, database, before).rows == 0
