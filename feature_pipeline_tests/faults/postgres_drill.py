"""A drill: tables live on a PostgreSQL whose connections break, and whose server does.

    python -m feature_pipeline_tests.faults.postgres_drill --faults 1000 --seed 1

It starts PostgreSQL on a small disk of its own, if it may mount one, and a proxy in front of it.
Each round has an archive in memory and a database of its own. Tables are loaded, rebuilt behind
their views, switched back and forth, indexed, erased from and dropped through the proxy. A step
that ends in an error is done again until it ends well. At the end the database is compared, without
the proxy, with the archive, and searched for whatever was left behind.
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

import psycopg

from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.errors import NotFoundError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import IndexDefinition
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.preview import plan_table
from feature_pipeline.projections.proof.missing_batches import check_progress
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline.projections.retire import (
    find_tables,
    known_tables,
    plan_retirement,
    retire_table,
)
from feature_pipeline.projections.rollback import rollback, unpin
from feature_pipeline.projections.switch.finalize import table_report
from feature_pipeline_tests.faults.steps import NotYet, StepDrill, StepTally, drill_options
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive
from feature_pipeline_tests.fixtures.own_postgres import (
    OwnServer,
    SmallDisk,
    own_server,
    small_disk,
)
from feature_pipeline_tests.fixtures.postgres_faults import (
    RATES,
    Fault,
    FaultPlan,
    Place,
    PostgresProxy,
    postgres_proxy,
)
from feature_pipeline_tests.fixtures.table_catalog import leftovers

logger = logging.getLogger("postgres_drill")

LABEL: Final = Column(name="label", type="string")
COUNT: Final = Column(name="count", type="integer")
NOTE: Final = Column(name="note", type="string", default="none")
BATCHES, ROWS = 4, 60
SECRET: Final = "b1/r0"
DISK_MEGABYTES: Final = 256
MAX_CONNECTIONS: Final = 24
SETTINGS: Final = {
    "max_connections": str(MAX_CONNECTIONS),
    "min_wal_size": "32MB",
    "max_wal_size": "64MB",
    "shared_buffers": "16MB",
}
CROWDED_SHARE, FULL_SHARE = 0.06, 0.06
"""Of tries, during which no connection or no disk is left."""

# What others made of the table, which every switch has to keep.
_USERS: Final = """
create schema if not exists people;
create view people.labels as select record_id, label from features.drilled;
create materialized view people.counted as
    select label, count(*) as times from people.labels group by label;
grant select on features.drilled to public"""

# Does all of that still exist?
_USERS_LEFT: Final = """
select to_regclass('people.labels') is not null and to_regclass('people.counted') is not null
and has_table_privilege('public', 'features.drilled', 'select')"""


@dataclass
class Tally(StepTally):
    """What was injected, and what came of it."""

    injected: Counter[tuple[Fault, Place | None]] = field(default_factory=Counter)
    messages: int = 0

    def total(self, fault: Fault) -> int:
        return sum(count for (kind, _), count in self.injected.items() if kind is fault)


@dataclass
class Drill(StepDrill):
    """Rounds on one server."""

    logger = logger
    most_tries = 100

    server: OwnServer
    proxy: PostgresProxy
    disk: SmallDisk | None
    tally: Tally = field(default_factory=Tally)

    def round(self, plan: FaultPlan) -> None:
        """Tables' lives under the faults of a plan; what is wrong is in the tally."""
        self.tally.rounds += 1
        self._plan, self.name = plan, f"seed {plan.seed}"
        self._archive = FeatureArchive((LABEL, COUNT))
        for number in range(BATCHES):
            self._archive.add(f"b{number}", answers(f"b{number}", "first"))
        name = f"drill_{self.tally.rounds}"
        with psycopg.connect(self._direct("postgres"), autocommit=True) as connection:
            connection.execute(f"create database {name}".encode())
        self._url = self._direct(name)
        self._database = Database(self.proxy.url(self._url))
        try:
            with self.problems_noted():
                self._live()
        finally:
            self.proxy.plan = FaultPlan()
            self.tally.injected.update(plan.injected)
            self.tally.messages += plan.messages
        with psycopg.connect(self._direct("postgres"), autocommit=True) as connection:
            connection.execute(f"drop database {name} with (force)".encode())

    def _direct(self, database: str) -> str:
        return self.server.server.url(database)

    @contextmanager
    def under_faults(self) -> Iterator[None]:
        """Let messages fail during one try, and in some the server lack connections or disk."""
        share = self._plan.share()
        with ExitStack() as stack:
            stack.callback(self.server.revive)
            if share < CROWDED_SHARE and Fault.CROWDED in self._plan.faults:
                self._crowd(stack)
                self.tally.injected[Fault.CROWDED, None] += 1
            elif share > 1 - FULL_SHARE and self.disk and Fault.DISK_FULL in self._plan.faults:
                self.disk.fill()
                self.tally.injected[Fault.DISK_FULL, None] += 1
                stack.callback(self.disk.empty)
            self.proxy.plan = self._plan
            try:
                yield
            finally:
                self.proxy.plan = FaultPlan()
                self.proxy.wait_for_server()

    def _crowd(self, stack: ExitStack) -> None:
        """Take every connection but a few, or all."""
        connections = []
        with suppress(psycopg.OperationalError):
            while True:
                one = psycopg.connect(self._direct("postgres"))
                connections.append(stack.enter_context(closing(one)))
        for one in connections[: int(self._plan.share() * 4)]:
            one.close()

    def _live(self) -> None:
        database, archive = self._database, self._archive
        first, noted = archive.spec(name="drilled"), IndexDefinition(columns=("label",))
        self.step("load", lambda: self._load(first))
        with psycopg.connect(self._url, autocommit=True) as connection:
            connection.execute(_USERS.encode())
        archive.say("b0", answers("b0", "second"))
        archive.add("b9", answers("b9", "second"))
        self.step("plan", lambda: plan_table(archive.store, database, first))
        self.step("incremental load", lambda: self._load(first, ["b0", "b9"]))
        archive.columns = (LABEL, COUNT, NOTE)
        wide = archive.spec(name="drilled", indexes=(noted,))
        self.step("plan of a rebuild", lambda: plan_table(archive.store, database, wide))
        self.step("rebuild", lambda: self._rebuild(wide))
        self._check(wide)
        self.step("proof", lambda: self._prove(wide))
        self.step("status", lambda: self._status(wide))
        self.step("rollback", lambda: self._roll_back(wide))
        archive.say("b2", answers("b2", "third"))
        self.step("load while pinned", lambda: list(load_batches(archive.store, database, wide)))
        self.step("unpin", lambda: self._unpin(wide))
        self._check(wide)
        archive.columns = (LABEL,)
        narrow = archive.spec(name="drilled", indexes=(noted,))
        self.step("rebuild without columns", lambda: self._rebuild(narrow))
        self.step("rebuild again", lambda: self._rebuild(narrow))
        erase(archive.store, narrow.dataset, [SECRET], "asked for")
        self.step("load after erase", lambda: self._load(narrow))
        self._check(narrow, rows=(BATCHES + 1) * 2 - 1)
        self.step("retire", lambda: self._retire(narrow))
        self._check_end()

    def _load(self, spec: TableSpec, batches: Sequence[str] | None = None) -> None:
        list(load_batches(self._archive.store, self._database, spec, batches, workers=2))
        self._prove(spec)

    def _prove(self, spec: TableSpec) -> None:
        proof = prove(self._archive.store, self._database, spec)
        if not proof.is_equal:
            raise NotYet(proof.summary())

    def _status(self, spec: TableSpec) -> None:
        report = table_report(self._archive.store, self._database, spec)
        progress = check_progress(self._archive.store, self._database, spec)
        if report is None or not report.is_settled or not progress.is_complete:
            raise NotYet(str(report and report.summary()))

    def _rebuild(self, spec: TableSpec) -> None:
        rebuild = begin_rebuild(self._archive.store, self._database, spec)
        list(fill(self._archive.store, self._database, rebuild))
        self._status(spec)

    def _roll_back(self, spec: TableSpec) -> None:
        report = table_report(self._archive.store, self._database, spec)
        if report is None or not report.is_pinned:  # its answer may have been lost
            rollback(self._archive.store, self._database, spec)

    def _unpin(self, spec: TableSpec) -> None:
        report = unpin(self._archive.store, self._database, spec)
        if report.is_pinned or not report.is_settled:
            raise NotYet(report.summary())

    def _retire(self, spec: TableSpec) -> None:
        known = known_tables(self._database)
        if not known:
            return
        [table] = find_tables(known, [spec.name])
        if plan_retirement(self._database, table).blocked:
            with psycopg.connect(self._url, autocommit=True) as connection:
                connection.execute("drop schema people cascade")
        retire_table(self._database, table)

    def _check(self, spec: TableSpec, rows: int | None = None) -> None:
        """Compare with the archive, and search for what is left, without faults."""
        direct = Database(self._url)
        # As the next run of the table's asset does.
        list(load_batches(self._archive.store, direct, spec))
        proof = prove(self._archive.store, direct, spec)
        if not proof.is_equal:
            self.problem(f"proof: {proof.summary()}")
        with psycopg.connect(self._url, autocommit=True) as connection:
            records = connection.execute(
                "select count(distinct record_id) from features.drilled"
            ).fetchall()[0][0]
            if rows is not None and records != rows:
                self.problem(f"{records} records are read, not {rows}")
            if connection.execute(_USERS_LEFT.encode()).fetchall() != [(True,)]:
                self.problem("a switch has lost views or grants of users")
        for problem in leftovers(self._url):
            self.problem(problem)

    def _check_end(self) -> None:
        """A table that was dropped leaves nothing."""
        for problem in leftovers(self._url):
            self.problem(problem)
        with psycopg.connect(self._url, autocommit=True) as connection:
            for (name,) in connection.execute(
                "select relname from pg_class c join pg_namespace n on n.oid = relnamespace"
                " where nspname in ('features', 'feature_pipeline') and relkind in ('r', 'v')"
                " and (relname like '%drilled%' or relname ~ '^_outcomes_')"
            ):
                self.problem(f"{name} was not dropped")


def answers(batch: str, word: str) -> dict[str, object]:
    """Rows of a batch's two records; equal for equal words."""
    return {
        f"{batch}/r{record}": [
            {"label": f"{word} {row} of {batch}/r{record} {'.' * 200}", "count": row}
            for row in range(ROWS)
        ]
        for record in range(2)
    }


@contextmanager
def drill() -> Iterator[Drill]:
    """A drill on a server of its own."""
    with ExitStack() as stack:
        disk = None
        try:
            disk = stack.enter_context(small_disk(DISK_MEGABYTES))
        except NotFoundError as error:
            logger.warning("no full disk in this drill: %s", error)
        server = stack.enter_context(
            own_server(SETTINGS, folder=None if disk is None else disk.folder)
        )
        proxy = stack.enter_context(postgres_proxy(server.server.url("postgres"), server.restart))
        yield Drill(server, proxy, disk)


def show(tally: Tally) -> None:
    logger.info("%d rounds, %d messages", tally.rounds, tally.messages)
    for fault in Fault:
        places = ", ".join(
            f"{count} at {place.value}"
            for (kind, place), count in sorted(tally.injected.items(), key=str)
            if kind is fault and place is not None
        )
        logger.info("%6d  %s%s", tally.total(fault), fault.value, places and f" ({places})")
    logger.info("%6d  in all", tally.injected.total())
    tally.show(logger)


def main() -> None:
    parser = drill_options(__doc__, 1.0, "How many times the usual rates.")
    parser.add_argument("--verbose", action="store_true", help="Print each error.")
    given = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.DEBUG if given.verbose else logging.INFO)
    with drill() as running:
        seed = given.seed
        while running.tally.injected.total() < given.faults:
            rates = {place: rate * given.rate for place, rate in RATES.items()}
            running.round(FaultPlan(tuple(Fault), rates, seed=seed))
            logger.info(
                "seed %d: %d faults, %d problems so far",
                seed,
                running.tally.injected.total(),
                len(running.tally.problems),
            )
            seed += 1
        show(running.tally)
    sys.exit(bool(running.tally.problems))


if __name__ == "__main__":
    main()
