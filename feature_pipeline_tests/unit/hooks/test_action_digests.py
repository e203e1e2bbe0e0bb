"""Equal questions have equal actions, and nothing else does."""

import pytest

from feature_pipeline.hooks.action_digests import batch_action, record_action
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import Record, RecordFile
from feature_pipeline.model.release import HookRelease, ReleaseDocument

FILE = RecordFile(name="a.cif", digest=str(Digest.of(b"a")), size=1)
OTHER = RecordFile(name="b.cif", digest=str(Digest.of(b"b")), size=1)
RECORD = Record(id="r", metadata={"x": 1, "y": [1.0]}, files=(FILE, OTHER))


def release(**changes: object) -> HookRelease:
    document = {
        "dataset": "d",
        "hook": "h",
        "version": "1",
        "command": ["python", "h.py"],
        "code": [FILE.model_dump()],
        "config": {"k": 1},
    } | changes
    return HookRelease.of(ReleaseDocument.model_validate(document))


def test_it_is_the_same_every_time_and_whatever_the_order_of_files():
    turned = RECORD.model_copy(update={"files": (OTHER, FILE)})
    reordered = RECORD.model_copy(update={"metadata": {"y": [1.0], "x": 1}})
    action = record_action(release(), RECORD, {"qc": "sha256:1"})
    for record in (RECORD, turned, reordered):
        assert record_action(release(), record, {"qc": "sha256:1"}) == action


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "2"},
        {"command": ["python", "h.py", "-v"]},
        {"code": [OTHER.model_dump()]},
        {"config": {"k": 1.0}},
        {"image": "sha256:" + "0" * 64, "code": []},
    ],
)
def test_it_depends_on_the_program(changes):
    assert record_action(release(**changes), RECORD, {}) != record_action(release(), RECORD, {})


def test_it_does_not_depend_on_the_label_of_an_image():
    image = {"image": "x@sha256:" + "0" * 64, "code": []}
    assert record_action(release(version="2", **image), RECORD, {}) == record_action(
        release(**image), RECORD, {}
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "s"},
        {"metadata": {"x": 1, "y": [1]}},
        {"metadata": {}},
        {"files": (FILE,)},
        {"files": (FILE, OTHER.model_copy(update={"digest": FILE.digest}))},
        {"files": (FILE, OTHER.model_copy(update={"name": "c.cif"}))},
    ],
)
def test_it_depends_on_the_record(changes):
    other = RECORD.model_copy(update=changes)
    assert record_action(release(), other, {}) != record_action(release(), RECORD, {})


def test_it_depends_on_input_features():
    actions = {
        record_action(release(), RECORD, inputs)
        for inputs in ({}, {"qc": "sha256:1"}, {"qc": "sha256:2"}, {"align": "sha256:1"})
    }
    assert len(actions) == 4


def test_a_batch_has_one_action_over_all_its_records_in_order():
    second = Record(id="s")
    actions = {
        batch_action(release(), records, {})
        for records in ((RECORD,), (second,), (RECORD, second), (second, RECORD))
    }
    assert len(actions) == 4
    assert batch_action(release(), (RECORD,), {}) != record_action(release(), RECORD, {})
    assert batch_action(release(), (RECORD,), {}) != batch_action(release(), (RECORD,), {"a": "b"})
