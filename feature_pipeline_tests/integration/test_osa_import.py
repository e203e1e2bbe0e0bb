"""Rows of the recorded server's tables, imported where the outputs of their hook runs are gone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import Verdict
from feature_pipeline.archive.logs.tombstones import withdraw
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.outcomes import OutcomeKind, Status
from feature_pipeline.osa.compare import Kind
from feature_pipeline.osa.history import lines
from feature_pipeline.osa.history.importer import Importer
from feature_pipeline.osa.history.reconstructed import is_reconstructed, server_row_ids
from feature_pipeline.osa.history.result import HookImport, ImportResult
from feature_pipeline.osa.history.table_rows import HookTable
from feature_pipeline.osa.server.storage import ServerStorage
from feature_pipeline.osa.settings import DATABASE_URL, STORAGE
from feature_pipeline.projections.proof import read_back
from feature_pipeline_tests.fixtures import osa_server as recorded
from feature_pipeline_tests.fixtures.commands import CommandLine
from feature_pipeline_tests.fixtures.osa_server import Beside

pytestmark = pytest.mark.postgres

RUNNING = recorded.RUNNING
HISTORY = f"history-ingest-{recorded.HISTORY}-0"
REAL = f"ingest-{recorded.HISTORY}-0"
HISTORY_QC = "a1c638f4-f711-594c-a454-516f556a435c"
HISTORY_POCKETS = "85b187a2-4970-5f04-952c-7dd62f2a0cb9"
ROWS = {
    "pdb_structures/pockets": 91,
    "pdb_structures/qc": 45,
    "protein_designs/qc": 3,
    "protein_designs/alignment": 9,
}


def importer(beside: Beside, storage: ServerStorage | None = None) -> Importer:
    follower = beside.follower()
    return Importer(beside.store, follower.server, storage, beside.settings, follower.definitions)


def imported(beside: Beside, storage: ServerStorage | None = None) -> dict[str, HookImport]:
    result = importer(beside, storage).run()
    assert result.is_complete, result
    return by_hook(result)


def by_hook(result: ImportResult) -> dict[str, HookImport]:
    return {f"{each.dataset}/{each.hook}": each for each in result.hooks}


def new_rows(imports: dict[str, HookImport]) -> dict[str, int]:
    return {name: each.new_rows for name, each in imports.items()}


def lines_of(beside: Beside, name: str) -> dict[str, Any]:
    """The features in the raw output of an artifact, by record."""
    text = read.read_raw(beside.store, beside.manifests()[name], "features.jsonl").decode()
    return {line["id"]: line["features"] for line in map(json.loads, text.split("\n")[:-1])}


def only_qc_of_history(beside: Beside) -> None:
    """Leave the rows of one hook run of `qc`: six records, one row each, ids 1 to 6."""
    beside.settings = beside.settings.model_copy(
        update={"hooks": ("qc",), "conventions": {"pdb-structures": "structures"}}
    )
    beside.sql("delete from features.qc where run_id <> %s", HISTORY_QC)


def test_without_any_storage_every_row_is_imported_and_equals_the_servers(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whole columns are equal: no row has to be compared alone
    monkeypatch.setattr("feature_pipeline.osa.history.run_import.differences", None)
    imports = imported(beside)
    assert new_rows(imports) == ROWS
    assert {name: each.proven_rows for name, each in imports.items()} == ROWS
    for each in beside.compare().values():
        assert each.differences == {}
        assert each.equal > 0
    manifests = beside.manifests()
    assert all(is_reconstructed(manifest) for manifest in manifests.values())
    assert {manifest.run.id for manifest in manifests.values()} >= {HISTORY_QC, HISTORY_POCKETS}
    before = dict(beside.store._objects)
    again = imported(beside)
    assert beside.store._objects == before
    assert {name: each.unchanged_rows for name, each in again.items()} == ROWS
    assert {name: each.proven_rows for name, each in again.items()} == ROWS


def test_rows_read_and_decoded_one_by_one_give_the_same_objects(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_column: list[int] = []
    decode = lines.decode_lines

    def noted(*arguments: Any) -> lines.DecodedLines:
        decoded = decode(*arguments)
        by_column.append(decoded.rows.num_rows - len(decoded.one_by_one.outcomes))
        return decoded

    monkeypatch.setattr(lines, "decode_lines", noted)
    imported(beside)
    assert any(by_column)
    slow = Beside(beside.url, beside.folder)
    monkeypatch.setattr(lines, "_unsure_lines", lambda all_lines: np.ones(len(all_lines), bool))
    monkeypatch.setattr(read_back, "CHUNK_BYTES", 1)
    imported(slow)
    assert slow.store._objects.keys() == beside.store._objects.keys()


def test_an_artifact_states_what_it_is_and_guesses_nothing(beside: Beside) -> None:
    imported(beside)
    manifest = beside.manifests()[f"{HISTORY}/pockets"]
    outcomes = {o.record_id: o for o in read.read_artifact_outcomes(beside.store, manifest)}
    # it passed without rows, which the tables cannot show
    unknown = outcomes.pop("3hist")
    assert (unknown.status, unknown.kind) == (Status.ERRORED, OutcomeKind.UNKNOWN)
    assert unknown.is_retryable
    assert {o.status for o in outcomes.values()} == {Status.PASSED}
    assert all(o.action is None for o in (unknown, *outcomes.values()))
    notes = "; ".join(manifest.notes)
    assert "reconstructed from PostgreSQL: the rows of the server's table features." in notes
    assert "known of 5 records with rows; those of 1 other are not" in notes
    assert "whether the hook wrote 1 or 1.0 is not known" in notes
    assert "truncates numbers in integer columns: 1.5 became 1: rank" in notes
    assert "parsed; a string that is JSON cannot be told from these: center, residues" in notes
    ids = server_row_ids(beside.store, manifest).to_pylist()
    assert [(each["record"], each["row"], each["id"]) for each in ids] == [
        *(("1hist", 0, 2), ("1hist", 1, 3), ("2hist", 0, 1)),
        *(("5hist", 0, 4), ("5hist", 1, 5), ("5hist", 2, 6)),
        *(("6hist", 0, 8), ("6hist", 1, 9), ("pdb:9xyz", 0, 7)),
    ]
    assert ids[0]["created_at"].isoformat() == "2026-11-29T15:03:02.719497+00:00"
    assert list(lines_of(beside, f"{HISTORY}/pockets")) == [
        "1hist", "2hist", "5hist", "6hist", "pdb:9xyz",
    ]  # fmt: skip
    batch = log.read_batch(beside.store, "pdb_structures", HISTORY)
    record = next(each for each in batch.records if each.id == "pdb:9xyz")
    assert record.metadata["resolution"] == 0.98
    assert record.files == ()


def test_after_sync_only_what_sync_cannot_take_is_imported(beside: Beside) -> None:
    shutil.rmtree(beside.folder / f"ingests/{recorded.HISTORY}")
    shutil.rmtree(beside.batch(1) / "hooks/qc")
    waiting = importer(beside, beside.storage).run(is_dry=True)
    assert {name: each.stored_rows for name, each in by_hook(waiting).items()} == {
        **ROWS,
        "pdb_structures/pockets": 91 - 9,
        "pdb_structures/qc": 45 - 6 - 19,
    }
    assert [len(each.new_runs) for each in waiting.hooks] == [1, 2, 0, 0]
    assert beside.store._objects == {}
    beside.follow()
    beside.accept_all()
    imports = imported(beside, beside.storage)
    assert new_rows(imports) == {
        **dict.fromkeys(ROWS, 0),
        "pdb_structures/pockets": 9,
        "pdb_structures/qc": 6 + 19,
    }
    assert all(each.stored_rows == 0 for each in imports.values())
    manifests = beside.manifests()
    assert [name for name, each in manifests.items() if is_reconstructed(each)] == [
        f"{HISTORY}/pockets",
        f"{HISTORY}/qc",
        # the archive has this batch, with the records that the server did not publish
        f"ingest-{RUNNING}-1/qc",
    ]
    assert manifests[f"ingest-{RUNNING}-1/qc"].counts.records == 20
    assert new_rows(imported(beside, beside.storage)) == dict.fromkeys(ROWS, 0)


def test_an_output_that_appears_later_takes_the_place(beside: Beside) -> None:
    imported(beside)
    result = beside.follow()
    assert (len(result.published), result.unreadable) == (20, {})
    beside.accept_all()
    comparisons = beside.compare()
    # the same as beside an archive without imported rows
    whole = Beside(beside.url, beside.folder)
    whole.follow()
    whole.accept_all()
    assert comparisons == whole.compare()
    again = imported(beside, beside.storage)
    assert {name: each.archived_rows for name, each in again.items()} == ROWS
    assert new_rows(again) == dict.fromkeys(ROWS, 0)


def test_an_output_of_the_same_batch_takes_the_place_and_keeps_it(beside: Beside) -> None:
    folder = beside.batch(0, recorded.HISTORY) / "hooks/qc"
    folder.rename(beside.folder / "aside")
    beside.follow()
    beside.accept_all()
    imported(beside, beside.storage)
    (entry,) = beside.entries("pdb_structures", "qc")[REAL]
    assert is_reconstructed(read.manifest_of(beside.store, entry))
    (beside.folder / "aside").rename(folder)
    beside.follow()
    beside.accept_all()
    imported(beside)  # the storage is gone by now
    first, last = beside.entries("pdb_structures", "qc")[REAL]
    assert (first, last.verdict, last.completion) == (entry, Verdict.CURRENT, HISTORY_QC)
    assert not is_reconstructed(read.manifest_of(beside.store, last))
    assert not any("output changed" in note for note in beside.manifests()[f"{REAL}/qc"].notes)


def test_ids_of_rows_whose_output_the_archive_has_are_kept_beside_it(beside: Beside) -> None:
    beside.follow()
    beside.accept_all()
    before = beside.manifests()
    kept = importer(beside, beside.storage)
    kept.keeps_ids = True
    result = kept.run()
    assert result.is_complete
    imports = by_hook(result)
    assert {name: each.kept_rows for name, each in imports.items()} == ROWS
    assert new_rows(imports) == dict.fromkeys(ROWS, 0)
    *_, last = beside.entries("pdb_structures", "pockets")[REAL]
    assert last.verdict is Verdict.SUPERSEDED
    ids = server_row_ids(beside.store, read.manifest_of(beside.store, last))
    assert sorted(ids.column("id").to_pylist()) == list(range(1, 10))
    heads = log.heads(beside.store, "pdb_structures", "pockets")
    assert read.manifest_of(beside.store, heads[REAL]) == before[f"{REAL}/pockets"]
    stored = dict(beside.store._objects)
    assert kept.run().is_complete
    assert beside.store._objects == stored


def test_an_output_that_waits_in_the_inbox_takes_the_place(beside: Beside) -> None:
    beside.follow()
    imported(beside)
    beside.accept_all()
    assert beside.compare()["pdb_structures/pockets"].differences[Kind.OTHER_BATCH].number == 3
    heads = log.heads(beside.store, "pdb_structures", "qc")
    assert heads[REAL].completion == HISTORY_QC
    # and owns the records: its batch counts as submitted later
    batches = log.batches(beside.store, "pdb_structures")
    assert batches[HISTORY].order < batches[REAL].order


def test_an_output_that_waits_for_a_batch_of_the_archive_takes_the_place(beside: Beside) -> None:
    """Both completions were planned on nothing: the hook run's end is earlier than the output."""
    beside.settings = beside.settings.model_copy(update={"hooks": ("pockets",)})
    beside.follow()
    beside.accept_all()
    beside.settings = beside.settings.model_copy(update={"hooks": ("qc",)})
    beside.follow()
    imported(beside)
    beside.accept_all()
    for batch, entries in beside.entries("pdb_structures", "qc").items():
        manifest = read.manifest_of(beside.store, log.last_current(entries) or entries[-1])
        assert not is_reconstructed(manifest), batch
    assert is_reconstructed(
        read.manifest_of(beside.store, beside.entries("pdb_structures", "qc")[REAL][0])
    )


def test_rows_of_an_earlier_hook_run_do_not_replace_the_output_of_a_later_one(
    beside: Beside,
) -> None:
    local = "4fe806c1-b3f1-40cb-8"
    earlier = "11111111-2222-4333-8444-555555555555"
    beside.follow()
    beside.accept_all()
    # an earlier run under a release that is registered later
    beside.sql(
        "insert into hook_releases (id, hook_name, version, image, digest, config, limits,"
        " source_ref, built_at) select gen_random_uuid(), hook_name, 9, image,"
        " 'sha256:' || translate(substr(digest, 8), '0123456789', '1234567890'), config, limits,"
        " source_ref, built_at from hook_releases where hook_name = 'alignment'"
    )
    beside.sql(
        "insert into hook_runs (id, release_id, status, started_at, finished_at, duration_s)"
        " select %s, id, 'passed', '2026-11-01', '2026-11-01', 1 from hook_releases"
        " where version = 9 and hook_name = 'alignment'",
        earlier,
    )
    beside.sql(
        "update features.alignment set run_id = %s, target = 'earlier' where record_srn ="
        " (select srn from records where source ->> 'id' like %s)",
        earlier,
        f"%{local}",
    )
    imports = imported(beside, beside.storage)
    assert new_rows(imports)["protein_designs/alignment"] == 3
    first, last = beside.entries("protein_designs", "alignment")[f"deposition-{local}"]
    assert (first.verdict, last.verdict) == (Verdict.CURRENT, Verdict.SUPERSEDED)
    assert (first.release_seq, last.release_seq) == (1, 2)
    alignment = beside.compare()["protein_designs/alignment"]
    (example,) = alignment.differences[Kind.VALUES].examples
    assert "earlier there" in example
    assert new_rows(imported(beside, beside.storage)) == dict.fromkeys(ROWS, 0)


CELLS = [
    # the cell, its JSON in raw output, and the value here
    ("'\"[1, 2.50]\"'", [1, 2.5], "[1,2.5]"),
    ("'[1, 2]'", [1, 2], "[1,2]"),  # not in the server's encoding
    ("null", None, None),
    ("'null'", None, None),
    ("'\"null\"'", None, None),
]


def test_numbers_texts_and_nulls_are_the_servers(beside: Beside) -> None:
    """Also JSON null and NULL, which only raw output tells apart."""
    beside.settings = beside.settings.model_copy(update={"hooks": ("pockets",)})
    beside.sql("delete from features.pockets where run_id <> %s", HISTORY_POCKETS)
    for row_id, (cell, *_) in enumerate(CELLS, 1):
        beside.sql(f"update features.pockets set residues = {cell} where id = {row_id}")
    numbers = ["'NaN'", "'-Infinity'", "'-0'", "1e300", "1152921504606846977", "5e-324"]
    for row_id, number in enumerate(numbers, 1):
        beside.sql(f"update features.pockets set volume = {number} where id = {row_id}")
    text = '"quoted\\", \n\u2028 \x7f {"pocket_id": 1}'
    beside.sql("update features.pockets set pocket_id = %s where id = 7", text)
    beside.sql("update features.pockets set rank = -9223372036854775808 where id = 7")
    pockets = imported(beside)["pdb_structures/pockets"]
    assert (pockets.proven_rows, pockets.refused.number) == (9, 0)
    lines = lines_of(beside, f"{HISTORY}/pockets")
    ids = server_row_ids(beside.store, beside.manifests()[f"{HISTORY}/pockets"]).to_pylist()
    rows = {each["id"]: lines[each["record"]][each["row"]] for each in ids}
    assert [rows[n].get("residues", "absent") for n in (1, 2, 4, 5)] == [
        [1, 2.5], [1, 2], None, None,
    ]  # fmt: skip
    assert "residues" not in rows[3]
    assert rows[7]["pocket_id"] == text
    # a text that takes the form of further members of the row is none
    beside.sql(
        "update features.pockets set residues = to_jsonb(%s::text) where id = 1",
        '[], "pocket_id": "other"',
    )
    importer(beside).run()
    assert lines_of(beside, f"{HISTORY}/pockets")["2hist"][0]["pocket_id"] == "2hist-P1"


def test_values_that_no_outcome_can_have_are_kept_as_they_are_and_counted(beside: Beside) -> None:
    beside.settings = beside.settings.model_copy(update={"hooks": ("pockets",)})
    beside.sql("delete from features.pockets where run_id <> %s", HISTORY_POCKETS)
    beside.sql("""update features.pockets set residues = '"[NaN]"' where id = 1""")
    beside.sql("""update features.pockets set residues = '"plain"' where id = 2""")
    beside.sql("""update features.pockets set center = 'null' where id = 7""")
    pockets = imported(beside)["pdb_structures/pockets"]
    assert (pockets.new_rows, pockets.proven_rows, pockets.refused.number) == (9, 5, 4)
    assert [example.split(": ")[:2] for example in pockets.refused.examples] == [
        [f"hook run {HISTORY_POCKETS}, record {name}", f"features.jsonl line {line}"]
        for name, line in (("1hist", 1), ("2hist", 2), ("pdb:9xyz", 5))
    ]
    assert lines_of(beside, f"{HISTORY}/pockets")["1hist"][0]["residues"] == "plain"
    missing = beside.compare()["pdb_structures/pockets"]
    assert {k: v.number for k, v in missing.differences.items()} == {Kind.MISSING_HERE: 3}


def test_withdrawn_and_erased_records_are_left_out(beside: Beside) -> None:
    only_qc_of_history(beside)
    withdraw(beside.store, "structures", ["1hist"], "asked for")
    qc = imported(beside)["structures/qc"]
    assert (qc.withdrawn_rows, qc.proven_rows) == (1, 5)
    assert "1hist" not in lines_of(beside, f"{HISTORY}/qc")
    beside.accept_all()
    erase(beside.store, "structures", ["5hist"], "asked for")
    qc = imported(beside)["structures/qc"]
    assert (qc.withdrawn_rows, qc.proven_rows) == (2, 4)
    ids = server_row_ids(beside.store, beside.manifests()[f"{HISTORY}/qc"])
    assert "5hist" not in ids.column("record").to_pylist()
    assert sorted(lines_of(beside, f"{HISTORY}/qc")) == ["2hist", "3hist", "6hist", "pdb:9xyz"]


def test_a_row_that_was_changed_or_inserted_again_is_imported_again(beside: Beside) -> None:
    only_qc_of_history(beside)
    imported(beside)
    beside.sql("update features.qc set notes = 'by hand' where id = 1")
    beside.sql(
        "with old as (delete from features.qc where id = 2 returning *)"
        " insert into features.qc (record_srn, run_id, passed, resolution, r_free, atoms)"
        " select record_srn, run_id, passed, resolution, r_free, atoms from old"
    )
    differences = beside.compare()["structures/qc"].differences
    assert differences.keys() == {Kind.VALUES, Kind.IDS}
    (changed,) = differences[Kind.VALUES].examples
    assert "notes: NULL here, by hand there" in changed
    (ids,) = differences[Kind.IDS].examples
    assert "1hist: 2 of 2026-11-29 15:03:03.471528 here, 50 of" in ids
    assert imported(beside)["structures/qc"].new_rows == 6
    assert beside.compare()["structures/qc"].differences == {}
    _, last = beside.entries("structures", "qc")[HISTORY]
    assert last.verdict is Verdict.CURRENT


def test_rows_that_were_stored_wrongly_do_not_pass_the_proof(
    beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_qc_of_history(beside)
    rows = HookTable.rows

    def wrong(table: HookTable, run_id: str) -> pa.Table:
        columns = rows(table, run_id).to_pydict()
        columns["text"][0] = columns["text"][0].replace("true", "false")
        columns["id"][1] += 100
        return pa.table(columns, schema=rows(table, run_id).schema)

    monkeypatch.setattr(HookTable, "rows", wrong)
    result = importer(beside).run()
    assert not result.is_complete
    (qc,) = result.hooks
    assert (qc.proven_rows, qc.differing.number) == (4, 2)
    passed, ids = sorted(qc.differing.examples, key=len)
    assert passed.endswith("row 1, passed: False here, True there")
    assert "id and created_at: 102 of 2026-11-29" in ids


def test_old_records_without_a_batch_index_have_a_batch_of_their_hook_run(beside: Beside) -> None:
    only_qc_of_history(beside)
    beside.sql(
        "update records set source = (source || '{\"batch_index\": null}') - 'upstream_source'"
        " where source ->> 'ingest_run_id' = %s",
        recorded.HISTORY,
    )
    waiting = importer(beside, beside.storage).run(is_dry=True)
    assert waiting.hooks[0].stored_rows == 6  # the hook run's id gives the index
    qc = imported(beside)["structures/qc"]
    assert qc.proven_rows == 6
    assert list(beside.manifests()) == [f"history-run-{HISTORY_QC}/qc"]
    assert beside.compare()["structures/qc"].differences == {}


def test_rows_under_the_id_of_another_batchs_hook_run_have_a_batch_of_it(beside: Beside) -> None:
    only_qc_of_history(beside)
    beside.sql(
        "insert into features.qc (record_srn, run_id, passed) select srn, %s, true from records"
        " where source ->> 'upstream_source' = '2bb01'",
        HISTORY_QC,
    )
    qc = imported(beside, beside.storage)["structures/qc"]
    assert qc.proven_rows == 7
    assert list(beside.manifests()) == [f"history-run-{HISTORY_QC}/qc"]
    assert beside.compare()["structures/qc"].differences == {}


def test_records_published_since_are_a_further_batch(beside: Beside) -> None:
    only_qc_of_history(beside)
    imported(beside)
    beside.sql(
        "insert into records (srn, convention_id, schema_id, schema_version, source, metadata,"
        " published_at) select 'urn:osa:archive.example.org:rec:later@1', convention_id, schema_id,"
        ' schema_version, source || \'{"id": "pdb-structures:later",'
        ' "upstream_source": "later"}\', metadata, \'2026-11-29 16:00+00\' from records'
        " where source ->> 'upstream_source' = '1hist'"
    )
    beside.sql(
        "insert into features.qc (record_srn, run_id, passed)"
        " values ('urn:osa:archive.example.org:rec:later@1', %s, true)",
        HISTORY_QC,
    )
    assert imported(beside)["structures/qc"].proven_rows == 7
    assert list(beside.manifests()) == [f"{HISTORY}/qc", f"{HISTORY}_2/qc"]
    comparison = beside.compare()["structures/qc"]
    assert (comparison.batches, comparison.equal, comparison.differences) == (1, 7, {})


def test_a_deleted_record_has_no_rows_and_is_unknown_in_the_archives_batch(beside: Beside) -> None:
    shutil.rmtree(beside.batch(0, recorded.HISTORY) / "hooks/qc")
    beside.follow()
    beside.accept_all()
    beside.sql("delete from records where source ->> 'upstream_source' = '1hist'")
    assert new_rows(imported(beside, beside.storage))["pdb_structures/qc"] == 5
    outcomes = read.read_artifact_outcomes(beside.store, beside.manifests()[f"{REAL}/qc"])
    assert [o.record_id for o in outcomes if o.kind is OutcomeKind.UNKNOWN] == ["1hist"]


def test_rows_that_cannot_be_placed_are_named_and_hold_up_no_others(beside: Beside) -> None:
    beside.sql("alter table features.qc drop constraint qc_run_id_fkey")
    beside.sql("alter table hook_runs drop constraint hook_runs_release_id_fkey")
    unknown = "00000000-0000-4000-8000-000000000000"
    beside.sql("update features.qc set run_id = %s where id = 40", unknown)
    beside.sql("update hook_runs set release_id = %s where id = %s", unknown, HISTORY_QC)
    beside.sql(
        'update records set source = \'{"type": "copy", "id": "x"}\' where srn ='
        " (select record_srn from features.alignment limit 1)"
    )
    beside.sql(
        "update records set source = (source || '{\"id\": \"1hist\"}') - 'upstream_source'"
        " where source ->> 'upstream_source' = '1hist'"
    )
    result = importer(beside).run()
    assert not result.is_complete
    imports = by_hook(result)
    pockets = imports["pdb_structures/pockets"]
    (nameless,) = pockets.unplaced.values()
    assert "its source is of type 'ingest', with id '1hist' and upstream_source None" in nameless
    assert (pockets.unplaced_rows, pockets.missing_rows) == (9, 0)
    qc = imports["pdb_structures/qc"]
    assert qc.unplaced == {
        unknown: "public.hook_runs has no row of it: its release is not known",
        HISTORY_QC: f"public.hook_runs names release {unknown}, which is not a release of hook 'qc'"
        " in public.hook_releases",
    }
    assert (qc.unplaced_rows, qc.missing_rows, qc.proven_rows) == (7, 0, 38)
    (reason,) = imports["protein_designs/alignment"].unplaced.values()
    assert reason == "the records with its rows are of type copy: expected ingest or deposition"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("drop table features.pockets", 'has no table features."pockets"'),
        ("delete from feature_tables", "has no table of hook"),
        (
            "alter table features.pockets alter rank type numeric",
            """features."pockets": column 'rank' is of type numeric, and the server declares""",
        ),
        (
            "alter table features.pockets drop score",
            """features."pockets": column 'score' does not exist""",
        ),
        ("update hooks set live_release_id = null", "it has no live release"),
        (
            "update hooks set feature_spec = jsonb_set(feature_spec, '{columns,0,json_type}',"
            " '\"money\"')",
            "has the type 'money', which is not known here",
        ),
        (
            "alter table records rename column published_at to published",
            r"whose schema is known \(its schema version is 44a8e3799b97; known is 44a8e3799b97\):"
            r" public.records has no column 'published_at'. looked at public.hooks",
        ),
    ],
)
def test_a_server_that_cannot_be_read_is_an_error(
    beside: Beside, change: str, problem: str
) -> None:
    follower = beside.follower()
    beside.sql(change)
    arguments = beside.store, follower.server, None, beside.settings, follower.definitions
    with pytest.raises((InvalidInputError, NotFoundError), match=problem):
        Importer(*arguments).run()
    assert beside.store._objects == {}


def test_a_storage_that_is_not_there_is_an_error_unless_it_is_declared_gone(
    beside: Beside,
) -> None:
    shutil.rmtree(beside.folder)
    with pytest.raises(NotFoundError, match="no such folder"):
        importer(beside, beside.storage).run()
    assert beside.store._objects == {}


def test_rows_of_conventions_that_are_not_followed_are_counted(beside: Beside) -> None:
    beside.settings = beside.settings.model_copy(
        update={"conventions": {"protein-designs": "designs"}}
    )
    qc = imported(beside)["designs/qc"]
    assert (qc.new_rows, qc.other_rows) == (3, {"pdb-structures": 45})


def test_the_command_shows_the_rows_and_the_proof(
    beside: Beside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> None:
    (tmp_path / "defs").mkdir()
    monkeypatch.setenv("FEATURE_PIPELINE_DEFS", str(tmp_path / "defs"))
    monkeypatch.setenv(DATABASE_URL, beside.url)
    monkeypatch.setenv(STORAGE, str(beside.folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "feature_pipeline.cli.commands.other_systems.osa.open_archive", lambda: beside.store
    )
    command_line("osa", "scaffold")
    shutil.rmtree(beside.folder / f"ingests/{recorded.HISTORY}")
    status, out, _ = command_line("osa", "import", "--dry-run")
    assert status == 0
    assert (
        "pdb_structures/qc: 45 rows there, 6 to import from 1 hook run, 39 of outputs in the"
        " storage, for `osa sync`\n" in out
    )
    assert beside.store._objects == {}
    status, out, _ = command_line("osa", "import", "--hook", "qc")
    assert status == 0
    assert "  6 imported rows equal here and there\n" in out
    status, out, _ = command_line("osa", "import", "--without-storage", "--json")
    assert status == 0
    qc = next(h for h in json.loads(out)["hooks"] if h["hook"] == "qc")
    assert (qc["new"]["rows"], qc["unchanged"]["rows"]) == (39, 6)
    assert qc["proof"] == {
        "equal_rows": 45, "differing_records": 0, "examples": [], "missing_rows": 0,
    }  # fmt: skip
