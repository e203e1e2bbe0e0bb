"""The archive as people outside Dagster read it, on a real S3 server."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_pipeline import Archive
from feature_pipeline.archive import accept, blobs, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log, tombstones
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline.parallel import WORKERS
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive
from feature_pipeline_tests.fixtures.s3 import s3_settings
from feature_pipeline_tests.fixtures.stores import FailingStore, make_batch

pytestmark = pytest.mark.s3

BIG = 2**60 + 1
COLUMNS = (
    Column(name="count", type="integer", unit="atoms"),
    Column(name="score", type="number"),
    Column(name="label", type="string"),
    Column(name="parts", type="array"),
    Column(name="seen", type="string", format="date-time"),
)
ROWS = {
    "r1": [
        {"count": BIG, "score": math.nan, "label": "a", "parts": [1, {"b": None}]},
        {"count": None, "score": None, "label": None, "seen": "2026-01-02T03:04:05.000006Z"},
    ],
    "r2": "no protein",
    "r3": [],
    "r4": ValueError("boom"),
}


@pytest.fixture
def scene(s3_store):
    return FeatureArchive(COLUMNS, s3_store)


@pytest.fixture
def archive(scene):
    return Archive(scene.store)


def same(one, other):
    """Whether two tables are equal; NaN differs from itself, its text does not."""
    return one.schema == other.schema and repr(one.to_pylist()) == repr(other.to_pylist())


def values(features, column):
    """Per record the column's values, of all batches read."""
    by_record: dict = {}
    table = features.to_arrow()
    for record_id, value in zip(
        table["record_id"].to_pylist(), table[column].to_pylist(), strict=True
    ):
        by_record.setdefault(record_id, []).append(value)
    return by_record


class TestFrames:
    def test_rows_in_every_form(self, scene, archive):
        scene.add("b1", ROWS)
        features = archive.features("pockets")
        names = ["record_id", "ordinal", *(c.name for c in COLUMNS), "batch"]
        assert features.schema.names == names
        assert features.columns == COLUMNS
        assert features.schema.field("count").metadata[b"unit"] == b"atoms"

        table = features.to_arrow()
        assert table.schema.equals(features.schema, check_metadata=True)
        assert table["parts"].to_pylist() == ['[1,{"b":null}]', None]
        assert table["seen"].to_pylist() == [None, datetime(2026, 1, 2, 3, 4, 5, 6, UTC)]
        assert table["batch"].to_pylist() == ["b1", "b1"]

        assert same(features.to_reader().read_all(), table)

        frame = features.to_pandas()
        assert frame["count"].to_list()[0] == BIG
        assert frame["count"].isna().to_list() == [False, True]
        # NaN is a value, NULL is none
        assert pa.array(frame["score"]).is_null().to_pylist() == [False, True]
        assert frame["score"].dtype.pyarrow_dtype == pa.float64()

    def test_rows_in_polars_and_duckdb(self, scene, archive):
        import duckdb
        import polars as pl

        scene.add("b1", ROWS)
        features = archive.features("pockets")
        polars = features.to_polars()
        assert polars["count"].to_list() == [BIG, None]
        assert polars["score"].is_nan().to_list() == [True, None]
        assert isinstance(polars, pl.DataFrame)

        with duckdb.connect() as connection:
            relation = features.to_duckdb(connection)
            assert relation.aggregate("max(count), count(label)").fetchall() == [(BIG, 1)]
        assert archive.features("pockets").to_duckdb().fetchall()[0][2] == BIG

    def test_outcomes_of_every_kind(self, scene, archive):
        scene.add("b1", ROWS)
        table = archive.outcomes("pockets").to_arrow()
        lines = {line["record_id"]: line for line in table.to_pylist()}
        assert {i: line["status"] for i, line in lines.items()} == {
            "r1": "passed",
            "r2": "rejected",
            "r3": "passed",
            "r4": "errored",
        }
        assert lines["r2"]["reason"] == "no protein"
        assert lines["r1"]["row_count"] == 2
        assert archive.features("pockets").outcomes().to_arrow().equals(table)
        assert table.schema.names[-1] == "batch"

    def test_a_hook_without_rows_has_a_schema(self, scene, archive):
        scene.add("b1", {"r1": "no"})
        features = archive.features("pockets")
        assert features.to_pandas().empty
        assert features.to_arrow().schema.equals(features.schema)
        assert archive.features("pockets", batches=[]).to_arrow().num_rows == 0

    def test_one_batch_after_the_other_is_read(self, scene, archive):
        for n in range(2 * WORKERS):
            scene.add(f"b{n:02d}", {f"r{n}": [{"count": n}]})
        store = FailingStore(scene.store)
        pieces = iter(Archive(store).features("pockets", every_batch=True))
        before = len([c for c in store.calls if c.startswith("get blobs/")])
        assert next(pieces)["count"].to_pylist() == [2 * WORKERS - 1]
        read_ahead = [c for c in store.calls if c.startswith("get blobs/")][before:]
        assert (
            len(read_ahead) <= 2 * WORKERS + 1
        )  # the columns' manifest; manifest and rows of each
        assert sum(len(piece) for piece in pieces) == 2 * WORKERS - 1


class TestEvolution:
    def test_older_batches_are_read_under_the_newest_columns(self, scene, archive):
        scene.add("b1", {"r1": [{"count": 3, "score": 1.5, "label": "x"}]})
        scene.columns = (
            Column(name="name", type="string", renamed_from="label"),
            Column(name="count", type="number"),
            Column(name="grade", type="integer", default=7),
            Column(name="note", type="string", required=True),
        )
        scene.add("b2", {"r2": [{"name": "y", "count": 0.5, "grade": 1, "note": "n"}]})
        features = archive.features("pockets")
        names = ["record_id", "ordinal", "name", "count", "grade", "note", "batch"]
        assert features.schema.names == names
        assert features.to_arrow().to_pydict() == {
            "record_id": ["r2", "r1"],
            "ordinal": [0, 0],
            "name": ["y", "x"],
            "count": [0.5, 3.0],
            "grade": [1, 7],
            "note": ["n", None],
            "batch": ["b2", "b1"],
        }
        # a batch by itself has its own columns
        assert archive.features("pockets", batches=["b1"]).columns == COLUMNS

    def test_an_erasure_in_an_old_batch_does_not_bring_old_columns_back(self, scene, archive):
        scene.add("b1", {"r1": [{"count": 1}], "r2": [{"count": 2}]})
        scene.columns = (Column(name="grade", type="integer"),)
        scene.add("b2", {"r3": [{"grade": 3}]})
        assert erase(scene.store, "demo", ["r2"], "asked for").problems == []
        assert log.heads(scene.store, "demo", "pockets")["b1"].seq == 2
        assert values(archive.features("pockets"), "grade") == {"r1": [None], "r3": [3]}

    @pytest.mark.parametrize(
        ("value", "column", "message"),
        [
            ({"label": "x"}, Column(name="label", type="integer"), "was string, is now integer"),
            ({"count": BIG}, Column(name="count", type="number"), f"not exact as a number: {BIG}"),
        ],
    )
    def test_what_cannot_be_read_so_is_refused_by_name(
        self, scene, archive, value, column, message
    ):
        scene.add("b1", {"r1": [value]})
        scene.columns = (column,)
        scene.add("b2", {"r2": []})
        with pytest.raises(InvalidInputError, match=rf"batch 'b1'.*{message}"):
            archive.features("pockets").to_arrow()
        assert archive.features("pockets", batches=["b1"]).to_arrow().num_rows == 1


class TestWhichRecords:
    def test_a_record_belongs_to_the_batch_submitted_last(self, scene, archive):
        scene.submit("b1", ["r1", "r2", "r3"], at_seconds=10)
        scene.submit("b2", ["r1", "r2"], at_seconds=5)
        scene.submit("b3", ["r3"], at_seconds=20)
        scene.say("b1", {"r1": [{"count": 1}], "r2": "rejected here", "r3": [{"count": 1}]})
        scene.say("b2", {"r1": [{"count": 2}], "r2": [{"count": 2}]})
        assert values(archive.features("pockets"), "count") == {"r1": [1], "r3": [1]}
        scene.say("b3", {"r3": ValueError("lost")})
        assert values(archive.features("pockets"), "count") == {"r1": [1]}
        assert values(archive.outcomes("pockets"), "batch") == {
            "r1": ["b1"],
            "r2": ["b1"],
            "r3": ["b3"],
        }
        every = archive.features("pockets", every_batch=True)
        assert every.batches == ["b3", "b1", "b2"]
        assert values(every, "count") == {"r1": [1, 2], "r2": [2], "r3": [1]}
        assert values(archive.features("pockets", batches=["b2"]), "count") == {
            "r1": [2],
            "r2": [2],
        }

    def test_withdrawn_records_are_not_read(self, scene, archive):
        scene.add("b1", {"r1": [{"count": 1}], "r2": [{"count": 2}]})
        tombstones.withdraw(scene.store, "demo", ["r1"], "asked for")
        for every_batch in (False, True):
            features = archive.features("pockets", every_batch=every_batch)
            assert values(features, "count") == {"r2": [2]}
            assert values(features.outcomes(), "status") == {"r2": ["passed"]}

    def test_as_of_a_seq_and_a_time(self, scene, archive):
        scene.submit("b1", ["r1"])
        first = scene.say("b1", {"r1": [{"count": 1}]})
        second = scene.say("b1", {"r1": [{"count": 2}]})
        scene.add("b2", {"r2": [{"count": 3}]})

        def counts(as_of):
            return values(archive.features("pockets", as_of=as_of), "count")

        assert counts(None) == {"r1": [2], "r2": [3]}
        assert counts(1) == {"r1": [1], "r2": [3]}
        assert counts(first.accepted_at) == {"r1": [1]}
        assert counts(second.accepted_at) == {"r1": [2]}
        before = first.accepted_at - timedelta(microseconds=1)
        assert archive.features("pockets", as_of=before).to_arrow().num_rows == 0
        with pytest.raises(InvalidInputError, match="offset"):
            counts(datetime(2026, 1, 1))  # noqa: DTZ001
        with pytest.raises(NotFoundError, match="as of"):
            archive.features("pockets", batches=["b2"], as_of=first.accepted_at)

    def test_names_that_mean_nothing_are_refused(self, scene, archive):
        scene.add("b1", {"r1": []})
        scene.submit("b2", ["r2"])
        with pytest.raises(NotFoundError, match=r"no hook 'volumes'.*demo/pockets"):
            archive.features("volumes")
        with pytest.raises(NotFoundError, match="no current artifact for batch 'b2'"):
            archive.features("pockets", batches=["b1", "b2"])
        with pytest.raises(InvalidInputError, match="give a list"):
            archive.features("pockets", batches="b1")
        with pytest.raises(NotFoundError, match="'b9' is not among"):
            archive.features("pockets").manifest("b9")
        document = ReleaseDocument(dataset="other", hook="pockets", version="9", command=("x",))
        log.register_release(scene.store, HookRelease.of(document), {})
        with pytest.raises(InvalidInputError, match="demo, other"):
            archive.features("pockets")
        assert archive.features("pockets", dataset="demo").batches == ["b1"]
        assert archive.features("pockets", dataset="other").to_arrow().num_rows == 0
        assert archive.datasets() == ["demo", "other"]
        hooks = {(h.dataset, h.name): h.versions for h in archive.hooks()}
        assert hooks == {("demo", "pockets"): ("1",), ("other", "pockets"): ("9",)}
        assert [h.dataset for h in archive.hooks("other")] == ["other"]
        assert [batch.batch for batch in archive.batches()] == ["b1", "b2"]
        assert archive.batches("other") == []


class TestBytes:
    def test_raw_bytes_and_manifests(self, s3_scene):
        batch = s3_scene.submit(make_batch())
        artifact = s3_scene.artifact(batch, s3_scene.release())
        accept.accept(s3_scene.store, s3_scene.completion(artifact))
        archive = Archive(s3_scene.store)
        features = archive.features("pockets")
        assert features.raw_names("b1") == ["errors.jsonl", "features.jsonl"]
        raw = features.raw("b1", "features.jsonl")
        assert raw == b"run-1 a"
        assert features.log("b1") == "log of run-1"
        ref = features.manifest("b1").blobs["raw/features.jsonl"]
        assert archive.blob(ref.digest) == archive.blob(str(ref.digest)) == raw
        with pytest.raises(NotFoundError, match=r"features\.json"):
            features.raw("b1", "features.json")
        with pytest.raises(NotFoundError):
            archive.blob(Digest.of(b"never stored"))

    @pytest.mark.parametrize("name", ["rows", "outcomes"])
    def test_damage_is_never_data(self, scene, archive, name):
        entry = scene.add("b1", ROWS)
        ref = read.read_manifest(scene.store, entry.manifest).blobs[name]
        key = layout.blob(ref.digest)
        info = scene.store.stat(key)
        data = bytearray(blobs.read_blob(scene.store, ref.digest))
        data[len(data) // 2] ^= 1
        assert scene.store.replace(key, bytes(data), info.etag)
        with pytest.raises(CorruptDataError, match=ref.digest.hex):
            archive.features("pockets").to_arrow()
        scene.store.delete(key)
        with pytest.raises(NotFoundError):
            archive.features("pockets").to_arrow()


class TestOpen:
    def test_by_environment_and_by_url_without_writing(self, scene, s3_address, s3_prefix):
        scene.add("b1", ROWS)
        before = [(i.key, i.etag) for i in scene.store.list_objects("")]
        settings = s3_settings(s3_address, s3_prefix)
        url = f"s3://{s3_address.bucket}/{s3_prefix}"
        opened = [
            Archive.open(environment=settings),
            Archive.open(url, environment={**settings, "FEATURE_PIPELINE_S3_BUCKET": None}),
        ]
        for archive in opened:
            assert values(archive.features("pockets"), "count") == {"r1": [BIG, None]}
            assert s3_prefix in repr(archive)
        assert [(i.key, i.etag) for i in scene.store.list_objects("")] == before

    def test_wrong_addresses(self, s3_address, s3_prefix):
        settings = s3_settings(s3_address, s3_prefix)
        for url in ("bucket/prefix", "https://host/bucket", "s3://"):
            with pytest.raises(InvalidInputError, match="s3://bucket/prefix"):
                Archive.open(url, environment=settings)
        with pytest.raises(NotFoundError, match="no bucket 'none-such'"):
            Archive.open("s3://none-such", environment=settings)
        with pytest.raises(InvalidInputError, match="FEATURE_PIPELINE_S3_BUCKET is not set"):
            Archive.open(environment={})


def run(arguments, address, prefix, folder):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **s3_settings(address, prefix)},
        capture_output=True,
        timeout=120,
        check=False,
    )


def test_dagster_is_never_imported(scene, s3_address, s3_prefix, tmp_path):
    scene.add("b1", ROWS)
    program = (
        "import sys\n"
        "from feature_pipeline import Archive\n"
        "features = Archive.open().features('pockets')\n"
        "frames = features.to_pandas(), features.to_polars(), features.outcomes().to_arrow()\n"
        "print([len(frame) for frame in frames])\n"
        "print([name for name in sys.modules if name.partition('.')[0].startswith('dagster')])\n"
    )
    done = run(["-c", program], s3_address, s3_prefix, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().splitlines() == ["[2, 2, 4]", "[]"]


class TestCommandLine:
    def read(self, s3_address, s3_prefix, folder, *arguments):
        command = ["-m", "feature_pipeline.cli.app", "read", *arguments]
        return run(command, s3_address, s3_prefix, folder)

    def test_formats(self, scene, s3_address, s3_prefix, tmp_path):
        scene.add("b1", ROWS)
        scene.add("b2", {"r5": [{"count": 5}]})

        def read_out(*arguments):
            done = self.read(s3_address, s3_prefix, tmp_path, "pockets", *arguments)
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout

        lines = [json.loads(line) for line in read_out("--format", "jsonl").splitlines()]
        assert [line["record_id"] for line in lines] == ["r5", "r1", "r1"]
        assert lines[1] == {
            "record_id": "r1",
            "ordinal": 0,
            "count": BIG,
            "score": "NaN",
            "label": "a",
            "parts": [1, {"b": None}],
            "seen": None,
            "batch": "b1",
        }
        assert lines[2]["seen"] == "2026-01-02T03:04:05.000006Z"

        text = read_out("--format", "csv", "--outcomes", "--batch", "b1").decode()
        rows = list(csv.DictReader(io.StringIO(text)))
        assert {row["record_id"]: row["reason"] for row in rows}["r2"] == "no protein"
        assert len(rows) == 4

        read_out("--format", "parquet", "--output", "rows.parquet")
        written = pq.read_table(tmp_path / "rows.parquet")
        assert same(written, Archive(scene.store).features("pockets").to_arrow())
        assert [path.name for path in tmp_path.iterdir()] == ["rows.parquet"]

        table = read_out("--max-rows", "2").decode()
        assert "r5" in table
        assert str(BIG) in table, "values are not rounded or grouped"
        assert "2 rows; more are not shown" in table

    def test_refusals(self, scene, s3_address, s3_prefix, tmp_path):
        scene.add("b1", ROWS)
        for arguments, message in (
            (["volumes"], b"no hook 'volumes'"),
            (["pockets", "--as-of", "yesterday"], b"2026-01-31T12:00Z"),
            (["pockets", "--output", "x"], b"--format"),
        ):
            done = self.read(s3_address, s3_prefix, tmp_path, *arguments)
            assert done.returncode == 1
            assert message in done.stderr
            assert b"Traceback" not in done.stderr


def test_the_page_on_reading(scene, s3_address, s3_prefix, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "reading.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scene.add("b1", ROWS)
    done = run(["-c", program], s3_address, s3_prefix, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    printed = done.stdout.decode()
    assert "demo pockets ('1',)" in printed
    assert "count integer atoms None" in printed
