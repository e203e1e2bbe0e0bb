"""What marks a reconstructed artifact, and its file of the server's own columns."""

from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.columns import Column
from feature_pipeline.osa.history.reconstructed import (
    RECONSTRUCTED,
    ROW_IDS,
    is_reconstructed,
    reconstructed_completion,
    reconstructed_run,
    row_ids_schema,
    server_row_ids,
)
from feature_pipeline_tests.fixtures.feature_archive import FeatureArchive

RUN = "85b187a2-4970-5f04-952c-7dd62f2a0cb9"
ROWS = {
    "record": ["r1", "r1"],
    "row": [0, 1],
    "id": [7, 9],
    "record_srn": ["urn:1", "urn:1"],
    "created_at": [datetime(2026, 1, 2, tzinfo=UTC)] * 2,
}


def stored(archive: FeatureArchive, raw: dict[str, Path]) -> Manifest:
    archive.submit("b1", ["r1"])
    entry = archive.say("b1", {"r1": [{"score": 1.0}, {"score": 2.0}]}, raw)
    return read.manifest_of(archive.store, entry)


def test_the_servers_columns_are_read_as_they_were_stored(tmp_path: Path) -> None:
    archive = FeatureArchive([Column(name="score", type="number")])
    table = pa.table(ROWS, schema=row_ids_schema())
    pq.write_table(table, tmp_path / ROW_IDS)
    manifest = stored(archive, {ROW_IDS: tmp_path / ROW_IDS})
    assert server_row_ids(archive.store, manifest).equals(table)


def test_an_artifact_without_the_file_has_no_row_ids() -> None:
    archive = FeatureArchive([Column(name="score", type="number")])
    assert server_row_ids(archive.store, stored(archive, {})).num_rows == 0


def test_a_file_with_other_columns_is_an_error(tmp_path: Path) -> None:
    archive = FeatureArchive([Column(name="score", type="number")])
    pq.write_table(pa.table({"id": [7]}), tmp_path / ROW_IDS)
    manifest = stored(archive, {ROW_IDS: tmp_path / ROW_IDS})
    with pytest.raises(CorruptDataError, match="its columns are not those"):
        server_row_ids(archive.store, manifest)


def test_the_runner_marks_a_reconstructed_artifact_and_the_completion_names_its_run() -> None:
    archive = FeatureArchive([Column(name="score", type="number")])
    manifest = stored(archive, {})
    assert not is_reconstructed(manifest)
    run = manifest.run.model_copy(update={"runner": RECONSTRUCTED})
    assert is_reconstructed(manifest.model_copy(update={"run": run}))
    assert reconstructed_run(reconstructed_completion(RUN)) == RUN
    assert reconstructed_run(RUN) is None
