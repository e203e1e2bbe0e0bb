"""Importing the rows of an Open Science Archive server's table, and restoring it, beside raw COPY.

    python -m benchmarks.osa_history [--rows 1000000] [--runs 200] [--workers 1 2] [--profile FILE]

Starts its own servers in a temporary folder. Times are of this machine; the ratios are what
counts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import psycopg
from psycopg import sql

from benchmarks.osa_child import CONVENTION, HOOK
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.local.services import LocalServices
from feature_pipeline.osa.server.ids import hook_run_id
from feature_pipeline_tests.fixtures.osa_server import HISTORY, create_database

POCKETS_1 = "bea90b76-cdad-4084-b0e5-6805d89d3643"
ROWS_A_RECORD = 5

_RECORDS = """
insert into records (srn, convention_id, schema_id, schema_version, source, metadata, published_at)
select format('urn:osa:bench:rec:%%s-%%s@1', b, n), %(convention)s, 'pdb-structure', '1.0.0',
       jsonb_build_object('type', 'ingest',
                          'id', format('%%s:b%%s-%%s', %(convention)s::text, b, n),
                          'ingest_run_id', %(ingest)s::text, 'batch_index', b,
                          'upstream_source', format('b%%s-%%s', b, n)),
       jsonb_build_object('title', format('Structure %%s of batch %%s', n, b), 'resolution', 1.5),
       '2026-11-29 16:00+00'
from generate_series(1, %(runs)s) as b, generate_series(1, %(records)s) as n
"""

_ROWS = """
insert into features.pockets
    (record_srn, run_id, pocket_id, score, volume, rank, druggable, center, residues)
select format('urn:osa:bench:rec:%%s-%%s@1', r.b, n), r.run_id, format('b%%s-%%s-P%%s', r.b, n, p),
       random(), 100 + 2000 * random(), p, random() < 0.5,
       to_jsonb(format('[%%s, %%s, %%s]', round(random()::numeric, 3), p, n)),
       to_jsonb(format('[{"chain": "A", "number": %%s, "name": "HIS"},'
                       ' {"chain": "B", "number": %%s, "name": "SER"}]', p, n))
from unnest(%(run_ids)s::uuid[]) with ordinality as r (run_id, b),
     generate_series(1, %(records)s) as n, generate_series(1, %(rows)s) as p
order by r.b, n, p
"""


def fill(url: str, rows: int, runs: int) -> None:
    """Make a server's database with the rows in `features.pockets`."""
    records = max(1, rows // (runs * ROWS_A_RECORD))
    run_ids = [hook_run_id(HISTORY, b, HOOK) for b in range(1, runs + 1)]
    with psycopg.connect(url) as connection:
        create_database(connection)
        connection.execute("truncate features.pockets, features.qc, features.alignment")
        connection.execute(
            "update ingest_runs set batches_ingested = %s where id = %s", [runs + 1, HISTORY]
        )
        connection.execute(
            "insert into hook_runs (id, release_id, status, started_at, finished_at, duration_s)"
            " select unnest(%s::uuid[]), %s, 'passed', '2026-11-29', '2026-11-29', 1",
            [run_ids, POCKETS_1],
        )
        parameters = {"convention": CONVENTION, "ingest": HISTORY, "runs": runs, "records": records}
        connection.execute(_RECORDS, parameters)
        connection.execute(_ROWS, {"run_ids": run_ids, "records": records, "rows": ROWS_A_RECORD})
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("vacuum analyze")


def copy_seconds(url: str) -> tuple[float, float]:
    """Seconds of raw COPY of the table to this process, and into an empty table like it."""
    with psycopg.connect(url) as connection:
        began = time.perf_counter()
        with connection.cursor().copy("copy features.pockets to stdout (format csv)") as copied:
            data = [bytes(part) for part in copied]
        out = time.perf_counter() - began
        connection.execute("create table features.copied (like features.pockets including all)")
        began = time.perf_counter()
        with connection.cursor().copy("copy features.copied from stdin (format csv)") as copy:
            for part in data:
                copy.write(part)
        into = time.perf_counter() - began
        connection.rollback()
    return out, into


def measure(
    address: S3Address,
    url: str,
    prefix: str,
    *,
    workers: int = 1,
    profile: str | None = None,
    is_restore: bool = False,
) -> list[float]:
    """Import or restore in a process of its own; what `osa_child.child` prints."""
    arguments: dict[str, object] = {"s3": asdict(address), "url": url, "prefix": prefix}
    arguments |= {"profile": profile, "is_restore": is_restore, "workers": workers}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.osa_child", json.dumps(arguments)],
        check=True,
        stdout=subprocess.PIPE,
    )
    measured: list[float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--profile", help="where to write a profile of the first import")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--no-restore", action="store_true", help="only import")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        with LocalServices(folder / "servers") as services:
            url = services.database_url
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(sql.SQL("create database osa"))
            osa = psycopg.conninfo.make_conninfo(url, dbname="osa")
            fill(osa, options.rows, options.runs)
            out, into = copy_seconds(osa)
            print(f"raw COPY into a table with keys: {options.rows / into:,.0f} rows/s")
            for workers in options.workers:
                rows, proven, seconds, processor, before, after, of_children = measure(
                    services.s3, osa, f"history-{workers}", workers=workers, profile=options.profile
                )
                assert proven == rows
                print(
                    f"{rows:,.0f} rows over {options.runs} hook runs, {workers} workers: imported,"
                    f" accepted and proven at {rows / seconds:,.0f} rows/s ({seconds:.1f} s)"
                )
                print(f"  processor time of the import: {processor / rows * 1e6:.0f} µs a row")
                print(f"  import / raw COPY out: {out / seconds:.3f} ({rows / out:,.0f} rows/s)")
                print(
                    f"  memory: {after / 1e6:.0f} MB, {(after - before) / 1e6:.0f} MB over imports;"
                    f" the largest worker {of_children / 1e6:.0f} MB"
                )
            if options.no_restore:
                return
            with psycopg.connect(osa, autocommit=True) as connection:
                connection.execute("drop table features.pockets")
            rows, new_ids, seconds, processor, before, after, _ = measure(
                services.s3, osa, f"history-{options.workers[-1]}", is_restore=True
            )
            assert new_ids == 0
            print(
                f"{rows:,.0f} rows restored, read back, with keys, and put in place at"
                f" {rows / seconds:,.0f} rows/s ({seconds:.1f} s, of which {processor:.1f} s of"
                " processor time of the restoring process)"
            )
            print(f"restore / raw COPY into a table with keys, rows a second: {into / seconds:.3f}")
            print(f"memory: {after / 1e6:.0f} MB, {(after - before) / 1e6:.0f} MB over imports")


if __name__ == "__main__":
    main()
