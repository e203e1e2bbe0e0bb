"""The server's storage in a folder; the bucket is tested against a real one."""

from pathlib import Path

import pytest

from feature_pipeline.errors import InvalidInputError, NotFoundError, StoreUnavailableError
from feature_pipeline.osa.server.ids import deposition_folder, hook_run_id, local_id
from feature_pipeline.osa.server.storage import FolderStorage, Place, batch_place, output_place
from feature_pipeline_tests.fixtures import osa_server as recorded


def test_ids_of_ingests_follow_from_run_batch_and_hook() -> None:
    known = {row["id"] for row in recorded.rows("public.hook_runs")}
    computed = {
        hook_run_id(run["id"], index, hook)
        for run in recorded.rows("public.ingest_runs")
        for index in range(run["batches_ingested"])
        for hook in ("pockets", "qc")
    }
    assert len(computed & known) == 12
    assert len(computed - known) == 2  # of the batch that was interrupted


def test_a_deposition_has_a_folder_and_a_record_id() -> None:
    srn = "urn:osa:archive.example.org:dep:6db1e311-bd4a-459c-8"
    assert deposition_folder(srn) == "archive.example.org_6db1e311-bd4a-459c-8"
    assert local_id(srn) == "6db1e311-bd4a-459c-8"


@pytest.mark.parametrize("srn", ["", "urn:osa:x:rec:1@1", "urn:osa::dep:a", "urn:osa:a/b:dep:c"])
def test_what_is_no_deposition_is_refused(srn: str) -> None:
    with pytest.raises(InvalidInputError, match="urn:osa:<domain>:dep:<local id>"):
        local_id(srn)


def test_every_recorded_file_is_read(osa_storage: FolderStorage) -> None:
    place = output_place(batch_place(recorded.HISTORY, 0), "qc") / "run.json"
    assert b"a1c638f4-f711-594c-a454-516f556a435c" in osa_storage.read(place)
    folder = output_place(batch_place(recorded.HISTORY, 0), "qc")
    assert sorted(osa_storage.files(folder)) == ["features.jsonl", "progress.jsonl", "run.json"]
    assert osa_storage.files(folder) == osa_storage.files(folder)
    osa_storage.check()


def test_an_absent_file_is_absent_and_an_absent_storage_is_an_error(
    osa_storage: FolderStorage, tmp_path: Path
) -> None:
    place = batch_place(recorded.HISTORY, 7) / "ingester" / "records.jsonl"
    assert osa_storage.files(batch_place(recorded.HISTORY, 7)) == {}
    with pytest.raises(NotFoundError, match="batches/7/ingester"):
        osa_storage.read(place)
    with pytest.raises(NotFoundError, match="no such folder"):
        FolderStorage(tmp_path / "unmounted").files(place)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NotFoundError, match="neither ingests/ nor files/"):
        FolderStorage(tmp_path / "empty").files(place)


def test_a_path_cannot_leave_the_storage(osa_folder: Path, osa_storage: FolderStorage) -> None:
    with pytest.raises(InvalidInputError, match=r"'\.\.'"):
        batch_place(recorded.HISTORY, 0) / "../../../secret"
    outside = osa_folder.parent / "secret"
    outside.write_text("secret")
    link = osa_folder / "ingests" / "link"
    link.symlink_to(outside)
    with pytest.raises(InvalidInputError, match="out of the storage"):
        osa_storage.read(Place("ingests", "link"))


def test_what_is_no_file_is_refused_by_name(osa_storage: FolderStorage) -> None:
    with pytest.raises(InvalidInputError, match="is not a regular file"):
        osa_storage.read(batch_place(recorded.HISTORY, 0))
    with pytest.raises(StoreUnavailableError, match="File name too long"):
        osa_storage.files(Place("ingests", "x" * 300))


def test_a_rewritten_file_has_another_identity(
    osa_folder: Path, osa_storage: FolderStorage
) -> None:
    place = output_place(batch_place(recorded.HISTORY, 0), "qc")
    before = osa_storage.files(place)
    path = osa_folder / "ingests" / place.path / "run.json"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    after = osa_storage.files(place)
    assert after.pop("run.json") != before.pop("run.json")
    assert after == before


def test_a_link_is_no_file_of_an_output(osa_folder: Path, osa_storage: FolderStorage) -> None:
    place = output_place(batch_place(recorded.HISTORY, 0), "qc")
    (osa_folder / "ingests" / place.path / "hook.log").symlink_to("/etc/hostname")
    assert "hook.log" not in osa_storage.files(place)
