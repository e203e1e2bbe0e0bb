"""Dagster with many hooks and many partitions, as ratios within one run.

    python -m benchmarks.orchestration [--hooks 200] [--burst 100] [--partitions 1000 10000 100000]

Starts its own servers, webserver and daemon in a temporary folder. Ticks are timed by the daemon
that makes them, queries over HTTP. Loading is compared by processor time: a process that loads
waits for nothing, so other work on the machine hardly shows in it.
"""

import argparse
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import dagster as dg
import psycopg
import requests
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus

from benchmarks.archive import artifact_of, outcomes_of
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import ReleaseEntry
from feature_pipeline.archive.publish import (
    publish_and_enqueue,
    submit_batch,
)
from feature_pipeline.archive.store.s3 import S3Store, open_store
from feature_pipeline.local.dagster_processes import DagsterProcesses
from feature_pipeline.local.environment import environment
from feature_pipeline.local.services import LocalServices
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.records import Record, RecordBatch, Source
from feature_pipeline.orchestration.keys import features_key, records_key, table_key
from feature_pipeline.orchestration.sensors.automation import FEATURES_SENSOR, TABLES_SENSOR
from feature_pipeline_tests.fixtures.stores import archive_client

DATASET: Final = "bench"
HOOK: Final = "measured"
ROOT: Final = Path(__file__).parents[1]
ASSETS: Final = (
    records_key(DATASET),
    features_key(DATASET, HOOK),
    table_key(DATASET, HOOK),
)
SEED: Final = "seed"
"""The one batch that goes the whole way for real; the others are copies of its events."""

STALENESS_AT_MOST: Final = 1_000
"""The UI asks for it when a user opens a launch dialog; Dagster looks partition by partition."""

LOCATION: Final = """
from pathlib import Path
import dagster as dg
from feature_pipeline.definitions import build_defs

@dg.definitions
def defs():
    return build_defs(dg.load_from_defs_folder(path_within_project=Path(__file__).parent))
"""
HOOK_YAML: Final = """
type: feature_pipeline.FeatureHook
attributes:
  name: {name}
  dataset: {dataset}
  compute: on_request
  release:
    version: '1'
    command: [python, hook.py]
    code: [hook.py]
  feature:
    columns:
      - {{name: value, type: number, unit: kcal/mol}}
      - {{name: text, type: string}}
"""
# As many assets and checks as the hooks have, with bodies and conditions of no account.
PLAIN: Final = """
import dagster as dg

PARTITIONS = dg.DynamicPartitionsDefinition(name="bench")

def of_one(n):
    @dg.asset(key=["features", f"hook_{{n}}"], partitions_def=PARTITIONS)
    def feature(): ...

    @dg.asset(key=["tables", f"hook_{{n}}"], partitions_def=PARTITIONS, deps=[feature],
              automation_condition=dg.AutomationCondition.eager())
    def table(): ...

    made = [feature, table]
    for i in range({checks}):
        @dg.asset_check(asset=feature, name=f"check_{{i}}")
        def check():
            return dg.AssetCheckResult(passed=True)
        made.append(check)
    return made

@dg.definitions
def defs():
    made = [d for n in range({count}) for d in of_one(n)]
    return dg.Definitions(
        assets=[d for d in made if not isinstance(d, dg.AssetChecksDefinition)],
        asset_checks=[d for d in made if isinstance(d, dg.AssetChecksDefinition)],
    )
"""
LOAD: Final = """
import importlib, sys
from dagster._core.remote_representation.external_data import RepositorySnap
import feature_pipeline.definitions
repository = importlib.import_module("location.definitions").defs().get_repository_def()
RepositorySnap.from_def(repository)
checks = len(repository.asset_graph.asset_check_keys)
print(len(repository.asset_graph.materializable_asset_keys), checks)
"""
STATISTICS: Final = """
query Statistics($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) {
    partitionStats { numMaterialized numPartitions }
    assetPartitionStatuses {
      ... on DefaultPartitionStatuses { materializedPartitions unmaterializedPartitions }
    }
  }
}
"""
STALENESS: Final = """
query Staleness($keys: [AssetKeyInput!]!) {
  assetNodes(assetKeys: $keys) { staleStatusByPartition }
}
"""
LAUNCH: Final = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}
"""
CANCEL: Final = """
mutation Cancel($id: String!) { cancelPartitionBackfill(backfillId: $id) { __typename } }
"""


def write_location(root: Path, hooks: Sequence[str], source: str = LOCATION) -> None:
    """A project whose package `location` holds the hooks."""
    defs = root / "location" / "defs"
    defs.mkdir(parents=True)
    (root / "location" / "__init__.py").write_text("")
    (root / "location" / "definitions.py").write_text(source)
    (defs / "__init__.py").write_text("")
    settings = '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\n'
    (root / "pyproject.toml").write_text(f'{settings}root_module = "location"\n')
    for name in hooks:
        (defs / name).mkdir()
        (defs / name / "hook.py").write_text("")
        (defs / name / "defs.yaml").write_text(HOOK_YAML.format(name=name, dataset=DATASET))


def load_seconds(root: Path) -> tuple[float, str]:
    """Processor time of a fresh process that loads the location, and what it found there."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "FEATURE_PIPELINE_S3_BUCKET": "none"},
        check=True,
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return spent, done.stdout.split("\n")[-2]


def bench_load(folder: Path, hooks: int, rounds: int) -> None:
    names = [f"hook_{n:03d}" for n in range(hooks)]
    places = {"two": folder / "two", "many": folder / "many", "plain": folder / "plain"}
    write_location(places["two"], names[:2])
    write_location(places["many"], names)
    _, counts = load_seconds(places["many"])  # compiles what is imported, too
    assets, checks = map(int, counts.split())
    plain = PLAIN.format(count=hooks, checks=round(checks / hooks))
    write_location(places["plain"], [], plain)
    spent: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(rounds):
        for name, root in places.items():
            spent[name].append(load_seconds(root)[0])
    took = {name: statistics.median(values) for name, values in spent.items()}
    each = (took["many"] - took["two"]) / (hooks - 2) * 1000
    print(f"load the code location: {hooks} hooks ÷ 2 hooks = {took['many'] / took['two']:.2f}")
    print(
        f"  ({assets} assets, {checks} checks; {took['many']:.1f} s, {each:.0f} ms a hook);"
        f" ÷ as many plain assets and checks without hooks = {took['many'] / took['plain']:.2f}"
    )


@dataclass
class Stack:
    """Servers, webserver and daemon over one location of one hook."""

    services: LocalServices
    processes: DagsterProcesses
    instance: dg.DagsterInstance
    store: S3Store
    url: str
    release: ReleaseEntry
    submitted: int = 0

    def submit(self, keys: Sequence[str]) -> None:
        """The batches are accepted, and Dagster knows their partitions."""
        for key in keys:
            record = Record(id=f"{key}-0")
            submit_batch(self.store, RecordBatch.create(DATASET, key, Source.IMPORT, (record,)), {})
        wait_for(lambda: set(keys) <= set(self.instance.get_dynamic_partitions(DATASET)), 120)
        wait_for(lambda: not list(self.store.list_objects("inbox/")), 120)

    def complete(self, key: str, label: str, base: int) -> None:
        """A hook run over the batch, finished elsewhere, waits in the inbox."""
        batch = log.read_batch(self.store, DATASET, key)
        columns = hook_definition().feature.columns
        outcomes = outcomes_of(batch, 2, label)
        artifact = artifact_of(batch, self.release, f"{key}-{label}", outcomes, columns)
        publish_and_enqueue(self.store, artifact, partial(completion_of, artifact, base=base))

    def visible(self, label: str) -> int:
        """Batches whose rows of this label people can read."""
        statement = f"select count(distinct batch) from features.{HOOK} where text = %s"
        try:
            with psycopg.connect(self.services.database_url) as connection:
                row = connection.execute(statement.encode(), [label]).fetchone()
        except psycopg.errors.UndefinedTable:
            return 0  # the first load makes the view
        return int(row[0]) if row else 0

    def phases(self, began: float, ended: float) -> dict[str, float]:
        """Seconds of each phase of the completion that is the newest, by what ends the phase."""
        event = self.instance.get_latest_materialization_event(features_key(DATASET, HOOK))
        assert event is not None
        (run,) = self.instance.get_run_records(limit=1)
        steps = self.instance.get_records_for_run(
            run.dagster_run.run_id, of_type=dg.DagsterEventType.STEP_START
        ).records
        moments = {
            "the inbox's sensor accepts it": event.timestamp,
            "the automation sensor queues a run": run.create_timestamp.timestamp(),
            "the run's process has loaded the definitions": run.start_time or ended,
            "its step starts": steps[0].timestamp,
            "the row is visible": ended,
        }
        assert began <= event.timestamp <= run.create_timestamp.timestamp() <= ended
        before = [began, *moments.values()]
        return {
            phase: moment - earlier
            for (phase, moment), earlier in zip(moments.items(), before, strict=False)
        }

    def graphql(self, query: str, **variables: Any) -> Any:
        answer = requests.post(
            f"{self.url}/graphql", json={"query": query, "variables": variables}, timeout=300
        ).json()
        assert not answer.get("errors"), answer
        return answer["data"]

    def ticks_since(self, sensor: str, timestamp: float) -> list[InstigatorTick]:
        """Ended ticks that began later, oldest first."""
        states = [s for s in self.instance.all_instigator_state() if s.instigator_name == sensor]
        ticks = [
            tick
            for state in states
            for tick in self.instance.get_ticks(
                state.instigator_origin_id, state.selector_id, after=timestamp
            )
            if tick.end_timestamp is not None
        ]
        for tick in ticks:
            assert tick.status is not TickStatus.FAILURE, tick.error
        return sorted(ticks, key=lambda tick: tick.timestamp)

    def tick_seconds(self, sensor: str, since: float, count: int) -> list[float]:
        """How long the first ticks after `since` took."""
        wait_for(lambda: len(self.ticks_since(sensor, since)) >= count, 600)
        ticks = self.ticks_since(sensor, since)[:count]
        return [tick.end_timestamp - tick.timestamp for tick in ticks if tick.end_timestamp]


def say(progress: str) -> None:
    print(f"  {progress}", file=sys.stderr, flush=True)


def wait_for(condition: Callable[[], bool], at_most: float, pause: float = 0.2) -> None:
    deadline = time.monotonic() + at_most
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {at_most} s")
        time.sleep(pause)


def hook_definition() -> HookDefinition:
    import yaml

    text = HOOK_YAML.format(name=HOOK, dataset=DATASET)
    return HookDefinition.model_validate(yaml.safe_load(text)["attributes"])


@contextmanager
def running_stack(folder: Path) -> Iterator[Stack]:
    """As `feature-pipeline dev` runs it."""
    root, home = folder / "project", folder / "home"
    write_location(root, [HOOK])
    home.mkdir()
    (home / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text())
    workspace = root / "workspace.yaml"
    workspace.write_text(
        "load_from:\n"
        "  - python_module: {module_name: location.definitions, location_name: project}\n"
    )
    with LocalServices(folder / "servers") as services:
        variables = environment(services, home)
        os.environ.update(variables)
        client = archive_client(services.s3)
        store = open_store(client, services.s3.bucket)
        hook, code = hook_definition(), root / "location" / "defs" / HOOK
        release = log.register_release(store, hook.hook_release(code), hook.code_files(code))
        processes = DagsterProcesses(folder / "dagster", root, workspace, variables)
        processes.start()
        try:
            with dg.DagsterInstance.from_config(str(home)) as instance:
                yield Stack(services, processes, instance, store, processes.url, release)
        except BaseException:
            shown = (folder / "dagster" / "daemon").glob("*.log")
            print(*(path.read_text()[-6000:] for path in shown), file=sys.stderr)
            raise
        finally:
            processes.stop()


def bench_lag(stack: Stack, rounds: int, burst: int) -> None:
    """From a completion in the inbox to its row in SQL; runs are counted."""
    keys = [SEED, *(f"burst-{n:03d}" for n in range(burst))]
    stack.submit(keys)
    stack.complete(SEED, "first", 0)
    wait_for(lambda: stack.visible("first") == 1, 300)
    spent, phases = [], []
    for number in range(1, rounds + 1):
        began = time.time()
        stack.complete(SEED, f"round-{number}", number)
        wait_for(lambda n=number: stack.visible(f"round-{n}") == 1, 120)
        ended = time.time()
        spent.append(ended - began)
        phases.append(stack.phases(began, ended))
    runs = stack.instance.get_runs_count()
    print(
        f"completion → row in SQL, one: median {statistics.median(spent):.1f} s of {rounds}"
        f" ({min(spent):.1f} to {max(spent):.1f}); {runs} runs for {rounds + 1} completions"
    )
    for phase in phases[0]:
        times = [each[phase] for each in phases]
        print(
            f"  {phase}: median {statistics.median(times):.1f} s"
            f" ({min(times):.1f} to {max(times):.1f})"
        )
    began = time.monotonic()
    for key in keys[1:]:
        stack.complete(key, "burst", 0)
    left = time.monotonic() - began
    wait_for(lambda: stack.visible("burst") == burst, 900)
    took = time.monotonic() - began
    print(
        f"completion → row in SQL, a burst of {burst}: all after {took:.1f} s (leaving them took"
        f" {left:.1f} s), {stack.instance.get_runs_count() - runs} runs"
    )
    quiet_since, runs = time.time(), stack.instance.get_runs_count()
    for sensor in ("inbox", FEATURES_SENSOR, TABLES_SENSOR):
        stack.tick_seconds(sensor, quiet_since, 4)
    wait_for(lambda: not list(stack.store.list_objects("inbox/")), 60)
    print(f"nothing changed for four ticks: {stack.instance.get_runs_count() - runs} runs")


def grow(stack: Stack, partitions: int) -> None:
    """So many partitions, each with events of all three assets: copies of the seed's, at once.

    Dagster takes events one by one, at ten milliseconds each: three hundred thousand of them are
    an hour. The copies differ in partition and id alone.
    """
    known = set(stack.instance.get_dynamic_partitions(DATASET))
    keys = [key for n in range(partitions) if (key := f"p{n:06d}") not in known]
    keys = keys[: max(0, partitions - len(known))]
    url = stack.services.dagster_database_url.replace("postgresql+psycopg2", "postgresql")
    with psycopg.connect(url) as connection:
        # Each points to the copy of its own input: an event that points to another shows as stale.
        for source, asset in zip((None, *ASSETS), ASSETS, strict=False):
            row = connection.execute(
                "select id from event_logs where asset_key = %s and partition = %s"
                " and dagster_event_type = 'ASSET_MATERIALIZATION' order by id desc limit 1",
                [asset.to_string(), SEED],
            ).fetchone()
            assert row is not None, asset
            named = {"seed": SEED, "keys": keys, "id": row[0], "pointer": _POINTER}
            named["source"] = source.to_string() if source is not None else None
            connection.execute(_COPY_EVENTS, named)
    say(f"{len(keys):,} partitions' events copied")
    for start in range(0, len(keys), 10_000):
        stack.instance.add_dynamic_partitions(DATASET, keys[start : start + 10_000])


_POINTER: Final = r'(input_event_pointer/[^"]*": ?")[0-9]+'
_COPY_EVENTS: Final = """
with source as (
    select partition, max(id) as id from event_logs
    where asset_key = %(source)s and dagster_event_type = 'ASSET_MATERIALIZATION'
    group by partition
), made as (
    insert into event_logs
        (run_id, event, dagster_event_type, timestamp, step_key, asset_key, partition)
    select seed.run_id,
        regexp_replace(
            replace(seed.event, '"' || %(seed)s || '"', '"' || key || '"'),
            %(pointer)s, '\\1' || coalesce(source.id, 0)
        ),
        seed.dagster_event_type, seed.timestamp, seed.step_key, seed.asset_key, key
    from unnest(%(keys)s::text[]) as key
    cross join (select * from event_logs where id = %(id)s) as seed
    left join source on source.partition = key
    returning id, asset_key, timestamp, partition
)
insert into asset_event_tags (event_id, asset_key, key, value, event_timestamp)
select made.id, made.asset_key, tag.key,
    case when tag.key like 'dagster/input_event_pointer/%%' then source.id::text else tag.value end,
    made.timestamp
from made
join asset_event_tags tag on tag.event_id = %(id)s
left join source on source.partition = made.partition
"""


@dataclass(frozen=True)
class Scale:
    """Seconds at one number of partitions."""

    inbox: float
    automation: float
    digesting: float
    """The first evaluation after that many events came."""
    changed: float
    """The evaluation that requests a run for one batch."""
    statuses: float
    backfill: float
    staleness: float | None
    """None where it was not asked for."""


def bench_scale(stack: Stack, partitions: int, serial: int) -> Scale:
    grow(stack, partitions)
    since = time.time()
    runs = stack.instance.get_runs_count()
    digesting = stack.tick_seconds(TABLES_SENSOR, since, 1)[0]
    steady = stack.tick_seconds(TABLES_SENSOR, since, 4)[1:]
    say(f"{partitions:,} partitions: first evaluation {digesting:.1f} s, then {steady}")
    inbox = stack.tick_seconds("inbox", since, 4)
    assert stack.instance.get_runs_count() == runs, "runs where nothing changed"
    keys = [{"path": list(asset.path)} for asset in ASSETS]

    def took(query: str, **variables: Any) -> tuple[float, Any]:
        began = time.monotonic()
        answer = stack.graphql(query, **variables)
        return time.monotonic() - began, answer

    statuses, response = took(STATISTICS, keys=keys)
    materialized = [node["partitionStats"]["numMaterialized"] for node in response["assetNodes"]]
    assert min(materialized) >= partitions - 1, materialized
    staleness = None
    if partitions <= STALENESS_AT_MOST:
        staleness, response = took(STALENESS, keys=keys[2:])
        assert set(response["assetNodes"][0]["staleStatusByPartition"]) == {"FRESH"}

    say(f"partition statuses of three assets: {statuses:.1f} s")
    params = {
        "assetSelection": keys[1:2],
        "partitionNames": stack.instance.get_dynamic_partitions(DATASET),
    }
    backfill, response = took(LAUNCH, params=params)
    launched = response["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    stack.graphql(CANCEL, id=launched["backfillId"])
    say(f"backfill launched after {backfill:.1f} s")
    since = time.time()
    head = log.head(stack.store, DATASET, HOOK, SEED)
    assert head is not None
    stack.complete(SEED, f"scale-{serial}", head.seq)
    wait_for(lambda: stack.visible(f"scale-{serial}") == 1, 150)
    ticks = stack.ticks_since(TABLES_SENSOR, since)
    changed = max(t.end_timestamp - t.timestamp for t in ticks if t.end_timestamp is not None)
    assert stack.instance.get_runs_count() == runs + 1
    return Scale(
        inbox=statistics.median(inbox),
        automation=statistics.median(steady),
        digesting=digesting,
        changed=changed,
        statuses=statuses,
        staleness=staleness,
        backfill=backfill,
    )


def show_scale(scales: dict[int, Scale]) -> None:
    smallest = min(scales)
    names = {
        "inbox": "inbox tick, nothing waiting",
        "automation": "automation tick, nothing changed",
        "digesting": "automation tick that sees all partitions for the first time",
        "changed": "automation tick after one completion",
        "statuses": "UI: partition statuses of three assets",
        "staleness": "UI: staleness of the table's partitions",
        "backfill": "launch a backfill over all partitions",
    }
    for field, name in names.items():
        base = getattr(scales[smallest], field) or float("nan")
        seconds = ", ".join(
            f"{count:,}: {value:.2f} s ({value / base:.1f})"
            for count, scale in scales.items()
            if (value := getattr(scale, field)) is not None
        )
        print(f"{name}, seconds by partitions (÷ with {smallest:,}): {seconds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hooks", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="of loading, and of one completion")
    parser.add_argument("--burst", type=int, default=100)
    parser.add_argument("--partitions", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    parser.add_argument("--only", choices=["load", "stack"], help="a part of it")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers are stopped in any case
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # as root, PostgreSQL is another user
        if options.only != "stack":
            bench_load(folder / "load", options.hooks, options.rounds)
        if options.only != "load":
            with running_stack(folder) as stack:
                bench_lag(stack, options.rounds, options.burst)
                scales = {}
                for serial, count in enumerate(options.partitions):
                    scales[count] = bench_scale(stack, count, serial)
                if scales:
                    show_scale(scales)


if __name__ == "__main__":
    main()
