"""Nothing is asked twice, on real servers: assets, the job that looks after it, the command."""

import json

import dagster as dg
import pytest

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.maintenance.rebuild_answers import OLD
from feature_pipeline.cli.commands.archive import answers
from feature_pipeline.orchestration.keys import features_key
from feature_pipeline.orchestration.operations import remember_answers
from feature_pipeline_tests.fixtures.commands import CommandLine
from feature_pipeline_tests.fixtures.dagster import COUNTS, DATASET, Pipeline

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.dagster]

LATER = features_key(DATASET, "later")
LATER_HOOK = """
import json, os
from pathlib import Path

inputs, output = Path(os.environ["OSA_IN"]), Path(os.environ["OSA_OUT"])
with Path({marker!r}).open("a") as file:
    ids = [json.loads(line)["id"] for line in (inputs / "records.jsonl").open()]
    file.write("later " + " ".join(ids) + "\\n")
with (output / "features.jsonl").open("w") as features:
    for line in (inputs / "features" / "counts.jsonl").open():
        given = json.loads(line)
        rows = [{{"letter": given["status"][0], "count": len(given["features"])}}]
        features.write(json.dumps({{"id": given["id"], "features": rows}}) + "\\n")
"""


@pytest.fixture
def computed(pipeline: Pipeline) -> Pipeline:
    pipeline.add_hook()
    pipeline.submit("b1", {"r1": "aab", "r2": "", "r3": "c"})
    pipeline.submit("b2", {"r3": "c", "r4": "dd", "r1": "aab"})
    pipeline.tick()
    assert pipeline.run(COUNTS, "b1").success
    return pipeline


def metadata(result: dg.ExecuteInProcessResult) -> dict:
    assert result.success
    (event,) = result.get_asset_materialization_events()
    values = event.step_materialization_data.materialization.metadata
    return {name: value.value for name, value in values.items()}


def memory(pipeline: Pipeline) -> list[str]:
    return [info.key for info in pipeline.store.list_objects(layout.answers(DATASET, "counts"))]


def test_a_record_that_another_batch_has_computed_is_carried_over(computed: Pipeline):
    shown = metadata(computed.run(COUNTS, "b2"))
    assert computed.processes() == [["r1", "r2", "r3"], ["r4"]]
    assert (shown["computed"], shown["carried"], shown["rows"]) == (1, 2, 4)
    assert metadata(computed.run(COUNTS, "b2"))["written"] is False


def test_records_that_an_input_rejected_are_not_computed(computed: Pipeline):
    computed.add_hook("later", LATER_HOOK.format(marker=str(computed.marker)), inputs=["counts"])
    shown = metadata(computed.run(LATER, "b1"))
    assert (shown["computed"], shown["not_asked"], shown["rejected"]) == (2, 1, 1)
    assert metadata(computed.run(LATER, "b1"))["written"] is False
    # the input's release to and fro costs it nothing
    for version in ("2", "1"):
        computed.add_hook(release={"version": version})
        assert computed.run(COUNTS, "b1").success
        metadata(computed.run(LATER, "b1"))
    assert [line for line in computed.processes() if line[0] == "later"] == [["later", "r1", "r3"]]


def test_a_memory_that_is_lost_is_noticed_and_derived_again(computed: Pipeline, monkeypatch):
    schedule = computed.defs.resolve_schedule_def("remember_answers_hourly")
    job = computed.defs.resolve_job_def(remember_answers.ANSWERS_JOB)

    def due() -> list[dg.RunRequest]:
        archive = {"archive": computed.resources["archive"]}
        with dg.build_schedule_context(computed.instance, resources=archive) as context:
            return list(schedule.evaluate_tick(context).run_requests)

    for key in memory(computed):
        computed.store.delete(key)
    [request] = due()
    done = job.execute_in_process(instance=computed.instance, run_config=request.run_config)
    assert done.success
    assert len(memory(computed)) == 2
    assert due() == []
    metadata(computed.run(COUNTS, "b2"))
    assert computed.processes()[1:] == [["r4"]]
    monkeypatch.setattr("feature_pipeline.archive.maintenance.rebuild_answers.OLD", -OLD)
    assert len(due()) == 1


def test_a_round_of_acceptance_merges_what_was_remembered(computed: Pipeline):
    for number in range(10):
        computed.submit(f"c{number}", {f"s{number}": "a"})
    computed.tick()
    for number in range(10):
        assert computed.run(COUNTS, f"c{number}", checks=False).success
    assert len(memory(computed)) == 11
    computed.tick()
    assert len(memory(computed)) == 1
    assert len(log.heads(computed.store, DATASET, "counts")) == 11


def test_the_command(computed: Pipeline, command_line: CommandLine, monkeypatch):
    monkeypatch.setattr(answers, "open_archive", lambda: computed.store)
    for key in memory(computed):
        computed.store.delete(key)
    _, shown, _ = command_line("answers", "--json")
    [report] = json.loads(shown)["hooks"]
    assert (report["artifacts"], report["added"], report["problems"]) == (1, 1, [])
    _, shown, _ = command_line("answers", "counts", "--rebuild", "--json")
    [report] = json.loads(shown)["hooks"]
    assert (report["added"], report["discarded"]) == (1, 1)
    assert "no release of a hook 'other'" in command_line.refused("answers", "other")
    status, shown, _ = command_line("answers", "--dataset", DATASET)
    assert status == 0
    assert "1 artifact, 0 added" in shown
