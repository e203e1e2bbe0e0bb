"""Whatever happens in whatever order: Dagster says what S3 says, and runs what S3 asks for.

The truth is computed from the archive's logs and manifests and from the tables' own progress. What
is played: submissions, hook runs that ended elsewhere, new releases, runs by hand, failures, lost
tables, erasures, and the loss of Dagster's database. In between the inbox sensor ticks, automation
is evaluated, and every run that it asks for is executed in this process.
"""

import json
import os
import random
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import ClassVar

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.loader import LoadingContextForTest

from feature_pipeline.archive import read
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format.manifest import Manifest, RunInfo
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.publish import (
    publish_and_enqueue,
)
from feature_pipeline.compute.assemble_artifact import collect_output
from feature_pipeline.compute.plan import plan_run
from feature_pipeline.model.digest import Digest
from feature_pipeline.orchestration.assets.equality_check import EQUALITY_CHECK
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.keys import features_key, records_key, table_key
from feature_pipeline.orchestration.operations.reconcile import reconcile, request_runs
from feature_pipeline.orchestration.operations.recover import recover_dagster, recover_table
from feature_pipeline.orchestration.sensors.automation import FEATURES_SENSOR, TABLES_SENSOR
from feature_pipeline.projections.load import fed_loads
from feature_pipeline.projections.proof.missing_batches import check_progress
from feature_pipeline_tests.fixtures.dagster import DATASET, Pipeline, dagster_instance
from feature_pipeline_tests.fixtures.postgres import PostgresAddress

pytestmark = [
    pytest.mark.s3,
    pytest.mark.postgres,
    pytest.mark.dagster,
    pytest.mark.slow,
    # Dagster's own use of it, where a sensor asks for a backfill
    pytest.mark.filterwarnings("ignore:Function `AssetSelection.keys` is deprecated"),
]

BATCHES = ("b1", "b2", "b3")
IDS = ("r1", "r2", "r3", "r4")
WORLDS = ("x", "y")
FAILS = "fails"
# Read at import: the session takes such variables out of the environment.
GAMES = range(int(os.environ.get("FEATURE_PIPELINE_TEST_EXAMPLES", "3")))
FIRST_SEED = int(os.environ.get("FEATURE_PIPELINE_TEST_SEED", "0"))

# What the hook says depends on a file outside, as on a service that changes: a change of it is no
# new question, so only a forced run or one elsewhere notices.
HOOK = """
import json, os, sys
from pathlib import Path
from typing import ClassVar

given, out = Path(os.environ["OSA_IN"]), Path(os.environ["OSA_OUT"])
world = Path(json.loads((given / "config.json").read_text())["world"]).read_text()
if world == "fails":
    sys.exit(1)
words = {}
for file in (given / "features").glob("*.jsonl"):
    for line in file.open():
        item = json.loads(line)
        words.setdefault(item["id"], []).extend(row["word"] for row in item["features"])
with (out / "features.jsonl").open("w") as features:
    for line in (given / "records.jsonl").open():
        name = json.loads(line)["id"]
        word = world + "".join(words.get(name, []))
        features.write(json.dumps({"id": name, "features": [{"word": word}]}) + "\\n")
"""


@dataclass(frozen=True)
class Hook:
    """What the model knows of a hook beforehand."""

    name: str
    inputs: tuple[str, ...] = ()
    is_automatic: bool = True
    is_loaded: bool = True

    @property
    def key(self) -> dg.AssetKey:
        return features_key(DATASET, self.name)

    @property
    def table(self) -> dg.AssetKey:
        return table_key(DATASET, self.name)


WORDS = Hook("words")
AFTER = Hook("after", inputs=("words",), is_loaded=False)
MANUAL = Hook("manual", is_automatic=False)
HOOKS = {hook.name: hook for hook in (WORDS, AFTER, MANUAL)}

Asked = tuple[dg.AssetKey, str]
"""An asset and a partition."""


def _texts(asked: Iterable[Asked]) -> list[str]:
    return sorted(f"{key.to_user_string()} {batch}" for key, batch in asked)


class Truth:
    """What S3 says now."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.store = pipeline.store
        self.batches = {
            key: entry.digest for key, entry in log.batches(self.store, DATASET).items()
        }
        self.heads: dict[str, dict[str, FeatureEntry]] = {
            name: log.heads(self.store, DATASET, name) for name in HOOKS
        }

    def content(self, hook: str, batch: str) -> Digest | None:
        head = self.heads[hook].get(batch)
        return head.content_digest if head else None

    def manifest(self, hook: str, batch: str) -> Manifest:
        return read.read_manifest(self.store, self.heads[hook][batch].manifest)

    def is_made_from_others(self, hook: Hook, batch: str) -> bool:
        """Whether the artifact was made from other records or input features than there are."""
        manifest = self.manifest(hook.name, batch)
        return manifest.batch_digest != self.batches[batch] or any(
            manifest.inputs[name] != self.content(name, batch) for name in hook.inputs
        )

    def asks_for(self, hook: Hook, batch: str) -> tuple[object, ...]:
        """What an artifact would be made from: while it stays, one failed run is enough."""
        return (self.batches[batch], *(self.content(name, batch) for name in hook.inputs))


class Game:
    """People and hooks act; `settle` lets Dagster follow, and everything is compared.

    Dealt from a deck, so that every game has every move, in an order of its own.
    """

    def __init__(self, random: random.Random, postgres: PostgresAddress, template: str) -> None:
        self.random = random
        self.postgres = postgres
        self.template = template
        self.trail: list[str] = []
        self.cursors: dict[str, str | None] = {}
        self.versions = dict.fromkeys(HOOKS, 1)
        self.withdrawn: set[str] = set()
        self.loaded: dict[tuple[str, str], Digest] = {}
        """What Dagster's latest event of a table's partition says was read."""
        self.failed: set[Asked] = set()
        """Feature partitions whose latest run failed."""
        self.seen: dict[Asked, object] = {}
        """Per automatic partition, what it would have been made from at the last evaluation."""
        self.pending: set[Asked] = set()
        self.ends = ExitStack()

    def play(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        with self.ends:
            self.play_deck()

    def play_deck(self) -> None:
        for name in HOOKS:
            self.say(name, "x")
            self.define(name)
        self.evaluate()
        deck = [move for move, copies in self.moves.items() for _ in range(copies)]
        self.random.shuffle(deck)
        try:
            for move in (Game.submit, *deck, Game.settle):
                self.trail.append(move.__name__)
                move(self)
        except Exception as error:
            error.add_note("moves: " + ", ".join(self.trail))
            raise

    def pick(self, *choices: str) -> str:
        """One of these, noted."""
        chosen = self.random.choice(choices)
        self.trail[-1] += f" {chosen}"
        return chosen

    def world(self, hook: str) -> Path:
        return self.pipeline.folder / f"{hook}.world"

    def say(self, hook: str, word: str) -> None:
        self.world(hook).write_text(word)

    def define(self, name: str) -> None:
        hook = HOOKS[name]
        self.pipeline.add_hook(
            name,
            code=HOOK,
            inputs=list(hook.inputs),
            release={
                "version": str(self.versions[name]),
                "config": {"world": str(self.world(name))},
            },
            feature={"columns": [{"name": "word", "type": "string"}]},
            compute="automatically" if hook.is_automatic else "on_request",
            table={"materialize": "always" if hook.is_loaded else "on_request"},
        )

    # What people and hooks do

    def submit(self):
        key = self.pick(*BATCHES)
        ids = {self.pick(*IDS) for _ in range(2)} - self.withdrawn
        if ids and key not in log.batches(self.pipeline.store, DATASET):
            self.pipeline.submit(key, {name: name for name in sorted(ids)})
            self.tick()

    def publish(self):
        """A hook run that ended elsewhere: it says something else, or the same again."""
        batches = sorted(log.batches(self.pipeline.store, DATASET))
        if not batches:
            return
        name, word, key = self.pick("words", "manual"), self.pick(*WORLDS), self.pick(*batches)
        store, definition = self.pipeline.store, self.pipeline.hooks[name]
        folder = self.pipeline.folder
        release = log.register_release(
            store, definition.hook_release(folder), definition.code_files(folder)
        )
        plan = plan_run(store, definition, release, log.read_batch(store, DATASET, key), force=True)
        with tempfile.TemporaryDirectory(dir=folder) as out:
            lines = [
                json.dumps({"id": record.id, "features": [{"word": word}]}) + "\n"
                for record in plan.batch.records
            ]
            (Path(out) / "features.jsonl").write_text("".join(lines))
            now = datetime.now(UTC)
            run = RunInfo(
                id=plan.hook_run_id(secrets.token_hex(8)),
                runner="external",
                started_at=now,
                finished_at=now,
                exit_code=0,
            )
            artifact = collect_output(plan, Path(out), run, None)
            publish_and_enqueue(store, artifact, partial(completion_of, artifact, base=plan.base))

    def release(self):
        name = self.pick(*HOOKS)
        self.versions[name] += 1
        self.define(name)

    def change_world(self):
        self.say(self.pick(*HOOKS), self.pick(*WORLDS, FAILS))

    def compute(self):
        """A user materializes a feature partition."""
        self.tick()
        truth = Truth(self.pipeline)
        hook = HOOKS[self.pick(*HOOKS)]
        ready = [
            key
            for key in sorted(truth.batches)
            if all(truth.content(source, key) for source in hook.inputs)
        ]
        if ready:
            is_forced = self.pick("forced", "plain") == "forced"
            self.run_features(self.pick(*ready), hook, force=is_forced)

    def load(self):
        """A user materializes table partitions."""
        hook = HOOKS[self.pick(*HOOKS)]
        known = set(self.pipeline.instance.get_dynamic_partitions(DATASET))
        if batches := sorted(known & set(Truth(self.pipeline).heads[hook.name])):
            self.run_table(hook, sorted({self.pick(*batches) for _ in range(2)}))

    def lose_tables(self):
        """Every schema is gone, and reconciliation brings the tables back."""
        with self.pipeline.database.connect("test") as connection:
            connection.execute("drop schema if exists features cascade")
            connection.execute("drop schema if exists feature_pipeline cascade")
        self.tick()
        for hook in HOOKS.values():
            self.check_names_what_is_lost(hook)
        self.reconcile()

    def withdraw(self):
        """A record is erased. Dagster hears of it by reconciliation."""
        record_id = self.pick(*IDS)
        if record_id in self.withdrawn:
            return
        self.tick()
        if self.pick("deletes", "keeps") == "deletes":
            write_census(self.pipeline.store)
        self.withdrawn.add(record_id)
        heads = Truth(self.pipeline).heads
        erase(self.pipeline.store, DATASET, [record_id], "asked for")
        # The artifact without the record is the latest that Dagster hears of.
        for name, now in Truth(self.pipeline).heads.items():
            changed = {b for b, entry in now.items() if heads[name].get(b) != entry}
            self.failed -= {(HOOKS[name].key, batch) for batch in changed}
        self.reconcile()

    def lose_dagster(self):
        """Dagster's database is gone; recovery tells a new one what S3 holds."""
        self.settle()
        before = self.statuses()
        pipeline = self.pipeline
        url = self.postgres.create_database(self.template)
        self.ends.callback(self.postgres.drop_database, url)
        pipeline.instance = self.ends.enter_context(
            dagster_instance(pipeline.folder / "new-home", url)
        )
        hooks = list(pipeline.hooks.values())
        recover_dagster(pipeline.store, pipeline.archive_uri, pipeline.instance, hooks)
        truth = Truth(pipeline)
        for hook in HOOKS.values():
            if hook.is_loaded and truth.heads[hook.name]:
                definition = pipeline.hooks[hook.name]
                reports = recover_table(
                    pipeline.store, pipeline.instance, pipeline.database, definition
                )
                for report in reports:
                    self.loaded[hook.name, report.batch] = report.content_digest
            elif not hook.is_loaded:  # recovered only when named
                self.loaded = {k: v for k, v in self.loaded.items() if k[0] != hook.name}
                before |= {(hook.table, batch): "MISSING" for batch in truth.batches}
        self.failed.clear()
        self.cursors = {}
        assert self.statuses() == before
        # A new database knows no failed run, and of no request: all that is due is asked for.
        self.seen.clear()
        self.pending.clear()
        self.evaluate()

    # What Dagster does

    def tick(self) -> None:
        """The inbox sensor ticks until it has nothing to tell."""
        for _ in range(5):
            tick = self.pipeline.tick()
            assert tick.quarantined == []
            if not tick.events:
                return
        raise AssertionError(f"the inbox does not come to rest: {tick}")

    def reconcile(self) -> None:
        pipeline = self.pipeline
        hooks = list(pipeline.hooks.values())
        wanting = {
            f"{DATASET}/tables/{hook.name}": problems.batches_to_load()
            for hook in HOOKS.values()
            if hook.is_loaded and (problems := self.progress(hook)).batches_to_load()
        }
        unloaded = {
            hook.table.to_user_string(): lost
            for hook in HOOKS.values()
            if not hook.is_loaded and (lost := self.lost(hook))
        }
        arguments = pipeline.store, pipeline.archive_uri, pipeline.instance, pipeline.database
        drift = reconcile(*arguments, hooks)
        self.note_loads()
        assert drift.tables == wanting
        assert drift.unloaded == unloaded
        assert drift.unknown_partitions == {}
        assert drift.behind == self.behind()
        request_runs(pipeline.instance, drift.tables)
        self.run_backfills()
        # What is to be computed again is left to automation here, which asks for it as well.
        again = reconcile(*arguments, hooks)
        again.behind, again.unloaded = {}, {}
        assert again.summary() == "no drift"

    def note_loads(self) -> None:
        """Reconciliation tells a new Dagster also of what was loaded on request."""
        for hook in HOOKS.values():
            spec = table_spec(self.pipeline.hooks[hook.name])
            for batch, load in fed_loads(self.pipeline.database, spec).items():
                self.loaded.setdefault((hook.name, batch), load.content_digest)

    def lost(self, hook: Hook) -> list[str]:
        """Batches that were loaded on request and are not in the table any more."""
        missing = self.progress(hook).missing
        return [batch for batch in missing if (hook.name, batch) in self.loaded]

    def behind(self) -> dict[str, list[str]]:
        """Features made from other features than there are now, which reconciliation asks for."""
        truth = Truth(self.pipeline)
        behind = {
            hook.key.to_user_string(): [
                batch
                for batch in sorted(truth.batches)
                if truth.content(hook.name, batch) is not None
                and truth.is_made_from_others(hook, batch)
                and (hook.key, batch) not in self.failed
            ]
            for hook in HOOKS.values()
            if hook.is_automatic and hook.inputs
        }
        return {name: batches for name, batches in behind.items() if batches}

    def run_backfills(self) -> None:
        graph = self.pipeline.defs.resolve_asset_graph()
        for backfill in self.pipeline.instance.get_backfills():
            if backfill.status is not BulkActionStatus.REQUESTED:
                continue
            (key,) = backfill.asset_selection
            targets = backfill.get_asset_backfill_data(graph).get_target_partitions_subset(key)
            self.run_table(HOOKS[key.path[-1]], sorted(targets.get_partition_keys()))
            done = backfill.with_status(BulkActionStatus.COMPLETED_SUCCESS)
            self.pipeline.instance.update_backfill(done)

    def run_features(self, batch: str, hook: Hook, *others: Hook, force: bool = False) -> None:
        """One run of a hook over a batch, and of others after it."""
        result = self.pipeline.run(
            hook.key,
            batch,
            *(other.key for other in others),
            config={"force": True} if force else None,
            checks=False,
        )
        done = {event.asset_key for event in result.get_asset_materialization_events()}
        truth = Truth(self.pipeline)
        for each in (hook, *others):
            # What it was given is what those before it in this run words.
            if others:
                self.seen[each.key, batch] = truth.asks_for(each, batch)
            if each.key in done:
                self.failed.discard((each.key, batch))
            else:
                assert FAILS in {self.world(h.name).read_text() for h in (hook, *others)}
                self.failed.add((each.key, batch))

    def run_table(self, hook: Hook, batches: list[str]) -> None:
        """One run of a range where that is what it is, else one a batch."""
        known = list(self.pipeline.instance.get_dynamic_partitions(DATASET))
        places = [known.index(batch) for batch in batches]
        is_range = len(places) > 1 and sorted(places) == list(range(min(places), max(places) + 1))
        if is_range:
            ends = known[min(places)], known[max(places)]
            assert self.pipeline.run(hook.table, partitions=ends, checks=False).success
        else:
            for batch in batches:
                assert self.pipeline.run(hook.table, batch, checks=False).success
        truth = Truth(self.pipeline)
        for batch in batches:
            self.loaded[hook.name, batch] = truth.content(hook.name, batch)

    def expected(self) -> set[Asked]:
        """What automation has to ask for now, and nothing else."""
        truth = Truth(self.pipeline)
        expected: set[Asked] = set()
        for hook in HOOKS.values():
            for batch in truth.batches:
                if hook.is_automatic and self.is_asked_for(truth, hook, batch, expected):
                    expected.add((hook.key, batch))
                content = truth.content(hook.name, batch)
                is_loaded = self.loaded.get((hook.name, batch)) == content
                if hook.is_loaded and content is not None and not is_loaded:
                    expected.add((hook.table, batch))
        return expected

    def is_asked_for(self, truth: Truth, hook: Hook, batch: str, expected: set[Asked]) -> bool:
        asked = hook.key, batch
        is_missing = truth.content(hook.name, batch) is None
        is_due = is_missing or truth.is_made_from_others(hook, batch)
        is_new = self.note(asked, truth.asks_for(hook, batch), is_due=is_due)
        # What an input is asked for together with it is computed in one run, after the input.
        is_ready = all(
            truth.content(name, batch) is not None or (HOOKS[name].key, batch) in expected
            for name in hook.inputs
        )
        return is_ready and is_due and (is_new or asked not in self.failed)

    def note(self, asked: Asked, made_from: object, *, is_due: bool) -> bool:
        """Whether a changed input has not been answered by a request or a run yet."""
        if not is_due:
            self.pending.discard(asked)
        elif self.seen.get(asked) != made_from:
            self.pending.add(asked)
        self.seen[asked] = made_from
        return asked in self.pending

    def evaluate(self) -> list[Asked]:
        """The automation sensor evaluates once, and what it asks for is run as it asks for it."""
        self.tick()
        expected = self.expected()
        defs = self.pipeline.defs
        requests: list[dg.RunRequest] = []
        for name in (FEATURES_SENSOR, TABLES_SENSOR):
            sensor = defs.resolve_sensor_def(name)
            context = dg.build_sensor_context(
                self.pipeline.instance, cursor=self.cursors.get(name), definitions=defs
            )
            done = sensor.evaluate_tick(context)
            self.cursors[name] = done.cursor
            requests += done.run_requests
        groups = [self.asked_by(request) for request in requests]
        requested = [asked for group in groups for asked in group]
        if sorted(requested) != sorted(expected):
            raise AssertionError(
                f"asked for {_texts(requested)}, not for {_texts(expected)}\n{self.facts()}"
            )
        self.pending -= set(requested)
        for group in groups:
            for batch in sorted({batch for _, batch in group}):
                if hooks := [hook for hook in HOOKS.values() if (hook.key, batch) in group]:
                    self.run_features(batch, *hooks)
            for hook in HOOKS.values():
                if batches := sorted(batch for key, batch in group if key == hook.table):
                    self.run_table(hook, batches)
        return requested

    def asked_by(self, request: dg.RunRequest) -> list[Asked]:
        """The asset partitions of a run, or of a backfill."""
        if request.requires_backfill_daemon():
            subset = request.asset_graph_subset
            with partition_loading_context(datetime.now(UTC), self.pipeline.instance):
                return [
                    (key, batch)
                    for key in subset.asset_keys
                    for batch in subset.get_partitions_subset(key).get_partition_keys()
                ]
        return [(key, request.partition_key) for key in request.asset_selection]

    def facts(self) -> str:
        """What S3 and Dagster hold, for the message of a failure."""
        lines = []
        truth = Truth(self.pipeline)
        for key in (records_key(DATASET), *(hook.key for hook in HOOKS.values())):
            lines.append(key.to_user_string())
            records = self.pipeline.instance.fetch_materializations(key, limit=20).records
            for record in reversed(records):
                event = record.asset_materialization
                version = event.tags["dagster/data_version"][7:19]
                read = {k: v for k, v in event.tags.items() if k.startswith("dagster/input_")}
                lines.append(f"  event {record.storage_id}: {event.partition} {version} {read}")
        for hook in HOOKS.values():
            for batch in truth.heads[hook.name]:
                inputs = truth.manifest(hook.name, batch).inputs
                lines.append(f"{hook.name}, {batch}: made from {truth.batches[batch]}, {inputs}")
                for entry in log.read_log(self.pipeline.store, DATASET, hook.name, batch):
                    what = f"{entry.verdict}, base {entry.base}, {entry.content_digest}"
                    lines.append(f"  entry {entry.seq}: {what}")
        return "\n".join(lines)

    def settle(self):
        """Sensors tick until nothing is asked for; then Dagster says what S3 says."""
        for _ in range(6):
            if not self.evaluate():
                break
        else:
            raise AssertionError("automation does not come to rest")
        shown, true = self.statuses(), self.true_statuses()
        wrong = {asked: shown[asked] for asked in true if shown[asked] != true[asked]}
        assert shown.keys() == true.keys()
        assert not wrong, self.facts()

    # What is compared

    def statuses(self) -> dict[Asked, str]:
        """Dagster's own answer per asset and partition: what `staleStatusByPartition` shows."""
        instance = self.pipeline.instance
        resolver = CachingStaleStatusResolver(
            instance, self.pipeline.defs.resolve_asset_graph(), LoadingContextForTest(instance)
        )
        keys = [records_key(DATASET)]
        keys += [key for hook in HOOKS.values() for key in (hook.key, hook.table)]
        return {
            (key, batch): resolver.get_status(key, batch).name
            for key in keys
            for batch in instance.get_dynamic_partitions(DATASET)
        }

    def true_statuses(self) -> dict[Asked, str]:
        """The same from S3 and the tables' progress."""
        truth = Truth(self.pipeline)
        statuses = {(records_key(DATASET), batch): "FRESH" for batch in truth.batches}
        for hook in HOOKS.values():
            for batch in truth.batches:
                statuses[hook.key, batch] = self.true_status(truth, hook, batch)
                statuses[hook.table, batch] = self.true_table_status(truth, hook, batch)
        return statuses

    def true_status(self, truth: Truth, hook: Hook, batch: str) -> str:
        if truth.content(hook.name, batch) is None:
            return "MISSING"
        definition = self.pipeline.hooks[hook.name]
        release = definition.hook_release(self.pipeline.folder).digest
        is_old = truth.manifest(hook.name, batch).release.digest != release
        return "STALE" if is_old or truth.is_made_from_others(hook, batch) else "FRESH"

    def true_table_status(self, truth: Truth, hook: Hook, batch: str) -> str:
        content = truth.content(hook.name, batch)
        progress = self.progress(hook)
        if hook.is_loaded:
            is_missing, is_behind = batch in progress.missing, batch in progress.behind
        else:
            # Nothing brings a lost table back by itself, and Dagster cannot unsay that it was
            # loaded; what was read then is all that there is to go by.
            read_then = self.loaded.get((hook.name, batch))
            is_missing, is_behind = read_then is None, read_then != content
        if content is None or is_missing:
            return "MISSING"
        return "STALE" if is_behind else "FRESH"

    def progress(self, hook: Hook):
        spec = table_spec(self.pipeline.hooks[hook.name])
        return check_progress(self.pipeline.store, self.pipeline.database, spec)

    def check_names_what_is_lost(self, hook: Hook) -> None:
        """Dagster cannot unsay that a partition was loaded: the check of the table does."""
        lost = sorted(Truth(self.pipeline).heads[hook.name])
        if not lost:
            return
        check = dg.AssetCheckKey(hook.table, EQUALITY_CHECK)
        job = self.pipeline.defs.resolve_implicit_global_asset_job_def().get_subset(
            asset_selection=set(), asset_check_selection={check}
        )
        result = job.execute_in_process(instance=self.pipeline.instance)
        (evaluation,) = result.get_asset_check_evaluations()
        assert not evaluation.passed
        assert evaluation.metadata["batches"].value == lost

    moves: ClassVar = {
        submit: 3,
        publish: 4,
        change_world: 2,
        release: 1,
        compute: 3,
        load: 2,
        settle: 3,
        withdraw: 1,
        lose_tables: 1,
        lose_dagster: 1,
    }


@pytest.mark.parametrize("seed", [FIRST_SEED + number for number in GAMES])
def test_dagster_matches_s3(
    seed: int,
    pipeline: Pipeline,
    postgres_server: PostgresAddress,
    dagster_template: str,
    monkeypatch: pytest.MonkeyPatch,
):
    # Nothing else writes events here, so there is nothing to let settle before a tick.
    monkeypatch.setenv("DAGSTER_AUTOMATION_TICK_SETTLE_SECONDS", "0")
    Game(random.Random(seed), postgres_server, dagster_template).play(pipeline)
