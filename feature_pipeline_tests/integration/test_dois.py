"""DOIs, whose `/` is part of the id, the whole way: files, hook, archive, table, exports, SQL."""

import csv
import io
import json

import pytest

from feature_pipeline.archive.query.api import Archive
from feature_pipeline.cli.commands.archive.read import write_csv, write_jsonl
from feature_pipeline.cli.commands.runs.submit import submit_records
from feature_pipeline.cli.commands.tables import sql
from feature_pipeline.cli.local_records import read_records
from feature_pipeline.model.records import Source
from feature_pipeline.orchestration.assets.tables import table_spec
from feature_pipeline.orchestration.keys import features_key, records_key, table_key
from feature_pipeline.projections.proof.proof import prove
from feature_pipeline_tests.fixtures.commands import CommandLine
from feature_pipeline_tests.fixtures.dagster import DATASET, Pipeline

SIZES = """
import json, os
from pathlib import Path

files, output = Path(os.environ["OSA_FILES"]), Path(os.environ["OSA_OUT"])
records = [json.loads(l) for l in Path(os.environ["OSA_IN"], "records.jsonl").open()]
no = (output / "rejections.jsonl").open("w")
with (output / "features.jsonl").open("w") as features:
    for record in records:
        folder = files / record["id"]
        rows = [{"name": f.name, "bytes": f.stat().st_size} for f in sorted(folder.iterdir())]
        if rows:
            features.write(json.dumps({"id": record["id"], "features": rows}) + "\\n")
        else:
            no.write(json.dumps({"id": record["id"], "reason": "no files"}) + "\\n")
"""
COLUMNS = [{"name": "name", "type": "string"}, {"name": "bytes", "type": "integer"}]
DOIS = ["10.1107/S0907444994003112", "10.5281/zenodo.1", "10.5281/zenodo.1.v2", "10.1/a/b"]


@pytest.mark.s3
@pytest.mark.postgres
def test_dois_the_whole_way(pipeline: Pipeline, command_line: CommandLine, monkeypatch):
    (pipeline.folder / "a.pdb").write_bytes(b"atoms")
    path = pipeline.folder / "records.jsonl"
    lines = [json.dumps({"id": doi, "files": {"a.pdb": "a.pdb"}}) for doi in DOIS]
    path.write_text("\n".join([*lines, '{"id": "10.1/none"}']))
    submit_records(pipeline.store, DATASET, Source.IMPORT, read_records(path).records, "b1")
    pipeline.add_hook("sizes", SIZES, feature={"columns": COLUMNS})
    pipeline.tick()
    assert pipeline.run(records_key(DATASET), "b1").success
    run = pipeline.run(features_key(DATASET, "sizes"), "b1")
    assert run.success
    assert pipeline.run(table_key(DATASET, "sizes"), "b1").success

    rows = pipeline.rows("select record_id, name, bytes from features.sizes order by record_id")
    assert rows == [(doi, "a.pdb", 5) for doi in sorted(DOIS)]
    assert prove(pipeline.store, pipeline.database, table_spec(pipeline.hooks["sizes"])).is_equal
    outcomes = pipeline.rows("select record_id, status from features._outcomes order by record_id")
    assert (outcomes[1], len(outcomes)) == (("10.1/none", "rejected"), 5)

    features = Archive(pipeline.store).features("sizes")
    for write, read in ((write_csv, csv.DictReader), (write_jsonl, map_json)):
        file = io.BytesIO()
        write(features.schema, iter(features), file)
        read_back = list(read(io.StringIO(file.getvalue().decode())))
        assert sorted(row["record_id"] for row in read_back) == sorted(DOIS)

    (event,) = run.asset_materializations_for_node(f"{DATASET}__features__sizes")
    assert "10.5281/zenodo.1" in str(event.metadata["preview"].value)
    monkeypatch.setenv("FEATURE_PIPELINE_DATABASE_URL", pipeline.database.url)
    monkeypatch.setattr(sql, "Project", NoProject)
    status, shown, _ = command_line("sql", "select record_id from sizes order by 1")
    assert status == 0
    assert all(doi in shown for doi in DOIS)


def map_json(file: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in file]


class NoProject:
    """Settings come from the environment alone."""

    @classmethod
    def find(cls) -> "NoProject":
        return cls()

    def load_environment(self) -> None:
        pass
