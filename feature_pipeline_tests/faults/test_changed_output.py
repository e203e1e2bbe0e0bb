"""A process that outlived its hook changes the output while it is decoded and stored.

What is archived as raw output is what the rows were decoded from, or nothing is.
"""

import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from feature_pipeline.archive import publish, read
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.format.manifest import RunInfo
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.compute.assemble_artifact import collect_output
from feature_pipeline.compute.plan import ComputePlan, plan_run
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline_tests.fixtures.care import CareScene
from feature_pipeline_tests.fixtures.stores import COLUMNS, DATASET, HOOK

IDS = ("r1", "r2")


def lines(label: str) -> bytes:
    rows = [{"rank": 1, "label": label}]
    return b"".join(json.dumps({"id": i, "features": rows}).encode() + b"\n" for i in IDS)


@pytest.fixture
def scene(tmp_path: Path) -> CareScene:
    scene = CareScene(MemoryStore(), tmp_path)
    (tmp_path / "out").mkdir()
    return scene


@pytest.fixture
def plan(scene: CareScene) -> ComputePlan:
    batch = scene.submit(scene.batch_of("b1", IDS))
    (scene.folder / "hook.py").write_bytes(b"code")
    definition = HookDefinition.model_validate(
        {
            "name": HOOK,
            "dataset": DATASET,
            "release": {"version": "1", "command": ["run"], "code": ["hook.py"]},
            "feature": {"columns": [c.model_dump(exclude_none=True) for c in COLUMNS]},
        }
    )
    release = log.register_release(
        scene.store, definition.hook_release(scene.folder), definition.code_files(scene.folder)
    )
    return plan_run(scene.store, definition, release, batch)


def collect(plan: ComputePlan, output: Path) -> publish.Artifact:
    now = utc_now()
    run = RunInfo(id="run-1", runner="subprocess", started_at=now, finished_at=now)
    return collect_output(plan, output, run, None)


def publish_it(scene: CareScene, artifact: publish.Artifact) -> publish.PublishedArtifact:
    complete = partial(completion_of, artifact, base=0)
    return publish.publish_and_enqueue(scene.store, artifact, complete)[0]


def append(output: Path) -> None:
    with (output / "features.jsonl").open("ab") as file:
        file.write(lines("late"))


def replace(output: Path) -> None:
    (output / "other").write_bytes(lines("b"))
    (output / "other").rename(output / "features.jsonl")


def link(output: Path) -> None:
    (output.parent / "secret").write_bytes(lines("s"))
    (output / "features.jsonl").unlink()
    (output / "features.jsonl").symlink_to(output.parent / "secret")


def truncate(output: Path) -> None:
    (output / "features.jsonl").write_bytes(b"")


def delete(output: Path) -> None:
    (output / "features.jsonl").unlink()


@pytest.mark.parametrize("change", [append, replace, link, truncate, delete])
@pytest.mark.parametrize("is_large", [False, True])
def test_output_that_changed_after_it_was_decoded_is_not_published(
    scene: CareScene,
    plan: ComputePlan,
    change: Callable[[Path], None],
    is_large: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if is_large:  # these are not read into memory
        monkeypatch.setattr(publish, "_IN_MEMORY_BYTES", 0)
    output = scene.folder / "out"
    (output / "features.jsonl").write_bytes(lines("a"))
    artifact = collect(plan, output)
    change(output)
    with pytest.raises(CorruptDataError, match=r"features\.jsonl"):
        publish_it(scene, artifact)
    assert inbox.waiting(scene.store) == []


def test_a_file_that_appears_after_the_others_were_decoded_is_not_stored(
    scene: CareScene, plan: ComputePlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = scene.folder / "out"
    (output / "features.jsonl").write_bytes(lines("a"))
    decoded = decode_output(output, IDS, COLUMNS, "many", plan.actions)  # type: ignore[arg-type]
    (output / "errors.jsonl").write_bytes(b'{"id": "r1", "error": "late"}\n')
    now = utc_now()
    run = RunInfo(id="run-1", runner="subprocess", started_at=now, finished_at=now)
    artifact = collect_output(plan, output, run, None, decoded=decoded)
    assert sorted(artifact.raw) == ["features.jsonl"]
    publish_it(scene, artifact)


def test_raw_output_is_what_the_rows_were_decoded_from_whenever_it_changes(
    scene: CareScene, plan: ComputePlan
) -> None:
    """A thread replaces the file all the time: publishing succeeds with one version, or not."""
    output = scene.folder / "out"
    (output / "features.jsonl").write_bytes(lines("a"))
    ends = threading.Event()

    def change_all_the_time() -> None:
        turn = 0
        while not ends.wait(0.001):
            turn += 1
            (scene.folder / "next").write_bytes(lines(f"version {turn}"))
            (scene.folder / "next").rename(output / "features.jsonl")

    thread = threading.Thread(target=change_all_the_time)
    thread.start()
    refused = published = 0
    try:
        while refused + published < 300 or not refused:
            artifact = collect(plan, output)
            try:
                done = publish_it(scene, artifact)
            except CorruptDataError:
                refused += 1
                continue
            published += 1
            raw = read.read_raw(scene.store, done.manifest, "features.jsonl")
            outcomes = read.read_artifact_outcomes(scene.store, done.manifest)
            again = decode_output(
                {"features.jsonl": raw},
                IDS,
                COLUMNS,
                "many",  # type: ignore[arg-type]
                plan.actions,
            ).outcomes
            assert [o.rows for o in outcomes] == [o.rows for o in again]
    finally:
        ends.set()
        thread.join()
