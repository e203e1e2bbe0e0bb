"""How fast tables are rebuilt from S3: ratios to raw COPY and to usual loaders, in one run.

    python -m benchmarks.rebuild [--rows 200000 2000000] [--repeats 3] [--dlt-python PYTHON]
        [--duckdb-python PYTHON] [--adbc-python PYTHON]
    python -m benchmarks.rebuild --large 10000000

Real servers (SeaweedFS, PostgreSQL with fsync on) on this machine, in a temporary folder. Every
contender loads the same rows into a table with the primary key (record_id, ordinal). Slow ones
load the first rows only; rates are compared. The interpreters named have dlt, DuckDB with
`duckdb-extension-postgres-scanner`, and ADBC's driver for PostgreSQL: these are no dependencies of
the project. The first round of all contenders is not measured: it is slower than later ones.
"""

import argparse
import io
import json
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import sqlalchemy as sa
from psycopg import sql
from psycopg.types.json import Jsonb

from benchmarks.processes import open_s3, peak_memory
from benchmarks.watch import Watch, describe
from feature_pipeline import measure
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.read import read_manifest, read_rows
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.local.services import LocalServices
from feature_pipeline.model.columns import Column
from feature_pipeline.model.instruments import TABLE_OPERATION_TIME, Instrument
from feature_pipeline.projections.catalog import ddl, generation
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline.projections.rows.prepare import encode_chunks
from feature_pipeline.projections.rows.write import copy_rows
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

RECORDS_PER_BATCH, ROWS_PER_RECORD = 1000, 5
COLUMNS = (
    Column(name="pocket_id", type="integer"),
    Column(name="score", type="number"),
    Column(name="volume", type="number"),
    Column(name="druggability", type="number"),
    Column(name="depth", type="number"),
    Column(name="center", type="array"),
    Column(name="residues", type="array"),
    Column(name="label", type="string"),
    Column(name="is_surface", type="boolean"),
)
SPEC = TableSpec(dataset="demo", hook="pockets", name="pockets", columns=COLUMNS)
RESIDUES = ["ALA", "ARG", "ASN", "ASP", "CYS", "GLN", "GLU", "GLY", "HIS", "ILE", "LEU", "LYS"]

Rows = list[dict[str, Any]]


def features(random_: random.Random) -> Rows:
    return [
        {
            "pocket_id": at,
            "score": random_.random() * 50,
            "volume": random_.random() * 1500,
            "druggability": random_.random(),
            "depth": random_.random() * 9,
            "center": [random_.random() * 80 - 40 for _ in range(3)],
            "residues": [f"{random_.choice(RESIDUES)}{random_.randint(1, 400)}A" for _ in range(8)],
            "label": random_.choice(["orthosteric", "allosteric", "cryptic", None]),
            "is_surface": random_.random() < 0.5,
        }
        for at in range(ROWS_PER_RECORD)
    ]


def publish(store: S3Store, rows: int) -> int:
    """Artifacts of at least that many rows; how many rows."""
    archive, random_ = FeatureArchive(COLUMNS, store), random.Random(1)
    batches = -(-rows // (RECORDS_PER_BATCH * ROWS_PER_RECORD))
    for batch in range(batches):
        start = batch * RECORDS_PER_BATCH
        ids = [f"urn:osa:demo:rec:{n:08d}@1" for n in range(start, start + RECORDS_PER_BATCH)]
        archive.add(f"b{batch:05d}", {record_id: features(random_) for record_id in ids})
    return batches * RECORDS_PER_BATCH * ROWS_PER_RECORD


class Bench:
    """The servers, the same rows in every contender's form, and a table for each."""

    def __init__(self, store: S3Store, url: str) -> None:
        self.store, self.database, self.url = store, Database(url), url
        self.entries = log.heads(store, SPEC.dataset, SPEC.hook)

    def arrow(self, batches: int | None = None) -> Iterable[tuple[str, Any]]:
        for batch in list(self.entries)[:batches]:
            manifest = read_manifest(self.store, self.entries[batch].manifest)
            yield batch, read_rows(self.store, manifest)

    def csv_parts(self) -> list[bytes]:
        parts = []
        for batch, rows in self.arrow():
            table = rows.add_column(2, "batch", [[batch] * len(rows)])
            sink = io.BytesIO()
            pa_csv.write_csv(table, sink, pa_csv.WriteOptions(include_header=False))
            parts.append(sink.getvalue())
        return parts

    def csv_files(self, folder: Path) -> None:
        """Write each batch's rows as CSV, as `csv_parts` has them."""
        for batch, rows in self.arrow():
            table = rows.add_column(2, "batch", [[batch] * len(rows)])
            options = pa_csv.WriteOptions(include_header=False)
            pa_csv.write_csv(table, folder / f"{batch}.csv", options)

    def raw_copy_files(self, folder: Path) -> None:
        """Copy what `csv_files` wrote, by one connection."""
        with (
            psycopg.connect(self.url) as connection,
            connection.cursor() as cursor,
            cursor.copy(_raw_copy_statement()) as copy,
        ):
            for path in sorted(folder.glob("*.csv")):
                copy.write(path.read_bytes())

    def parquet(self, folder: Path) -> None:
        """Write each batch's rows with the batch, as a user of other loaders would have them."""
        for batch, rows in self.arrow():
            table = rows.add_column(2, "batch", pa.array([batch] * len(rows)))
            pq.write_table(table, folder / f"{batch}.parquet")

    def binary_parts(self) -> list[bytes]:
        kinds = ddl.column_kinds(COLUMNS)
        return [
            b"".join(chunk for chunk in encode_chunks(rows, batch, kinds))
            for batch, rows in self.arrow()
        ]

    def python_rows(self, count: int) -> Rows:
        rows: Rows = []
        for batch, table in self.arrow(-(-count // (RECORDS_PER_BATCH * ROWS_PER_RECORD))):
            rows += [{**row, "batch": batch} for row in table.to_pylist()]
        return rows[:count]

    def empty_table(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("create schema if not exists feature_pipeline")
            connection.execute('drop table if exists feature_pipeline."raw"')
            connection.execute(ddl.create_table("raw", COLUMNS))

    def drop_ours(self) -> None:
        with self.database.connect("benchmark") as connection:
            generation.drop_table(connection, SPEC)

    # contenders: each returns nothing and is timed as a whole

    def raw_copy(self, parts: Sequence[bytes], ways: int) -> None:
        def one(share: Sequence[bytes]) -> None:
            with (
                psycopg.connect(self.url) as connection,
                connection.cursor() as cursor,
                cursor.copy(_raw_copy_statement()) as copy,
            ):
                for part in share:
                    copy.write(part)

        with ThreadPoolExecutor(ways) as pool:
            list(pool.map(one, [parts[way::ways] for way in range(ways)]))

    def binary_copy(self, parts: Sequence[bytes]) -> None:
        table = sql.Identifier("feature_pipeline", "raw")
        with psycopg.connect(self.url) as connection:
            copy_rows(connection, table, ddl.column_kinds(COLUMNS), map(memoryview, parts))

    def load(self) -> None:
        """Load the table for the first time: rebuilds are measured beside one that is read."""
        for _ in load_batches(self.store, self.database, SPEC):
            pass

    def rebuild(self, workers: int) -> dict[str, float]:
        """Return the seconds that proof and switch took, and those of everything before them."""
        took = {"proof": 0.0, "switch": 0.0}

        def add(instrument: Instrument, value: float, labels: dict[str, str]) -> None:
            if instrument is TABLE_OPERATION_TIME and labels["operation"] in took:
                took[labels["operation"]] += value

        measure.connect(add)
        try:
            begun = begin_rebuild(self.store, self.database, SPEC)
            started = time.perf_counter()
            for _ in fill(self.store, self.database, begun, workers=workers):
                pass
            whole = time.perf_counter() - started
        finally:
            measure.connect(None)
        return {**took, "whole": whole, "rebuild": whole - sum(took.values())}

    def to_sql(self, rows: Rows) -> None:
        import pandas as pd

        engine = sa.create_engine(self.url.replace("postgresql://", "postgresql+psycopg://"))
        frame = pd.DataFrame(rows)
        json_columns = {name: sa.dialects.postgresql.JSONB() for name in ("center", "residues")}
        for name in json_columns:
            frame[name] = frame[name].map(json.loads)
        frame.to_sql(
            "raw",
            engine,
            schema="feature_pipeline",
            if_exists="append",
            index=False,
            method="multi",
            chunksize=1000,
            dtype=json_columns,
        )
        engine.dispose()

    def per_record(self, rows: Rows) -> None:
        """Delete and insert, a transaction a record: as the Open Science Archive loads."""
        names = list(rows[0])
        insert = sql.SQL("insert into feature_pipeline.raw ({}) values ({})").format(
            sql.SQL(", ").join(map(sql.Identifier, names)),
            sql.SQL(", ").join(sql.Placeholder() * len(names)),
        )
        with psycopg.connect(self.url, autocommit=True) as connection:
            for start in range(0, len(rows), ROWS_PER_RECORD):
                group = rows[start : start + ROWS_PER_RECORD]
                with connection.transaction(), connection.cursor() as cursor:
                    cursor.execute(
                        "delete from feature_pipeline.raw where record_id = %s",
                        [group[0]["record_id"]],
                    )
                    cursor.executemany(insert, [_insertable(row) for row in group])

    def dlt(self, python: str, rows: Rows, folder: Path) -> None:
        file = folder / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        subprocess.run([python, "-c", DLT_PROGRAM, str(file), self.url], check=True, cwd=folder)

    def elsewhere(self, python: str, program: str, folder: Path) -> float:
        """Return the seconds that a program measured, which loads Parquet files into `raw`."""
        names = [*ddl.column_kinds(COLUMNS)]
        json_names = [column.name for column in COLUMNS if column.kind == "json"]
        arguments = json.dumps([str(folder), self.url, names, json_names])
        done = subprocess.run(
            [python, "-c", program, arguments], check=True, capture_output=True, cwd=folder
        )
        self.check_raw()
        return float(done.stdout.splitlines()[-1])

    def check_raw(self) -> None:
        """Check that `raw` has the types and the key of a generation."""
        with psycopg.connect(self.url) as connection:
            types = connection.execute(
                "select attname, format_type(atttypid, atttypmod) from pg_attribute"
                " where attrelid = 'feature_pipeline.raw'::regclass and attnum > 0"
            ).fetchall()
            keys = connection.execute(
                "select from pg_index where indrelid = 'feature_pipeline.raw'::regclass"
                " and indisprimary"
            ).fetchall()
        if dict(types) != ddl.column_types(COLUMNS) or len(keys) != 1:
            raise SystemExit(f"a contender made another table: {types}")


def _raw_copy_statement() -> sql.Composed:
    columns = sql.SQL(", ").join(sql.Identifier(column.name) for column in COLUMNS)
    statement = sql.SQL("copy feature_pipeline.raw (record_id, ordinal, batch, {}) from stdin csv")
    return statement.format(columns)


DUCKDB_PROGRAM = """
import json, pathlib, sys, time
import duckdb, duckdb_extension_postgres_scanner
folder, url, names, json_names = json.loads(sys.argv[1])
found = pathlib.Path(duckdb_extension_postgres_scanner.__file__).parent.rglob("*.duckdb_extension")
columns = ", ".join(names)
started = time.perf_counter()
connection = duckdb.connect()
connection.load_extension(str(next(found)))
connection.execute(f"attach '{url}' as pg (type postgres)")
connection.execute(
    f"insert into pg.feature_pipeline.raw ({columns})"
    f" select {columns} from read_parquet('{folder}/*.parquet')"
)
print(time.perf_counter() - started)
"""

ADBC_PROGRAM = """
import json, pathlib, sys, time
import adbc_driver_postgresql.dbapi, pyarrow.dataset
folder, url, names, json_names = json.loads(sys.argv[1])
started = time.perf_counter()
with adbc_driver_postgresql.dbapi.connect(url) as connection, connection.cursor() as cursor:
    cursor.execute("drop table feature_pipeline.raw")
    reader = pyarrow.dataset.dataset(folder, format="parquet").scanner(columns=names).to_reader()
    cursor.adbc_ingest("raw", reader, mode="create", db_schema_name="feature_pipeline")
    casts = ", ".join(f"alter {name} type jsonb using {name}::jsonb" for name in json_names)
    cursor.execute(f"alter table feature_pipeline.raw {casts}")
    cursor.execute("alter table feature_pipeline.raw add primary key (record_id, ordinal)")
    connection.commit()
print(time.perf_counter() - started)
"""

DLT_PROGRAM = """
import json, sys, time
import dlt
file, url = sys.argv[1:]
hints = {"center": {"data_type": "json"}, "residues": {"data_type": "json"}}
@dlt.resource(name="feat", write_disposition="append", max_table_nesting=0, columns=hints,
    primary_key=["record_id", "ordinal"])
def rows():
    yield [dict(r, center=json.loads(r["center"]), residues=json.loads(r["residues"]))
        for r in map(json.loads, open(file))]
pipeline = dlt.pipeline("bench", destination=dlt.destinations.postgres(url),
    dataset_name="dlt_bench", pipelines_dir=".", dev_mode=True)
pipeline.run(rows())
"""


def _insertable(row: dict[str, Any]) -> list[Any]:
    return [
        Jsonb(json.loads(value)) if name in ("center", "residues") else value
        for name, value in row.items()
    ]


def timed(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory_child(arguments: str) -> None:
    """A process of its own: resident memory before the load and at its highest, in bytes."""
    parsed = json.loads(arguments)
    bench_store = open_s3(parsed["s3"], parsed["prefix"])
    before = peak_memory()
    for _ in load_batches(bench_store, Database(parsed["url"]), SPEC):
        pass
    print(json.dumps([before, peak_memory()]))


def measure_memory(address: dict[str, str], prefix: str, url: str) -> tuple[float, float]:
    arguments = json.dumps({"s3": address, "prefix": prefix, "url": url})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rebuild", "--memory-child", arguments],
        check=True,
        capture_output=True,
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before / 1e6, after / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 2_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--large", type=int, help="only load and rebuild so many rows, once")
    parser.add_argument("--dlt-python")
    parser.add_argument("--duckdb-python")
    parser.add_argument("--adbc-python")
    parser.add_argument("--memory-child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_child:
        memory_child(options.memory_child)
        return
    # The owner of the server's files is another user when this one is root.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)
        with LocalServices(folder / "servers") as services:
            address = {
                key: str(getattr(services.s3, key))
                for key in (
                    "endpoint_url",
                    "region",
                    "access_key_id",
                    "secret_access_key",
                    "bucket",
                )
            }
            if options.large:
                store = open_s3(address, f"bench-{secrets.token_hex(4)}")
                (folder / "csv").mkdir()
                large(store, services.database_url, options.large, folder / "csv")
            else:
                run(options, address, services.database_url, folder)


def run(options: argparse.Namespace, address: dict[str, str], url: str, folder: Path) -> None:
    memory = {}
    for at, size in enumerate(options.rows):
        prefix = f"bench-{secrets.token_hex(4)}"
        store = open_s3(address, prefix)
        started = time.perf_counter()
        rows = publish(store, size)
        print(f"\n{rows:,} rows published in {time.perf_counter() - started:,.0f} s", flush=True)
        bench = Bench(store, url)
        rate = _speeds(bench, options, rows, folder)
        if at == 0:
            _slow(bench, options, rate, min(rows, 20_000), folder)
        bench.drop_ours()
        before, after = measure_memory(address, prefix, url)
        memory[rows] = after
        print(f"memory: {after:.0f} MB, {after - before:.0f} MB over imports; target 300")
        bench.drop_ours()
    fewest, most = min(memory), max(memory)
    if fewest < most:
        ratio = memory[most] / memory[fewest]
        print(f"memory, {most / fewest:.0f} times the rows: {ratio:.2f} times; target 1.1")


def large(store: S3Store, url: str, size: int, folder: Path) -> None:
    """Load so many rows once, and rebuild them once; print rates, and memory as they grow.

    Nothing of that size is kept in memory: raw COPY reads its CSV from files.
    """
    with Watch(5.0).running() as watch:
        started = time.perf_counter()
        rows = publish(store, size)
        print(f"{rows:,} rows published in {time.perf_counter() - started:,.0f} s", flush=True)
        bench = Bench(store, url)
        bench.csv_files(folder)
        bench.empty_table()
        raw = timed(lambda: bench.raw_copy_files(folder))
        print(f"raw CSV COPY, 1 connection: {rows / raw:,.0f} rows/s", flush=True)
        bench.empty_table()
        since = time.time()
        spent = {"load into an empty table, 1 worker": timed(bench.load)}
        for workers in (1, 2):
            times = bench.rebuild(workers)
            kind = f"{workers} worker" + "s" * (workers > 1)
            spent[f"rebuild, {kind}"] = times["rebuild"]
            spent[f"proof, {kind}"] = times["proof"]
            spent[f"rebuild with proof and switch, {kind}"] = times["whole"]
        for name, seconds in spent.items():
            print(f"{name}: {rows / seconds:,.0f} rows/s, {raw / seconds:.2f} of raw COPY")
        _proved(bench)
        print(f"memory at its highest, RSS (PSS) in MB: {describe(watch.highest(since))}")
        samples = [sample for sample in watch.samples if sample.at >= since]
        for sample in samples[:: max(1, len(samples) // 10)]:
            print(f"  {sample.at - since:6.0f} s: {describe(sample.usage)}")


def _speeds(bench: Bench, options: argparse.Namespace, rows: int, folder: Path) -> float:
    """Print rates and ratios; return the rows per second of a rebuild by one worker."""
    csv, binary = bench.csv_parts(), bench.binary_parts()
    files = folder / f"parquet-{rows}"
    files.mkdir()
    bench.parquet(files)
    contenders: dict[str, Callable[[], dict[str, float]]] = {
        "raw CSV COPY": lambda: {"": timed(lambda: bench.raw_copy(csv, 1))},
        "raw CSV COPY, two connections": lambda: {"": timed(lambda: bench.raw_copy(csv, 2))},
        "raw binary COPY": lambda: {"": timed(lambda: bench.binary_copy(binary))},
        "1 worker": lambda: bench.rebuild(1),
        "2 workers": lambda: bench.rebuild(2),
    }
    for name, python, program in (
        ("DuckDB", options.duckdb_python, DUCKDB_PROGRAM),
        ("ADBC", options.adbc_python, ADBC_PROGRAM),
    ):
        if python:
            contenders[name] = lambda python=python, program=program: {
                "": bench.elsewhere(python, program, files)
            }
    bench.drop_ours()
    bench.load()
    times: dict[str, list[float]] = {}
    for turn in range(options.repeats + 1):
        for name, work in contenders.items():
            bench.empty_table()
            for part, seconds in work().items():
                if turn:
                    times.setdefault(f"{part}, {name}" if part else name, []).append(seconds)
    _proved(bench)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"{name:32} {rows / seconds:>12,.0f} rows/s {seconds:8.2f} s")
    for ours, other, target in RATIOS:
        if other in times:
            ratios = [b / a for a, b in zip(times[ours], times[other], strict=True)]
            shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            wanted = "" if target is None else f" target {target}"
            print(
                f"{ours} / {other}: {statistics.median(ratios):.2f}   ({shown}){wanted}", flush=True
            )
    return rows / medians["rebuild, 1 worker"]


RATIOS = (
    ("rebuild, 1 worker", "raw CSV COPY", 1.1),
    ("rebuild, 2 workers", "raw CSV COPY, two connections", 0.9),
    ("rebuild, 1 worker", "raw binary COPY", None),
    ("proof, 1 worker", "raw CSV COPY", 1.2),
    ("whole, 1 worker", "raw CSV COPY", None),
    ("whole, 2 workers", "raw CSV COPY", 0.7),
    ("rebuild, 2 workers", "DuckDB", 1.8),
    ("rebuild, 2 workers", "ADBC", 2),
)
"""What is compared, and the least ratio of rows a second that is wanted; None if it is only shown.

`whole` is a rebuild with proof and switch; `rebuild` is without both.
"""


def _proved(bench: Bench) -> None:
    proof = prove(bench.store, bench.database, SPEC)
    if not proof.is_equal:
        raise SystemExit(f"the table is not the archive's: {proof.summary()}")


def _slow(bench: Bench, options: argparse.Namespace, rate: float, count: int, folder: Path) -> None:
    sample = bench.python_rows(count)
    contenders: list[tuple[str, float, Callable[[], None]]] = [
        ("delete-and-insert per record", 40, lambda: bench.per_record(sample)),
        ("pandas to_sql", 30, lambda: bench.to_sql(sample)),
    ]
    if options.dlt_python:
        contenders.append(("dlt", 15, lambda: bench.dlt(options.dlt_python, sample, folder)))
    for name, target, work in contenders:
        bench.empty_table()
        slow = count / timed(work)
        print(
            f"rebuild / {name}: {rate / slow:.0f}   ({slow:,.0f} rows/s) target {target}",
            flush=True,
        )


if __name__ == "__main__":
    main()
