"""Feature assets on a real archive and a real instance: computing, carrying over, failing."""

import os
import signal
from functools import partial

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.publish import (
    Completion,
    CompletionStatus,
    enqueue_completion,
    publish_artifact,
)
from feature_pipeline.compute import execute as execute_module
from feature_pipeline.compute import publish_run as keep_module
from feature_pipeline.errors import NotFoundError, OutcomeUnknownError, StoreUnavailableError
from feature_pipeline.hooks.parts import PartLimits
from feature_pipeline.model.digest import Digest
from feature_pipeline.orchestration.assets.features import IO_MANAGER_KEY, DagsterMonitor
from feature_pipeline.orchestration.assets.io_manager import FeaturePartitions
from feature_pipeline.orchestration.events.requested import partitions_of_run
from feature_pipeline.orchestration.keys import batches_partitions, records_key
from feature_pipeline.orchestration.sensors.inbox import accept_inbox
from feature_pipeline.orchestration.sensors.repeat_causes import is_repeatable
from feature_pipeline_tests.fixtures.dagster import COUNT_COLUMNS, COUNTS, DATASET, Pipeline

STARTED = dg.DagsterRunStatus.STARTED


def materialization(result: dg.ExecuteInProcessResult) -> dg.AssetMaterialization:
    assert result.success
    (event,) = result.get_asset_materialization_events()
    return event.step_materialization_data.materialization


def metadata(result: dg.ExecuteInProcessResult) -> dict:
    return {name: value.value for name, value in materialization(result).metadata.items()}


@pytest.fixture
def submitted(pipeline: Pipeline) -> Pipeline:
    pipeline.add_hook()
    pipeline.submit("b1", {"r1": "aab", "r2": "", "r3": "c"})
    pipeline.tick()
    return pipeline


def test_hook_output_becomes_the_current_artifact(submitted: Pipeline):
    result = submitted.run(COUNTS, "b1")
    shown = metadata(result)
    assert (shown["records"], shown["passed"], shown["rejected"], shown["rows"]) == (
        3,
        2,
        1,
        3,
    )
    head = log.head(submitted.store, DATASET, "counts", "b1")
    assert head is not None
    assert head.verdict is Verdict.CURRENT
    manifest = read.read_manifest(submitted.store, head.manifest)
    rows = read.read_rows(submitted.store, manifest).to_pylist()
    assert [(r["record_id"], r["ordinal"], r["letter"], r["count"]) for r in rows] == [
        ("r1", 0, "a", 2),
        ("r1", 1, "b", 1),
        ("r3", 0, "c", 1),
    ]
    assert {"raw/features.jsonl", "raw/rejections.jsonl", "log"} <= set(manifest.blobs)


def test_data_version_is_the_content_digest(submitted: Pipeline):
    tags = materialization(submitted.run(COUNTS, "b1")).tags
    head = log.head(submitted.store, DATASET, "counts", "b1")
    assert tags["dagster/data_version"] == str(head.content_digest)


def test_an_unchanged_batch_starts_no_process_and_writes_nothing(submitted: Pipeline):
    first = materialization(submitted.run(COUNTS, "b1"))
    before = {info.key for info in submitted.store.list_objects("")}
    again = submitted.run(COUNTS, "b1")
    assert metadata(again)["written"] is False
    assert metadata(again)["computed"] == 0
    assert len(submitted.processes()) == 1
    assert {info.key for info in submitted.store.list_objects("")} == before
    tag = "dagster/data_version"
    assert materialization(again).tags[tag] == first.tags[tag]


def test_first_rows_are_shown_unless_the_run_or_the_hook_disables_it(submitted: Pipeline):
    """Backfills and automation give no run config: what must not be in events, the hook says."""
    shown = metadata(submitted.run(COUNTS, "b1"))["preview"]
    assert shown.splitlines()[2] == "| r1 | 0 | a | 2 |"
    assert "preview" not in metadata(submitted.run(COUNTS, "b1", config={"preview": False}))
    submitted.add_hook(preview=False)
    assert "preview" not in metadata(submitted.run(COUNTS, "b1"))
    assert "preview" not in metadata(submitted.run(COUNTS, "b1", config={"preview": True}))
    computed = metadata(submitted.run(COUNTS, "b1", config={"force": True}))
    assert computed["written"] is True
    assert "preview" not in computed


def test_force_computes_again_and_keeps_the_data_version(submitted: Pipeline):
    first = materialization(submitted.run(COUNTS, "b1"))
    again = submitted.run(COUNTS, "b1", config={"force": True})
    assert submitted.processes() == [["r1", "r2", "r3"]] * 2
    tag = "dagster/data_version"
    assert materialization(again).tags[tag] == first.tags[tag]
    entries = log.read_log(submitted.store, DATASET, "counts", "b1")
    assert [entry.verdict for entry in entries] == [Verdict.CURRENT, Verdict.CURRENT]


def test_force_records_computes_these_only(submitted: Pipeline):
    submitted.run(COUNTS, "b1")
    shown = metadata(submitted.run(COUNTS, "b1", config={"force_records": ["r3"]}))
    assert submitted.processes()[1:] == [["r3"]]
    assert (shown["computed"], shown["carried"]) == (1, 2)


def test_force_records_must_be_in_the_batch(submitted: Pipeline):
    result = submitted.run(COUNTS, "b1", config={"force_records": ["r9"]})
    assert not result.success
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    assert "'r9'" in failure.step_failure_data.error_display_string


def test_a_new_release_computes_everything_again(submitted: Pipeline):
    submitted.run(COUNTS, "b1")
    submitted.add_hook(release={"version": "2"})
    shown = metadata(submitted.run(COUNTS, "b1"))
    assert shown["computed"] == 3
    assert len(log.releases(submitted.store, DATASET, "counts")) == 2
    # Going back registers the first one again, and asks nothing that it has answered.
    submitted.add_hook(release={"version": "1"})
    shown = metadata(submitted.run(COUNTS, "b1"))
    assert (shown["computed"], shown["carried"], shown["written"]) == (0, 3, True)
    assert len(submitted.processes()) == 2
    first, _, last = log.read_log(submitted.store, DATASET, "counts", "b1")
    assert (last.release_seq, last.verdict) == (3, Verdict.CURRENT)
    assert last.content_digest == first.content_digest


def test_changed_limits_compute_nothing(submitted: Pipeline):
    submitted.run(COUNTS, "b1")
    submitted.add_hook(release={"limits": {"memory": "3Gi"}})
    assert metadata(submitted.run(COUNTS, "b1"))["written"] is False


def test_changed_columns_are_decoded_again_without_a_process(submitted: Pipeline):
    submitted.run(COUNTS, "b1")
    columns = [*COUNT_COLUMNS, {"name": "note", "type": "string", "default": "none"}]
    submitted.add_hook(feature={"columns": columns})
    shown = metadata(submitted.run(COUNTS, "b1"))
    assert (shown["computed"], shown["decoded_again"]) == (0, 3)
    assert len(submitted.processes()) == 1
    head = log.head(submitted.store, DATASET, "counts", "b1")
    rows = read.read_rows(submitted.store, read.read_manifest(submitted.store, head.manifest))
    assert rows["note"].to_pylist() == ["none"] * 3
    # ... and again from the same raw output, which is now one manifest further back
    submitted.add_hook(feature={"columns": COUNT_COLUMNS})
    assert metadata(submitted.run(COUNTS, "b1"))["decoded_again"] == 3
    assert len(submitted.processes()) == 1


def test_a_retryable_error_is_tried_again_and_others_are_carried(submitted: Pipeline):
    flaky = """
    import json, os
    from pathlib import Path
    out, first = Path(os.environ["OSA_OUT"]), not Path({marker!r}).exists()
    ids = [json.loads(l)["id"] for l in Path(os.environ["OSA_IN"], "records.jsonl").open()]
    Path({marker!r}).open("a").write(" ".join(ids) + "\\n")
    with (out / "features.jsonl").open("w") as f, (out / "errors.jsonl").open("w") as e:
        for i in ids:
            if first and i != "r1":
                e.write(json.dumps({{"id": i, "error": "busy", "retryable": i == "r2"}}) + "\\n")
            else:
                f.write(json.dumps({{"id": i, "features": []}}) + "\\n")
    """.format(marker=str(submitted.marker))
    submitted.add_hook(code=flaky)
    shown = metadata(submitted.run(COUNTS, "b1"))
    assert shown["errored"] == 2
    shown = metadata(submitted.run(COUNTS, "b1"))
    assert (shown["computed"], shown["retried"], shown["carried"], shown["errored"]) == (1, 1, 2, 1)
    assert submitted.processes()[1] == ["r2"]


def test_a_failed_hook_run_keeps_output_and_log_and_stays_history(submitted: Pipeline):
    submitted.add_hook(
        code="""
        import os, sys
        open(os.environ["OSA_OUT"] + "/features.jsonl", "w").write('{"id": "r1", "features": []}')
        print("about to fail")
        sys.exit(3)
        """
    )
    result = submitted.run(COUNTS, "b1")
    assert not result.success
    (entry,) = log.read_log(submitted.store, DATASET, "counts", "b1")
    assert entry.verdict is Verdict.FAILED
    manifest = read.read_manifest(submitted.store, entry.manifest)
    assert manifest.failure.exit_code == 3
    assert read.read_raw(submitted.store, manifest, "features.jsonl").startswith(b'{"id": "r1"')
    assert "about to fail" in read.read_log_text(submitted.store, manifest)
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    shown = failure.step_failure_data.user_failure_data.metadata
    assert shown["failure_kind"].value == "non_zero_exit"
    assert "about to fail" in shown["log_tail"].value


def test_a_hook_that_cannot_run_is_reported_and_adds_no_entry(submitted: Pipeline):
    """Nothing was learnt about the batch: once the program is repaired, it is run again."""
    submitted.add_hook(release={"command": ["no-such-program"]})
    result = submitted.run(COUNTS, "b1")
    assert not result.success
    assert log.read_log(submitted.store, DATASET, "counts", "b1") == []
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    shown = failure.step_failure_data.user_failure_data.metadata
    assert shown["failure_kind"].value == "cannot_start"
    assert "no-such-program" in shown["decision"].value
    assert "| 1 | cannot_start |" in shown["attempts_made"].value


def test_every_attempt_and_its_end_are_shown(submitted: Pipeline):
    """The second attempt is the one that is stored; the first must not be forgotten."""
    submitted.add_hook(
        code="""
        import os, pathlib, sys
        marker = pathlib.Path(os.environ["OSA_IN"]).parent / "tried"
        if not marker.exists():
            marker.write_text("")
            sys.exit(7)
        open(os.environ["OSA_OUT"] + "/features.jsonl", "w").writelines(
            '{"id": "%s", "features": []}\\n' % record for record in ("r1", "r2", "r3")
        )
        """,
        release={"retries": 1},
    )
    shown = metadata(submitted.run(COUNTS, "b1"))
    assert shown["attempts"] == 2
    first, second = shown["attempts_made"].splitlines()[2:]
    assert "non_zero_exit" in first
    assert "| well |" in second


def test_an_interrupted_worker_checks_again_whether_it_is_cancelled(submitted: Pipeline):
    """The launcher stops the worker at once after it wrote down that the run is being cancelled."""
    answers = []

    @dg.op
    def ask(context: dg.OpExecutionContext) -> None:
        monitor = DagsterMonitor(context)
        answers.append(monitor.is_cancelled())
        run = context.instance.get_run_by_id(context.run_id)
        context.instance.report_run_canceling(run)
        answers.append(monitor.is_cancelled())
        answers.append(monitor.is_cancelled(now=True))

    @dg.job
    def asking() -> None:
        ask()

    asking.execute_in_process(instance=submitted.instance, raise_on_error=False)
    assert answers == [False, False, True]


@pytest.mark.parametrize("acceptor", ["its worker", "the sensor"])
def test_the_output_of_a_run_cancelled_at_its_end_is_history(
    submitted: Pipeline, monkeypatch: pytest.MonkeyPatch, acceptor: str
):
    """The hook had ended, so nothing stopped it; the cancellation came before the acceptance."""

    def cancelled_meanwhile(store, artifact):
        run = submitted.instance.get_run_by_id(artifact.run.dagster_run_id)
        submitted.instance.report_run_canceling(run)
        return publish_artifact(store, artifact)

    def dies(store, completion):
        raise NotFoundError("the worker is gone")

    if acceptor == "its worker":
        monkeypatch.setattr(keep_module.publish, "publish_artifact", cancelled_meanwhile)
    else:
        monkeypatch.setattr(keep_module.accept, "accept", dies)
    result = submitted.run(COUNTS, "b1")
    assert not result.success
    if acceptor == "the sensor":
        # A worker that was killed does not write that it failed.
        submitted.instance.report_run_canceled(result.dagster_run)
        assert submitted.tick().accepted == 1
    (entry,) = log.read_log(submitted.store, DATASET, "counts", "b1")
    assert entry.verdict is Verdict.SUPERSEDED


def test_an_unparsable_file_fails_the_run_and_is_kept(submitted: Pipeline):
    submitted.add_hook(
        code="""
        import os
        open(os.environ["OSA_OUT"] + "/features.jsonl", "w").write('{"id": "r1", "feat')
        """
    )
    assert not submitted.run(COUNTS, "b1").success
    (entry,) = log.read_log(submitted.store, DATASET, "counts", "b1")
    manifest = read.read_manifest(submitted.store, entry.manifest)
    assert manifest.failure.kind == "invalid_output"
    assert "features.jsonl" in manifest.failure.reason
    assert read.read_raw(submitted.store, manifest, "features.jsonl") == b'{"id": "r1", "feat'


def test_records_run_verifies_stored_bytes(submitted: Pipeline):
    result = submitted.run(records_key(DATASET), "b1")
    batch = log.read_batch(submitted.store, DATASET, "b1")
    assert materialization(result).tags["dagster/data_version"] == str(batch.digest)


def test_downstream_assets_load_features_by_annotation(submitted: Pipeline):
    submitted.run(COUNTS, "b1")
    inputs = {}
    partitions = batches_partitions(DATASET)
    ins = {"counts": dg.AssetIn(key=COUNTS, input_manager_key=IO_MANAGER_KEY)}

    @dg.asset(partitions_def=partitions, ins=ins)
    def frame(counts: pd.DataFrame) -> None:
        inputs["frame"] = counts

    @dg.asset(partitions_def=partitions, ins=ins)
    def lazy(counts: FeaturePartitions) -> None:
        inputs["lazy"] = {batch: counts.to_pandas(batch) for batch in counts}

    @dg.asset(ins=ins)
    def everything(counts: dict[str, pd.DataFrame]) -> None:
        inputs["dict"] = counts

    @dg.asset(ins=ins)
    def arrow(counts: pa.Table) -> None:
        inputs["arrow"] = counts

    from feature_pipeline.definitions import build_defs

    defs = build_defs(
        submitted.hooks["counts"].definitions(submitted.folder),
        dg.Definitions(assets=[frame, lazy, everything, arrow]),
        resources=submitted.resources,
    )
    for asset, partition in ((frame, "b1"), (lazy, "b1"), (everything, None), (arrow, None)):
        assert submitted.run(asset.key, partition, defs=defs).success
    assert list(inputs["frame"]["batch"]) == ["b1"] * 3
    assert str(inputs["frame"].dtypes["count"]) == "int64[pyarrow]"
    assert list(inputs["lazy"]) == ["b1"]
    assert inputs["dict"]["b1"]["letter"].tolist() == ["a", "b", "c"]
    assert inputs["arrow"].column_names == ["record_id", "ordinal", "letter", "count", "batch"]


def test_inputs_without_features_are_named_or_skipped(submitted: Pipeline):
    """One batch that lacks features must not keep all others from an unpartitioned asset."""
    inputs = {}
    ins = {"counts": dg.AssetIn(key=COUNTS)}
    skipping = {"counts": dg.AssetIn(key=COUNTS, metadata={"allow_missing_partitions": True})}

    @dg.asset(ins=ins)
    def strict(counts: pa.Table) -> None:
        inputs["strict"] = counts

    @dg.asset(ins=ins)
    def lazy(counts: FeaturePartitions) -> None:
        inputs["lazy"] = counts["b1"]
        counts["b2"]

    @dg.asset(ins=skipping)
    def frame(counts: pd.DataFrame) -> None:
        inputs["frame"] = counts

    @dg.asset(ins=skipping)
    def arrow(counts: pa.Table) -> None:
        inputs["arrow"] = counts

    @dg.asset(ins=skipping)
    def by_batch(counts: dict[str, pd.DataFrame]) -> None:
        inputs["by_batch"] = list(counts)

    @dg.asset(ins=skipping)
    def chosen(counts: FeaturePartitions) -> None:
        inputs["chosen"] = list(counts)

    from feature_pipeline.definitions import build_defs

    assets = [strict, lazy, frame, arrow, by_batch, chosen]
    defs = build_defs(
        submitted.hooks["counts"].definitions(submitted.folder),
        dg.Definitions(assets=assets),
        resources=submitted.resources,
    )

    def refusal(asset: dg.AssetsDefinition) -> str:
        result = submitted.run(asset.key, defs=defs)
        (failure,) = [e for e in result.all_events if e.is_step_failure]
        error = failure.step_failure_data.error
        return str(error.cause or error)

    columns = ["record_id", "ordinal", "letter", "count", "batch"]
    for asset in (frame, arrow, by_batch, chosen):
        assert submitted.run(asset.key, defs=defs).success
    assert (inputs["arrow"].column_names, len(inputs["arrow"])) == (columns, 0)
    assert (list(inputs["frame"]), len(inputs["frame"])) == (columns, 0)
    assert str(inputs["frame"].dtypes["count"]) == "int64[pyarrow]"
    assert inputs["by_batch"] == inputs["chosen"] == []

    submitted.submit("b2", {"r4": "d"})
    submitted.submit("b3", {"r5": "e"})
    submitted.tick()
    assert submitted.run(COUNTS, "b1").success
    for asset in (frame, arrow, by_batch, chosen):
        assert submitted.run(asset.key, defs=defs).success
    assert set(inputs["frame"]["batch"]) == set(inputs["arrow"]["batch"].to_pylist()) == {"b1"}
    assert inputs["by_batch"] == inputs["chosen"] == ["b1"]
    message = refusal(strict)
    assert "2 batches: 'b2', 'b3'" in message
    assert "materialize letters/features/counts" in message
    assert "allow_missing_partitions" in message
    assert "strict" not in inputs
    assert "batch 'b2'" in refusal(lazy), "only what is read must be there"
    assert len(inputs["lazy"]) == 3


def test_without_any_partition_an_input_is_an_empty_table(pipeline: Pipeline):
    pipeline.add_hook()
    inputs = {}

    @dg.asset(ins={"counts": dg.AssetIn(key=COUNTS)})
    def total(counts: pa.Table) -> None:
        inputs["total"] = counts

    from feature_pipeline.definitions import build_defs

    defs = build_defs(
        pipeline.hooks["counts"].definitions(pipeline.folder),
        dg.Definitions(assets=[total]),
        resources=pipeline.resources,
    )
    assert pipeline.run(total.key, defs=defs).success
    assert inputs["total"].column_names == ["record_id", "ordinal", "letter", "count", "batch"]
    assert len(inputs["total"]) == 0


def test_a_store_that_restarts_costs_no_hook_run(submitted: Pipeline, monkeypatch):
    """An hour of compute is not lost to a minute without S3."""
    original = keep_module.publish.publish_artifact
    failures = iter([StoreUnavailableError("down"), OutcomeUnknownError("cut off")])

    def flaky(store, artifact):
        if (error := next(failures, None)) is not None:
            raise error
        return original(store, artifact)

    monkeypatch.setattr(keep_module.publish, "publish_artifact", flaky)
    monkeypatch.setattr(keep_module, "_FIRST_BACKOFF_SECONDS", 0.01)
    assert submitted.run(COUNTS, "b1").success
    assert len(submitted.processes()) == 1


def test_output_that_cannot_be_stored_stays_in_the_folder_the_error_names(
    submitted: Pipeline, monkeypatch
):
    def down(store, artifact):
        raise StoreUnavailableError("down for good")

    monkeypatch.setattr(keep_module.publish, "publish_artifact", down)
    monkeypatch.setattr(keep_module.publish_with_retry, "__defaults__", (0.0,))
    result = submitted.run(COUNTS, "b1")
    assert not result.success
    (failure,) = [e for e in result.all_events if e.is_step_failure]
    message = failure.step_failure_data.error.cause or failure.step_failure_data.error
    assert "down for good; the hook's output is in" in str(message)
    (left,) = submitted.folder.glob("*/runs/counts-*/out/features.jsonl")
    assert str(left.parents[1]) in str(message)
    assert '"r1"' in left.read_text()
    # the next run finds that the attempt has ended, and starts no process
    monkeypatch.undo()
    assert submitted.run(COUNTS, "b1").success
    assert len(submitted.processes()) == 1
    assert not list(submitted.folder.glob("*/attempts/*"))


def test_a_record_without_files_may_have_any_id(submitted: Pipeline):
    """A folder's name has at most 255 bytes, an id 512."""
    submitted.submit("long", {"é" * 250: "ab", "r9": "c"})
    submitted.tick()
    shown = metadata(submitted.run(COUNTS, "long"))
    assert (shown["passed"], shown["errored"]) == (2, 0)


def test_entries_that_cannot_be_accepted_yet_do_not_delay_others(
    submitted: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    submitted.tick()
    for number in range(6):
        completion = Completion(
            id=f"a-early-{number}",
            dataset=DATASET,
            hook="counts",
            batch="unknown",
            release_seq=7,
            release_digest=Digest.of(b"unknown"),
            base=0,
            manifest=Digest.of(b"none"),
            status=CompletionStatus.SUCCEEDED,
        )
        enqueue_completion(submitted.store, completion)
    assert submitted.run(COUNTS, "b1").success, "its completion is the last that waits"

    read, get = [], submitted.store.get
    monkeypatch.setattr(submitted.store, "get", lambda key, *a: (read.append(key), get(key, *a))[1])
    tick = accept_inbox(submitted.store, submitted.archive_uri, submitted.instance, limit=4)
    assert len([key for key in read if key.startswith("inbox/")]) == 4, "only what it handles"

    assert len(tick.waiting) == 3
    assert tick.removed == 1


def interrupt(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *, is_cancelled: bool) -> None:
    """Stop the worker as a launcher does, once the hook has said `halfway`."""
    log_line, stopped = DagsterMonitor.log, []

    def log_and_stop(self, line):
        log_line(self, line)
        if "halfway" in line and not stopped:  # after the label of a part
            stopped.append(line)
            if is_cancelled:
                [run] = pipeline.instance.get_runs(dg.RunsFilter(statuses=[STARTED]))
                pipeline.instance.report_run_canceling(run)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(DagsterMonitor, "log", log_and_stop)
    run_id = pipeline.run(COUNTS, "b1").run_id
    monkeypatch.setattr(DagsterMonitor, "log", log_line)
    status = pipeline.instance.get_run_by_id(run_id).status
    ended = dg.DagsterRunStatus.CANCELED if is_cancelled else dg.DagsterRunStatus.FAILURE
    assert status is ended


SLOW_HOOK = """
    import os, time
    with open(os.environ["OSA_OUT"] + "/features.jsonl", "w") as out:
        out.write('{"id": "r1", "features": []}\\n')
    print("halfway", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("records_a_part", [None, 2])
def test_a_hook_run_that_is_terminated_becomes_history(
    submitted: Pipeline, monkeypatch: pytest.MonkeyPatch, records_a_part: int | None
):
    if records_a_part is not None:
        limits = partial(PartLimits, records=records_a_part, at_once=1)
        monkeypatch.setattr(execute_module, "PartLimits", lambda **_: limits())
    submitted.add_hook(code=SLOW_HOOK)

    interrupt(submitted, monkeypatch, is_cancelled=True)

    (entry,) = log.read_log(submitted.store, DATASET, "counts", "b1")
    assert entry.verdict is Verdict.FAILED
    manifest = read.read_manifest(submitted.store, entry.manifest)
    assert (manifest.failure.kind, manifest.counts.records) == ("cancelled", 0)
    assert manifest.run.dagster_run_id == entry.dagster_run_id
    raw = read.read_raw(submitted.store, manifest, "features.jsonl")
    assert raw == b'{"id": "r1", "features": []}\n'
    assert "halfway" in read.read_log_text(submitted.store, manifest)

    submitted.add_hook()
    assert metadata(submitted.run(COUNTS, "b1"))["computed"] == 3
    assert log.head(submitted.store, DATASET, "counts", "b1").seq == 2


def test_a_worker_that_is_only_shut_down_leaves_no_history(
    submitted: Pipeline, monkeypatch: pytest.MonkeyPatch
):
    submitted.add_hook(code=SLOW_HOOK)
    interrupt(submitted, monkeypatch, is_cancelled=False)
    assert log.read_log(submitted.store, DATASET, "counts", "b1") == []


def test_the_log_calls_nothing_done_before_it_is(submitted: Pipeline):
    submitted.add_hook(code="raise SystemExit(3)", release={"retries": 0})
    result = submitted.run(COUNTS, "b1")
    messages = [record.user_message for record in submitted.instance.all_logs(result.run_id)]
    [planned] = [message for message in messages if message.startswith("batch b1 under release")]
    assert planned.endswith("3 records: 3 to compute, 0 to carry over")
    assert not [message for message in messages if "computed" in message]


def test_a_run_that_was_planned_for_a_wrong_definition_is_repeated(submitted: Pipeline):
    """It is of several batches, and the definition was corrected before the run began."""
    submitted.submit("b2", {"r4": "d"})
    submitted.tick()
    result = submitted.run(COUNTS, partitions=("b1", "b2"), checks=False)
    assert not result.success
    run = submitted.instance.get_run_by_id(result.run_id)
    assert run is not None
    graph = submitted.defs.resolve_asset_graph()
    assert is_repeatable(submitted.instance, graph, run)
    assert partitions_of_run(submitted.instance, DATASET, run) == ["b1", "b2"]
    [failure] = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert "2 batches (b1, b2)" in failure.user_failure_data.description
