"""What operators ask for, over a real archive, tables and Dagster instance.

`backfill`, `status`, `compare`, `read --status`, `read --plot`, and the job `feature_report`.
"""

import base64
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.loader import LoadingContextForTest
from rich.console import Console

from feature_pipeline import settings
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.cli import output
from feature_pipeline.cli import project_hooks as hooks
from feature_pipeline.cli.app import main
from feature_pipeline.cli.commands.runs import backfill, status
from feature_pipeline.cli.commands.tables import rebuild
from feature_pipeline.cli.project_hooks import ProjectHooks
from feature_pipeline.orchestration.assets.tables import table_code_version, table_spec
from feature_pipeline.orchestration.events.data_versions import feature_code_version
from feature_pipeline.orchestration.events.latest_events import latest_events
from feature_pipeline.orchestration.events.staleness import stale_partitions
from feature_pipeline.orchestration.keys import records_key
from feature_pipeline.orchestration.operations.backfills import AssetPart, BackfillPlan, Select
from feature_pipeline_tests.fixtures.dagster import (
    COUNT_COLUMNS,
    COUNT_HOOK,
    COUNTS,
    DATASET,
    TABLE,
    Pipeline,
)

pytestmark = [pytest.mark.dagster, pytest.mark.postgres]

SPECIAL = """\
        if text == "crash":
            raise SystemExit(3)
        if text == "busy":
            error = {"id": record["id"], "error": "busy", "retryable": True}
            (output / "errors.jsonl").write_text(json.dumps(error) + "\\n")
            continue
"""
CODE = COUNT_HOOK.replace("        rows = [", f"{SPECIAL}        rows = [")
BATCHES = {
    "loaded": {"r1": "aab", "r2": ""},
    "archived": {"r3": "xyz"},
    "errored": {"r4": "busy", "r5": "ok"},
    "crashing": {"r6": "crash"},
    "untouched": {"r7": "q"},
}


class Operator:
    """The command line over a pipeline."""

    def __init__(
        self, pipeline: Pipeline, patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.pipeline, self.patch = pipeline, patch
        self._capture, self._text = capture, io.StringIO()
        # In place of copies of this process's own descriptors, which the command never closes.
        patch.setattr(output, "_console", lambda _: Console(file=self._text, width=200))
        patch.setenv("DAGSTER_HOME", str(pipeline.folder / "home"))
        archive, s3 = pipeline.resources["archive"], pipeline.resources["s3"]
        patch.setenv(settings.S3_BUCKET, archive.bucket)
        patch.setenv(settings.S3_PREFIX, archive.prefix)
        patch.setenv(settings.S3_ENDPOINT_URL, s3.endpoint_url)
        patch.setenv(settings.S3_REGION, s3.region_name)
        patch.setenv("AWS_ACCESS_KEY_ID", s3.aws_access_key_id)
        patch.setenv("AWS_SECRET_ACCESS_KEY", s3.aws_secret_access_key)
        patch.setenv(settings.DATABASE_URL, pipeline.resources["database"].url)
        for module in (backfill, hooks, rebuild, status):
            patch.setattr(module, "project_hooks", self._hooks)

    def _hooks(self) -> ProjectHooks:
        hooks = self.pipeline.hooks.values()
        defined = [SimpleNamespace(definition=h, folder=self.pipeline.folder) for h in hooks]
        return ProjectHooks(defined, {})

    def call(self, *arguments: str) -> tuple[int, str]:
        """Exit status, and what was printed; errors if it failed."""
        self._capture.readouterr()  # what Dagster's runs logged before
        self._text.seek(0)
        self._text.truncate()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = self._capture.readouterr()
        assert isinstance(ended.value.code, int)
        shown = printed.err if ended.value.code else ""
        return ended.value.code, printed.out + shown + self._text.getvalue()

    def json(self, *arguments: str) -> dict:
        code, text = self.call(*arguments, "--json")
        assert code == 0, text
        return json.loads(text)

    def keys(self, select: str, *arguments: str) -> dict[str, set[str]]:
        """Per asset, without its dataset, what a backfill would take."""
        plan = self.json("backfill", "--select", select, "--dry-run", *arguments)
        assert plan["backfill"] is None
        return {key.split("/", 1)[1]: set(keys) for key, keys in plan["assets"].items()}

    def counts(self, *arguments: str) -> dict[str, Any]:
        """What `status` says of the hook `counts`."""
        (row,) = self.json("status", *arguments)["hooks"]
        return row

    def check_staleness(self) -> set[tuple[str, str]]:
        """What is stale set-wise is what Dagster's own resolver says, partition by partition."""
        pipeline, hook = self.pipeline, self.pipeline.hooks["counts"]
        spec = table_spec(hook)
        release = hook.hook_release(pipeline.folder)
        versions = {
            COUNTS: (
                feature_code_version(release, hook.feature.columns, hook.feature.cardinality.value),
                [records_key(DATASET)],
            ),
            TABLE: (table_code_version(spec), [COUNTS]),
        }
        causes = {
            (key.path[1], batch)
            for key, (version, made_from) in versions.items()
            for batch in stale_partitions(pipeline.instance, key, version, made_from, BATCHES)
        }
        shown = {
            (key.path[1], batch)
            for key in versions
            for batch in BATCHES
            if self.status(key, batch) == "STALE"
        }
        assert causes == shown
        return causes

    def status(self, key: dg.AssetKey, batch: str) -> str:
        """What Dagster's UI says of a partition now: FRESH, STALE or MISSING."""
        instance = self.pipeline.instance
        resolver = CachingStaleStatusResolver(
            instance, self.pipeline.defs.resolve_asset_graph(), LoadingContextForTest(instance)
        )
        return resolver.get_status(key, batch).name


@pytest.fixture
def operator(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Operator:
    """One batch of every kind, and the command line."""
    pipeline.add_hook(code=CODE)
    for key, texts in BATCHES.items():
        pipeline.submit(key, texts)
    pipeline.tick()
    for key in BATCHES:
        if key != "untouched":
            assert pipeline.run(COUNTS, key).success == (key != "crashing")
    assert pipeline.run(TABLE, "loaded").success
    pipeline.tick()  # what was accepted waits no longer
    return Operator(pipeline, monkeypatch, capsys)


def check_one_is_launched_listed_and_cancelled(operator: Operator) -> None:
    instance = operator.pipeline.instance
    code, text = operator.call("backfill", "--select", "missing")
    assert code == 0, text
    assert "letters/features/counts: 2 partitions\n  crashing\n  untouched\n" in text
    assert "No Dagster daemon seems to be running: the backfill waits until one does." in text
    (launched,) = instance.get_backfills()
    assert f"/runs/b/{launched.backfill_id} in the UI" in text
    assert launched.status is BulkActionStatus.REQUESTED
    assert launched.tags["feature_pipeline/select"] == "missing"
    # What the daemon and the UI will make of it, in the code location as it is.
    graph = operator.pipeline.defs.resolve_asset_graph()
    data = launched.get_asset_backfill_data(graph)
    targets = {
        key: set(data.target_subset.get_partitions_subset(key).get_partition_keys())
        for key in data.target_subset.asset_keys
    }
    assert targets == {
        COUNTS: {"crashing", "untouched"},
        TABLE: {"archived", "errored", "crashing", "untouched"},
    }

    code, text = operator.call("backfill", "--select", "missing", "--no-tables")
    assert f"Launched before and not done yet: {launched.backfill_id}" in text
    code, text = operator.call("backfill", "--cancel", launched.backfill_id)
    assert code == 0
    cancelled = instance.get_backfill(launched.backfill_id)
    assert cancelled is not None
    assert cancelled.status is BulkActionStatus.CANCELING


def check_report(operator: Operator) -> None:
    """One observation of the feature asset, of bounded size; it carries its picture."""
    pipeline = operator.pipeline
    job = pipeline.defs.resolve_job_def("feature_report")
    config = {"hook": "counts", "compare": True}
    result = job.execute_in_process(
        instance=pipeline.instance,
        run_config={"ops": {"report_features": {"config": config}}},
        resources=dict(pipeline.resources),
    )
    assert result.success
    (record,) = pipeline.instance.fetch_observations(COUNTS, limit=10).records
    observation = record.asset_observation
    assert observation is not None
    assert observation.partition is None
    shown: dict[str, Any] = {n: value.value for n, value in observation.metadata.items()}
    assert (shown["batches"], shown["dagster/row_count"], shown["errored"]) == (3, 7, 1)
    assert "| errored | 1 | 0 | 0 | 1 |" in shown["outcomes"]
    assert "| r4 | errored | errored | hook | retryable | busy |" in shown["rejected_and_errored"]
    assert "| r2 | loaded | rejected |  |  | no letters |" in shown["rejected_and_errored"]
    assert (
        "feature-pipeline read counts --dataset letters --status" in (shown["rejected_and_errored"])
    )
    assert "| count | 7 | 0 | 0 | 0 | 1 |" in shown["columns"]
    picture = shown["plots"].removeprefix("![histograms](data:image/png;base64,").removesuffix(")")
    assert base64.b64decode(picture, validate=True).startswith(b"\x89PNG")
    assert "From release 1 (#1) to release 2 (#2), over 1 batch" in shown["comparison"]
    assert "- column `count`: 2 rows" in shown["comparison"]
    assert len(record.event_log_entry.to_json()) < 500_000


def check_reading(operator: Operator) -> None:
    """The complete lists behind the report, from the command line."""
    comparison = operator.json("compare", "counts")
    assert comparison["rows"] == {"equal": 0, "added": 0, "removed": 0, "changed": 2}
    assert comparison["only_from"] == ["archived", "errored"]
    code, text = operator.call("compare", "counts", "--from", "#1", "--to", "2")
    assert code == 0
    assert "column count differs in 2 rows" in text
    code, text = operator.call("compare", "counts", "--batch", "archived")
    assert code == 1
    assert "batch 'archived' has no artifact of hook 'counts' under both releases" in text

    code, text = operator.call("read", "counts", "--status", "errored", "--format", "jsonl")
    assert code == 0
    assert [json.loads(line)["record_id"] for line in text.splitlines()] == ["r4"]
    page = operator.pipeline.folder / "counts.html"
    code, text = operator.call("read", "counts", "--plot", "--output", str(page))
    assert code == 0
    assert "<svg" in page.read_text()
    for arguments, problem in [
        (["--column", "count"], "add --plot"),
        (["--plot", "--status", "errored"], "it takes no option about rows"),
        (["--plot", "--output", "x.pdf"], "a plot's file ends in .png, .svg, .html"),
        (["--plot", "--column", "letter"], "no numeric column 'letter'; it has count"),
    ]:
        code, text = operator.call("read", "counts", *arguments)
        assert code == 1
        assert problem in text


def test_every_key_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run names every batch that would run, rather than "and 80 more"."""
    text = io.StringIO()
    monkeypatch.setattr(output, "_console", lambda _: Console(file=text, width=80))
    keys = tuple(f"b{number}" for number in range(100))
    backfill._show(output.Output(), BackfillPlan(Select.ALL, (AssetPart(COUNTS, keys),)))
    assert text.getvalue().split() == ["letters/features/counts:", "100", "partitions", *keys]


def test_a_rebuild_is_known_to_dagster(operator: Operator) -> None:
    """The table holds all of it; the UI must not go on to say that it is missing."""
    pipeline = operator.pipeline
    assert operator.status(TABLE, "archived") == "MISSING"
    with operator.patch.context() as patch:
        patch.delenv("DAGSTER_HOME")
        code, text = operator.call("rebuild", "counts")
        assert code == 0, text
        assert "DAGSTER_HOME is not set: nothing is reported to Dagster" in text
    assert pipeline.rows("select count(distinct batch) from features.counts") == [(3,)]
    assert operator.status(TABLE, "archived") == "MISSING"

    assert operator.json("rebuild", "counts")["is_dagster_told"] is True
    for batch in ("loaded", "archived", "errored"):
        assert operator.status(TABLE, batch) == "FRESH"
    event = pipeline.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=TABLE, asset_partitions=["errored"]), limit=1
    ).records[0]
    shown = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    head = log.head(pipeline.store, DATASET, "counts", "errored")
    assert shown["manifest_uri"] == f"{pipeline.archive_uri}/{layout.blob(head.manifest)}"
    counts = shown["batch"]
    assert [counts[name] for name in ("records", "passed", "errored", "rows")] == [2, 1, 1, 2]
    assert shown["release"].startswith("1 (")

    # What is known is not said again; a table of the past is no asset's.
    before = pipeline.instance.fetch_materializations(TABLE, limit=100).records
    assert operator.json("rebuild", "counts", "--batch", "loaded")["is_dagster_told"] is True
    past = operator.json("rebuild", "counts", "--as-of", "2026-01-01T00:00Z")
    assert past["is_dagster_told"] is False
    after = pipeline.instance.fetch_materializations(TABLE, limit=100).records
    assert len(after) == len(before)


def test_a_rollback_is_known_to_dagster(operator: Operator) -> None:
    """Its columns, its rows and its materialization are those of what is read now."""
    pipeline, batches = operator.pipeline, ["loaded", "archived", "errored"]

    def shown() -> list[str]:
        event = pipeline.instance.get_latest_materialization_event(TABLE)
        assert event is not None
        assert event.asset_materialization is not None
        metadata = event.asset_materialization.metadata
        [(rows,)] = pipeline.rows("select count(*) from features.counts")
        assert metadata["dagster/row_count"].value == rows
        columns = [column.name for column in metadata["dagster/column_schema"].value.columns]
        in_table = pipeline.rows(
            "select attname from pg_attribute where attrelid = 'features.counts'::regclass"
            " and attnum > 0 and not attisdropped order by attnum"
        )
        assert columns == [name for (name,) in in_table]
        return columns

    operator.json("rebuild", "counts")
    before = shown()
    note = {"name": "note", "type": "string", "default": "none"}
    pipeline.add_hook(code=CODE, feature={"columns": [*COUNT_COLUMNS, note]})
    operator.json("rebuild", "counts")
    assert set(shown()) - set(before) == {"note"}
    known = {b: e.tags for b, e in latest_events(pipeline.instance, TABLE, batches).items()}

    operator.json("rollback", "counts")
    assert shown() == before
    operator.json("rollback", "counts", "--unpin")
    assert set(shown()) - set(before) == {"note"}
    # The same batches are loaded with the same content: nothing became stale by it.
    after = {b: e.tags for b, e in latest_events(pipeline.instance, TABLE, batches).items()}
    assert after == known
    assert set(known) == set(batches)


def test_a_rebuild_needs_no_dagster_that_answers(operator: Operator, tmp_path: Path) -> None:
    home = tmp_path / "unreachable"
    home.mkdir()
    url = "postgresql+psycopg2://reader@127.0.0.1:9/none"
    (home / "dagster.yaml").write_text(json.dumps({"storage": {"postgres": {"postgres_url": url}}}))
    with operator.patch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        code, text = operator.call("rebuild", "counts")
    assert code == 0, text
    assert "Nothing is reported to Dagster" in text
    assert "storage cannot be reached" in text.replace("\n", " ")
    assert operator.pipeline.rows("select count(distinct batch) from features.counts") == [(3,)]


def test_every_selection_selects_its_batches(operator: Operator) -> None:
    pipeline = operator.pipeline
    absent, unloaded = {"crashing", "untouched"}, set(BATCHES) - {"loaded"}
    assert operator.keys("missing") == {"features/counts": absent, "tables/counts": unloaded}
    assert operator.keys("missing", "--no-tables") == {"features/counts": absent}
    assert operator.keys("missing", "letters/tables/counts") == {
        "tables/counts": {"archived", "errored"}
    }
    assert operator.keys("missing", "--batch", "crashing", "counts") == {
        "features/counts": {"crashing"},
        "tables/counts": {"crashing"},
    }
    again = {"errored", "crashing"}
    assert operator.keys("failed") == {"features/counts": again, "tables/counts": again}
    every = set(BATCHES)
    assert operator.keys("all") == {"features/counts": every, "tables/counts": every}
    assert operator.check_staleness() == set()
    assert operator.keys("stale") == operator.keys("old-release") == {}
    row = operator.counts("--deep")
    expected = {"batches": 5, "archived": 3, "missing": 2, "failed": 2, "stale": 0}
    expected |= {"loaded": 1, "to_load": 2, "waiting": 0, "quarantined": 0, "old_release": 0}
    expected |= {"records": 5, "passed": 3, "rejected": 1, "errored": 1, "rows": 7}
    assert {name: row[name] for name in expected} == expected
    assert operator.counts()["failed"] == 1  # what errored is in manifests alone
    assert operator.json("status")["undeclared_tables"] == []
    with operator.patch.context() as patch:
        patch.setattr(status, "project_hooks", lambda: ProjectHooks([], {}))
        assert operator.json("status")["undeclared_tables"] == ["counts"]
    assert "rows" not in operator.counts()
    with operator.patch.context() as patch:
        patch.delenv("DAGSTER_HOME")
        code, text = operator.call("status")
        assert code == 0
        assert "DAGSTER_HOME is not set: what only Dagster knows is not in these counts" in text
        code, text = operator.call("backfill", "--select", "all")
        assert code == 1
        assert "`feature-pipeline dev` writes it to .env" in text

    code, text = operator.call("backfill", "--select", "stale")
    assert code == 0
    assert text.endswith("Nothing to do: none of these partitions is stale.\n")
    for arguments, problem in [
        (["--select", "all", "conuts"], "no hook and no table 'conuts'; hooks are letters/counts"),
        (["--select", "all", "--batch", "nowhere"], "no batch 'nowhere' in dataset letters"),
        ([], "choose the partitions: --select missing|failed"),
        (["--cancel", "nosuchid"], "Dagster has no backfill 'nosuchid'"),
    ]:
        code, text = operator.call("backfill", *arguments)
        assert code != 0
        assert problem in text

    check_one_is_launched_listed_and_cancelled(operator)

    # The same said once more is no change, whichever of Dagster's events it was read from.
    assert pipeline.run(COUNTS, "loaded", config={"force": True}).success
    assert pipeline.run(records_key(DATASET), "loaded").success
    assert operator.check_staleness() == set()

    # A new release, run over one batch; what it says there is loaded nowhere yet.
    pipeline.add_hook(
        code=CODE.replace("text.count(c)", "text.count(c) + 1"), release={"version": "2"}
    )
    old = {"loaded", "archived", "errored"}
    assert operator.keys("old-release", "--no-tables") == {"features/counts": old}
    _, text = operator.call("backfill", "--select", "old-release", "--dry-run")
    assert "release 2 as it is declared is not the last one registered" in text
    assert pipeline.run(COUNTS, "loaded").success
    assert operator.check_staleness() == {
        ("features", "archived"),
        ("features", "errored"),
        ("tables", "loaded"),
    }
    assert operator.keys("stale", "letters/features/counts") == {
        "features/counts": {"archived", "errored"}
    }
    assert operator.keys("stale") == {
        "features/counts": {"archived", "errored"},
        "tables/counts": {"loaded", "archived", "errored"},
    }
    row = operator.counts()
    assert (row["stale"], row["old_release"], row["to_load"]) == (2, 2, 3)
    assert row["table"]["stale"] == 1
    before = operator.check_staleness()
    check_report(operator)
    assert operator.check_staleness() == before
    check_reading(operator)
