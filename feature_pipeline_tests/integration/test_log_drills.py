"""Logs damaged and whole buckets swapped under databases: what every command then says and does.

On real servers, by the commands. `read` shows what the bucket has, and names what the table knows
besides; `sql` goes by the table alone.
"""

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.cli import project_hooks
from feature_pipeline.cli.commands.archive import repair
from feature_pipeline.cli.commands.runs import status
from feature_pipeline.cli.commands.tables import plan, rebuild
from feature_pipeline.definitions import DefinedHook
from feature_pipeline.orchestration.operations.reconcile import Drift
from feature_pipeline_tests.fixtures.commands import CommandLine
from feature_pipeline_tests.fixtures.dagster import COUNT_HOOK, COUNTS, DATASET, TABLE, Pipeline
from feature_pipeline_tests.fixtures.s3 import S3Address, s3_settings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.dagster]

HOOK_2 = COUNT_HOOK.replace("text.count(c)", "text.count(c) + 10")
Objects = dict[str, bytes]


def entry(batch: str, seq: int) -> str:
    return layout.entry(layout.feature_log(DATASET, "counts", batch), seq)


@dataclass
class Drill:
    """A pipeline whose bucket is changed behind its back, and the commands over it."""

    pipeline: Pipeline
    command_line: CommandLine
    client: "S3Client"
    bucket: str
    prefix: str

    # The bucket

    def objects(self, prefix: str = "") -> Objects:
        store = self.pipeline.store
        return {info.key: store.get(info.key).data for info in store.list_objects(prefix)}

    def archived(self) -> Objects:
        """Without what passes, or is written by looking at it."""
        passing = (layout.PROBE, layout.ANSWERS, layout.CENSUS, layout.INBOX)
        return {k: v for k, v in self.objects().items() if not k.startswith(passing)}

    def put(self, key: str, data: bytes, prefix: str = "") -> None:
        """As another tool does: without the archive's checksum."""
        where = {"Bucket": self.bucket, "Key": f"{prefix or self.prefix}/{key}"}
        self.client.put_object(**where, Body=data)

    def swap(self, objects: Objects) -> None:
        """Another bucket is in the place of this one."""
        now = self.objects()
        for key in now.keys() - objects.keys():
            self.pipeline.store.delete(key)
        for key, data in objects.items():
            if now.get(key) != data:
                self.put(key, data)
        log.forget_read_entries()

    # The commands

    def json(self, *arguments: str, ends: int = 0) -> dict[str, Any]:
        log.forget_read_entries()
        code, out, error = self.command_line(*arguments, "--json")
        assert code == ends, out + error
        return json.JSONDecoder().raw_decode(out)[0] if out.startswith("{") else {}

    def verify(self, *wrong: tuple[str, str]) -> None:
        """It names these objects, by state and key, and nothing else."""
        report = self.json("verify", ends=2 if wrong else 0)
        assert {(f["state"], f["key"]) for f in report["findings"]} == set(wrong)

    def read(self, *left_out: str) -> list[tuple[str, str, int]]:
        """The rows of the bucket; these batches are named: left out, or older than they were."""
        log.forget_read_entries()
        code, out, _ = self.command_line("read", "counts", "--format", "jsonl")
        lines = [line for line in out.splitlines() if line.startswith("{")]
        assert code == (2 if left_out else 0), out
        for batch in left_out:
            assert f"  {batch}: " in out
        rows = [json.loads(line) for line in lines]
        return sorted((row["record_id"], row["letter"], row["count"]) for row in rows)

    def sql(self) -> list[tuple[str, str, int]]:
        """The rows of the table."""
        answer = self.json("sql", "select record_id, letter, count from counts order by 1, 2")
        return [tuple(row) for row in answer["rows"]]

    def status(self, *, damaged: Collection[str] = (), lost: Collection[str] = ()) -> None:
        [row] = self.json("status", ends=2 if damaged or lost else 0)["hooks"]
        assert (set(row["damaged_batches"]), set(row["lost_batches"])) == (set(damaged), set(lost))

    def plan(self, *, damaged: Collection[str] = (), lost: Collection[str] = ()) -> None:
        plan = self.json("plan", "counts", ends=2 if damaged or lost else 0)
        assert (set(plan["damaged"]), set(plan["lost"])) == (set(damaged), set(lost))

    def rebuild(self, *problems: str) -> None:
        """The table is built anew, or stays as it is and these batches are named."""
        before = self.sql()
        log.forget_read_entries()
        code, out, error = self.command_line("rebuild", "counts", "--json")
        assert code == (1 if problems else 0), out + error
        for batch in problems:
            assert f"batch '{batch}'" in error
        if problems:
            assert self.sql() == before

    def reconcile(self) -> Drift:
        log.forget_read_entries()
        return self.pipeline.reconcile()

    def all_is_right(self, rows: list[tuple[str, str, int]]) -> None:
        """Archive, table and Dagster say the same, and every command ends well."""
        self.verify()
        self.status()
        self.plan()
        assert (self.read(), self.sql()) == (rows, rows)
        assert self.json("repair")["steps"] == []


@pytest.fixture
def drill(
    pipeline: Pipeline,
    command_line: CommandLine,
    s3_client: "S3Client",
    s3_address: S3Address,
    s3_prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Drill:
    for name, value in {
        **s3_settings(s3_address, s3_prefix),
        "FEATURE_PIPELINE_DATABASE_URL": pipeline.database.url,
        "DAGSTER_HOME": str(pipeline.folder / "home"),
    }.items():
        monkeypatch.setenv(name, value)

    def defined() -> project_hooks.ProjectHooks:
        [spec] = pipeline.defs.resolve_asset_graph().get(COUNTS).assets_def.specs
        answer = [DefinedHook(pipeline.hooks["counts"], pipeline.folder, spec)]
        return project_hooks.ProjectHooks(answer, {})

    for module in (project_hooks, plan, status, rebuild, repair):
        monkeypatch.setattr(module, "project_hooks", defined)
    return Drill(pipeline, command_line, s3_client, s3_address.bucket, s3_prefix)


def compute(pipeline: Pipeline, *batches: str) -> None:
    for batch in batches:
        assert pipeline.run(COUNTS, batch, TABLE, checks=False).success


@pytest.mark.slow
def test_damage_and_swapped_buckets(drill: Drill):
    pipeline = drill.pipeline
    pipeline.add_hook()
    pipeline.submit("b1", {"r1": "aab"})
    pipeline.submit("b2", {"r2": "xyz"})
    pipeline.tick()
    compute(pipeline, "b1", "b2")
    drill.verify()
    older, older_rows = drill.objects(), drill.sql()
    pipeline.add_hook(code=HOOK_2, release={"version": "2"})
    pipeline.submit("b3", {"r3": "q"})
    pipeline.tick()
    compute(pipeline, "b1", "b3")
    drill.verify()
    rows = drill.sql()
    assert rows != older_rows
    newer, right = drill.objects(), drill.archived()
    copy = f"{drill.prefix}-copy"
    for key, data in right.items():
        drill.put(key, data, copy)
    second = ("--from", f"s3://{drill.bucket}/{copy}", "--yes")

    def of(*batches: str) -> list[tuple[str, str, int]]:
        ids = {f"r{batch[1:]}" for batch in batches}
        return [row for row in rows if row[0] in ids]

    def replaced() -> None:
        drill.put(entry("b1", 2), newer[entry("b2", 1)])

    def deleted_in_the_middle() -> None:
        pipeline.store.delete(entry("b1", 1))

    def deleted_at_the_end() -> None:
        pipeline.store.delete(entry("b1", 2))
        pipeline.store.delete(entry("b3", 1))

    one, two, three = entry("b1", 1), entry("b1", 2), entry("b3", 1)
    damages: list[tuple[Callable[[], None], set[tuple[str, str]], set[str]]] = [
        (replaced, {("corrupt", two)}, {"b1"}),
        (deleted_in_the_middle, {("missing", one)}, {"b1"}),
        (deleted_at_the_end, {("lost", two), ("lost", three)}, {"b1", "b3"}),
    ]
    for act, findings, batches in damages:
        act()
        drill.verify(*findings)
        # The last entry of a log says what is current, whatever is before it.
        unreadable = set() if act is deleted_in_the_middle else batches
        left = {f"r{batch[1:]}" for batch in {"b1", "b2", "b3"} - unreadable}
        assert drill.read(*unreadable) == [row for row in rows if row[0] in left]
        drill.status(damaged=batches, lost=batches if act is deleted_at_the_end else ())
        if unreadable:
            drill.plan(damaged=batches, lost=batches if act is deleted_at_the_end else ())
            drill.rebuild(*batches)
        done = drill.json("repair", *second)
        assert {(step["key"]) for step in done["done"]} == {key for _, key in findings}
        assert drill.archived() == right
    drill.all_is_right(rows)

    # An older bucket under newer databases: the bucket alone cannot show it.
    drill.swap(older)
    b3 = layout.entry(layout.batch_log(DATASET, "b3"), 1)
    drill.verify(("lost", two), ("lost", three), ("lost", b3))
    assert drill.read("b1", "b3") == older_rows
    drill.status(lost={"b1", "b3"})
    drill.plan(lost={"b1", "b3"})
    drill.rebuild("b1", "b3")
    assert drill.reconcile().lost
    drill.json("repair", *second)
    assert drill.archived() == right
    drill.rebuild()
    drill.reconcile()
    assert drill.reconcile() == Drift()

    # No copy is left: the older bucket is right from now on, and the databases follow it.
    drill.swap(older)
    accepted = ("--accept-loss", "--reason", "no copy is left", "--yes")
    assert len(drill.json("repair", *accepted)["given_up"]) == 3
    drill.rebuild()
    drill.reconcile()
    drill.all_is_right(older_rows)
    drift = drill.reconcile()
    assert (drift.lost, drift.damaged) == ({}, {})

    # A newer bucket under older databases: nothing is wrong, and they follow it.
    drill.swap(newer)
    drill.verify()
    assert (drill.read(), drill.sql()) == (rows, older_rows)
    drill.rebuild()
    drill.reconcile()
    drill.all_is_right(rows)
    assert drill.reconcile() == Drift()
