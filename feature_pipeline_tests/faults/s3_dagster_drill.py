"""A drill: what Dagster does with an archive whose requests fail, and its recovery from S3.

    python -m feature_pipeline_tests.faults.s3_dagster_drill --faults 300 --seed 1

It starts SeaweedFS, PostgreSQL and a proxy between Dagster and SeaweedFS. In each round batches are
submitted, the inbox's sensor ticks, a hook is run over each batch through the S3 IO manager, its
table is loaded, drift is reconciled, and a new Dagster instance is recovered from S3, through the
proxy. What fails is done again, as automation or an operator does. A run that fails must fail such
that it is repeated without an operator. In the end, without the proxy, both instances and the table
say what the archive says.
"""

import logging
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Final

import dagster as dg
from dagster_shared.error import SerializableErrorInfo

from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.events.data_versions import has_read
from feature_pipeline.orchestration.events.latest_events import latest_events
from feature_pipeline.orchestration.keys import records_key
from feature_pipeline.orchestration.operations.recover import recover_dagster, recover_table
from feature_pipeline.orchestration.sensors.repeat_causes import is_repeatable
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.faults.s3_drill import S3Tally, conditions, show
from feature_pipeline_tests.faults.steps import NotYet, StepDrill, drill_options
from feature_pipeline_tests.fixtures.dagster import (
    COUNTS,
    DATASET,
    TABLE,
    TEXTS,
    dagster_instance,
    make_pipeline,
)
from feature_pipeline_tests.fixtures.own_seaweedfs import own_seaweed
from feature_pipeline_tests.fixtures.postgres import PostgresAddress, forgetful_server
from feature_pipeline_tests.fixtures.s3_faults import Fault, FaultProxy, Plan, fault_proxy
from feature_pipeline_tests.fixtures.stores import archive_client

logger = logging.getLogger("s3_dagster_drill")

HOOK: Final = "counts"


class DagsterDrill(StepDrill):
    """Rounds on one server."""

    logger = logger
    most_tries = 60

    def __init__(self, address: S3Address, proxy: FaultProxy, server: PostgresAddress) -> None:
        self.address = address
        self.proxy = proxy
        self.server = server
        self.tally = S3Tally()

    def round(self, plan: Plan, folder: Path) -> None:
        """One archive's way through Dagster; what is wrong is in the tally."""
        self.tally.rounds += 1
        self._plan, self.name = plan, f"seed {plan.seed}"
        prefix = f"dagster-{secrets.token_hex(8)}"
        with ExitStack() as stack:
            client = archive_client(self.address)
            stack.callback(client.close)
            self.direct = S3Store(client, self.address.bucket, prefix)
            url, *instances = (self.server.create_database() for _ in range(3))
            for each in (url, *instances):
                stack.callback(self.server.drop_database, each)
            first, second = (
                stack.enter_context(dagster_instance(folder / f"home{number}", each))
                for number, each in enumerate(instances)
            )
            address = replace(self.address, endpoint_url=self.proxy.endpoint_url)
            self.pipeline = make_pipeline(address, prefix, url, first, folder)
            self.pipeline.add_hook()
            try:
                with self.problems_noted():
                    self._live(second)
            finally:
                self.proxy.plan = Plan()
                self.tally.add(plan)

    @contextmanager
    def under_faults(self) -> Iterator[None]:
        self.proxy.plan = self._plan
        try:
            yield
        finally:
            self.proxy.wait_for_server()
            self.proxy.plan = Plan()
            log.forget_read_entries()

    def _live(self, second: dg.DagsterInstance) -> None:
        pipeline = self.pipeline
        for key, texts in TEXTS.items():
            self.step("submit", lambda key=key, texts=texts: pipeline.submit(key, texts))
        self.step("tick of the inbox", self._tick)
        for key in TEXTS:
            self.step("run of a hook", lambda key=key: self._run(COUNTS, key))
        self.step("tick of the inbox", self._tick)
        # In Dagster's order, which is that of their acceptance.
        known = pipeline.instance.get_dynamic_partitions(DATASET)
        self.step("load of the table", lambda: self._run(TABLE, ends=(known[0], known[-1])))
        self.step("reconcile", self._reconcile)
        self.step("recover", lambda: self._recover(second))
        self._check(pipeline.instance, second)

    def _tick(self) -> None:
        self.pipeline.tick()
        if waiting := inbox.waiting(self.direct):
            raise NotYet(f"{len(waiting)} wait")
        if set(self.pipeline.instance.get_dynamic_partitions(DATASET)) != set(TEXTS):
            raise NotYet("Dagster does not know every batch")

    def _run(
        self, key: dg.AssetKey, batch: str | None = None, ends: tuple[str, str] | None = None
    ) -> None:
        pipeline = self.pipeline
        result = pipeline.run(key, batch, partitions=ends, checks=False)
        if result.success:
            return
        run = pipeline.instance.get_run_by_id(result.run_id)
        assert run is not None
        why = "; ".join(
            f"{error.cls_name}: {error.message.strip()}"
            for event in result.all_events
            if event.is_step_failure
            for error in _chain(event.step_failure_data.error)
        )
        if not is_repeatable(pipeline.instance, pipeline.defs.resolve_asset_graph(), run):
            self.problem(f"a run of {key.to_user_string()} would wait for an operator: {why}")
        raise NotYet(why)

    def _reconcile(self) -> None:
        drift = self.pipeline.reconcile()
        if drift.summary() != "no drift":
            raise NotYet(drift.summary())

    def _recover(self, instance: dg.DagsterInstance) -> None:
        pipeline = self.pipeline
        hooks = list(pipeline.hooks.values())
        drift = recover_dagster(pipeline.store, pipeline.archive_uri, instance, hooks)
        if drift.damaged:
            raise NotYet(str(drift.damaged))
        list(recover_table(pipeline.store, instance, pipeline.database, hooks[0]))

    def _check(self, *instances: dg.DagsterInstance) -> None:
        """Compare the archive, both instances and the table, without faults."""
        store = self.direct
        for finding in verify(store).findings:
            self.problem(f"verify: {finding}")
        if left := [entry.id for entry in inbox.waiting(store)]:
            self.problem(f"the inbox has {left}")
        for batch in TEXTS:
            entries = log.read_log(store, DATASET, HOOK, batch)
            current = [entry for entry in entries if entry.content_digest is not None]
            if len({entry.content_digest for entry in current}) != 1:
                self.problem(f"the log of {batch} has {entries}")
        heads = log.heads(store, DATASET, HOOK)
        for number, instance in enumerate(instances):
            wanted = {batch: str(head.content_digest) for batch, head in heads.items()}
            if set(latest_events(instance, records_key(DATASET), TEXTS)) != set(TEXTS):
                self.problem(f"instance {number} does not know every batch")
            events = latest_events(instance, COUNTS, TEXTS)
            versions = {batch: event.data_version for batch, event in events.items()}
            if versions != wanted:
                self.problem(f"instance {number} has other features: {versions}")
            for batch, event in latest_events(instance, TABLE, TEXTS).items():
                if not has_read(event, COUNTS, wanted.pop(batch)):
                    self.problem(f"instance {number}: the table has other rows of {batch}")
            if wanted:
                self.problem(f"instance {number}: the table lacks {sorted(wanted)}")
        spec = table_spec(self.pipeline.hooks[HOOK])
        proof = prove(store, self.pipeline.database, spec)
        if not proof.is_equal or proof.rows != 6:
            self.problem(f"the table has {proof.rows} rows, equal: {proof.is_equal}")


def _chain(error: SerializableErrorInfo | None) -> Iterator[SerializableErrorInfo]:
    while error is not None:
        yield error
        error = error.cause


def main() -> None:
    given = drill_options(__doc__, 0.06, "Of requests that meet one.").parse_args()
    logging.basicConfig(level=logging.ERROR, format="%(message)s", stream=sys.stdout)
    logger.setLevel(logging.INFO)
    with ExitStack() as stack:
        # Dagster prints each event of a run, with the traceback of each failure.
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        stack.enter_context(redirect_stderr(nowhere))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="s3-dagster-")))
        seaweed = stack.enter_context(own_seaweed())
        server = stack.enter_context(forgetful_server())
        stack.enter_context(conditions())
        proxy = stack.enter_context(fault_proxy(seaweed.address.endpoint_url, seaweed))
        drill = DagsterDrill(seaweed.address, proxy, server)
        seed = given.seed
        while drill.tally.injected.total() < given.faults:
            own = folder / str(seed)
            own.mkdir()
            drill.round(Plan(tuple(Fault), rate=given.rate, seed=seed), own)
            logger.info("seed %d: %d faults so far", seed, drill.tally.injected.total())
            seed += 1
        show(drill.tally, logger)
    sys.exit(bool(drill.tally.problems))


if __name__ == "__main__":
    main()
