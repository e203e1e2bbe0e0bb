"""A drill: an archive lives on a store whose requests fail, at random and in every way.

    python -m feature_pipeline_tests.faults.s3_drill --faults 1000 --seed 1

It starts SeaweedFS, PostgreSQL and a proxy between the archive's clients and SeaweedFS. Each round
has an archive of its own: batches are submitted, accepted, computed, read, loaded into a table,
proved, repaired, collected and erased from, through the proxy. A step that ends in an error is
done again until it ends well. At the end the archive and the table are compared, without the
proxy, with what a store without faults has.

A lease of a deletion that failed is removed rather than waited for: it would end after three
minutes.
"""

import logging
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final
from unittest.mock import patch

from feature_pipeline.archive import accept, blobs, publish, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.encode import encode_outcomes, encode_rows
from feature_pipeline.archive.format.manifest import ROWS
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.maintenance.erase import erase, finish_erasing
from feature_pipeline.archive.maintenance.gc import GcScope, collect_garbage
from feature_pipeline.archive.maintenance.repair import Sources, carry_out, plan_repair
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.faults.steps import NotYet, StepDrill, StepTally, drill_options
from feature_pipeline_tests.fixtures.care import CareScene, all_keys, holds
from feature_pipeline_tests.fixtures.own_seaweedfs import own_seaweed
from feature_pipeline_tests.fixtures.postgres import forgetful_server
from feature_pipeline_tests.fixtures.s3_faults import (
    Fault,
    FaultProxy,
    Plan,
    fault_proxy,
    hurried,
)
from feature_pipeline_tests.fixtures.stores import COLUMNS, DATASET, HOOK, archive_client

logger = logging.getLogger("s3_drill")

BATCHES: Final = {"b1": ("a", "b", "xyzzy7"), "b2": ("d", "e")}
SECRET: Final = "xyzzy7"
SPEC: Final = TableSpec(dataset=DATASET, hook=HOOK, name="drilled", columns=COLUMNS)


@dataclass
class S3Tally(StepTally):
    """What was injected, and what came of it."""

    injected: Counter[Fault] = field(default_factory=Counter)
    requests: int = 0

    def add(self, plan: Plan) -> None:
        self.injected += plan.injected
        self.requests += plan.requests


class World(CareScene):
    """An archive, and the steps of its life. Each step may be repeated."""

    def begin(self) -> None:
        self.batches = {key: self.batch_of(key, ids) for key, ids in BATCHES.items()}

    def submit(self) -> None:  # type: ignore[override]
        for batch in self.batches.values():
            publish.submit_batch(self.store, batch, self.paths(batch))

    def settle(self) -> None:
        """As the sensor does."""
        results = accept.accept_entries(self.store, entries := accept.waiting(self.store))
        for entry, result in zip(entries, results, strict=True):
            if isinstance(result, accept.Accepted):
                accept.remove(self.store, entry.id)
        if waits := [r for r in results if not isinstance(r, accept.Accepted)]:
            raise NotYet(waits[0].reason)

    def compute(self) -> None:  # type: ignore[override]
        release = self.release()
        for number, (key, batch) in enumerate(self.batches.items()):
            if log.head(self.store, DATASET, HOOK, key) is None:
                completion = self.run(batch, release, "x", run_id=f"run-{number}")
                publish.enqueue_completion(self.store, completion)

    def read_all(self) -> dict[str, tuple[bytes, bytes]]:
        """Rows and outcomes of every batch, as they are read."""
        values = {}
        for key, entry in log.heads(self.store, DATASET, HOOK).items():
            manifest = read.read_manifest(self.store, entry.manifest)
            outcomes = read.read_artifact_outcomes(self.store, manifest)
            values[key] = encode_rows(COLUMNS, outcomes), encode_outcomes(outcomes)
        return values


@contextmanager
def conditions() -> Iterator[None]:
    """Clients that wait for a second, and a collection that waits for no week."""
    with ExitStack() as stack:

        def replace(target: object, name: str, value: object) -> None:
            stack.enter_context(patch.object(target, name, value))

        replace(blobs, "GRACE", timedelta())
        with hurried(replace):
            yield


@dataclass
class Drill(StepDrill):
    """Rounds on one server."""

    logger = logger
    most_tries = 200

    address: S3Address
    proxy: FaultProxy
    folder: Path
    make_database: Callable[[], str]
    tally: S3Tally = field(default_factory=S3Tally)

    def round(self, plan: Plan) -> None:
        """An archive's life under the faults of a plan; what is wrong is in the tally."""
        self.tally.rounds += 1
        prefix = f"drill-{secrets.token_hex(8)}"
        folder = self.folder / prefix
        folder.mkdir()
        self._plan, self.name = plan, f"seed {plan.seed}, request {plan.at}"
        with ExitStack() as stack:
            clients = [archive_client(self.address, url) for url in (None, self.proxy.endpoint_url)]
            for client in clients:
                stack.callback(client.close)
            self.direct, self.faulty = (
                S3Store(client, self.address.bucket, prefix) for client in clients
            )
            self.world = World(self.faulty, folder)
            self.world.begin()
            try:
                with self.problems_noted():
                    self._live()
            finally:
                self.proxy.plan = Plan()
                self.tally.add(plan)

    @contextmanager
    def under_faults(self) -> Iterator[None]:
        """Let requests fail during one try."""
        self.proxy.plan = self._plan
        try:
            yield
        finally:
            self.proxy.wait_for_server()
            self.proxy.plan = Plan(skew=self._plan.skew)
            log.forget_read_entries()
            self.direct.delete("gc/lease")

    def _live(self) -> None:
        world, database = self.world, Database(self.make_database())
        self.step("submit", world.submit)
        self.step("accept batches", world.settle)
        self.step("publish", world.compute)
        self.step("accept", world.settle)
        expected = reference(self.folder)
        self.step("read", lambda: self._check_read(expected))
        self.step("load", lambda: self._load(database))
        self.step("verify", self._verify)
        self._damage()
        self.step("repair", self._repair)
        orphan = blobs.put_blob(self.direct, b"orphan").digest
        self.step("gc", lambda: self._collect(2))
        if self.direct.stat(layout.blob(orphan)) is not None:
            self.problem("gc has left an orphan")
        self._check_whole(expected)
        self.step("erase", self._erase)
        self.step("load after erase", lambda: self._load(database))
        self._check_end(database)

    def _check_read(self, expected: dict[str, tuple[bytes, bytes]]) -> None:
        values = self.world.read_all()
        if values != expected:
            self.problem(f"read: other values than expected of {sorted(values)}")

    def _load(self, database: Database) -> None:
        list(load_batches(self.faulty, database, SPEC))
        if not prove(self.faulty, database, SPEC).is_equal:
            raise NotYet("the table is not what the archive has")

    def _verify(self) -> None:
        report = verify(self.faulty)
        if report.findings:
            raise NotYet(str(report.findings[0]))

    def _damage(self) -> None:
        """A blob that can be derived again, and one of which a second archive has a copy."""
        self.copy = MemoryStore()
        for key in all_keys(self.direct):
            self.copy.create(key, self.direct.get(key).data)
        entry = log.head(self.direct, DATASET, HOOK, "b1")
        assert entry is not None
        manifest = read.read_manifest(self.direct, entry.manifest)
        for digest in (manifest.blobs[ROWS].digest, entry.manifest):
            self.direct.delete(layout.blob(digest))
        log.forget_read_entries()

    def _repair(self) -> None:
        sources = Sources(second=self.copy)
        for _ in range(4):
            findings = verify(self.faulty).findings
            if not findings:
                return
            failed = carry_out(plan_repair(self.faulty, findings, sources), lambda _: None)
            log.forget_read_entries()
            if failed:
                raise NotYet(failed[0].remedy)
        raise NotYet("findings are left")

    def _collect(self, times: int) -> None:
        for _ in range(times):
            report = collect_garbage(
                self.faulty, GcScope.everything(), is_dry_run=False, new_orphans=10**6
            )
            if report.obstacles:
                raise NotYet(report.obstacles[0])

    def _erase(self) -> None:
        is_begun = SECRET in accept.withdrawn_by(accept.tombstones(self.faulty, DATASET))
        report = (
            finish_erasing(self.faulty, DATASET)
            if is_begun
            else erase(self.faulty, DATASET, [SECRET], "asked for")
        )
        if not report.is_finished:
            raise NotYet("the erasure is not finished")

    def _check_whole(self, expected: dict[str, tuple[bytes, bytes]]) -> None:
        """Nothing lost, nothing twice, nothing wrong, without faults."""
        store = self.world.store = self.direct
        report = verify(store)
        for finding in report.findings:
            self.problem(f"verify: {finding}")
        if self.world.read_all() != expected:
            self.problem("other values than expected are stored")
        for number, key in enumerate(BATCHES):
            completions = [e.completion for e in log.read_log(store, DATASET, HOOK, key)]
            if completions != [f"run-{number}"]:
                self.problem(f"the log of {key} has {completions}")
            if len(log.batch_entries(store, DATASET, key)) != 1:
                self.problem(f"{key} was submitted twice")
        if len(log.releases(store, DATASET, HOOK)) != 1:
            self.problem("a release was registered twice")
        self._check_empty(store)
        self.world.store = self.faulty

    def _check_empty(self, store: BlobStore) -> None:
        for name, left in (
            ("inbox", inbox.waiting(store)),
            ("quarantine", accept.quarantined(store)),
        ):
            if left:
                self.problem(f"the {name} has {[(e.id, getattr(e, 'reason', '')) for e in left]}")

    def _check_end(self, database: Database) -> None:
        store = self.direct
        for finding in verify(store).findings:
            self.problem(f"verify after the erasure: {finding}")
        if left := [k for k in holds(store, SECRET.encode()) if not k.startswith("log/")]:
            self.problem(f"the erased value is in {left}")
        self._check_empty(store)
        proof = prove(store, database, SPEC)
        if not proof.is_equal or proof.rows != sum(map(len, BATCHES.values())) - 1:
            self.problem(f"the table has {proof.rows} rows, equal: {proof.is_equal}")


def reference(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """What is read of an archive on a store without faults."""
    own = folder / f"reference-{secrets.token_hex(4)}"
    own.mkdir()
    world = World(MemoryStore(), own)
    world.begin()
    for step in (world.submit, world.settle, world.compute, world.settle):
        step()
    return world.read_all()


def show(tally: S3Tally, logger: logging.Logger) -> None:
    """Print what was injected, and what came of it."""
    logger.info("%d rounds, %d requests", tally.rounds, tally.requests)
    for fault in Fault:
        logger.info("%6d  %s", tally.injected[fault], fault.value)
    logger.info("%6d  in all", tally.injected.total())
    tally.show(logger)


def main() -> None:
    given = drill_options(__doc__, 0.06, "Of requests that meet one.").parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-drill-")))
        seaweed = stack.enter_context(own_seaweed())
        server = stack.enter_context(forgetful_server())
        stack.enter_context(conditions())
        proxy = stack.enter_context(fault_proxy(seaweed.address.endpoint_url, seaweed))
        drill = Drill(seaweed.address, proxy, folder, server.create_database)
        seed = given.seed
        while drill.tally.injected.total() < given.faults:
            # In every fourth round, the store's clock is hours ahead of this machine's. If it is
            # behind, nothing can be deleted: see `test_s3_faults`.
            skew = timedelta(hours=0 if seed % 4 else 5)
            drill.round(Plan(tuple(Fault), rate=given.rate, seed=seed, skew=skew))
            logger.info("seed %d: %d faults so far", seed, drill.tally.injected.total())
            seed += 1
        show(drill.tally, logger)
    sys.exit(bool(drill.tally.problems))


if __name__ == "__main__":
    main()
