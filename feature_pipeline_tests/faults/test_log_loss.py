"""Tables over an archive whose logs are shorter than what was loaded, or differ from it."""

from collections.abc import Iterator

import psycopg
import pytest

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.inspection.findings import ObjectKind, State
from feature_pipeline.archive.inspection.verify import verify
from feature_pipeline.archive.maintenance.accept_loss import accept_losses, plan_losses
from feature_pipeline.archive.maintenance.compare_databases import find_lost
from feature_pipeline.archive.maintenance.loss_entries import remove_given_up
from feature_pipeline.archive.maintenance.repair import append_again
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.read import read_manifest
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog.database import Database
from feature_pipeline.projections.catalog.loaded_entries import known_by_tables
from feature_pipeline.projections.load import LoadReport, load_batches
from feature_pipeline.projections.preview import PlanAction, plan_table
from feature_pipeline.projections.proof.missing_batches import check_progress
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline.projections.rebuild import begin_rebuild, fill
from feature_pipeline.projections.switch.finalize import batches_to_load, table_report
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

pytestmark = [pytest.mark.postgres, pytest.mark.faults]

COLUMNS = (Column(name="label", type="string"),)
MORE_COLUMNS = (*COLUMNS, Column(name="score", type="number"))


@pytest.fixture
def archive(database: Database) -> FeatureArchive:
    """Three batches, loaded: b1 has two entries, each of the others one."""
    archive = FeatureArchive(COLUMNS)
    archive.add("b1", {"r1": [{"label": "old"}]})
    archive.add("b2", {"r2": [{"label": "two"}]})
    archive.add("b3", {"r3": [{"label": "three"}]})
    archive.say("b1", {"r1": [{"label": "new"}]})
    load(archive, database)
    return archive


def lose(archive: FeatureArchive, batch: str, *seqs: int) -> None:
    for seq in seqs:
        archive.store.delete(layout.entry(layout.feature_log("demo", "pockets", batch), seq))


def labels(connection: psycopg.Connection) -> list[str]:
    return [row[0] for row in connection.execute("select label from features.pockets order by 1")]


def rebuild(archive: FeatureArchive, database: Database) -> None:
    begun = begin_rebuild(archive.store, database, archive.spec())
    run(fill(archive.store, database, begun))


def load(archive: FeatureArchive, database: Database, *batches: str) -> None:
    run(load_batches(archive.store, database, archive.spec(), batches or None))


def run(reports: Iterator[LoadReport]) -> None:
    for count, _ in enumerate(reports):
        assert count < 20, "it goes on for ever"


def test_a_rebuild_ends_and_names_what_the_log_lost(archive, database, connection) -> None:
    lose(archive, "b1", 2)
    with pytest.raises(CorruptDataError, match="no longer has") as raised:
        rebuild(archive, database)
    assert "batch 'b1'" in str(raised.value)
    assert "entry 2" in str(raised.value)
    assert "feature-pipeline repair" in str(raised.value)
    # what people read is what they read before, until it is decided what is right
    assert labels(connection) == ["new", "three", "two"]
    report = table_report(archive.store, database, archive.spec())
    assert report is not None
    assert report.building is not None


def test_a_rebuild_ends_where_a_whole_log_is_lost(archive, database, connection) -> None:
    lose(archive, "b2", 1)
    with pytest.raises(CorruptDataError, match="batch 'b2'"):
        rebuild(archive, database)
    assert labels(connection) == ["new", "three", "two"]


def test_a_rebuild_names_every_batch_that_is_lost(archive, database, connection) -> None:
    """One whose log is gone among others whose logs are shorter."""
    lose(archive, "b1", 2)
    lose(archive, "b2", 1)
    with pytest.raises(CorruptDataError, match="2 lost in the archive") as raised:
        rebuild(archive, database)
    assert "batch 'b1'" in str(raised.value)
    assert "batch 'b2'" in str(raised.value)
    assert labels(connection) == ["new", "three", "two"]


def test_an_entry_of_another_artifact_at_the_same_number_is_a_loss(
    archive, database, connection
) -> None:
    """An older bucket was put back, and the hook has run since."""
    lose(archive, "b1", 2)
    archive.say("b1", {"r1": [{"label": "other"}]})
    progress = check_progress(archive.store, database, archive.spec())
    assert list(progress.lost) == ["b1"]
    with pytest.raises(CorruptDataError, match="batch 'b1'"):
        load(archive, database)
    # nor is it silently replaced when the log has gone on past it
    archive.say("b1", {"r1": [{"label": "third"}]})
    with pytest.raises(CorruptDataError, match="batch 'b1'"):
        load(archive, database, "b1")
    assert labels(connection) == ["new", "three", "two"]


def test_what_is_lost_is_named_by_progress_and_is_not_to_be_loaded(archive, database) -> None:
    lose(archive, "b1", 2)
    lose(archive, "b3", 1)
    progress = check_progress(archive.store, database, archive.spec())
    assert sorted(progress.lost) == ["b1", "b3"]
    assert not progress.is_complete
    assert (progress.missing, progress.behind, progress.extra) == ((), (), ())
    assert progress.wrong() == ["b1", "b3"]
    assert "no longer has" in progress.summary()
    assert batches_to_load(archive.store, database, archive.spec()) == []


def test_what_is_lost_keeps_no_other_batch_from_its_table(archive, database, connection) -> None:
    lose(archive, "b1", 2)
    archive.say("b2", {"r2": [{"label": "second"}]})
    archive.columns = MORE_COLUMNS
    with pytest.raises(CorruptDataError, match="batch 'b1'"):
        load(archive, database)
    assert labels(connection) == ["new", "second", "three"]
    report = table_report(archive.store, database, archive.spec())
    assert report is not None
    assert report.missing == ("b1",)


def test_a_log_that_is_longer_than_what_was_loaded_is_no_loss(
    archive, database, connection
) -> None:
    """A newer bucket under an older database: the table follows."""
    archive.say("b1", {"r1": [{"label": "newer"}]})
    archive.say("b1", {"r1": [{"label": "newest"}]})
    progress = check_progress(archive.store, database, archive.spec())
    assert (progress.behind, progress.lost) == (("b1",), {})
    load(archive, database)
    assert labels(connection) == ["newest", "three", "two"]


def flip(archive: FeatureArchive, key: str) -> None:
    stored = archive.store.get(key)
    assert archive.store.replace(
        key, bytes([stored.data[0] ^ 1]) + stored.data[1:], stored.info.etag
    )


def test_a_damaged_log_costs_its_own_batch(archive, database, connection) -> None:
    """Of a feature log, a batch's entry, and a batch's entry that is gone."""
    archive.add("b4", {"r4": [{"label": "four"}]})
    archive.add("b5", {"r5": [{"label": "five"}]})
    flip(archive, layout.entry(layout.feature_log("demo", "pockets", "b2"), 1))
    flip(archive, layout.entry(layout.batch_log("demo", "b3"), 1))
    archive.store.delete(layout.entry(layout.batch_log("demo", "b4"), 1))
    progress = check_progress(archive.store, database, archive.spec())
    assert (list(progress.damaged), progress.missing) == (["b2"], ("b4", "b5"))
    with pytest.raises(CorruptDataError, match="3 damaged or incomplete") as raised:
        load(archive, database)
    for batch in ("b2", "b3", "b4"):
        assert f"batch '{batch}'" in str(raised.value)
    assert labels(connection) == ["five", "new", "three", "two"]
    with pytest.raises(CorruptDataError, match="3 damaged or incomplete"):
        rebuild(archive, database)
    assert labels(connection) == ["five", "new", "three", "two"]


def test_a_proof_names_the_batch_whose_log_is_damaged(archive, database) -> None:
    flip(archive, layout.entry(layout.batch_log("demo", "b2"), 1))
    archive.store.delete(layout.entry(layout.batch_log("demo", "b3"), 1))
    proof = prove(archive.store, database, archive.spec())
    assert sorted(proof.unreadable) == ["b2", "b3"]
    assert (proof.unequal_batches, proof.has_equal_content) == (("b2", "b3"), False)
    assert (proof.rows, proof.batches) == (3, 3)


def rows_key(archive: FeatureArchive, batch: str) -> str:
    manifest = read_manifest(archive.store, archive.heads()[batch].manifest)
    return layout.blob(manifest.blobs["rows"].digest)


def test_a_plan_is_about_what_can_be_read_and_names_the_rest(archive, database) -> None:
    """Every way in which a batch cannot be planned costs that batch alone."""
    for number in range(4, 9):
        archive.add(f"b{number}", {f"r{number}": [{"label": f"l{number}"}]})
    flip(archive, layout.blob(archive.heads()["b6"].manifest))
    archive.store.delete(rows_key(archive, "b7"))
    flip(archive, layout.entry(layout.feature_log("demo", "pockets", "b2"), 1))
    flip(archive, layout.entry(layout.batch_log("demo", "b4"), 1))
    archive.store.delete(layout.entry(layout.batch_log("demo", "b5"), 1))
    lose(archive, "b1", 2)
    plan = plan_table(archive.store, database, archive.spec())
    assert (plan.action, plan.is_all) == (PlanAction.LOAD, False)
    assert sorted(plan.damaged) == ["b2", "b4", "b5", "b6", "b7"]
    assert list(plan.lost) == ["b1"]
    assert (plan.batches, plan.rows, plan.refused) == (1, 1, {})
    # A rule that values decide reads rows; the damaged ones are damage, not a misfit.
    archive.say("b8", {"r8": [{"label": None}]})
    archive.columns = (Column(name="label", type="string", required=True),)
    plan = plan_table(archive.store, database, archive.spec())
    assert (plan.action, plan.is_all) == (PlanAction.BUILD, False)
    assert sorted(plan.damaged) == ["b2", "b4", "b5", "b6", "b7"]
    assert list(plan.refused) == ["b8"]


def accept(archive: FeatureArchive, database: Database) -> list[str]:
    """Give up what the tables know and the archive does not have."""
    lost = find_lost(archive.store, known_by_tables(database))
    planned = plan_losses(archive.store, [one.finding for one in lost])
    accept_losses(archive.store, planned, by="the operator", reason="no copy is left")
    return [loss.log for loss in planned]


def test_after_a_loss_is_accepted_tables_follow_the_shorter_log(
    archive, database, connection
) -> None:
    lose(archive, "b1", 2)
    lose(archive, "b2", 1)
    assert len(accept(archive, database)) == 2
    progress = check_progress(archive.store, database, archive.spec())
    assert (progress.lost, progress.behind, progress.extra) == ({}, ("b1",), ("b2",))
    # the older entry replaces the one that was given up
    load(archive, database)
    assert labels(connection) == ["old", "three", "two"]
    # what has no artifact any more leaves with the next generation
    rebuild(archive, database)
    assert labels(connection) == ["old", "three"]
    assert check_progress(archive.store, database, archive.spec()).is_complete
    # numbers are used again, and a later loss is a loss again
    archive.say("b1", {"r1": [{"label": "again"}]})
    load(archive, database)
    assert labels(connection) == ["again", "three"]
    lose(archive, "b1", 2)
    assert list(check_progress(archive.store, database, archive.spec()).lost) == ["b1"]


def test_a_number_that_is_used_again_before_any_load_is_loaded(
    archive, database, connection
) -> None:
    lose(archive, "b1", 2)
    accept(archive, database)
    archive.say("b1", {"r1": [{"label": "another"}]})
    load(archive, database)
    assert labels(connection) == ["another", "three", "two"]


def test_a_census_makes_a_lost_end_a_damaged_batch_to_every_reader(archive, database) -> None:
    """From S3 alone: no database knows of the entry."""
    write_census(archive.store)
    archive.add("b4", {"r4": [{"label": "four"}]})
    write_census(archive.store)
    lose(archive, "b4", 1)
    features = Archive(archive.store).features("pockets", skip_damaged=True)
    assert len(features.to_arrow()) == 3
    assert list(features.damage) == ["b4"]
    with pytest.raises(CorruptDataError, match="batch 'b4': the log has lost its end"):
        load(archive, database)
    report = verify(archive.store)
    assert [(f.state, f.kind) for f in report.findings] == [(State.LOST, ObjectKind.FEATURE_ENTRY)]
    accept_losses(archive.store, plan_losses(archive.store, report.findings), by="o", reason="r")
    assert verify(archive.store).is_clean
    load(archive, database)


def test_what_is_behind_a_damaged_entry_is_kept_as_text_and_appended_again(
    archive, database, connection
) -> None:
    archive.say("b1", {"r1": [{"label": "third"}]})
    load(archive, database)
    write_census(archive.store)
    flip(archive, layout.entry(layout.feature_log("demo", "pockets", "b1"), 2))
    planned = plan_losses(archive.store, verify(archive.store).findings)
    [loss] = planned
    assert (loss.entries, loss.known_entries, len(loss.removed)) == (1, 3, 2)
    accept_losses(archive.store, planned, by="the operator", reason="damaged")
    remove_given_up(archive.store, "demo")  # it can be repeated
    again = append_again(archive.store, planned, known_by_tables(database))
    assert len(again) == 1
    assert verify(archive.store).is_clean
    load(archive, database)
    assert labels(connection) == ["third", "three", "two"]
