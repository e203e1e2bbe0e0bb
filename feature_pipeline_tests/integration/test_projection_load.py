"""Tables as people and the archive see them, on a real PostgreSQL."""

import collections
import dataclasses
import itertools
import json
import math
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from uuid import UUID

import psycopg
import pytest
from psycopg import sql

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import tombstones
from feature_pipeline.archive.logs.entries import StoredEntry, chained
from feature_pipeline.archive.maintenance import erase
from feature_pipeline.archive.store.s3 import open_store
from feature_pipeline.errors import ConflictError, NotFoundError, ProjectionError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition
from feature_pipeline.projections import load
from feature_pipeline.projections.catalog import generation
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.preview import PlanAction, plan_table
from feature_pipeline.projections.proof.missing_batches import check_progress
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild
from feature_pipeline.projections.rows import write
from feature_pipeline.projections.rows.write import RefusedBatchError
from feature_pipeline.projections.switch.finalize import batches_to_load, table_report
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive, load_batch

pytestmark = pytest.mark.postgres

COLUMNS = (
    Column(name="label", type="string", description="What it is."),
    Column(name="score", type="number", unit="Å³", description="Its size."),
    Column(name="count", type="integer"),
    Column(name="is_open", type="boolean"),
    Column(name="center", type="array"),
    Column(name="details", type="object"),
    Column(name="day", type="string", format="date"),
    Column(name="at", type="string", format="date-time"),
    Column(name="key", type="string", format="uuid"),
)
FULL = {
    "label": "日本 \"quoted\" \\ 'x'\t\n%s",
    "score": 1.5,
    "count": 2**60 + 1,
    "is_open": True,
    "center": [1.0, -0.5, {"deep": [None, "é"]}],
    "details": {"b": 1, "a": [2**60 + 1]},
    "day": "2026-02-28",
    "at": "2026-02-28T12:00:00.000001+02:00",
    "key": "12345678-1234-5678-1234-567812345678",
}


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database_url, autocommit=True, options="-c timezone=UTC") as connection:
        yield connection


@pytest.fixture
def archive() -> FeatureArchive:
    return FeatureArchive(COLUMNS)


def test_every_type_arrives_as_what_it_is(archive, database, connection) -> None:
    archive.add("b1", {"r1": [FULL, {"label": None}]})

    report = load_batch(archive.store, database, archive.spec(), "b1")

    assert (report.rows, report.is_unchanged, report.foreign) == (2, False, 0)
    rows = connection.execute("select * from features.pockets order by ordinal").fetchall()
    assert rows == [
        (
            "r1",
            0,
            "b1",
            FULL["label"],
            1.5,
            2**60 + 1,
            True,
            [1, -0.5, {"deep": [None, "é"]}],
            {"a": [2**60 + 1], "b": 1},
            date(2026, 2, 28),
            datetime(2026, 2, 28, 10, 0, 0, 1, tzinfo=UTC),
            UUID("12345678-1234-5678-1234-567812345678"),
        ),
        ("r1", 1, "b1", *[None] * 9),
    ]
    assert prove(archive.store, database, archive.spec()).is_equal


_LOAD_ALONE = """
import json, sys
from feature_pipeline.archive.store.s3 import make_client, open_store
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
client, bucket, prefix, url, columns, dataset, hook = json.loads(sys.argv[1])
store, database = open_store(make_client(**client), bucket, prefix), Database(url)
columns = tuple(Column(**column) for column in columns)
spec = TableSpec(dataset=dataset, hook=hook, name="pockets", columns=columns)
for _ in load_batches(store, database, spec):
    pass
for _ in fill(store, database, begin_rebuild(store, database, spec), workers=2):
    pass
assert prove(store, database, spec).is_equal
print("pandas" in sys.modules)
"""


@pytest.mark.s3
def test_pandas_is_never_imported(s3_address, s3_client, s3_prefix, database_url) -> None:
    """It takes half a second and 45 MB, and pyarrow imports it to make the smallest array."""
    store = open_store(s3_client, s3_address.bucket, s3_prefix)
    archive = FeatureArchive(COLUMNS, store)
    archive.add("b1", {"r1": [FULL, {"label": None}], "r2": [], "r3": [FULL]})
    archive.add("b2", {"r3": [{"center": ["a", "b"]}, {"center": [1e-7, 0.12345678901234567]}]})
    spec = archive.spec()
    client = {
        name: getattr(s3_address, name)
        for name in ("endpoint_url", "region", "access_key_id", "secret_access_key")
    }
    columns = [column.model_dump(mode="json", exclude_unset=True) for column in COLUMNS]
    where = [client, s3_address.bucket, s3_prefix, database_url]
    parameters = [*where, columns, spec.dataset, spec.hook]
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_ALONE, json.dumps(parameters)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"


def test_numbers_that_are_written_alike_stay_distinct(archive, database, connection) -> None:
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, None, 5e-324, 1.7976931348623157e308, 0.1]
    archive.add("b1", {"r1": [{"score": value} for value in values]})

    load_batch(archive.store, database, archive.spec(), "b1")

    with connection.cursor(binary=True) as cursor:
        cursor.execute("select score from features.pockets order by ordinal")
        assert list(map(repr, (row[0] for row in cursor))) == list(map(repr, values))
    assert prove(archive.store, database, archive.spec()).is_equal


def test_dates_and_times_reach_from_the_first_year_to_the_last(
    archive, database, connection
) -> None:
    rows = [
        {"day": "0001-01-01", "at": "0001-01-01T00:00:00Z"},
        {"day": "1999-12-31", "at": "1999-12-31T23:59:59.999999Z"},
        {"day": "9999-12-31", "at": "9999-12-31T23:59:59.999999Z"},
    ]
    archive.add("b1", {"r1": rows})

    load_batch(archive.store, database, archive.spec(), "b1")

    assert prove(archive.store, database, archive.spec()).is_equal
    stored = connection.execute("select day::text from features.pockets order by ordinal")
    assert [row[0] for row in stored] == ["0001-01-01", "1999-12-31", "9999-12-31"]


def test_rejected_errored_and_empty_records_are_in_outcomes(archive, database, connection) -> None:
    archive.add(
        "b1",
        {"a": [FULL], "b": [], "c": "not a\nprotein", "d": ValueError("no memory")},
    )

    load_batch(archive.store, database, archive.spec(), "b1")

    rows = connection.execute("select * from features._outcomes order by record_id").fetchall()
    assert rows == [
        ("pockets", "a", "passed", None, "b1", "1"),
        ("pockets", "b", "passed", None, "b1", "1"),
        ("pockets", "c", "rejected", "not a\nprotein", "b1", "1"),
        ("pockets", "d", "errored", "no memory", "b1", "1"),
    ]


def test_provenance_of_a_row_is_a_join_away(archive, database, connection) -> None:
    entry = archive.add("b1", {"r1": [FULL]})

    load_batch(archive.store, database, archive.spec(), "b1")

    row = connection.execute(
        "select p.manifest, p.release, p.run, p.seq, p.rows from features.pockets f"
        " join feature_pipeline.progress p using (batch)"
    ).fetchone()
    assert row == (str(entry.manifest), "1", "run-2", 1, 1)


def test_loading_again_writes_nothing(archive, database, connection) -> None:
    archive.add("b1", {"r1": [FULL], "r2": []})
    load_batch(archive.store, database, archive.spec(), "b1")
    before = connection.execute("select xmin, ctid from feature_pipeline.progress").fetchall()

    report = load_batch(archive.store, database, archive.spec(), "b1")

    assert report.is_unchanged
    assert report.rows == 1
    after = connection.execute("select xmin, ctid from feature_pipeline.progress").fetchall()
    assert after == before


def test_a_new_run_with_equal_rows_changes_progress_alone(archive, database, connection) -> None:
    archive.add("b1", {"r1": [FULL]})
    load_batch(archive.store, database, archive.spec(), "b1")
    relation = connection.execute("select relation from feature_pipeline.generations").fetchone()[0]
    before = connection.execute(f'select ctid from feature_pipeline."{relation}"').fetchall()
    archive.register("2")
    entry = archive.say("b1", {"r1": [FULL]})

    report = load_batch(archive.store, database, archive.spec(), "b1")

    assert report.is_unchanged
    assert (report.seq, report.manifest) == (2, entry.manifest)
    after = connection.execute(f'select ctid from feature_pipeline."{relation}"').fetchall()
    assert after == before
    assert connection.execute("select release from features._outcomes").fetchone() == ("2",)


def test_a_batch_replaces_its_own_rows(archive, database, connection) -> None:
    archive.add("b1", {"r1": [{"label": "old"}, {"label": "older"}], "r2": [{"label": "kept"}]})
    archive.add("b2", {"r3": [{"label": "other"}]})
    list(load_batches(archive.store, database, archive.spec()))
    archive.say("b1", {"r1": [{"label": "new"}], "r2": "no longer"})

    report = load_batch(archive.store, database, archive.spec(), "b1")

    assert report.rows == 1
    rows = connection.execute("select record_id, label from features.pockets order by 1").fetchall()
    assert rows == [("r1", "new"), ("r3", "other")]
    assert prove(archive.store, database, archive.spec()).is_equal


@pytest.mark.parametrize("order", [["b1", "b2"], ["b2", "b1"]])
def test_a_record_belongs_to_the_batch_submitted_last(archive, database, connection, order) -> None:
    archive.add("b1", {"shared": [{"label": "first"}] * 2, "mine": [{"label": "first"}]})
    archive.add("b2", {"shared": "not any more", "other": [{"label": "second"}]})

    reports = {batch: load_batch(archive.store, database, archive.spec(), batch) for batch in order}

    rows = connection.execute("select record_id, batch from features.pockets order by 1").fetchall()
    assert rows == [("mine", "b1"), ("other", "b2")]
    owner = connection.execute(
        "select batch, status from features._outcomes where record_id = 'shared'"
    ).fetchone()
    assert owner == ("b2", "rejected")
    assert reports["b1"].foreign == (1 if order[0] == "b2" else 0)
    proof = prove(archive.store, database, archive.spec())
    assert proof.is_equal, proof
    progress = connection.execute("select batch, rows from feature_pipeline.progress order by 1")
    assert progress.fetchall() == [("b1", 1), ("b2", 1)]


def test_an_older_log_entry_never_replaces_a_newer_one(archive, database, connection) -> None:
    """Two runs of one batch: the slower one has read the log before the faster one's entry."""
    from feature_pipeline.archive.logs import log
    from feature_pipeline.projections.rows.prepare import prepare_batch
    from feature_pipeline.projections.rows.write import replace_batch

    archive.add("b1", {"r1": [{"label": "old"}]})
    spec = archive.spec()
    with database.connect("test") as own:
        state = generation.ensure_table(own, spec)
        batch = log.batch_entry(archive.store, "demo", "b1")
        head = log.head(archive.store, "demo", "pockets", "b1")
        assert head is not None
        old = prepare_batch(archive.store, state.wanted, batch, head)
        archive.say("b1", {"r1": [{"label": "new"}]})
        load_batch(archive.store, database, spec, "b1")
        state = generation.require_table(own, spec)

        done = replace_batch(own, state, state.wanted, old)

    assert done.is_unchanged
    assert done.progress.seq == 2
    assert connection.execute("select label from features.pockets").fetchall() == [("new",)]


def test_many_loaders_of_overlapping_batches_do_not_deadlock(archive, database) -> None:
    ids = [f"r{number:03}" for number in range(60)]
    for number in range(8):
        outcomes = {
            record_id: [{"count": number}] * (number % 3 + 1)
            for record_id in (ids if number % 2 else ids[::-1])
        }
        archive.add(f"b{number}", outcomes)
    spec = archive.spec()
    barrier = threading.Barrier(4)

    def load(start: int) -> None:
        barrier.wait()
        for step in range(8):
            load_batch(archive.store, database, spec, f"b{(start * 3 + step * 5) % 8}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(4)))

    proof = prove(archive.store, database, spec)
    assert proof.is_equal, proof
    assert proof.rows == 60 * (7 % 3 + 1)


def test_all_batches_with_several_workers(archive, database) -> None:
    for number in range(20):
        archive.add(f"b{number}", {f"r{number}": [FULL], f"r{number + 1}": [{"count": number}]})

    reports = list(load_batches(archive.store, database, archive.spec(), workers=3))

    assert sorted(report.batch for report in reports) == sorted(f"b{n}" for n in range(20))
    assert prove(archive.store, database, archive.spec()).is_equal
    assert check_progress(archive.store, database, archive.spec()).is_complete


def test_small_new_batches_share_a_transaction(archive, database, connection) -> None:
    """A transaction a batch costs more than the rows of a small one."""
    for number in range(32):
        archive.add(f"b{number:02}", {f"r{number}": [{"count": number}], f"no{number}": "none"})
    spec = archive.spec()

    reports = list(load_batches(archive.store, database, spec))

    assert sorted(report.batch for report in reports) == [f"b{n:02}" for n in range(32)]
    assert {(report.rows, report.foreign, report.is_unchanged) for report in reports} == {
        (1, 0, False)
    }
    [relation] = {report.generation for report in reports}
    [(transactions,)] = connection.execute(
        sql.SQL("select count(distinct xmin::text) from feature_pipeline.{}").format(
            sql.Identifier(relation)
        )
    )
    assert transactions <= 12
    assert prove(archive.store, database, spec).is_equal


@pytest.mark.parametrize("is_there", [True, False])
def test_batches_that_overlap_within_a_group(archive, database, connection, is_there) -> None:
    """What was loaded together before the conflict is undone, and each record claimed."""
    for number in range(24):
        outcomes = [{"count": number}]
        archive.add(
            f"b{number:02}", {f"r{number}": outcomes, f"r{number + 1}": outcomes, "all": outcomes}
        )
    spec = archive.spec()
    if is_there:
        load_batch(archive.store, database, spec, "b12")

    list(load_batches(archive.store, database, spec))

    rows = connection.execute("select record_id, count from features.pockets").fetchall()
    expected = {f"r{number}": number for number in range(24)} | {"r24": 23, "all": 23}
    assert dict(rows) == expected
    assert len(rows) == len(expected)
    assert prove(archive.store, database, spec).is_equal


def test_tables_can_be_created_by_many_processes_at_once(archive, database) -> None:
    archive.add("b1", {"r1": [FULL]})
    barrier = threading.Barrier(4)

    def load(number: int) -> None:
        barrier.wait()
        load_batch(archive.store, database, archive.spec(), "b1")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(load, range(4)))

    assert prove(archive.store, database, archive.spec()).is_equal


def test_progress_tells_what_is_missing_and_what_is_behind(archive, database) -> None:
    archive.add("b1", {"r1": [FULL]})
    archive.add("b2", {"r2": [FULL]})
    spec = archive.spec()
    assert check_progress(archive.store, database, spec).missing == ("b1", "b2")
    load_batch(archive.store, database, spec, "b1")
    archive.say("b1", {"r1": []})

    progress = check_progress(archive.store, database, spec)

    assert (progress.missing, progress.behind, progress.loaded) == (("b2",), ("b1",), 1)
    assert progress.batches_to_load() == ["b1", "b2"]
    assert "b2" in progress.summary()
    assert check_progress(archive.store, database, spec, ["b2"]).behind == ()


@pytest.mark.parametrize(
    "damage",
    [
        "update {} set score = 0 where score = 1.5",
        "update {} set score = '-0' where score = 0",
        "update {} set score = null where score = 'NaN'",
        "update {} set count = count - 1 where count > 0",
        "update {} set label = label || ' '",
        "update {} set details = details || '{{\"c\": null}}'",
        "update {} set at = at + interval '1 microsecond'",
        "update {} set batch = 'b2' where record_id = 'r1'",
        "update {} set ordinal = ordinal + 1 where record_id = 'r2'",
        "delete from {} where record_id = 'r2'",
        "insert into {} (record_id, ordinal, batch) values ('r3', 0, 'b1')",
        "update feature_pipeline.outcomes set reason = 'other' where record_id = 'r4'",
        "update feature_pipeline.outcomes set batch = 'b2' where record_id = 'r4'",
        "delete from feature_pipeline.outcomes where record_id = 'r4'",
    ],
)
def test_the_proof_finds_whatever_is_changed(archive, database, connection, damage) -> None:
    rows = [FULL, {**FULL, "score": 0.0}, {**FULL, "score": math.nan}]
    archive.add("b1", {"r1": rows, "r2": [{"label": "x"}], "r3": [], "r4": "rejected"})
    archive.add("b2", {"r5": [FULL]})
    spec = archive.spec()
    list(load_batches(archive.store, database, spec))
    assert prove(archive.store, database, spec).is_equal
    relation = connection.execute("select relation from feature_pipeline.generations").fetchone()[0]

    changed = connection.execute(damage.format(f'feature_pipeline."{relation}"')).rowcount

    assert changed
    proof = prove(archive.store, database, spec)
    assert not proof.is_equal
    assert "b1" in proof.unequal_batches
    assert "b1" in proof.summary()


def test_a_proof_of_some_batches_reads_those_and_their_neighbours(archive, database) -> None:
    """Every run proves what it loaded; it must not cost what was loaded before."""
    for number in range(6):
        archive.add(f"b{number}", {f"r{number}": [FULL], f"no{number}": "none"})
    archive.add("later", {"r1": [{"count": 7}]})
    spec = archive.spec()
    list(load_batches(archive.store, database, spec))
    read: set[str] = set()
    original = archive.store.get

    def get(key, size=None):
        read.add(key)
        return original(key, size)

    archive.store.get = get
    proof = prove(archive.store, database, spec, ["b1", "b2"])
    archive.store.get = original

    assert proof.is_equal, proof
    assert (proof.rows, proof.batches) == (1, 2), "r1 is the later batch's"
    manifests = {layout.blob(e.manifest): b for b, e in archive.heads().items()}
    assert {manifests[key] for key in read & manifests.keys()} == {"b1", "b2", "later"}


@pytest.mark.parametrize(
    ("damage", "is_seen"),
    [
        ("update {} set count = 1 where record_id = 'r2'", True),
        ("delete from {} where record_id = 'r2'", True),
        ("update {} set batch = 'b3' where record_id = 'r2'", True),
        ("update {} set count = 1 where record_id = 'r3'", False),
    ],
)
def test_a_proof_of_some_batches_finds_what_is_wrong_in_them(
    archive, database, connection, damage, is_seen
) -> None:
    for number in range(4):
        archive.add(f"b{number}", {f"r{number}": [FULL]})
    spec = archive.spec()
    [report, *_] = list(load_batches(archive.store, database, spec))
    table = sql.Identifier("feature_pipeline", report.generation)
    connection.execute(sql.SQL(damage).format(table))

    proof = prove(archive.store, database, spec, ["b1", "b2"])

    assert proof.unequal_batches == (("b2",) if is_seen else ())
    assert not prove(archive.store, database, spec).is_equal


@pytest.mark.parametrize("part", ["manifest", "outcomes", "rows"])
def test_a_proof_names_what_it_cannot_read_and_proves_the_rest(
    archive, database, connection, part
) -> None:
    from feature_pipeline.archive.read import read_manifest

    archive.add("b0", {"r0": [FULL], "shared": [FULL]})
    archive.add("b1", {"r1": [FULL], "shared": [FULL, FULL]})
    archive.add("b2", {"r2": [FULL]})
    archive.add("b3", {"r3": [FULL], "r1": "no more"})
    spec = archive.spec()
    [report, *_] = list(load_batches(archive.store, database, spec))
    manifest = archive.heads()["b1"].manifest
    digest = manifest
    if part != "manifest":
        digest = read_manifest(archive.store, manifest).blobs[part].digest
    archive.store.delete(layout.blob(digest))
    table = sql.Identifier("feature_pipeline", report.generation)
    connection.execute(sql.SQL("update {} set count = 0 where record_id = 'r2'").format(table))

    for chosen in (None, ["b1", "b2"]):
        proof = prove(archive.store, database, spec, chosen)
        assert not proof.is_equal
        assert proof.unequal_batches == ("b1", "b2")
        assert list(proof.unreadable) == ["b1"]
        assert "; batch 'b1': " in proof.summary()
        assert f"no object {layout.blob(digest)!r}" in proof.summary()


def test_the_digest_of_the_table_is_the_one_in_the_manifest(archive, database) -> None:
    from feature_pipeline.archive.read import read_manifest

    entry = archive.add("b1", {"r1": [FULL, FULL], "r2": [], "r3": [{"score": math.nan}]})
    load_batch(archive.store, database, archive.spec(), "b1")

    proof = prove(archive.store, database, archive.spec(), ["b1"])

    assert proof.table_digest == read_manifest(archive.store, entry.manifest).rows_digest
    assert proof.is_equal


def test_withdrawn_records_are_not_loaded_and_leave(archive, database, connection) -> None:
    archive.add("b1", {"r1": [FULL], "r2": [FULL]})
    load_batch(archive.store, database, archive.spec(), "b1")
    tombstones.withdraw(archive.store, "demo", ["r1"], "asked for")
    archive.add("b2", {"r3": [FULL]})
    # What an erasure leaves: the batch's next artifact, which says something else of the rest.
    # Here the same artifact stands for one accepted before the withdrawal.
    again = archive.heads()["b1"]
    key = layout.entry(layout.feature_log("demo", "pockets", "b1"), 2)
    next_entry = chained(again.model_copy(update={"seq": 2}), StoredEntry.of(again))
    assert archive.store.create(key, next_entry.encode())
    connection.execute(
        "update feature_pipeline.progress set content_digest = %s", ["sha256:" + "0" * 64]
    )

    list(load_batches(archive.store, database, archive.spec()))

    rows = connection.execute("select record_id from features.pockets order by 1").fetchall()
    assert rows == [("r2",), ("r3",)]
    assert connection.execute(
        "select count(*) from features._outcomes where record_id = 'r1'"
    ).fetchone() == (0,)
    assert prove(archive.store, database, archive.spec()).is_equal


def test_a_failed_load_leaves_everything_as_it_was(archive, database, connection) -> None:
    unique = IndexDefinition(columns=("label",), unique=True, name="labels")
    spec = archive.spec(indexes=(unique,))
    archive.add("b1", {"r1": [{"label": "a"}]})
    load_batch(archive.store, database, spec, "b1")
    archive.say("b1", {"r1": [{"label": "b"}, {"label": "b"}]})

    with pytest.raises(RefusedBatchError, match=r"(?s)demo/features/pockets.*'r1'.*\(b\)"):
        load_batch(archive.store, database, spec, "b1")

    rows = connection.execute("select label from features.pockets").fetchall()
    assert rows == [("a",)]
    assert check_progress(archive.store, database, spec).behind == ("b1",)


def test_a_refused_batch_is_named_and_stops_no_other(archive, database, connection) -> None:
    """Ten new batches share a transaction; one of them holds what another has already."""
    unique = IndexDefinition(columns=("label",), unique=True, name="labels")
    spec = archive.spec(indexes=(unique,))
    archive.add("first", {"f": [{"label": "taken", "count": 1}]})
    load_batch(archive.store, database, spec, "first")
    for number in range(10):
        archive.add(f"b{number}", {f"r{number}": [{"label": f"l{number}", "count": 1}]})
    archive.say("b3", {"r3": [{"label": "l3", "count": 1}, {"label": "taken", "count": 7}]})

    with pytest.raises(RefusedBatchError) as raised:
        list(load_batches(archive.store, database, spec))

    message = str(raised.value)
    assert "batches of demo/features/pockets: 1 refused by PostgreSQL" in message
    assert "batch 'b3': PostgreSQL refused record 'r3', row 1 (label = 'taken'" in message
    assert "Key (label)=(taken) already exists" in message
    assert check_progress(archive.store, database, spec).missing == ("b3",)
    assert prove(archive.store, database, spec).has_equal_content
    assert connection.execute("select count(*) from features.pockets").fetchone() == (10,)


def test_a_record_that_postgresql_cannot_store_excludes_no_other(
    archive, database, connection
) -> None:
    """Its batch was not loaded, and the record that was named was that of another row."""
    by_label = IndexDefinition(columns=("label",), name="by_label")
    halves = IndexDefinition(expression="1 / count", name="halves")
    # fails as an object above 256 MB does, at a limit of PostgreSQL's memory and not of the page
    large = IndexDefinition(expression="md5(repeat(label, count::int))", name="large")
    spec = archive.spec(indexes=(by_label, halves, large))
    archive.add("first", {"f": [{"label": "f", "count": 1}]})
    load_batch(archive.store, database, spec, "first")
    outcomes = {f"r{n:02}": [{"label": f"l{n}", "count": 1}, {"count": 2}] for n in range(40)}
    fine = dict(outcomes)
    outcomes["r07"] = [
        {"label": "fine", "count": 1},
        {"label": secrets.token_hex(4500), "count": 1},
    ]
    outcomes["r31"] = [{"label": "none", "count": 0}]
    outcomes["r35"] = [{"label": "long", "count": 2_000_000_000}]
    archive.add("b1", outcomes)

    [report] = load_batches(archive.store, database, spec, ["b1"])

    assert (report.rows, sorted(report.left_out)) == (74, ["r07", "r31", "r35"])
    assert "index row" in report.left_out["r07"]
    assert "division by zero" in report.left_out["r31"]
    assert "requested length too large" in report.left_out["r35"]
    rows = connection.execute("select distinct record_id from features.pockets").fetchall()
    assert {row[0] for row in rows} == {"f", *outcomes} - {"r07", "r31", "r35"}
    proof = prove(archive.store, database, spec)
    assert (proof.has_equal_content, proof.is_equal) == (True, False)
    assert "3 records left out, with rows that PostgreSQL cannot store: 'r07': " in (
        proof.summary()
    )
    table = table_report(archive.store, database, spec)
    assert table is not None
    assert "3 records left out" in table.summary()
    # Of another batch alone, and by the kept proof, it is said too.
    assert not prove(archive.store, database, spec, ["first"]).is_equal
    assert prove(archive.store, database, spec, may_reuse=True).left_out == proof.left_out

    archive.say("b1", fine)
    list(load_batches(archive.store, database, spec))
    assert prove(archive.store, database, spec).is_equal
    archive.add("b2", {"r07": [{"label": secrets.token_hex(4500), "count": 1}]})
    list(load_batches(archive.store, database, spec))
    assert list(prove(archive.store, database, spec).left_out) == ["r07"]
    archive.add("b3", {"r07": "withdrawn by its author"})
    list(load_batches(archive.store, database, spec))
    assert prove(archive.store, database, spec).is_equal


@pytest.mark.parametrize("is_first", [True, False])
def test_what_an_index_of_a_new_generation_cannot_store_keeps_no_other_out(
    archive, database, connection, is_first
) -> None:
    """Rows are loaded before the indexes are built."""
    records = {f"r{n:02}": [{"label": f"l{n}", "count": n}] for n in range(20)}
    long = [{"label": "fine", "count": 1}, {"label": secrets.token_hex(4500), "count": 1}]
    archive.add("b1", {**records, "r07": long})
    archive.add("b2", {"s": [{"label": "s", "count": 1}]})
    if not is_first:
        list(load_batches(archive.store, database, archive.spec(columns=COLUMNS[:-1])))
    spec = archive.spec(indexes=(IndexDefinition(columns=("label",), name="by_label"),))

    reports = list(load_batches(archive.store, database, spec))

    assert {report.batch: report.left_out.keys() for report in reports} == {
        "b1": {"r07"},
        "b2": set(),
    }
    shown = connection.execute("select record_id from features.pockets order by 1").fetchall()
    assert [row[0] for row in shown] == sorted({*records, "s"} - {"r07"})
    proof = prove(archive.store, database, spec)
    assert (proof.has_equal_content, list(proof.left_out)) == (True, ["r07"])
    assert "index row" in proof.left_out["r07"]
    table = table_report(archive.store, database, spec)
    assert table is not None
    assert table.is_settled
    assert all(report.is_unchanged for report in load_batches(archive.store, database, spec))


def test_a_new_index_of_a_table_that_is_read_names_the_way_on(archive, database) -> None:
    archive.add("b1", {"r": [{"label": secrets.token_hex(4500), "count": 1}]})
    archive.add("b2", {"s": [{"label": "s", "count": 1}]})
    list(load_batches(archive.store, database, archive.spec()))
    spec = archive.spec(indexes=(IndexDefinition(columns=("label",), name="by_label"),))
    with pytest.raises(ProjectionError, match=r"'by_label' cannot be built: .*rebuild` leaves out"):
        list(load_batches(archive.store, database, spec))

    begin_rebuild(archive.store, database, spec)
    list(load_batches(archive.store, database, spec))

    proof = prove(archive.store, database, spec)
    assert (proof.has_equal_content, list(proof.left_out)) == (True, ["r"])


def test_rows_wider_than_a_page_cost_their_records(database, connection) -> None:
    columns = tuple(Column(name=f"c{n}", type="string") for n in range(500))
    archive = FeatureArchive(columns)
    wide = {column.name: "x" * 20 for column in columns}
    archive.add("b1", {"r1": [{}], "r2": [wide], "r3": [{"c0": "y"}]})

    list(load_batches(archive.store, database, archive.spec()))

    proof = prove(archive.store, database, archive.spec())
    assert (proof.rows, list(proof.left_out)) == (2, ["r2"])
    assert "row is too big" in proof.left_out["r2"]
    with database.connect("test") as own:
        generation.drop_table(own, archive.spec())
    left = "select count(*) from feature_pipeline.left_out"
    assert connection.execute(left).fetchone() == (0,)


def test_a_value_that_another_batch_gives_up_may_be_taken(archive, database, connection) -> None:
    """Batches are loaded from the last on, so the one that gives it up comes after."""
    spec = archive.spec(indexes=(IndexDefinition(columns=("label",), unique=True),))
    archive.add("b1", {"r1": [{"label": "x"}]})
    archive.add("b2", {"r2": [{"label": "y"}]})
    list(load_batches(archive.store, database, spec))
    archive.say("b1", {"r1": [{"label": "z"}]})
    archive.say("b2", {"r2": [{"label": "x"}]})

    list(load_batches(archive.store, database, spec))

    rows = connection.execute("select record_id, label from features.pockets order by 1")
    assert rows.fetchall() == [("r1", "z"), ("r2", "x")]


def test_names_that_have_to_be_quoted(database, connection) -> None:
    columns = (
        Column(name="select", type="string"),
        Column(name="Größe", type="number", unit="50%", description='It\'s "big" %s {}'),
    )
    archive = FeatureArchive(columns)
    archive.add("b1", {"r'1\" %s": [{"select": "x", "Größe": 1.0}]})
    index = IndexDefinition(columns=("select", "Größe"), where="\"Größe\" > 0 and 'a:b%s' <> ''")
    spec = archive.spec(name="We\"ird 'täble' %s {} ; drop", indexes=(index,), description="100%")

    load_batch(archive.store, database, spec, "b1")

    assert prove(archive.store, database, spec).is_equal
    view = psycopg.sql.Identifier("features", spec.name)
    row = connection.execute(psycopg.sql.SQL("select * from {}").format(view)).fetchone()
    assert row == ("r'1\" %s", 0, "b1", "x", 1.0)
    comments = connection.execute(
        "select attname, col_description(attrelid, attnum) from pg_attribute"
        " where attrelid = %s::regclass and attnum > 3 order by attnum",
        [view.as_string(connection)],
    ).fetchall()
    assert comments == [("select", None), ("Größe", 'It\'s "big" %s {} [50%]')]


def test_a_changed_description_is_a_changed_comment(archive, database, connection) -> None:
    archive.add("b1", {"r1": [FULL]})
    load_batch(archive.store, database, archive.spec(description="One."), "b1")
    columns = (Column(name="label", type="string", description="Said better."), *COLUMNS[1:])

    load_batch(archive.store, database, archive.spec(description="Two.", columns=columns), "b1")

    assert connection.execute(
        "select obj_description('features.pockets'::regclass),"
        " col_description('features.pockets'::regclass, 4)"
    ).fetchone() == ("Two.", "Said better.")
    assert connection.execute("select count(*) from feature_pipeline.generations").fetchone() == (
        1,
    )


def test_indexes_follow_the_definition_without_loading(archive, database, connection) -> None:
    archive.add("b1", {"r1": [FULL]})
    load_batch(archive.store, database, archive.spec(), "b1")
    indexes = (
        IndexDefinition(columns=("label",)),
        IndexDefinition(expression="lower(label)", name="lowered"),
        IndexDefinition(columns=("center",), method="gin"),
        IndexDefinition(expression="to_tsvector('english', label)", method="gin"),
    )

    report = load_batch(archive.store, database, archive.spec(indexes=indexes), "b1")

    def definitions() -> list[str]:
        rows = connection.execute(
            "select indexdef from pg_indexes where schemaname = 'feature_pipeline'"
            " and tablename like 'pockets%' and indexname not like '%pkey' order by indexdef"
        )
        return [row[0].split(" USING ")[1] for row in rows]

    assert report.is_unchanged
    assert sorted(definitions()) == [
        "btree (label)",
        "btree (lower(label))",
        "gin (center)",
        "gin (to_tsvector('english'::regconfig, label))",
    ]
    load_batch(archive.store, database, archive.spec(indexes=indexes[:1]), "b1")
    assert definitions() == ["btree (label)"]


def test_two_hooks_cannot_have_one_table(archive, database) -> None:
    archive.add("b1", {"r1": [FULL]})
    load_batch(archive.store, database, archive.spec(), "b1")

    with pytest.raises(ConflictError, match="already shows demo/features/pockets"):
        check_progress(archive.store, database, archive.spec(hook="others"))


def test_a_batch_without_an_artifact_is_named(archive, database) -> None:
    archive.submit("b1", ["r1"])

    with pytest.raises(NotFoundError, match="'b1' has no current artifact"):
        load_batch(archive.store, database, archive.spec(), "b1")


def test_a_dropped_table_comes_back(archive, database, connection) -> None:
    archive.add("b1", {"r1": [FULL]})
    spec = archive.spec()
    load_batch(archive.store, database, spec, "b1")
    with database.connect("test") as own:
        assert generation.drop_table(own, spec)
        assert not generation.drop_table(own, spec)
    left = connection.execute(
        "select relname from pg_class c join pg_namespace n on n.oid = relnamespace"
        " where nspname in ('features', 'feature_pipeline') and (relname like '%pockets%'"
        " or relname like '%outcomes_1')"
    ).fetchall()
    assert left == []
    assert check_progress(archive.store, database, spec).missing == ("b1",)

    load_batch(archive.store, database, spec, "b1")

    assert prove(archive.store, database, spec).is_equal


@pytest.mark.parametrize("dropped", ["view features.pockets", "schema features cascade"])
def test_a_view_dropped_by_hand_is_noticed_and_put_back(
    archive, database, connection, dropped
) -> None:
    archive.add("b1", {"r1": [FULL]})
    spec = archive.spec(description="Said.")
    load_batch(archive.store, database, spec, "b1")
    connection.execute(f"drop {dropped}".encode())

    progress = check_progress(archive.store, database, spec)
    assert not progress.is_complete
    assert "the view is missing" in progress.summary()
    assert not prove(archive.store, database, spec).is_equal
    assert batches_to_load(archive.store, database, spec) == ["b1"]
    assert plan_table(archive.store, database, spec).action is PlanAction.ADJUST

    assert load_batch(archive.store, database, spec, "b1").is_unchanged

    assert prove(archive.store, database, spec).is_equal
    assert batches_to_load(archive.store, database, spec) == []
    assert connection.execute(
        "select obj_description('features.pockets'::regclass),"
        " col_description('features.pockets'::regclass, 4)"
    ).fetchone() == ("Said.", "What it is.")
    assert len(connection.execute("select * from features._outcomes").fetchall()) == 1

    connection.execute("drop view features.pockets; create table features.pockets (a int)")
    assert not check_progress(archive.store, database, spec).is_complete
    with pytest.raises(ConflictError, match=r"features\.pockets is not the view of generation"):
        load_batch(archive.store, database, spec, "b1")


def test_a_server_that_is_not_there_is_named_without_the_password(archive) -> None:
    archive.add("b1", {"r1": [FULL]})
    database = Database("postgresql://someone:hunter2@127.0.0.1:1/tables")

    with pytest.raises(ProjectionError) as raised:
        load_batch(archive.store, database, archive.spec(), "b1")

    message = str(raised.value)
    assert "127.0.0.1:1/tables" in message
    assert "hunter2" not in message + repr(database)


def test_bookkeeping_of_a_later_version_is_refused(archive, database, connection) -> None:
    archive.add("b1", {"r1": [FULL]})
    load_batch(archive.store, database, archive.spec(), "b1")
    connection.execute("update feature_pipeline.bookkeeping set version = 99")

    with pytest.raises(ProjectionError, match="version 99"):
        load_batch(archive.store, database, archive.spec(), "b1")


def test_rows_stream_in_chunks(archive, database, monkeypatch) -> None:
    monkeypatch.setattr("feature_pipeline.projections.rows.prepare.CHUNK_ROWS", 7)
    archive.add("b1", {f"r{number}": [{**FULL, "count": number}] * 5 for number in range(10)})
    archive.add("b2", {"r3": []})

    reports = list(load_batches(archive.store, database, archive.spec(), ["b2", "b1"]))

    assert [(report.batch, report.rows) for report in reports] == [("b2", 0), ("b1", 45)]
    assert prove(archive.store, database, archive.spec()).is_equal


def test_a_preparer_without_work_ends_no_other_preparer(archive, database, monkeypatch) -> None:
    """Two prepare ahead; the first may come too late for the only batch there is."""
    archive.add("b1", {"r1": [FULL]})
    original = load._Work._prepare_next
    calls = itertools.count()

    def late(work):
        if next(calls) == 0:
            time.sleep(0.2)
        return original(work)

    monkeypatch.setattr(load._Work, "_prepare_next", late)
    assert load_batch(archive.store, database, archive.spec(), "b1").rows == 1


def test_rows_that_another_batch_takes_meanwhile_stay_counted(
    archive, database, connection, monkeypatch
) -> None:
    """A run that says the same again must not write down how many rows there were before."""
    archive.add("b1", {"r1": [FULL, FULL], "r2": [FULL]})
    load_batch(archive.store, database, archive.spec(), "b1")
    archive.say("b1", {"r1": [FULL, FULL], "r2": [FULL]})
    original = write.read_progress

    def stale(connection, generation, batch):
        progress = original(connection, generation, batch)
        return None if progress is None else dataclasses.replace(progress, rows=99)

    monkeypatch.setattr(write, "read_progress", stale)
    load_batch(archive.store, database, archive.spec(), "b1")
    assert connection.execute("select rows from feature_pipeline.progress").fetchone() == (3,)


def test_rows_that_live_has_are_not_read_again_for_it(archive, database) -> None:
    for number in range(3):
        archive.add(f"b{number}", {f"r{number}": [FULL]})
    list(load_batches(archive.store, database, archive.spec()))
    archive.columns = (*COLUMNS, Column(name="note", type="string"))
    counted = collections.Counter()
    original = archive.store.get

    def get(key, size=None):
        counted[key] += 1
        return original(key, size)

    archive.store.get = get
    load_batch(archive.store, database, archive.spec(), "b1")
    blobs = [count for key, count in counted.items() if key.startswith(layout.BLOBS)]
    assert max(blobs) == 1


def test_a_record_that_was_erased_and_may_come_again_leaves_the_table(
    archive, database, connection
) -> None:
    """The table was not loaded while the record was withdrawn."""
    archive.add("b1", {"r1": [FULL], "r2": [FULL]})
    load_batch(archive.store, database, archive.spec(), "b1")
    erase.erase(archive.store, "demo", ["r1"], "asked for")
    tombstones.lift(archive.store, "demo", ["r1"], "asked for again")

    load_batch(archive.store, database, archive.spec(), "b1")

    assert connection.execute("select record_id from features.pockets").fetchall() == [("r2",)]
    assert connection.execute("select record_id from features._outcomes").fetchall() == [("r2",)]
    assert prove(archive.store, database, archive.spec()).is_equal
