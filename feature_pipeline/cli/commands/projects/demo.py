"""`feature-pipeline demo`: run the whole pipeline on local servers and print the results."""

import logging
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.cli.commands.runs.submit import submit_records
from feature_pipeline.cli.local_records import LocalRecord
from feature_pipeline.cli.output import Output, muted
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.cli.servers import local_servers
from feature_pipeline.definitions import build_defs, hooks_of
from feature_pipeline.errors import RuntimeFailure
from feature_pipeline.examples.records import DATASET, example_batches
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quantities import format_size
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.sensors.inbox import accept_inbox
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.proof.proof import prove

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def demo(folder: Path | None, as_json: bool) -> None:
    """Carry out `feature-pipeline demo`."""
    project = Project.find()
    output = Output(as_json)
    output.say("Starting local servers ...")
    with local_servers(project, folder or project.data_folder, output) as services:
        Demo(output, services.database_url).run()
    output.say(next_step(folder))


def next_step(folder: Path | None) -> str:
    """Return the command to run after the demo, on the same data."""
    here = "" if folder is None else f" --folder {shlex.quote(str(folder))}"
    command = f"feature-pipeline dev{here}"
    return f"\nNext: `{command}` starts the same servers with Dagster's UI on this data."


class Demo:
    """One run of the demo over running servers."""

    def __init__(self, output: Output, database_url: str) -> None:
        self._output = output
        self._database = Database(database_url)
        self._store = open_archive()
        for category in (dg.BetaWarning, dg.PreviewWarning):
            warnings.filterwarnings("ignore", category=category)
        self._defs = build_defs()
        self._hooks = [
            hook.definition for hook in hooks_of(self._defs) if hook.definition.dataset == DATASET
        ]
        logging.getLogger("dagster").setLevel(logging.ERROR)

    def run(self) -> None:
        """Submit, accept, compute, load; print what happened and the proof."""
        with dg.DagsterInstance.get() as instance:
            batches = self._submit(instance)
            computed = self._compute(instance, batches)
            self._load(instance, batches)
        rows = self._summary(batches)
        proofs = self._prove()
        if computed:
            self._output.say(f"\nHook processes computed {counted(computed, 'record')}.")
        else:
            self._output.say("\nNothing was computed: the archive already has every outcome.")
        self._output.result({"computed": computed, "hooks": rows, "proofs": proofs})

    def _submit(self, instance: dg.DagsterInstance) -> list[str]:
        batches = example_batches()
        with self._output.progress("submitting structures", len(batches)) as steps:
            for batch in batches:
                records = [LocalRecord(r.id, dict(r.metadata), r.files) for r in batch.records]
                submit_records(self._store, DATASET, batch.source, records, batch.key)
                steps.advance()
        self._accept(instance)
        return [batch.key for batch in batches]

    def _accept(self, instance: dg.DagsterInstance) -> None:
        """Accept what waits, as the inbox sensor would at its next ticks."""
        for _ in range(2):  # the second finds the events of the first, and clears the inbox
            tick = accept_inbox(self._store, self._store.identity, instance)
            if tick.quarantined:
                raise RuntimeFailure(f"quarantined: {'; '.join(tick.quarantined)}")
            for dataset, keys in tick.partitions.items():
                instance.add_dynamic_partitions(dataset, keys)
            for event in tick.events:
                instance.report_runless_asset_event(event)

    def _compute(self, instance: dg.DagsterInstance, batches: Sequence[str]) -> int:
        computed = 0
        with self._output.progress("", len(batches) * len(self._hooks)) as steps:
            for hook in self._hooks:
                for batch in batches:
                    steps.describe(f"{hook.name} over {batch}")
                    computed += self._run(instance, [features_key(DATASET, hook.name)], batch)
                    steps.advance()
            steps.describe("hooks run, output archived")
        return computed

    def _load(self, instance: dg.DagsterInstance, batches: Sequence[str]) -> None:
        tables = [hook for hook in self._hooks if hook.has_table]
        with self._output.progress("", len(batches) * len(tables)) as steps:
            for hook in tables:
                for batch in batches:
                    steps.describe(f"table {hook.table_name}, {batch}")
                    self._run(instance, [table_key(DATASET, hook.table_name)], batch)
                    steps.advance()
            steps.describe("tables loaded")

    def _run(self, instance: dg.DagsterInstance, keys: list[dg.AssetKey], batch: str) -> int:
        """Run assets for a batch as Dagster would; return how many records a hook computed."""
        job = self._defs.resolve_implicit_global_asset_job_def()
        with muted():
            result = job.execute_in_process(
                instance=instance,
                partition_key=batch,
                asset_selection=keys,
                run_config=QUIET,
                raise_on_error=False,
            )
        if not result.success:
            failures = [
                event.step_failure_data.error_display_string
                for event in result.all_events
                if event.is_step_failure
            ]
            raise RuntimeFailure(f"run of {keys[0].to_user_string()} failed:\n{''.join(failures)}")
        return sum(
            _computed(materialization)
            for key in keys
            for materialization in result.asset_materializations_for_node("__".join(key.path))
        )

    def _summary(self, batches: Sequence[str]) -> list[dict[str, Any]]:
        rows = [self._hook_summary(hook, batches) for hook in self._hooks]
        self._output.table(
            f"\n{DATASET}: {counted(len(batches), 'batch')}",
            ["hook", "records", "passed", "rejected", "errored", "rows", "in S3", "rows in SQL"],
            [
                [
                    row["hook"],
                    row["records"],
                    row["passed"],
                    row["rejected"],
                    row["errored"],
                    row["rows"],
                    format_size(row["bytes"]),
                    "no table" if row["sql_rows"] is None else row["sql_rows"],
                ]
                for row in rows
            ],
        )
        return rows

    def _hook_summary(self, hook: HookDefinition, batches: Sequence[str]) -> dict[str, Any]:
        totals = dict.fromkeys(("records", "passed", "rejected", "errored", "rows", "bytes"), 0)
        for batch in batches:
            manifest = current_manifest(self._store, hook, batch)
            for name in ("records", "passed", "rejected", "errored", "rows"):
                totals[name] += getattr(manifest.counts, name)
            totals["bytes"] += manifest.bytes_stored
        sql_rows = None
        if hook.has_table:
            with self._database.connect("counting rows") as connection:
                from psycopg import sql

                cursor = connection.execute(
                    sql.SQL("select count(*) from features.{}").format(
                        sql.Identifier(hook.table_name)
                    )
                )
                sql_rows = cursor.fetchall()[0][0]
        return {"hook": hook.name, **totals, "sql_rows": sql_rows}

    def _prove(self) -> list[dict[str, Any]]:
        proofs: list[dict[str, Any]] = []
        for hook in self._hooks:
            if not hook.has_table:
                continue
            proof = prove(self._store, self._database, table_spec(hook))
            proofs.append(
                {
                    "table": f"features.{hook.table_name}",
                    "rows": proof.rows,
                    "table_digest": str(proof.table_digest),
                    "archive_digest": str(proof.archive_digest),
                    "equal": proof.is_equal,
                }
            )
        self._output.table(
            "\nproof: rows read back from PostgreSQL against the archive in S3",
            ["table", "rows", "digest of the table", "digest of the archive", "equal"],
            [
                [
                    p["table"],
                    p["rows"],
                    p["table_digest"][:16],
                    p["archive_digest"][:16],
                    p["equal"],
                ]
                for p in proofs
            ],
        )
        if not all(proof["equal"] for proof in proofs):
            wrong = ", ".join(str(proof["table"]) for proof in proofs if not proof["equal"])
            raise RuntimeFailure(f"not equal to the archive after a rebuild: {wrong}")
        return proofs


def current_manifest(store: BlobStore, hook: HookDefinition, batch: str) -> Manifest:
    """Return the manifest of the batch's current artifact, which the demo has just published."""
    head = log.head(store, hook.dataset, hook.name, batch)
    if head is None:
        raise RuntimeFailure(f"{hook.name} has no artifact for {batch}")
    return read.manifest_of(store, head)


def _computed(materialization: dg.AssetMaterialization) -> int:
    value = materialization.metadata.get("computed")
    return int(value.value) if isinstance(value, dg.IntMetadataValue) and value.value else 0
