"""What a newcomer sees: servers and Dagster from one command, everything real."""

import json
import shutil
from pathlib import Path
from typing import Any

import psycopg
import pytest

from feature_pipeline.archive import log, read
from feature_pipeline.archive.stores.s3 import make_client, open_store
from feature_pipeline.examples.records import STRUCTURES
from feature_pipeline.local.environment import load_dotenv
from feature_pipeline.local.services import LocalServices
from feature_pipeline_tests.acceptance.own_project import OwnProject, wait_for

FEATURES = ["structures", "features", "structure_qc"]
TABLE = ["structures", "tables", "structure_qc"]
KEYS = [["structures", "records"], FEATURES, TABLE]
BATCHES = {"first": ["1ubi.pdb", "5pti.cif"], "second": ["1a8o.cif"]}

pytestmark = [pytest.mark.dagster, pytest.mark.slow, pytest.mark.timeout(1200)]


def submit(project: OwnProject, batch: str, names: list[str]) -> None:
    folder = project.root / f"{batch}-files"
    folder.mkdir()
    for name in names:
        shutil.copy(STRUCTURES / name, folder / name)
    arguments = ["--dataset", "structures", "--source", "deposition", "--batch", batch]
    done = project.run("submit", str(folder), *arguments)
    assert done.returncode == 0, done.stderr


def publish_other_output(project: OwnProject, batch: str) -> None:
    """Publish, with only the servers running, what another run of the hook might have said."""
    with LocalServices(project.data) as services:
        address = services.s3
        client = make_client(
            endpoint_url=address.endpoint_url,
            region=address.region,
            access_key_id=address.access_key_id,
            secret_access_key=address.secret_access_key,
        )
        store = open_store(client, address.bucket)
        head = log.head(store, "structures", "structure_qc", batch)
        assert head is not None
        raw = read.read_raw(store, read.read_manifest(store, head.manifest), "features.jsonl")
        output = project.root / "elsewhere"
        output.mkdir()
        with (output / "features.jsonl").open("w") as file:
            for line in raw.decode().splitlines():
                said = json.loads(line)
                said["features"][0]["waters"] = 77777
                file.write(json.dumps(said) + "\n")
        done = project.run("publish", str(output), "--hook", "structure_qc", "--batch", batch)
        assert done.returncode == 0, done.stderr
        client.close()


def connect(project: OwnProject) -> psycopg.Connection[tuple[Any, ...]]:
    """To the tables, without a process of the command line for every question."""
    url = load_dotenv(project.root / ".env")["FEATURE_PIPELINE_DATABASE_URL"]
    return psycopg.connect(url, autocommit=True)


def drop_tables(project: OwnProject) -> None:
    with connect(project) as connection:
        connection.execute("drop schema features cascade")
        connection.execute("drop schema feature_pipeline cascade")


def test_from_first_submission_to_rebuilt_table(tmp_path: Path) -> None:
    project = OwnProject(tmp_path, hooks=["structure_qc"])
    with project.dev():
        # nothing is clicked: the sensor accepts, automation computes and loads
        for batch, names in BATCHES.items():
            submit(project, batch, names)
        wait_for(lambda: loaded(project) == ["1a8o", "1ubi", "5pti"], 240)

        # Dagster still shows them as loaded; what the tables lack is known all the same
        drop_tables(project)
        missing = project.json("backfill", "structure_qc", "--select", "missing", "--dry-run")
        assert missing["assets"] == {"/".join(TABLE): list(BATCHES)}

        # a backfill of features and tables over every partition, as the UI launches it
        project.backfill([FEATURES, TABLE], list(BATCHES))
        assert loaded(project) == ["1a8o", "1ubi", "5pti"]
        assert project.staleness(KEYS) == {"/".join(key): {"FRESH"} for key in KEYS}
        hooks = {row["hook"]: row for row in project.json("status")["hooks"]}
        assert hooks["structure_qc"]["to_load"] == 0

        done = project.run("dev")
        assert done.returncode == 1
        assert "is in use by process" in done.stderr

    publish_other_output(project, "second")

    with project.dev():
        wait_for(lambda: loaded(project, "waters = 77777") == ["1a8o"], 240)
        assert project.json("status")["quarantined"] == []


def loaded(project: OwnProject, condition: str = "true") -> list[str]:
    """The records in the table; none while it does not exist."""
    statement = f"select record_id from features.structure_qc where {condition} order by 1"
    with connect(project) as connection:
        try:
            return [record for (record,) in connection.execute(statement.encode())]
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return []
