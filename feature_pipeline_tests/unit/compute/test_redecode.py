"""Artifacts whose raw output says something else than what a decoder once made of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.compute.redecode import decode_batch_again, decode_raw
from feature_pipeline.errors import CorruptDataError, NotFoundError
from feature_pipeline.model.column_sources import UnclearColumnError
from feature_pipeline.model.columns import Column, ColumnType
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.outcomes import Outcome, Status
from feature_pipeline.projections.rows.renamed_columns import check_carried
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

COLUMNS = (Column(name="count", type=ColumnType.INTEGER),)


@pytest.fixture
def archive() -> FeatureArchive:
    return FeatureArchive(COLUMNS)


def raw_output(folder: Path, features: dict[str, list[dict]]) -> dict[str, Path]:
    path = folder / "features.jsonl"
    lines = [json.dumps({"id": i, "features": rows}) + "\n" for i, rows in features.items()]
    path.write_text("".join(lines))
    return {path.name: path}


def misread(archive: FeatureArchive, folder: Path, batch: str = "b1") -> None:
    """An artifact that says 3 of `r1`, though its raw output says 2."""
    archive.submit(batch, ["r1", "r2"])
    raw = raw_output(folder, {"r1": [{"count": 2}], "r2": [{"count": 5}]})
    archive.say(batch, {"r1": [{"count": 3}], "r2": [{"count": 5}]}, raw)


def head(archive: FeatureArchive, batch: str = "b1"):
    current = log.head(archive.store, "demo", "pockets", batch)
    assert current is not None
    return current


def counts(archive: FeatureArchive, batch: str = "b1") -> dict[str, list[tuple]]:
    manifest = read.read_manifest(archive.store, head(archive, batch).manifest)
    outcomes = read.read_artifact_outcomes(archive.store, manifest)
    return {outcome.record_id: list(outcome.rows) for outcome in outcomes}


def test_a_misread_artifact_gets_a_successor_equal_to_its_raw_output(archive, tmp_path):
    misread(archive, tmp_path)
    before = head(archive)
    old = read.read_manifest(archive.store, before.manifest)

    done = decode_batch_again(archive.store, before)

    assert (done.is_new, done.changed, done.damage) == (True, ("r1",), None)
    assert counts(archive) == {"r1": [(2,)], "r2": [(5,)]}
    new = read.read_manifest(archive.store, head(archive).manifest)
    assert (new.release, new.run, new.columns) == (old.release, old.run, old.columns)
    assert new.blobs["raw/features.jsonl"] == old.blobs["raw/features.jsonl"]
    assert new.content_digest != old.content_digest
    assert [e.verdict for e in log.read_log(archive.store, "demo", "pockets", "b1")] == [
        Verdict.CURRENT,
        Verdict.CURRENT,
    ]
    assert not decode_batch_again(archive.store, head(archive)).is_new
    assert verify(archive.store).is_clean


def test_what_reads_the_same_is_left_alone(archive, tmp_path):
    archive.submit("b1", ["r1"])
    archive.say("b1", {"r1": [{"count": 2}]}, raw_output(tmp_path, {"r1": [{"count": 2}]}))
    keys = {info.key for info in archive.store.list_objects("")}
    done = decode_batch_again(archive.store, head(archive))
    assert (done.is_new, done.changed) == (False, ())
    assert {info.key for info in archive.store.list_objects("")} == keys


def test_carried_outcomes_are_read_from_the_output_that_they_come_from(archive, tmp_path):
    misread(archive, tmp_path)
    first = head(archive)
    carried = read.read_artifact_outcomes(
        archive.store, read.read_manifest(archive.store, first.manifest)
    )
    computed = replace(carried[1], rows=((7,),))
    archive.accept(
        "b1",
        [replace(carried[0], carried_from=first.manifest), computed],
        raw_output(tmp_path, {"r2": [{"count": 7}]}),
    )
    done = decode_batch_again(archive.store, head(archive))
    assert done.changed == ("r1",)
    assert counts(archive) == {"r1": [(2,)], "r2": [(7,)]}
    manifest = read.read_manifest(archive.store, head(archive).manifest)
    sources = [o.carried_from for o in read.read_artifact_outcomes(archive.store, manifest)]
    assert sources == [first.manifest, None]


@pytest.mark.parametrize("name", ["rows", "outcomes"])
@pytest.mark.parametrize("is_deleted", [True, False])
def test_damaged_tables_are_derived_again(archive, tmp_path, name, is_deleted):
    archive.submit("b1", ["r1"])
    archive.say("b1", {"r1": [{"count": 2}]}, raw_output(tmp_path, {"r1": [{"count": 2}]}))
    manifest = read.read_manifest(archive.store, head(archive).manifest)
    key = layout.blob(manifest.blobs[name].digest)
    stored = archive.store.get(key)
    archive.store.delete(key)
    if not is_deleted:
        archive.store.create(key, stored.data[:-1] + b"?")

    done = decode_batch_again(archive.store, head(archive))

    assert done.damage is not None
    assert counts(archive) == {"r1": [(2,)]}
    assert verify(archive.store).is_clean
    assert decode_batch_again(archive.store, head(archive)).damage is None


def test_a_later_run_replaces_the_successor(archive, tmp_path):
    misread(archive, tmp_path)
    decode_batch_again(archive.store, head(archive))
    archive.say("b1", {"r1": [{"count": 9}], "r2": [{"count": 9}]})
    assert counts(archive) == {"r1": [(9,)], "r2": [(9,)]}


def test_lost_or_damaged_raw_output_is_an_error_and_changes_nothing(archive, tmp_path):
    misread(archive, tmp_path)
    manifest = read.read_manifest(archive.store, head(archive).manifest)
    key = layout.blob(manifest.blobs["raw/features.jsonl"].digest)
    data = archive.store.get(key).data
    archive.store.delete(key)
    with pytest.raises(NotFoundError):
        decode_batch_again(archive.store, head(archive))
    archive.store.create(key, data.replace(b"2", b"4"))
    with pytest.raises(CorruptDataError):
        decode_batch_again(archive.store, head(archive))
    assert counts(archive) == {"r1": [(3,)], "r2": [(5,)]}


A, B = Column(name="a", type="integer"), Column(name="b", type="integer")
B_FROM_A = Column(name="b", type="integer", renamed_from="a")


def carry_over(archive: FeatureArchive, row: tuple[int, ...], columns: tuple[Column, ...]) -> None:
    """An artifact under `columns` of which everything was carried from the current one."""
    archive.columns = columns
    outcome = Outcome("r1", Status.PASSED, rows=(row,), carried_from=head(archive).manifest)
    archive.accept("b1", [outcome])


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ((B_FROM_A,), (1,)),
        ((B_FROM_A, A.model_copy(update={"name": "new"})), (1, 3)),
    ],
)
def test_raw_output_means_what_was_declared_when_the_hook_ran(archive, tmp_path, columns, row):
    """The name of a dropped column is another one's now: the values are still apart."""
    archive.columns = (A, B)
    archive.submit("b1", ["r1"])
    features = {"r1": [{"a": 1, "b": 2, "new": 3}]}
    archive.say("b1", {"r1": [{"a": 1, "b": 2}]}, raw_output(tmp_path, features))
    original = read.read_manifest(archive.store, head(archive).manifest)

    [outcome] = decode_raw(archive.store, original, ["r1"], columns, Cardinality.MANY)

    assert outcome.rows == (row,)
    carry_over(archive, (2, 2)[: len(columns)], columns)
    decode_batch_again(archive.store, head(archive))
    assert counts(archive) == {"r1": [row]}


def test_raw_output_that_may_mean_two_columns_is_not_read(archive, tmp_path):
    archive.columns = (B_FROM_A,)
    archive.submit("b1", ["r1"])
    archive.say("b1", {"r1": [{"b": 1}]}, raw_output(tmp_path, {"r1": [{"b": 1}]}))
    manifest = read.read_manifest(archive.store, head(archive).manifest)
    with pytest.raises(UnclearColumnError, match="'b', as it was written, may be 'a' or 'b'"):
        decode_raw(archive.store, manifest, ["r1"], (A, B), Cardinality.MANY)


def test_rows_that_were_read_under_another_columns_name_are_noticed(archive, tmp_path):
    """As an earlier decoder left them; a batch that was never carried over holds the former a."""
    archive.columns = (A, B)
    archive.submit("b1", ["r1"])
    raw = raw_output(tmp_path, {"r1": [{"a": 1, "b": 2}]})
    archive.say("b1", {"r1": [{"a": 1, "b": 2}]}, raw)

    def check() -> None:
        manifest = read.read_manifest(archive.store, head(archive).manifest)
        check_carried(archive.store, manifest, read.read_outcomes(archive.store, manifest))

    check()
    carry_over(archive, (2,), (B_FROM_A,))
    with pytest.raises(CannotEvolveError, match=r"it is the former 'a'.*rebuild pockets --from-r"):
        check()
    decode_batch_again(archive.store, head(archive))
    check()
    # Neither the one nor the other: a repaired decoder, not a mistake about names.
    carry_over(archive, (7,), (B_FROM_A,))
    check()
