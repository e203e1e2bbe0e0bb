"""A record whose batch cannot be read is missing in a table: no earlier batch answers for it."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import BatchEntry
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.missing_batches import check_progress
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill, past_spec
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline_tests.fixtures.feature_archive import LABEL, FeatureArchive

pytestmark = pytest.mark.postgres

DAMAGED = ("rows", "outcomes", "manifest", "log entry", "batch entry", "document and rows")
"""What of the newer batch is damaged. A document alone is not read by a load."""


@pytest.fixture
def archive() -> FeatureArchive:
    """`shared` is in b0 and b1, `later` in b1 and b2: the batch submitted last owns each."""
    archive = FeatureArchive((LABEL,))
    archive.add("b0", {"alone": _row("b0"), "shared": _row("b0")})
    archive.add("b1", {"shared": _row("b1"), "later": _row("b1"), "own": _row("b1")})
    archive.add("b2", {"later": _row("b2")})
    return archive


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def _row(text: str) -> list[dict[str, str]]:
    return [{"label": text}]


def _keys(archive: FeatureArchive, damaged: str) -> list[str]:
    head = archive.heads()["b1"]
    manifest = read.read_manifest(archive.store, head.manifest)
    document = layout.blob(log.batch_entry(archive.store, "demo", "b1").digest)
    rows = layout.blob(manifest.blobs["rows"].digest)
    return {
        "rows": [rows],
        "outcomes": [layout.blob(manifest.blobs["outcomes"].digest)],
        "manifest": [layout.blob(head.manifest)],
        "log entry": [layout.entry(head.log_prefix, head.seq)],
        "batch entry": [layout.entry(layout.batch_log("demo", "b1"), 1)],
        "document and rows": [document, rows],
    }[damaged]


def _damage(archive: FeatureArchive, damaged: str) -> dict[str, bytes]:
    """Cut the objects short behind the archive's back; return what they were."""
    before = {}
    for key in _keys(archive, damaged):
        before[key] = archive.store.get(key).data
        _put(archive, key, before[key][:-1])
    log.forget_read_entries()
    return before


def _put(archive: FeatureArchive, key: str, data: bytes) -> None:
    assert isinstance(archive.store, MemoryStore)
    archive.store.delete(key)
    assert archive.store.create(key, data)
    stored = archive.store._objects[key]
    info = dataclasses.replace(stored.info, sha256=None)
    archive.store._objects[key] = dataclasses.replace(stored, info=info)


def _restore(archive: FeatureArchive, before: dict[str, bytes]) -> None:
    for key, data in before.items():
        archive.store.delete(key)
        assert archive.store.create(key, data)
    log.forget_read_entries()


def _rows(connection: psycopg.Connection) -> dict[str, str]:
    return dict(connection.execute("select record_id, batch from features.pockets").fetchall())


def _load(archive: FeatureArchive, database, *batches: str) -> str:
    """Load them; return the error."""
    try:
        list(load_batches(archive.store, database, archive.spec(), batches or None))
    except CorruptDataError as error:
        return str(error)
    return ""


def _expected(damaged: str) -> dict[str, str]:
    # When b1 was submitted, and so which of its records b2 owns, only its own log states.
    return {"alone": "b0"} if damaged == "batch entry" else {"alone": "b0", "later": "b2"}


ONE_BY_ONE = {
    "in order": [("b0",), ("b1",), ("b2",)],
    "backwards": [("b2",), ("b1",), ("b0",)],
    "without the damaged": [("b0", "b2")],
}


@pytest.mark.parametrize(
    ("damaged", "loads"),
    [
        *((damaged, [()]) for damaged in DAMAGED),
        *(
            pytest.param(damaged, loads, id=f"{damaged}, {name}")
            for damaged, name in (
                ("rows", "in order"),
                ("rows", "backwards"),
                ("log entry", "without the damaged"),
                ("batch entry", "in order"),
                ("batch entry", "backwards"),
            )
            for loads in [ONE_BY_ONE[name]]
        ),
    ],
)
def test_an_empty_table(archive, database, connection, damaged, loads) -> None:
    before = _damage(archive, damaged)

    errors = [_load(archive, database, *batches) for batches in loads]

    rows = _rows(connection)
    assert rows == _expected(damaged)
    read_rows = Archive(archive.store).features("pockets", skip_damaged=True).to_pandas()
    assert dict(zip(read_rows["record_id"], read_rows["batch"], strict=True)) == rows
    shown = connection.execute("select record_id, batch from features._outcomes").fetchall()
    assert dict(shown) == rows
    if loads != [("b0", "b2")]:
        assert "b1" in "".join(errors)
    assert "b1" in check_progress(archive.store, database, archive.spec()).wrong()
    proof = prove(archive.store, database, archive.spec())
    assert proof.has_equal_content
    assert not proof.is_equal

    _restore(archive, before)
    assert _load(archive, database) == ""
    assert _rows(connection) == {"alone": "b0", "shared": "b1", "own": "b1", "later": "b2"}
    assert prove(archive.store, database, archive.spec()).is_equal


@pytest.mark.parametrize("damaged", ["rows", "log entry", "batch entry"])
def test_a_table_that_was_loaded_with_the_batch_keeps_its_rows(
    archive, database, connection, damaged
) -> None:
    assert _load(archive, database) == ""
    before, rows = _rows(connection), _damage(archive, damaged)

    _load(archive, database)
    with pytest.raises(CorruptDataError, match="b1"):
        list(fill(archive.store, database, begin_rebuild(archive.store, database, archive.spec())))

    assert _rows(connection) == before
    _restore(archive, rows)
    list(fill(archive.store, database, begin_rebuild(archive.store, database, archive.spec())))
    assert _rows(connection) == before
    assert prove(archive.store, database, archive.spec()).is_equal


@pytest.mark.parametrize("is_rebuilt", [False, True], ids=["loaded", "rebuilt"])
@pytest.mark.parametrize("damaged", ["manifest", "log entry", "batch entry"])
def test_a_table_that_is_older_than_the_batch(
    archive, database, connection, damaged, is_rebuilt
) -> None:
    """The batch owns its records from its acceptance on, in the table that is read as well."""
    assert _load(archive, database, "b0", "b2") == ""
    assert _rows(connection) == {"alone": "b0", "shared": "b0", "later": "b2"}
    before = _damage(archive, damaged)

    if is_rebuilt:
        rebuild = begin_rebuild(archive.store, database, archive.spec())
        with pytest.raises(CorruptDataError, match="b1"):
            list(fill(archive.store, database, rebuild))
    else:
        assert "b1" in _load(archive, database)

    assert _rows(connection) == _expected(damaged)
    _restore(archive, before)
    assert _load(archive, database) == ""
    assert _rows(connection) == {"alone": "b0", "shared": "b1", "own": "b1", "later": "b2"}
    assert prove(archive.store, database, archive.spec()).is_equal


def test_a_table_of_the_past(archive, database, connection) -> None:
    spec = past_spec(archive.spec(), datetime.now(UTC))
    _damage(archive, "rows")

    with pytest.raises(CorruptDataError, match="b1"):
        list(load_batches(archive.store, database, spec))

    rows = connection.execute(f"select record_id, batch from features.{spec.name}").fetchall()
    assert dict(rows) == _expected("rows")


def test_records_that_nothing_names_are_reported(archive, database, connection) -> None:
    """Neither document nor outcomes can be read: the error says so, and others are shown."""
    document = layout.blob(log.batch_entry(archive.store, "demo", "b1").digest)
    for key in (document, *_keys(archive, "outcomes")):
        _put(archive, key, b"")
    log.forget_read_entries()

    error = _load(archive, database)

    assert "nor is known which records it has" in error
    assert _rows(connection) == {"alone": "b0", "shared": "b0", "later": "b2"}


def test_an_erased_record_is_not_withheld_but_gone(archive, database, connection) -> None:
    write_census(archive.store)
    assert erase(archive.store, "demo", ["shared"], "asked for").is_finished
    _damage(archive, "rows")

    _load(archive, database)

    query = "select distinct record_id from feature_pipeline.outcomes where status = 'withheld'"
    assert connection.execute(query).fetchall() == [("own",)]


def test_a_batch_whose_loss_is_accepted_gives_its_records_back_with_a_rebuild(
    archive, database, connection
) -> None:
    key = layout.entry(archive.heads()["b1"].log_prefix, 1)
    _damage(archive, "log entry")
    _load(archive, database)
    archive.store.delete(key)
    log.forget_read_entries()

    proof = prove(archive.store, database, archive.spec())
    assert proof.unequal_batches == ("b0",)

    list(fill(archive.store, database, begin_rebuild(archive.store, database, archive.spec())))
    assert _rows(connection) == {"alone": "b0", "shared": "b0", "later": "b2"}
    assert prove(archive.store, database, archive.spec()).is_equal


def test_a_redacted_batch_keeps_its_place(archive) -> None:
    """An entry that is readable by itself states when the batch was submitted."""
    first = log.batch_entry(archive.store, "demo", "b1")
    write_census(archive.store)
    assert erase(archive.store, "demo", ["own"], "asked for").is_finished
    last = log.batch_entry(archive.store, "demo", "b1")
    assert isinstance(last, BatchEntry)
    assert (last.seq, last.order) == (2, first.order)


def test_a_batch_that_an_empty_table_cannot_store(archive, database, connection) -> None:
    """Its values do not fit the columns: no earlier batch answers for its records either."""
    archive.columns = (Column(name="label", type="integer"),)
    archive.add("b3", {"own": [{"label": 3}]})
    archive.columns = (LABEL,)

    with pytest.raises(CannotEvolveError, match="b3"):
        list(load_batches(archive.store, database, archive.spec()))

    assert _rows(connection) == {"alone": "b0", "shared": "b1", "later": "b2"}
    assert prove(archive.store, database, archive.spec()).has_equal_content
    archive.say("b3", {"own": _row("b3")})
    assert _load(archive, database) == ""
    assert _rows(connection) == {"alone": "b0", "shared": "b1", "later": "b2", "own": "b3"}
    assert prove(archive.store, database, archive.spec()).is_equal
