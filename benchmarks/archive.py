"""Publishing, accepting, ticking and recovering, as ratios within one run.

    python -m benchmarks.archive [--artifacts 2000] [--archived 20000] [--loaded 20000]
                                 [--remembered 10000]

Starts its own servers in a temporary folder. Times are of this machine; the ratios are what
counts.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import yaml

from feature_pipeline.archive import accept, blobs
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.content_digests import Content
from feature_pipeline.archive.format.encode import encode_outcomes, encode_rows
from feature_pipeline.archive.format.manifest import BlobRef, Manifest, ReleaseRef, RunInfo
from feature_pipeline.archive.logs import answers, log
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry, ReleaseEntry, Verdict
from feature_pipeline.archive.publish import (
    Artifact,
    publish_and_enqueue,
    publish_artifact,
)
from feature_pipeline.archive.store.s3 import S3Store, open_store
from feature_pipeline.compute.plan import ComputePlan, plan_run
from feature_pipeline.local.services import LocalServices
from feature_pipeline.model.columns import Column, ColumnType
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.model.records import Record, RecordBatch, Source
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.operations.recover import recover_dagster
from feature_pipeline.orchestration.sensors.inbox import accept_inbox
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.load import load_batches
from feature_pipeline.projections.proof.missing_batches import check_progress
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.switch.finalize import table_report
from feature_pipeline_tests.fixtures.feature_archive import load_batch
from feature_pipeline_tests.fixtures.stores import archive_client

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

COLUMNS = (
    Column(name="value", type=ColumnType.NUMBER),
    Column(name="text", type=ColumnType.STRING),
)
HOOK = "bench"


def definition(dataset: str) -> HookDefinition:
    return HookDefinition.model_validate(
        {
            "name": HOOK,
            "dataset": dataset,
            "release": {"version": "1", "command": ["true"], "code": ["none.py"]},
            "feature": {"columns": [c.model_dump(mode="json") for c in COLUMNS]},
        }
    )


def register(store: S3Store, dataset: str, folder: Path) -> ReleaseEntry:
    (folder / "none.py").write_text("")
    hook = definition(dataset)
    return log.register_release(store, hook.hook_release(folder), hook.code_files(folder))


def make_batch(dataset: str, key: str, records: int = 1) -> RecordBatch:
    return RecordBatch.create(
        dataset, key, Source.IMPORT, tuple(Record(id=f"{key}-{i}") for i in range(records))
    )


def run_info(run_id: str) -> RunInfo:
    now = datetime.now(UTC)
    return RunInfo(id=run_id, runner="bench", started_at=now, finished_at=now)


def outcomes_of(batch: RecordBatch, rows: int, text: str = "x") -> tuple[Outcome, ...]:
    return tuple(
        Outcome(r.id, Status.PASSED, tuple((float(i), text) for i in range(rows)))
        for r in batch.records
    )


def artifact_of(
    batch: RecordBatch,
    release: ReleaseEntry,
    run_id: str,
    outcomes: tuple[Outcome, ...],
    columns: Sequence[Column] = COLUMNS,
) -> Artifact:
    return Artifact(
        batch=batch,
        release=release,
        columns=tuple(columns),
        cardinality="many",
        run=run_info(run_id),
        outcomes=outcomes,
        raw={},
        log=None,
    )


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def put_all(store: S3Store, objects: Iterator[tuple[str, bytes]]) -> None:
    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(lambda item: store.create(*item), objects):
            pass


def bench_publish(
    store: S3Store, client: "S3Client", folder: Path, size: int, rounds: int
) -> tuple[float, float]:
    """Seconds of a bare PUT of the raw bytes divided by those of publishing an artifact of them.

    Once with the PUT as the archive sends it (obstore), once as boto3 alone does.
    """
    dataset = f"publish{size}"
    release = register(store, dataset, folder)
    published, bare, plain = [], [], []
    for number in range(rounds):
        batch = make_batch(dataset, f"b{number}")
        raw = folder / "features.jsonl"
        raw.write_bytes(os.urandom(size))
        artifact = artifact_of(batch, release, f"r{number}", outcomes_of(batch, 1))
        artifact = replace(artifact, raw={"features.jsonl": raw})
        published.append(seconds(lambda a=artifact: publish_artifact(store, a)))
        data = os.urandom(size)
        bare.append(seconds(lambda d=data, n=number: store.create(f"bare/{size}/{n}", d)))
        target = {"Bucket": store.bucket, "Key": f"plain/{size}/{number}"}
        plain.append(seconds(lambda d=data, t=target: client.put_object(**t, Body=d)))
    took = statistics.median(published)
    return statistics.median(bare) / took, statistics.median(plain) / took


def fabricate(
    store: S3Store,
    dataset: str,
    release: ReleaseEntry,
    keys: Sequence[str],
    *,
    is_whole: bool = False,
) -> None:
    """Accepted batches and artifacts, written directly; rows of one record each.

    What only reading an artifact needs is there if it is to be whole.
    """

    def objects() -> Iterator[tuple[str, bytes]]:
        now = datetime.now(UTC)
        for key in keys:
            batch = make_batch(dataset, key)
            outcomes = outcomes_of(batch, 1)
            content = Content.of(COLUMNS, outcomes)
            rows, outcome_bytes = encode_rows(COLUMNS, outcomes), encode_outcomes(outcomes)
            manifest = Manifest(
                dataset=dataset,
                hook=HOOK,
                batch=key,
                batch_digest=batch.digest,
                release=ReleaseRef(
                    seq=release.seq, digest=release.release.digest, version="1", image=None
                ),
                columns=COLUMNS,
                cardinality="many",
                inputs={},
                run=run_info(key),
                counts=content.counts,
                blobs={
                    "rows": BlobRef(digest=Digest.of(rows), size=len(rows)),
                    "outcomes": BlobRef(digest=Digest.of(outcome_bytes), size=len(outcome_bytes)),
                },
                content_digest=content.content_digest,
                rows_digest=content.rows_digest,
            )
            data = manifest.encode()
            if is_whole:
                yield layout.blob(Digest.of(rows)), rows
                yield layout.blob(Digest.of(outcome_bytes)), outcome_bytes
            yield layout.blob(batch.digest), batch.encode()
            yield layout.blob(Digest.of(data)), data
            yield (
                layout.entry(layout.batch_log(dataset, key), 1),
                BatchEntry(
                    seq=1,
                    dataset=dataset,
                    batch=key,
                    digest=batch.digest,
                    source=Source.IMPORT,
                    records=1,
                    submitted_at=now,
                ).encode(),
            )
            yield (
                layout.entry(layout.feature_log(dataset, HOOK, key), 1),
                FeatureEntry(
                    seq=1,
                    dataset=dataset,
                    hook=HOOK,
                    batch=key,
                    completion=key,
                    manifest=Digest.of(data),
                    release_seq=release.seq,
                    release=release.release.digest,
                    base=0,
                    verdict=Verdict.CURRENT,
                    content_digest=content.content_digest,
                ).encode(),
            )

    put_all(store, objects())


def leave_completions(
    store: S3Store, dataset: str, release: ReleaseEntry, keys: Sequence[str]
) -> None:
    for key in keys:
        batch = log.read_batch(store, dataset, key)
        artifact = artifact_of(batch, release, f"{key}-again", outcomes_of(batch, 2))
        publish_and_enqueue(store, artifact, partial(completion_of, artifact, base=1))


def bench_tick(
    store: S3Store, instance: dg.DagsterInstance, folder: Path, archived: int, waiting: int
) -> tuple[float, float]:
    """Seconds of the tick that accepts, and of the one that clears, with so many archived."""
    dataset = f"tick{archived}"
    release = register(store, dataset, folder)
    keys = [f"b{i:06d}" for i in range(archived)]
    fabricate(store, dataset, release, keys)
    instance.add_dynamic_partitions(dataset, keys)
    chosen = keys[:: archived // waiting][:waiting]
    recover_events(store, instance, dataset, chosen)
    leave_completions(store, dataset, release, chosen)
    ticks = []

    def tick() -> None:
        result = accept_inbox(store, "s3://bench", instance)
        for event in result.events:
            instance.report_runless_asset_event(event)
        ticks.append(result)

    accepting, clearing = seconds(tick), seconds(tick)
    assert ticks[0].accepted == waiting, ticks[0].summary()
    assert ticks[1].removed == waiting, ticks[1].summary()
    return accepting, clearing


def recover_events(
    store: S3Store, instance: dg.DagsterInstance, dataset: str, keys: Sequence[str]
) -> None:
    from feature_pipeline.orchestration.assets.records import records_event

    for key in keys:
        entry = log.batch_entry(store, dataset, key)
        instance.report_runless_asset_event(
            records_event(entry, log.read_batch(store, dataset, key))
        )


def bench_accept(store: S3Store, folder: Path, count: int) -> float:
    """Completions accepted a second."""
    dataset = "accept"
    release = register(store, dataset, folder)
    keys = [f"b{i:06d}" for i in range(count)]
    fabricate(store, dataset, release, keys)
    leave_completions(store, dataset, release, keys)
    entries = accept.waiting(store)
    spent = seconds(lambda: accept.accept_entries(store, entries))
    for entry in entries:
        accept.remove(store, entry.id)
    return count / spent


def bench_unchanged(store: S3Store, folder: Path) -> float:
    """Seconds to find that nothing of a batch of 1,000 records needs computing."""
    dataset = "unchanged"
    release = register(store, dataset, folder)
    batch = make_batch(dataset, "b", 1000)
    compute(store, release, batch)
    spent = []
    for _ in range(5):
        plans = []
        spent.append(
            seconds(lambda p=plans: p.append(plan_run(store, definition(dataset), release, batch)))
        )
        assert plans[0].is_unchanged
    return statistics.median(spent)


def compute(store: S3Store, release: ReleaseEntry, batch: RecordBatch) -> None:
    """The batch is accepted, and an artifact that answers what is asked of each of its records."""
    blobs.put_blob(store, batch.encode())
    submission = accept.Submission(
        dataset=batch.dataset, batch=batch.key, digest=batch.digest, source=Source.IMPORT
    )
    accept.accept_batch(store, submission)
    plan = plan_run(store, definition(batch.dataset), release, batch)
    outcomes = tuple(replace(o, action=plan.actions[o.record_id]) for o in outcomes_of(batch, 5))
    artifact = artifact_of(batch, release, f"r-{batch.key}", outcomes)
    manifest = publish_artifact(store, artifact).manifest_digest
    accept.accept(store, completion_of(artifact, manifest, base=0))


@dataclass
class Counting:
    """A store that counts requests; no listing here has a second page."""

    inner: S3Store
    requests: int = 0

    @property
    def identity(self) -> str:
        return self.inner.identity

    def __getattr__(self, name: str) -> Callable[..., object]:
        self.requests += 1
        return getattr(self.inner, name)


@dataclass(frozen=True)
class Planning:
    """What it took to plan one batch."""

    seconds: float
    processor_seconds: float
    """Of this process, all its threads."""
    requests: int
    carried: int


def bench_planning(
    store: S3Store, folder: Path, artifacts: int, records: int = 1000
) -> dict[str, Planning]:
    """Plan a new batch beside so many remembered artifacts.

    The memory is written and merged as acceptance does it, one artifact after another, and is as
    it is just before its next merge.
    """
    dataset = "planned"
    release = register(store, dataset, folder)
    known = make_batch(dataset, "known", records)
    compute(store, release, known)
    draw = np.random.default_rng(1)
    prefix = layout.answers(dataset, HOOK, release.release.program)
    for number in range(artifacts):
        manifest = Digest.of(str(number).encode())
        actions = np.sort(draw.integers(0, 1 << 64, records, np.uint64))
        table = answers.Table(actions, np.zeros(records, np.uint16), (manifest,))
        store.create(f"{prefix}{manifest.hex}.0.1", answers.encode(table))
        if number % 8 == 7 and number < artifacts - 8:
            answers.compact(store, dataset, HOOK)
    listing = answers.list_answers(store, prefix)
    objects = sum(len(segment.parts) for segment in listing.segments)
    stored = sum(segment.size for segment in listing.segments)
    print(f"memory of {artifacts:,} artifacts: {objects} objects, {stored / 1e6:.0f} MB")
    again = RecordBatch.create(dataset, "again", Source.IMPORT, known.records)
    alone = RecordBatch.create(dataset, "alone", Source.IMPORT, known.records[:1])
    batches = {
        f"{records:,} records that were never computed": make_batch(dataset, "new", records),
        f"{records:,} records computed in another batch": again,
        "one record computed in another batch": alone,
    }
    by_kind = {}
    for name, batch in batches.items():
        spent, processor = [], []
        for _ in range(5):
            log.forget_read_entries()  # a run is a process of its own
            counting, plans = Counting(store), list[ComputePlan]()
            before = time.process_time()
            spent.append(
                seconds(
                    lambda b=batch, c=counting, p=plans: p.append(
                        plan_run(c, definition(dataset), release, b)
                    )
                )
            )
            processor.append(time.process_time() - before)
        by_kind[name] = Planning(
            statistics.median(spent),
            statistics.median(processor),
            counting.requests,
            len(plans[0].carried),
        )
    return by_kind


def bench_load(store: S3Store, database: Database, folder: Path, archived: int) -> float:
    """Seconds of what a table's run does for one new batch, with so many archived and loaded."""
    dataset = f"load{archived}"
    release = register(store, dataset, folder)
    fabricate(store, dataset, release, [f"b{i:06d}" for i in range(archived)], is_whole=True)
    spec = replace(table_spec(definition(dataset)), name=dataset)
    for _ in load_batches(store, database, spec):
        pass
    spent = []
    for number in range(7):
        key = f"new-{number}"
        fabricate(store, dataset, release, [key], is_whole=True)

        def run(batch: str = key) -> None:
            load_batch(store, database, spec, batch)
            assert check_progress(store, database, spec, [batch]).is_complete
            assert prove(store, database, spec, [batch]).is_equal
            assert table_report(store, database, spec) is not None

        log.forget_read_entries()  # a run is a process of its own
        spent.append(seconds(run))
    return statistics.median(spent)


def bench_recover(
    store: S3Store, instance: dg.DagsterInstance, folder: Path, artifacts: int
) -> float:
    """Seconds of recovering Dagster's knowledge divided by those of as many plain events."""
    dataset = "recover"
    release = register(store, dataset, folder)
    keys = [f"b{i:06d}" for i in range(artifacts)]
    fabricate(store, dataset, release, keys)
    plain = dg.AssetKey(["plain"])
    own = seconds(
        lambda: [
            instance.report_runless_asset_event(
                dg.AssetMaterialization(plain, partition=key, tags={"dagster/data_version": key})
            )
            for key in [*keys, *keys]
        ]
    )
    spent = seconds(lambda: recover_dagster(store, "s3://bench", instance, [definition(dataset)]))
    known = instance.get_materialized_partitions(features_key(dataset, HOOK))
    assert len(known) == artifacts
    return spent / own


@contextmanager
def dagster_instance(folder: Path, url: str) -> Iterator[dg.DagsterInstance]:
    folder.mkdir()
    config = {"storage": {"postgres": {"postgres_url": url}}, "telemetry": {"enabled": False}}
    (folder / "dagster.yaml").write_text(yaml.safe_dump(config))
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        yield instance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--artifacts", type=int, default=2_000, help="to recover")
    parser.add_argument("--archived", type=int, default=20_000, help="beside the waiting ones")
    parser.add_argument("--loaded", type=int, default=20_000, help="into a table before")
    parser.add_argument("--remembered", type=int, default=10_000, help="of 1,000 records each")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        with LocalServices(folder / "servers") as services:
            client = archive_client(services.s3)
            store = open_store(client, services.s3.bucket)
            for size, rounds in ((1_000_000, 20), (5_000, 60)):
                own, plain = bench_publish(store, client, folder, size, rounds)
                print(
                    f"publish an artifact: bare PUT of {size:,} bytes / publish = {own:.2f},"
                    f" by boto3 / publish = {plain:.2f}"
                )
            print(f"completions accepted a second: {bench_accept(store, folder, 300):.0f}")
            print(f"unchanged batch of 1,000 records: {bench_unchanged(store, folder):.2f} s")
            for kind, took in bench_planning(store, folder, options.remembered).items():
                print(
                    f"plan {kind}: {took.processor_seconds:.2f} s of processor time,"
                    f" {took.seconds:.2f} s, {took.requests} requests,"
                    f" {took.carried} carried over"
                )
            database = Database(services.database_url)
            few_loaded = bench_load(store, database, folder, 1_000)
            many_loaded = bench_load(store, database, folder, options.loaded)
            print(
                f"load, check and prove one new batch, {options.loaded:,} / 1,000 artifacts loaded:"
                f" {many_loaded / few_loaded:.2f} ({few_loaded * 1000:.0f} ms)"
            )
            with dagster_instance(folder / "home", services.dagster_database_url) as instance:
                bench_tick(store, instance, folder, 200, 100)  # warms caches and connections
                few = bench_tick(store, instance, folder, 1_000, 100)
                many = bench_tick(store, instance, folder, options.archived, 100)
                print(
                    f"sensor tick for 100 waiting, {options.archived:,} / 1,000 artifacts archived:"
                    f" {many[0] / few[0]:.2f} accepting ({few[0]:.1f} s), {many[1] / few[1]:.2f}"
                    f" clearing ({few[1]:.1f} s)"
                )
                # an archive of its own: recovery brings back all that is in one
                alone = open_store(client, services.s3.bucket, "recover")
                ratio = bench_recover(alone, instance, folder, options.artifacts)
                count = f"{options.artifacts:,}"
                print(f"recover {count} artifacts / as many plain events = {ratio:.2f}")


if __name__ == "__main__":
    main()
