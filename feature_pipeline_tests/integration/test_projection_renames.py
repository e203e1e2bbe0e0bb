"""Renamed columns: table, plan and archive agree on which values a column holds."""

import json
from dataclasses import replace

import psycopg
import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.compute.redecode import decode_batch_again, decode_raw
from feature_pipeline.errors import ConflictError, InvalidInputError, ProjectionError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.preview import plan_table
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive, load_all

pytestmark = pytest.mark.postgres

A = Column(name="a", type="integer")
B = Column(name="b", type="integer")
B_FROM_A = Column(name="b", type="integer", renamed_from="a")


@pytest.fixture
def archive(tmp_path) -> FeatureArchive:
    """Two batches, `a` being 1 and 2, `b` being 10 and 20, with the raw output that says so."""
    archive = FeatureArchive((A, B))
    for number in (1, 2):
        record_id, row = f"r{number}", {"a": number, "b": number * 10}
        raw = tmp_path / str(number) / "features.jsonl"
        raw.parent.mkdir()
        raw.write_text(json.dumps({"id": record_id, "features": [row]}))
        archive.submit(f"b{number}", [record_id])
        archive.say(f"b{number}", {record_id: [row]}, {raw.name: raw})
    return archive


def carry_over(archive: FeatureArchive, batch: str, outcomes: list[Outcome]) -> None:
    """What a run leaves that changed columns alone led to."""
    source = archive.heads()[batch].manifest
    archive.accept(batch, [replace(outcome, carried_from=source) for outcome in outcomes])


def derive_again(archive: FeatureArchive, batch: str) -> None:
    manifest = read.read_manifest(archive.store, archive.heads()[batch].manifest)
    record = batch.replace("b", "r")
    outcomes = decode_raw(archive.store, manifest, [record], archive.columns, Cardinality.MANY)
    carry_over(archive, batch, list(outcomes))


def values(connection: psycopg.Connection, column: str) -> list[int]:
    query = psycopg.sql.SQL("select {} from features.pockets order by record_id")
    rows = connection.execute(query.format(psycopg.sql.Identifier(column)))
    return [row[0] for row in rows]


def test_a_batch_that_was_derived_again_has_the_same_columns_as_the_others(
    archive, database, connection
) -> None:
    load_all(archive, database)
    archive.columns = (B_FROM_A,)
    plan = plan_table(archive.store, database, archive.spec())
    assert (plan.changed, plan.dropped) == (("a is renamed to b",), ("b",))

    load_all(archive, database)
    derive_again(archive, "b1")
    load_all(archive, database)

    rows = connection.execute("select record_id, b from features.pockets order by 1").fetchall()
    assert rows == [("r1", 1), ("r2", 2)]
    assert prove(archive.store, database, archive.spec()).is_equal
    frame = Archive(archive.store).features("pockets", dataset="demo").to_arrow()
    assert dict(zip(frame["record_id"].to_pylist(), frame["b"].to_pylist(), strict=True)) == {
        "r1": 1,
        "r2": 2,
    }


def test_an_artifact_that_was_derived_otherwise_is_not_loaded_and_not_called_equal(
    archive, database, connection
) -> None:
    """An earlier decoder read `b` under its own name, which was the dropped column's."""
    archive.columns = (B_FROM_A,)
    load_all(archive, database)
    carry_over(archive, "b1", [Outcome("r1", Status.PASSED, rows=((10,),))])

    with pytest.raises(CannotEvolveError, match=r"batch 'b1': column 'b' has .* --from-raw"):
        load_all(archive, database)

    assert values(connection, "b") == [1, 2]
    decode_batch_again(archive.store, archive.heads()["b1"])
    load_all(archive, database)
    assert prove(archive.store, database, archive.spec()).is_equal


def test_the_proof_names_a_batch_with_another_columns_values(
    archive, database, monkeypatch
) -> None:
    archive.columns = (B_FROM_A,)
    carry_over(archive, "b1", [Outcome("r1", Status.PASSED, rows=((10,),))])
    with monkeypatch.context() as earlier:
        earlier.setattr("feature_pipeline.projections.rows.prepare.check_carried", lambda *_: None)
        earlier.setattr("feature_pipeline.projections.proof.proof.check_carried", lambda *_: None)
        load_all(archive, database)

    proof = prove(archive.store, database, archive.spec())

    assert proof.unequal_batches == ("b1",)
    assert "it is the former 'a'" in proof.summary()


def test_batches_with_different_meanings_are_neither_switched_to_nor_read_as_one(
    archive, database, connection
) -> None:
    """`b` was `a`, then its declaration forgot it: rows of before have another `b`."""
    archive.columns = (B_FROM_A,)
    archive.say("b2", {"r2": [{"b": 2}]})
    load_all(archive, database)
    archive.columns = (B,)
    spec = archive.spec()

    plan = plan_table(archive.store, database, spec)

    assert list(plan.refused) == ["b1"]
    with pytest.raises(ProjectionError, match=r"b1.*'b' by its names, and 'a' by the declaration"):
        list(load_batches(archive.store, database, spec))
    assert values(connection, "b") == [1, 2]
    archive.add("b3", {"r3": [{"b": 3}]})
    with pytest.raises(InvalidInputError, match="complete its renamed_from"):
        Archive(archive.store).features("pockets", dataset="demo").to_arrow()
    archive.columns = (B_FROM_A,)
    load_all(archive, database)
    assert prove(archive.store, database, archive.spec()).is_equal


def test_a_column_renamed_in_steps_is_read_under_every_name(database, connection) -> None:
    archive = FeatureArchive((A,))
    archive.add("b1", {"r1": [{"a": 1}]})
    archive.columns = (B_FROM_A,)
    archive.add("b2", {"r2": [{"b": 2}]})
    load_all(archive, database)
    archive.columns = (Column(name="c", type="integer", renamed_from=["b", "a"]),)
    plan = plan_table(archive.store, database, archive.spec())
    assert (plan.changed, plan.without_values) == (("b is renamed to c",), ())

    load_all(archive, database)
    assert values(connection, "c") == [1, 2]
    # and back
    archive.columns = (A,)
    assert plan_table(archive.store, database, archive.spec()).without_values == ()
    load_all(archive, database)
    assert values(connection, "a") == [1, 2]


def test_a_plan_names_what_becomes_null_and_the_remedy(database) -> None:
    archive = FeatureArchive((A,))
    archive.add("b1", {"r1": [{"a": 1}]})
    archive.add("b2", {"r2": []})
    load_all(archive, database)
    archive.columns = (B_FROM_A,)
    load_all(archive, database)
    new = Column(name="n", type="integer", default=0)
    archive.columns = (Column(name="c", type="integer", renamed_from="b"), new)

    plan = plan_table(archive.store, database, archive.spec())

    assert plan.without_values == (
        "c is NULL in 1 of 2 batches, written without it: b1; the table that is read has values"
        " there, which were written as a: add that to renamed_from of c",
        "n is its default in 1 of 2 batches, written without it: b1",
    )
    assert plan.to_json()["without_values"] == list(plan.without_values)


def test_a_column_that_may_be_either_of_two_is_refused(archive, database, connection) -> None:
    """`b` was `a`; now both are declared, and what was written as `b` may be either."""
    archive.columns = (B_FROM_A,)
    archive.say("b1", {"r1": [{"b": 1}]})
    load_all(archive, database)
    archive.columns = (A, B)

    plan = plan_table(archive.store, database, archive.spec())

    assert list(plan.refused) == ["b1"]
    with pytest.raises(CannotEvolveError, match="may be 'a' or 'b' as declared now"):
        load_all(archive, database)
    archive.say("b1", {"r1": [{"a": 3, "b": 4}]})
    load_all(archive, database)
    assert connection.execute("select a, b from features.pockets order by 1").fetchall() == [
        (2, 20),
        (3, 4),
    ]


def test_a_view_on_a_dropped_column_does_not_come_to_show_the_one_that_has_its_name(
    archive, database, connection
) -> None:
    load_all(archive, database)
    connection.execute("create view public.mine as select record_id, b from features.pockets")
    archive.columns = (B_FROM_A,)
    plan = plan_table(archive.store, database, archive.spec())
    assert plan.blocked == ("view public.mine uses column 'b', which is dropped",)

    with pytest.raises(
        ConflictError, match=r"view public\.mine cannot be created on the new columns"
    ):
        load_all(archive, database)

    rows = connection.execute("select b from public.mine order by 1").fetchall()
    assert rows == [(10,), (20,)]
