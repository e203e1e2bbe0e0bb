"""A drill: readers check every value of a table while it is rebuilt, switched, and killed.

    python -m feature_pipeline_tests.faults.switch_drill --switches 60 --seed 1

The archive is in memory. Each generation has a value of its own in every row, and each batch's
version is in each of its rows. Readers in processes of their own read the table all the time. What
they see must be one generation, whole, and of each batch one version, whole, neither older than
what they saw before. Meanwhile batches get new versions, and processes that rebuild the table are
killed at random, as is the server. A reader may meet no error but that of a connection while the
server is down.
"""

import argparse
import json
import logging
import multiprocessing
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import IsolationLevel

from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import ProjectionError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline_tests.fixtures.care import all_keys
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive
from feature_pipeline_tests.fixtures.own_postgres import OwnServer, own_server
from feature_pipeline_tests.fixtures.table_catalog import leftovers

logger = logging.getLogger("switch_drill")

BATCHES, RECORDS, ROWS = 4, 3, 12
TABLE: Final = "switched"
LABEL: Final = Column(name="label", type="string", required=True)
VERSION: Final = Column(name="version", type="integer", required=True)
EXTRA: Final = Column(name="extra", type="string")
READERS: Final = ("statement", "snapshot", "join")
KILLED_SHARE, SERVER_SHARE = 0.6, 0.25
"""Of switches, during which a loading process is killed, and during which the server is."""
LONGEST_SECONDS: Final = 1.5
"""Until a loading process is killed, at random."""

_PRELOADED: Final = (
    "pandas",  # which pyarrow imports when it first makes an array, if it is there
    "feature_pipeline.projections.load",
    "feature_pipeline.projections.rebuild",
    "feature_pipeline_tests.fixtures.feature_archive",
    "feature_pipeline_tests.fixtures.table_catalog",
)
"""Modules that each process would import."""
PAUSE_SECONDS: Final = 0.01
"""Between reads, which leaves the cores to what is watched."""

_READ: Final = "select record_id, ordinal, label, version, generation from features.switched"
# Two references to the view in one statement.
_JOIN: Final = """
select a.record_id, a.ordinal, a.label, b.version, a.generation
from features.switched a join features.switched b using (record_id, ordinal)
where a.generation = b.generation"""


def label(record_id: str, ordinal: int, version: int) -> str:
    """The value that a row has, and no other row."""
    return f"{record_id}, row {ordinal}, version {version}"


EXPECTED: Final = frozenset(
    (f"b{batch}/r{record}", ordinal)
    for batch in range(BATCHES)
    for record in range(RECORDS)
    for ordinal in range(ROWS)
)


@dataclass
class Seen:
    """What a reader saw last: nothing older may come after it."""

    generation: int = 0
    versions: dict[str, int] = field(default_factory=dict)

    def check(self, rows: list[tuple[Any, ...]]) -> str | None:
        """Return what is wrong with a read."""
        if frozenset((row[0], row[1]) for row in rows) != EXPECTED or len(rows) != len(EXPECTED):
            return f"{len(rows)} rows in place of {len(EXPECTED)}"
        for record_id, ordinal, text, version, _ in rows:
            if text != label(record_id, ordinal, version):
                return f"row {ordinal} of {record_id} has {text!r}, version {version}"
        generations = {row[4] for row in rows}
        if len(generations) != 1:
            return f"generations {sorted(map(str, generations))} at once"
        versions: dict[str, int] = {}
        for record_id, _, _, version, _ in rows:
            batch = record_id.partition("/")[0]
            if versions.setdefault(batch, version) != version:
                return f"batch {batch} has versions {versions[batch]} and {version} at once"
        generation = int(generations.pop())
        if generation < self.generation:
            return f"generation {generation} after {self.generation}"
        for batch, version in versions.items():
            if version < self.versions.get(batch, 0):
                return f"version {version} of batch {batch} after {self.versions[batch]}"
        self.generation, self.versions = generation, versions
        return None


def read_until(url: str, kind: str, stop: Event, output: Path) -> None:
    """Read all the time, in a process of its own; write down what came of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reads, generations = 0, set[int]()
    problems: list[str] = []
    errors: list[tuple[float, str]] = []
    seen = Seen()
    while not stop.is_set() and len(problems) < 10:
        try:
            # No prepared `select *`: PostgreSQL refuses it when any process changes columns.
            with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
                connection.isolation_level = IsolationLevel.REPEATABLE_READ
                while not stop.is_set() and len(problems) < 10:
                    for rows in _read(connection, kind):
                        reads += 1
                        if problem := seen.check(rows):
                            problems.append(f"{kind}: {problem}")
                        generations.add(seen.generation)
                    stop.wait(PAUSE_SECONDS)
        except psycopg.OperationalError as error:
            errors.append((time.monotonic(), str(error)))
            # A killed server may lose the last loads, whose commit it had not acknowledged.
            seen = Seen(seen.generation)
            time.sleep(0.02)
        except psycopg.Error as error:
            problems.append(f"{kind}: {type(error).__name__}: {error}")
    result = {
        "reads": reads,
        "generations": len(generations - {0}),
        "problems": problems,
        "errors": errors,
    }
    output.write_text(json.dumps(result))


def _read(connection: psycopg.Connection, kind: str) -> Iterator[list[tuple[Any, ...]]]:
    if kind == "statement":
        yield connection.execute(_READ).fetchall()
    elif kind == "join":
        yield connection.execute(_JOIN).fetchall()
    else:
        with connection.transaction():
            first = sorted(connection.execute(_READ).fetchall())
            yield first
            second = sorted(connection.execute(_READ).fetchall())
            if second != first:
                yield second[:-1]  # which is a problem, whatever it is
            yield second


def load_all(objects: Mapping[str, bytes], url: str, spec: TableSpec, is_rebuild: bool) -> None:
    """What a worker does: build the wanted generation and switch to it.

    Args:
        objects: The archive's.
        url: Of the database.
        spec: The table.
        is_rebuild: Begin another generation even if this one was read before.
    """
    store, database = MemoryStore(), Database(url)
    for key, data in objects.items():
        store.create(key, data)
    try:
        if is_rebuild:
            list(fill(store, database, begin_rebuild(store, database, spec)))
        else:
            list(load_batches(store, database, spec))
    except ProjectionError as error:
        sys.exit(str(error))


@dataclass
class Tally:
    """What was done, and what came of it."""

    switches: int = 0
    worker_kills: int = 0
    server_kills: int = 0
    loads: int = 0
    reads: int = 0
    generations: int = 0
    """The most that one reader saw."""
    lost_connections: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass
class Drill:
    """A table, its archive, and the server that is killed."""

    server: OwnServer
    folder: Path
    seed: int
    tally: Tally = field(default_factory=Tally)
    _downs: list[tuple[float, float]] = field(default_factory=list)
    """When the server was killed, and when it was ready again."""

    def __post_init__(self) -> None:
        self._draw = random.Random(self.seed)
        self._store = MemoryStore()
        self._archive = FeatureArchive((LABEL, VERSION), self._store)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_PRELOADED))
        self._versions = dict.fromkeys((f"b{number}" for number in range(BATCHES)), 1)
        for batch in self._versions:
            self._archive.add(batch, self._answers(batch))

    def run(self, switches: int) -> Tally:
        """Switch so often under readers; what is wrong is in the tally."""
        url = self.server.server.url("tables")
        self._load(self._spec(1))
        self._check(self._spec(1))
        with self._readers(url):
            for number in range(2, switches + 2):
                self._switch(self._spec(number), number)
                logger.info("switch %d of %d", number - 1, switches)
        for finding in verify(self._store).findings:
            self.tally.problems.append(f"verify: {finding}")
        return self.tally

    def _answers(self, batch: str) -> Mapping[str, object]:
        version = self._versions[batch]
        return {
            f"{batch}/r{record}": [
                {"label": label(f"{batch}/r{record}", row, version), "version": version}
                for row in range(ROWS)
            ]
            for record in range(RECORDS)
        }

    def _spec(self, number: int) -> TableSpec:
        """The table's definition: each has another value in a column that no artifact has."""
        generation = Column(name="generation", type="integer", default=number)
        # Every other switch has to create the view anew, and the others change it in place.
        more = (EXTRA,) if number % 4 < 2 else ()
        return self._archive.spec(name=TABLE, columns=(LABEL, VERSION, generation, *more))

    def _switch(self, spec: TableSpec, number: int) -> None:
        is_rebuild = number % 3 == 0
        if self._draw.random() < KILLED_SHARE:
            self._load(spec, is_rebuild, kill_after=self._draw.uniform(0.1, LONGEST_SECONDS))
        self._renew()
        if self._draw.random() < SERVER_SHARE:
            self._load(spec, is_rebuild, kill_server_after=self._draw.uniform(0.1, 1.0))
        self._load(spec, is_rebuild)
        self._renew()
        self._load(spec)  # into the generation that is read
        self._check(spec)
        self.tally.switches += 1

    def _renew(self) -> None:
        """A batch is computed anew."""
        batch = self._draw.choice(sorted(self._versions))
        self._versions[batch] += 1
        self._archive.say(batch, self._answers(batch))

    def _load(
        self,
        spec: TableSpec,
        is_rebuild: bool = False,
        kill_after: float | None = None,
        kill_server_after: float | None = None,
    ) -> None:
        """Let a process load the table, and kill it or the server after so many seconds."""
        url = self.server.server.url("tables")
        objects = {key: self._store.get(key).data for key in all_keys(self._store)}
        process: ForkServerProcess = self._context.Process(
            target=load_all, args=(objects, url, spec, is_rebuild)
        )
        process.start()
        self.tally.loads += 1
        if kill_server_after is not None:
            process.join(kill_server_after)
            down = time.monotonic()
            self.server.restart()
            self._downs.append((down, time.monotonic()))
            self.tally.server_kills += 1
        if kill_after is not None:
            process.join(kill_after)
            if process.exitcode is None:
                process.kill()
                self.tally.worker_kills += 1
        process.join(300)
        if process.exitcode is None:
            process.kill()
            process.join()
            self.tally.problems.append(f"generation of {spec.columns[2].default}: a load hangs")
        elif process.exitcode and kill_after is None and kill_server_after is None:
            self.tally.problems.append(f"a load without a kill ended with {process.exitcode}")
        process.close()

    def _check(self, spec: TableSpec) -> None:
        database = Database(self.server.server.url("tables"))
        proof = prove(self._store, database, spec)
        if not proof.is_equal:
            self.tally.problems.append(proof.summary())
        with database.connect("test") as connection:
            values = connection.execute("select distinct generation from features.switched")
            if (read := values.fetchall()) != [(spec.columns[2].default,)]:
                self.tally.problems.append(f"{read} is read, not {spec.columns[2].default}")

    @contextmanager
    def _readers(self, url: str) -> Iterator[None]:
        stop = self._context.Event()
        outputs = {kind: self.folder / f"{kind}.json" for kind in READERS}
        readers = [
            self._context.Process(target=read_until, args=(url, kind, stop, output))
            for kind, output in outputs.items()
        ]
        for reader in readers:
            reader.start()
        try:
            yield
        finally:
            stop.set()
            for reader in readers:
                reader.join(120)
                reader.kill()
            for kind, output in outputs.items():
                self._judge(kind, output)
        for problem in leftovers(url):
            self.tally.problems.append(problem)

    def _judge(self, kind: str, output: Path) -> None:
        try:
            result = json.loads(output.read_text())
        except FileNotFoundError:
            self.tally.problems.append(f"reader {kind!r} did not end")
            return
        self.tally.reads += result["reads"]
        self.tally.generations = max(self.tally.generations, result["generations"])
        self.tally.problems += result["problems"]
        if not result["reads"]:
            self.tally.problems.append(f"reader {kind!r} read nothing")
        for at, error in result["errors"]:
            if any(begin <= at <= end + 1 for begin, end in self._downs):
                self.tally.lost_connections += 1
            else:
                self.tally.problems.append(f"reader {kind!r}, with the server up: {error}")


@contextmanager
def drill(seed: int) -> Iterator[Drill]:
    """A drill on a server of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="switch-drill-") as folder,
        own_server() as server,
    ):
        yield Drill(server, Path(folder), seed)


def show(tally: Tally) -> None:
    logger.info(
        "%d switches, %d loads, %d of them killed, the server killed %d times",
        tally.switches,
        tally.loads,
        tally.worker_kills,
        tally.server_kills,
    )
    logger.info(
        "%d reads, each of every value; up to %d generations by one reader; %d connections lost",
        tally.reads,
        tally.generations,
        tally.lost_connections,
    )
    for problem in tally.problems:
        logger.error("PROBLEM %s", problem)
    logger.info("%d problems", len(tally.problems))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--switches", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    with drill(given.seed) as running:
        running.run(given.switches)
        show(running.tally)
    sys.exit(bool(running.tally.problems))


if __name__ == "__main__":
    main()
