"""Two deployments, each with its Dagster instance and its database, are on one bucket at once."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from feature_pipeline.archive import accept, publish
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.logs.inbox import Completion
from feature_pipeline.archive.logs.log import FeatureEntry, Verdict
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.resources import DatabaseResource, HookRunnerResource
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.fixtures.dagster import (
    COUNTS,
    DATASET,
    TABLE,
    TEXTS,
    Pipeline,
    dagster_instance,
)
from feature_pipeline_tests.fixtures.postgres import PostgresAddress

pytestmark = [pytest.mark.s3, pytest.mark.postgres, pytest.mark.dagster, pytest.mark.faults]

ROWS = [("r1", "a", 2), ("r1", "b", 1), ("r3", "x", 1), ("r3", "y", 1), ("r3", "z", 1)]
ROWS += [("r4", "q", 1)]


@pytest.fixture
def deployments(
    pipeline: Pipeline, postgres_server: PostgresAddress, dagster_template: str, tmp_path: Path
) -> Iterator[list[Pipeline]]:
    """Two over one archive, with the same hook."""
    pipeline.add_hook()
    dagster_url = postgres_server.create_database(dagster_template)
    url = postgres_server.create_database()
    resources = {
        **pipeline.resources,
        "database": DatabaseResource(url=url),
        # on another machine: else one waits for the other's attempt
        "hook_runner": HookRunnerResource(work_folder=str(tmp_path / "other-work")),
    }
    with dagster_instance(tmp_path / "other", dagster_url) as instance:
        other = replace(
            pipeline, database=Database(url), instance=instance, resources=resources, _defs=None
        )
        yield [pipeline, other]
    postgres_server.drop_database(dagster_url)
    postgres_server.drop_database(url)


def tick_both(deployments: list[Pipeline]) -> None:
    """Both sensors look at the inbox at the same time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Pipeline.tick, deployments))


def table_rows(deployment: Pipeline) -> list[tuple[Any, ...]]:
    return deployment.rows('select record_id, letter, "count" from features.counts order by 1, 2')


def test_batches_are_accepted_once_and_computed_once(deployments: list[Pipeline]) -> None:
    """What one deployment has computed, the other one takes from the archive."""
    first, second = deployments
    for key, texts in TEXTS.items():
        first.submit(key, texts)
    tick_both(deployments)
    tick_both(deployments)
    assert inbox.waiting(first.store) == []
    for key in TEXTS:
        assert len(log.batch_entries(first.store, DATASET, key)) == 1
        # Each knows every batch, whichever of them accepted it.
        for deployment in deployments:
            deployment.reconcile()
            assert deployment.instance.has_dynamic_partition(DATASET, key)
    for number, key in enumerate(TEXTS):
        for deployment in (first, second) if number % 2 else (second, first):
            assert deployment.run(COUNTS, key, checks=False).success
    assert sorted(first.processes()) == [["r1", "r2"], ["r3"], ["r4"]]
    for deployment in deployments:
        loaded = deployment.run(TABLE, partitions=(min(TEXTS), max(TEXTS)), checks=False)
        assert loaded.success
    check(deployments)


def check(deployments: list[Pipeline]) -> None:
    """Both tables have what the archive has, which is whole."""
    for deployment in deployments:
        assert table_rows(deployment) == ROWS
        spec = table_spec(deployment.hooks["counts"])
        assert prove(deployment.store, deployment.database, spec).is_equal
    assert verify(deployments[0].store).findings == ()


MEETING_HOOK = """
import json, os, time, uuid
from pathlib import Path

inputs, output = Path(os.environ["OSA_IN"]), Path(os.environ["OSA_OUT"])
config = json.loads((inputs / "config.json").read_text())
ids = [json.loads(line)["id"] for line in (inputs / "records.jsonl").open()]
with open(config["marker"], "a") as file:
    file.write(" ".join(ids) + "\\n")
end = time.monotonic() + 120
while len(open(config["marker"]).readlines()) < 2 and time.monotonic() < end:
    time.sleep(0.02)
letter = uuid.uuid4().hex if config["differs"] else "x"
with (output / "features.jsonl").open("w") as features:
    for record in ids:
        row = {"letter": letter, "count": 1}
        features.write(json.dumps({"id": record, "features": [row]}) + "\\n")
"""
"""Ends once both deployments have started it; its answers may differ each time."""


@pytest.fixture(params=["the same answers", "other answers"])
def meeting(request: pytest.FixtureRequest, deployments: list[Pipeline]) -> list[Pipeline]:
    """Both have a batch whose hook they run at the same moment."""
    config = {"differs": request.param == "other answers"}
    for deployment in deployments:
        release = {"config": {"marker": str(deployment.marker), **config}}
        deployment.add_hook(code=MEETING_HOOK, release=release)
    deployments[0].submit("b1", TEXTS["b1"])
    tick_both(deployments)
    for deployment in deployments:
        deployment.reconcile()
    return deployments


class Acceptance:
    """Lets a test act between a run's publication and its acceptance, by deployment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.before: dict[int, Callable[[], object]] = {}
        self.before_publication: dict[int, Callable[[], object]] = {}
        self._number = threading.local()
        self._accept, self._publish = accept.accept, publish.publish_and_enqueue
        monkeypatch.setattr(accept, "accept", self._accept_now)
        monkeypatch.setattr(publish, "publish_and_enqueue", self._publish_now)
        # Two threads of one process that configure Python's logging and log may wait for each
        # other for ever. Deployments are processes of their own.
        monkeypatch.setattr(dg.DagsterInstance, "get_yaml_python_handlers", lambda _: [])

    def _publish_now(self, *arguments: Any) -> Any:
        self.before_publication.get(self._number.value, lambda: None)()
        return self._publish(*arguments)

    def _accept_now(self, store: BlobStore, completion: Completion) -> FeatureEntry:
        self.before.get(self._number.value, lambda: None)()
        return self._accept(store, completion)

    def compute_both(self, deployments: list[Pipeline]) -> list[bool]:
        """Both compute the batch at the same moment; return whether each succeeded."""

        def compute(number: int) -> bool:
            self._number.value = number
            return deployments[number].run(COUNTS, "b1", checks=False).success

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(compute, range(2)))


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> Acceptance:
    return Acceptance(monkeypatch)


def entries_of(store: BlobStore) -> list[FeatureEntry]:
    return log.read_entries(store, layout.feature_log(DATASET, "counts", "b1"), FeatureEntry)


def completions(store: BlobStore) -> list[Completion]:
    """The completions that wait in the inbox."""
    contents = [entry.content for entry in inbox.waiting(store)]
    return [content for content in contents if isinstance(content, Completion)]


def check_one_counts(deployments: list[Pipeline]) -> None:
    """Without anyone's help, both deployments come to have the archive's one current answer."""
    store = deployments[0].store
    for _ in range(2):
        tick_both(deployments)
    assert inbox.waiting(store) == []
    entries = entries_of(store)
    assert len(entries) == 2
    head = log.head(store, DATASET, "counts", "b1")
    assert head is not None
    assert head.published_at == max(entry.published_at for entry in entries if entry.published_at)
    rows = []
    for deployment in deployments:
        deployment.reconcile()
        assert version_of(deployment) == str(head.content_digest)
        assert deployment.run(TABLE, "b1", checks=False).success
        rows.append(table_rows(deployment))
        spec = table_spec(deployment.hooks["counts"])
        assert prove(store, deployment.database, spec).is_equal
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2
    assert verify(store).findings == ()
    assert deployments[0].processes() == [["r1", "r2"]] * 2


def version_of(deployment: Pipeline) -> str | None:
    """The data version of the batch's last materialization in Dagster."""
    records = deployment.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=COUNTS, asset_partitions=["b1"]), limit=1
    ).records
    materialization = records[0].asset_materialization
    assert materialization is not None
    return (materialization.tags or {}).get("dagster/data_version")


def test_the_same_question_at_the_same_moment(
    meeting: list[Pipeline], acceptance: Acceptance
) -> None:
    assert acceptance.compute_both(meeting) == [True, True]
    check_one_counts(meeting)


def test_the_answer_that_was_published_first_is_accepted_last(
    meeting: list[Pipeline], acceptance: Acceptance
) -> None:
    """It is superseded on arrival; its run reports the current answer, and does not fail."""
    store = meeting[0].store

    def wait_for_the_other() -> None:
        end = time.monotonic() + 120
        while not entries_of(store):
            assert time.monotonic() < end
            time.sleep(0.02)

    def wait_for_the_first() -> None:
        end = time.monotonic() + 120
        while not completions(store):
            assert time.monotonic() < end
            time.sleep(0.02)

    acceptance.before[0] = wait_for_the_other
    acceptance.before_publication[1] = wait_for_the_first
    assert acceptance.compute_both(meeting) == [True, True]
    verdicts = [entry.verdict for entry in entries_of(store)]
    assert verdicts == [Verdict.CURRENT, Verdict.SUPERSEDED]
    check_one_counts(meeting)


def test_one_dies_between_publication_and_acceptance(
    meeting: list[Pipeline], acceptance: Acceptance
) -> None:
    """The other deployment's sensor, which does not know the dead run, accepts its answer."""

    def die() -> None:
        raise RuntimeError("killed")

    acceptance.before[0] = die
    assert acceptance.compute_both(meeting) == [False, True]
    assert len(completions(meeting[0].store)) == 2
    check_one_counts(meeting)


def test_the_other_deployment_accepts_what_a_live_run_has_published(
    meeting: list[Pipeline], acceptance: Acceptance
) -> None:
    acceptance.before[0] = lambda: meeting[1].tick()
    assert acceptance.compute_both(meeting) == [True, True]
    check_one_counts(meeting)
