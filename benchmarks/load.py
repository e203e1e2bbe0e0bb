"""Load: how a running stack bears many records, and many completions at once.

    python -m benchmarks.load grow [--batches 1000] [--records 100] [--steps 10]
    python -m benchmarks.load waiting [--completions 10000] [--records 1]

Starts its own servers, webserver and daemon in a temporary folder, as `feature-pipeline dev` does.
Batches and completions are published through the archive's own functions; the sensors of the
running daemon accept them, and its runs load them into the table. `grow` publishes them in steps,
each of which is loaded before the next: what depends on what is there already shows as growth.
`waiting` stops Dagster, publishes them all, and starts it.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import psycopg
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from benchmarks.archive import artifact_of, outcomes_of
from benchmarks.orchestration import (
    DATASET,
    HOOK,
    ROOT,
    Stack,
    hook_definition,
    running_stack,
    say,
    wait_for,
)
from benchmarks.watch import Watch, describe, slope
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.publish import publish_and_enqueue, submit_batch
from feature_pipeline.model.instruments import S3_REQUESTS
from feature_pipeline.model.records import Record, RecordBatch, Source
from feature_pipeline.observability import otlp
from feature_pipeline.observability.push import EVERY_SECONDS
from feature_pipeline.orchestration.sensors.automation import TABLES_SENSOR

INBOX_SENSOR: Final = "inbox"
ROWS: Final = 5
"""Rows of one record."""
PUBLISHERS: Final = 4
COMMANDS: Final = (("status",), ("plan", HOOK), ("verify",), ("gc", "--all"))
"""Commands that look at the whole archive, and change nothing."""

DAGSTER_SIZE: Final = """
select count(*), pg_database_size(current_database()) from event_logs
"""
TABLE_SIZE: Final = """
select coalesce(sum(pg_total_relation_size(c.oid)), 0)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname in ('features', 'feature_pipeline')
"""


class Requests:
    """Counts of S3 requests that the stack's processes report by OTLP."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"take": self._take})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where processes report to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def counts(self) -> Counter[str]:
        """Return the requests so far, by operation; a process reports every few seconds."""
        with self._lock:
            return Counter(self._counts)

    def _take(self, body: bytes, encoding: str) -> None:
        counts, _ = otlp.decode_counts(body, encoding)
        with self._lock:
            for one in counts:
                if one.instrument is S3_REQUESTS:
                    self._counts[one.labels["operation"]] += round(one.value)


class _Handler(BaseHTTPRequestHandler):
    take: Callable[[bytes, str], None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).take(body, self.headers.get("Content-Encoding", ""))
        answer = otlp.answer([], 0)
        self.send_response(200)
        self.send_header("Content-Type", otlp.MEDIA_TYPE)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@dataclass
class Load:
    """A running stack, what was published into it, and what it used."""

    stack: Stack
    folder: Path
    watch: Watch
    requests: Requests
    records: int
    """Of each batch."""
    keys: list[str] = field(default_factory=list)

    def publish_batches(self, count: int) -> list[str]:
        """Leave so many new batches in the inbox; return their keys."""
        first = len(self.keys)
        keys = [f"b{number:06d}" for number in range(first, first + count)]
        self.keys += keys
        with ThreadPoolExecutor(PUBLISHERS) as pool:
            list(pool.map(lambda k: submit_batch(self.stack.store, self._batch(k), {}), keys))
        return keys

    def publish_completions(self, keys: Sequence[str]) -> None:
        """Leave a finished hook run over each batch in the inbox."""
        with ThreadPoolExecutor(PUBLISHERS) as pool:
            list(pool.map(self._complete, keys))

    def _batch(self, key: str) -> RecordBatch:
        records = tuple(
            Record(id=f"{key}-{n}", metadata={"name": f"record {n} of {key}"})
            for n in range(self.records)
        )
        return RecordBatch.create(DATASET, key, Source.IMPORT, records)

    def _complete(self, key: str) -> None:
        """Publish what a hook wrote, and how it was understood, as a run does."""
        batch = self._batch(key)
        outcomes = outcomes_of(batch, ROWS, f"of {key}")
        columns = hook_definition().feature.columns
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        raw, log = folder / "features.jsonl", folder / "log"
        lines = (
            {"id": o.record_id, "features": [{"value": v, "text": t} for v, t in o.rows]}
            for o in outcomes
        )
        raw.write_text("".join(json.dumps(line) + "\n" for line in lines))
        log.write_text(f"{len(outcomes)} records\n")
        artifact = artifact_of(batch, self.stack.release, f"run-{key}", outcomes, columns)
        artifact = replace(artifact, raw={raw.name: raw}, log=log)
        publish_and_enqueue(self.stack.store, artifact, partial(completion_of, artifact, base=0))
        shutil.rmtree(folder)

    def loaded(self) -> int:
        """Return how many batches the table has."""
        statement = f"select count(distinct batch) from features.{HOOK}"
        try:
            with psycopg.connect(self.stack.services.database_url) as connection:
                row = connection.execute(statement.encode()).fetchone()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return 0
        return int(row[0]) if row else 0

    def waiting(self) -> int:
        """Return how many entries wait in the inbox."""
        return sum(1 for _ in self.stack.store.list_objects("inbox/"))

    def dagster_size(self) -> tuple[int, int]:
        """Return Dagster's number of events, and the bytes of its database."""
        url = self.stack.services.dagster_database_url.replace("postgresql+psycopg2", "postgresql")
        with psycopg.connect(url) as connection:
            row = connection.execute(DAGSTER_SIZE).fetchone()
        assert row is not None
        return int(row[0]), int(row[1])

    def table_bytes(self) -> int:
        """Return the bytes of the tables and their bookkeeping."""
        with psycopg.connect(self.stack.services.database_url) as connection:
            row = connection.execute(TABLE_SIZE).fetchone()
        assert row is not None
        return int(row[0])

    def ticks(self, sensor: str, since: float) -> list[InstigatorTick]:
        """Return the sensor's ended ticks that began since then, the failed ones too."""
        instance = self.stack.instance
        return [
            tick
            for state in instance.all_instigator_state()
            if state.instigator_name == sensor
            for tick in instance.get_ticks(
                state.instigator_origin_id, state.selector_id, after=since
            )
            if tick.end_timestamp is not None
        ]

    def wait_until_flushed(self) -> None:
        """Wait until processes have reported the requests of this moment."""
        time.sleep(EVERY_SECONDS + 1)


def seconds_of(ticks: Sequence[InstigatorTick]) -> list[float]:
    return [tick.end_timestamp - tick.timestamp for tick in ticks if tick.end_timestamp]


def shown_ticks(ticks: Sequence[InstigatorTick]) -> str:
    spent = seconds_of(ticks)
    if not spent:
        return "none"
    failed = [tick for tick in ticks if tick.status is TickStatus.FAILURE]
    shown = f"median {statistics.median(spent):.2f} s, longest {max(spent):.2f} s of {len(spent)}"
    return shown + (f", {len(failed)} FAILED: {failed[0].error}" if failed else "")


def shown_requests(counts: Mapping[str, float], each: float) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count / each:.1f}" for name, count in ordered if count)


def grow(load: Load, batches: int, steps: int) -> None:
    """Publish the batches in steps; print a row of what each step took."""
    began, size = time.time(), batches // steps
    curve: list[tuple[int, dict[str, float]]] = []
    for _ in range(steps):
        since, requests = time.time(), load.requests.counts()
        spent = load.watch.processor_seconds()
        events, _ = load.dagster_size()
        runs = load.stack.instance.get_runs_count()
        load.publish_completions(load.publish_batches(size))
        published = time.time()
        wait_for(lambda: load.loaded() == len(load.keys), 1800, 1.0)
        loaded = time.time()
        wait_for(lambda: not load.waiting(), 600, 1.0)
        load.wait_until_flushed()
        highest = load.watch.highest(since)
        later = load.requests.counts() - requests
        now, dagster_bytes = load.dagster_size()
        used = load.watch.processor_seconds() - spent
        inbox, tables = (load.ticks(name, since) for name in (INBOX_SENSOR, TABLES_SENSOR))
        print(
            f"\n{len(load.keys) * load.records:,} records in {len(load.keys):,} batches:"
            f" published in {published - since:.1f} s, loaded {loaded - since:.1f} s after the"
            f" step began"
        )
        print(f"  inbox ticks: {shown_ticks(inbox)}")
        print(f"  load_tables ticks: {shown_ticks(tables)}")
        print(f"  S3 requests a batch: {shown_requests(later, size)}")
        print(
            f"  Dagster: {(now - events) / size:.1f} events a batch,"
            f" {load.stack.instance.get_runs_count() - runs} runs,"
            f" database {dagster_bytes / 1e6:.1f} MB; tables {load.table_bytes() / 1e6:.1f} MB"
        )
        print(f"  memory at its highest, RSS (PSS) in MB: {describe(highest)}")
        print(
            "  processor seconds a batch: "
            + ", ".join(f"{role} {used[role] / size:.3f}" for role in sorted(used))
        )
        sys.stdout.flush()
        figures = {f"RSS of {role}, MB": usage.rss / 1e6 for role, usage in highest.items()}
        figures["longest inbox tick, s"] = max(seconds_of(inbox), default=0.0)
        figures["longest load_tables tick, s"] = max(seconds_of(tables), default=0.0)
        figures["S3 requests a batch"] = sum(later.values()) / size
        figures["processor seconds a batch"] = sum(used.values()) / size
        curve.append((len(load.keys), figures))
    print(f"\nall after {time.time() - began:.0f} s")
    show_curve(curve)
    show_archive(load)
    idle(load)
    show_commands(load)


def show_curve(curve: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Print how each figure grows; the first step, which warms everything up, is left out."""
    print("growth (the first step is left out of the slope):")
    for name in curve[-1][1]:
        values = [figures.get(name, 0.0) for _, figures in curve]
        points = [(float(at), v) for (at, _), v in zip(curve[1:], values[1:], strict=True)]
        shown = " ".join(f"{value:.1f}" for value in values)
        print(f"  {name}: {shown}; {slope(points) * 1000:+.3f} per 1,000 batches")


def show_commands(load: Load) -> None:
    """Print how long commands take that look at everything, while nothing else happens."""
    for command in COMMANDS:
        before = os.times()
        seconds = _command_seconds(load, command)
        own = os.times()
        spent = own.children_user + own.children_system
        spent -= before.children_user + before.children_system
        print(
            f"`{' '.join(command)}` with {len(load.keys):,} batches: {seconds:.1f} s,"
            f" {spent:.1f} s of processor time",
            flush=True,
        )


def show_archive(load: Load) -> None:
    """Print objects and bytes of the archive, by the first part of their keys."""
    objects: Counter[str] = Counter()
    stored: Counter[str] = Counter()
    for info in load.stack.store.list_objects(""):
        first = info.key.partition("/")[0]
        objects[first] += 1
        stored[first] += info.size
    count = len(load.keys)
    for first in sorted(objects):
        print(
            f"archive, {first}: {objects[first]:,} objects ({objects[first] / count:.2f} a batch),"
            f" {stored[first]:,} bytes ({stored[first] / count / load.records:.1f} a record)"
        )


def idle(load: Load, seconds: float = 60.0) -> None:
    """Print what the stack costs while nothing happens."""
    load.wait_until_flushed()
    since, requests, spent = time.time(), load.requests.counts(), load.watch.processor_seconds()
    load.watch.look()
    time.sleep(seconds)
    load.watch.look()
    counts, used = load.requests.counts() - requests, load.watch.processor_seconds() - spent
    print(f"idle, S3 requests a minute: {shown_requests(counts, seconds / 60)}")
    print(
        "idle, processor seconds a minute: "
        + ", ".join(f"{role} {used[role] / seconds * 60:.2f}" for role in sorted(used))
    )
    print(f"idle, inbox ticks: {shown_ticks(load.ticks(INBOX_SENSOR, since))}")


def waiting(load: Load, count: int) -> None:
    """Leave batches, then completions, while Dagster is stopped; watch it come through both."""
    processes = load.stack.processes
    for kind in ("batches", "completions"):
        processes.stop()
        began = time.time()
        if kind == "batches":
            load.publish_batches(count)
        else:
            load.publish_completions(load.keys)
        print(f"\n{load.waiting():,} {kind} wait, published in {time.time() - began:.0f} s")
        requests, (events, _) = load.requests.counts(), load.dagster_size()
        spent, runs = load.watch.processor_seconds(), load.stack.instance.get_runs_count()
        processes.start()
        since = time.time()
        is_over = threading.Event()
        asking = threading.Thread(target=_ask, args=(load, COMMANDS[:2], is_over))
        if kind == "completions":
            asking.start()
        _follow(load, since, kind == "completions")
        is_over.set()
        if kind == "completions":
            asking.join()
        load.wait_until_flushed()
        now, dagster_bytes = load.dagster_size()
        used = load.watch.processor_seconds() - spent
        print(f"  inbox ticks: {shown_ticks(load.ticks(INBOX_SENSOR, since))}")
        print(f"  load_tables ticks: {shown_ticks(load.ticks(TABLES_SENSOR, since))}")
        counts = load.requests.counts() - requests
        print(f"  S3 requests for each: {shown_requests(counts, count)}")
        print(
            f"  Dagster: {(now - events) / count:.1f} events each, database"
            f" {dagster_bytes / 1e6:.1f} MB, {load.stack.instance.get_runs_count() - runs} runs"
        )
        print(f"  memory at its highest, RSS (PSS) in MB: {describe(load.watch.highest(since))}")
        print(
            "  processor seconds: "
            + ", ".join(f"{role} {used[role]:.0f}" for role in sorted(used)),
            flush=True,
        )
    show_commands(load)


def _follow(load: Load, since: float, is_loading: bool) -> None:
    """Print what waits and what is loaded until nothing waits, and all is loaded."""
    last, slow = time.time(), 10.0
    while True:
        left = load.waiting()
        loaded = load.loaded() if is_loading else None
        is_over = not left and loaded in (None, len(load.keys))
        if is_over or time.time() - last > slow:
            last = time.time()
            shown = "" if loaded is None else f", {loaded:,} batches in the table"
            usage = load.watch.look().usage
            print(
                f"  {last - since:6.0f} s: {left:,} wait{shown}; MB: {describe(usage)}", flush=True
            )
        if is_over:
            return
        if last - since > 4 * 3600:
            raise TimeoutError("not all was accepted and loaded within four hours")
        time.sleep(1.0)


def _ask(load: Load, commands: Sequence[Sequence[str]], is_over: threading.Event) -> None:
    """Run commands one after another until all is over; print how long each took."""
    spent: dict[str, list[float]] = {}
    while not is_over.wait(5.0):
        for command in commands:
            spent.setdefault(" ".join(command), []).append(_command_seconds(load, command))
    for name, values in spent.items():
        print(
            f"  `{name}` meanwhile: median {statistics.median(values):.1f} s,"
            f" longest {max(values):.1f} s of {len(values)}"
        )


def _command_seconds(load: Load, command: Sequence[str]) -> float:
    """Return how long one command of the program takes in the project."""
    folder = load.folder / "project"
    environment = {**os.environ, "FEATURE_PIPELINE_DEFS": str(folder / "location" / "defs")}
    environment.pop("FEATURE_PIPELINE_METRICS_URL", None)
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "feature_pipeline.cli.app", *command],
        cwd=folder,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(f"  {' '.join(command)} ended with {done.returncode}: {done.stderr[-500:]}")
    return time.monotonic() - began


@contextlib.contextmanager
def running_load(records: int) -> Iterator[Load]:
    requests = Requests()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o711)  # as root, PostgreSQL is another user
        os.environ["FEATURE_PIPELINE_METRICS_URL"] = requests.url
        watch = Watch()
        with running_stack(folder) as stack, watch.running():
            yield Load(stack, folder, watch, requests, records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    growing = kinds.add_parser("grow")
    growing.add_argument("--batches", type=int, default=1_000)
    growing.add_argument("--records", type=int, default=100, help="of each batch")
    growing.add_argument("--steps", type=int, default=10)
    at_once = kinds.add_parser("waiting")
    at_once.add_argument("--completions", type=int, default=10_000)
    at_once.add_argument("--records", type=int, default=1, help="of each batch")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers are stopped in any case
    say(f"{ROOT}: {options}")
    with running_load(options.records) as load:
        if options.kind == "grow":
            grow(load, options.batches, options.steps)
        else:
            waiting(load, options.completions)


if __name__ == "__main__":
    main()
