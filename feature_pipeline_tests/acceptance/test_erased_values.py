"""Values of erased records are searched for in everything that a deployment keeps.

A value counts in every form of `value_search`. Each place is clean once the records are erased, or
named in docs/operations.md, with the step that clears it; the step is carried out here.
"""

import base64
import faulthandler
import gzip
import json
import secrets
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pyarrow as pa
import pytest
import requests

from feature_pipeline.archive import blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.census import write_census
from feature_pipeline.archive.logs import inbox
from feature_pipeline.archive.maintenance.erase import erase
from feature_pipeline.archive.query.api import Archive
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.archive.store.s3 import make_client
from feature_pipeline.local.environment import load_dotenv
from feature_pipeline.local.services import BUCKET, DAGSTER_DATABASE, DATABASE, Credentials
from feature_pipeline.model.records import Record, RecordBatch, Source
from feature_pipeline_tests.acceptance.own_project import OwnProject, wait_for
from feature_pipeline_tests.fixtures.dagster import COUNTS, DATASET, TABLE, Pipeline
from feature_pipeline_tests.fixtures.value_search import (
    Needle,
    in_databases,
    in_files,
    in_store,
)

pytestmark = [pytest.mark.dagster, pytest.mark.slow, pytest.mark.timeout(1800)]

HOOK = """
import json, os, pathlib, sys

source, out = pathlib.Path(os.environ["OSA_IN"]), pathlib.Path(os.environ["OSA_OUT"])
files, name = pathlib.Path(os.environ["OSA_FILES"]), os.environ["OSA_HOOK_NAME"]
written = {each: (out / f"{each}.jsonl").open("w") for each in ("features", "rejections", "errors")}
for line in (source / "records.jsonl").open():
    record = json.loads(line)
    value, kind = record["metadata"]["value"], record["metadata"]["kind"]
    text = (files / record["id"] / "text.txt").read_text()
    print(name, "reads", value, flush=True)
    if name == "broken":
        sys.exit(f"cannot go on over {value}")
    row = {"value": value, "text": text, "size": value if kind == "invalid" else 1}
    place, said = {
        "rejected": ("rejections", {"reason": f"refused: {value}"}),
        "errored": ("errors", {"error": f"failed over {value}", "retryable": False}),
    }.get(kind, ("features", {"features": [row]}))
    written[place].write(json.dumps({"id": record["id"], **said}) + "\\n")
"""
"""Puts values into rows, reasons, errors, output that breaks the columns, prints, and its end."""
DEFINITION = """\
type: feature_pipeline.FeatureHook

attributes:
  name: {name}
  dataset: letters
  release: {{version: "1", command: [python, hook.py], code: [hook.py], retries: 0}}
  feature:
    cardinality: many
    columns:
      - {{name: value, type: string}}
      - {{name: text, type: string}}
      - {{name: size, type: integer}}
"""
WORDS = """
import json, os
from pathlib import Path

features = []
for line in (Path(os.environ["OSA_IN"]) / "records.jsonl").open():
    record = json.loads(line)
    features.append({"id": record["id"], "features": [{"word": record["metadata"]["text"]}]})
with (Path(os.environ["OSA_OUT"]) / "features.jsonl").open("w") as out:
    out.writelines(json.dumps(each) + "\\n" for each in features)
"""
WORD_COLUMNS = [{"name": "word", "type": "string"}]
RUNS = "{ runsOrError(limit: 500) { ... on Runs { results { status } } } }"
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
PRINTED = ("file dagster/storage/", "file dagster-processes/code-server-")
"""Where the output of runs is."""
KINDS = ("passed", "rejected", "errored", "invalid")
ERASED = [*(f"gone-{kind}" for kind in KINDS), "gone-alone"]


class Letters(OwnProject):
    """A project with two hooks, and records with values that occur nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.erased = Needle(f"Q7erased{secrets.token_hex(8)}")
        self.kept = Needle(f"Q7kept{secrets.token_hex(8)}")
        self.temporary, self.inputs = folder / "temporary", folder / "inputs"
        hooks = folder / "hooks"
        for each in (self.temporary, self.inputs, hooks):
            each.mkdir()
        for name in ("reader", "broken"):
            (hooks / name).mkdir()
            (hooks / name / "hook.py").write_text(HOOK)
            (hooks / name / "defs.yaml").write_text(DEFINITION.format(name=name))
        shell = {"FEATURE_PIPELINE_DEFS": str(hooks), "TMPDIR": str(self.temporary)}
        super().__init__(folder / "project", hooks=[], shell=shell)

    def submit(self, batch: str, **records: tuple[Needle, str]) -> None:
        lines = []
        for name, (needle, kind) in records.items():
            record_id = name.replace("_", "-")
            (self.inputs / f"{record_id}.txt").write_text(f"{needle.value} in a file")
            metadata = {"value": f"{needle.value} in metadata", "kind": kind}
            files = {"text.txt": f"{record_id}.txt"}
            lines.append(json.dumps({"id": record_id, "metadata": metadata, "files": files}))
        path = self.inputs / f"{batch}.jsonl"
        path.write_text("\n".join(lines))
        arguments = ("--dataset", "letters", "--source", "deposition", "--batch", batch)
        self.must("submit", str(path), *arguments)

    def must(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def rows(self) -> list[str]:
        with self.connect() as connection:
            try:
                rows = connection.execute("select record_id from features.reader order by 1")
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                return []
            return [record for (record,) in rows]

    def are_runs_over(self) -> bool:
        results = self.graphql(RUNS)["runsOrError"]["results"]
        return bool(results) and all(run["status"] in ENDED for run in results)

    def store(self) -> BlobStore:
        return Archive.open(f"s3://{BUCKET}", environment=load_dotenv(self.root / ".env")).store

    def superuser(self, database: str = "postgres") -> str:
        secret = Credentials.model_validate_json((self.data / "credentials.json").read_bytes())
        url = urlsplit(load_dotenv(self.root / ".env")["FEATURE_PIPELINE_DATABASE_URL"])
        password = secret.postgres_superuser_password
        return f"postgresql://postgres:{password}@{url.hostname}:{url.port}/{database}"

    def uploads(self) -> list[str]:
        """Keys of uploads in parts that did not end."""
        own = load_dotenv(self.root / ".env")
        names = ("endpoint_url", "region", "access_key_id", "secret_access_key")
        client = make_client(**{n: own[f"FEATURE_PIPELINE_S3_{n.upper()}"] for n in names})
        listed = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [upload["Key"] for upload in listed]

    def places(self, needle: Needle) -> set[str]:
        """Everything that has the value, while the servers run."""
        files = in_files(needle, self.data)
        return {
            *(f"object {key.partition('/')[0]}" for key in in_store(needle, self.store())),
            *(f"table {table}" for table in in_databases(needle, self.superuser())),
            *(f"file {path}" for path in files if not path.startswith(("seaweedfs", "postgres"))),
            *(f"file {path}" for path in files if path.endswith("server.log")),
            *(f"temporary {path}" for path in in_files(needle, self.temporary)),
        }


@pytest.mark.parametrize(
    "kept_as",
    [
        bytes,
        lambda data: data.decode().encode("utf-16-le"),
        lambda data: data.hex().encode(),
        *(lambda data, n=n: base64.b64encode(b"." * n + data + b"...") for n in range(3)),
        gzip.compress,
        zlib.compress,
        lambda data: gzip.compress(base64.b64encode(data + b"...")),
        lambda data: pa.compress(data, "zstd", asbytes=True),
    ],
)
def test_the_search_sees_every_form(kept_as: Callable[[bytes], bytes]) -> None:
    needle, other = Needle("Q7erased0123456789"), Needle("Q7kept0123456789")
    data = kept_as(b"it is " + needle.value.encode() + b" here")
    assert needle.is_in(data)
    assert not other.is_in(data)


@pytest.mark.s3
@pytest.mark.postgres
def test_erased_values_are_in_no_object_and_no_row(pipeline: Pipeline) -> None:
    """The short form: the archive and a table."""
    erased, kept = (
        Needle(f"Q7erased{secrets.token_hex(8)}"),
        Needle(f"Q7kept{secrets.token_hex(8)}"),
    )
    pipeline.add_hook(code=WORDS, feature={"columns": WORD_COLUMNS})
    pipeline.submit("b1", {"gone": erased.value, "kept": kept.value})
    pipeline.tick()
    assert pipeline.run(COUNTS, "b1", checks=False).success
    assert pipeline.run(TABLE, "b1", checks=False).success
    assert in_store(erased, pipeline.store)
    write_census(pipeline.store)
    assert erase(pipeline.store, DATASET, ["gone"], "asked for").is_finished
    assert in_store(erased, pipeline.store) == []
    pipeline.reconcile()
    assert pipeline.run(TABLE, "b1", checks=False).success
    assert pipeline.rows("select word from features.counts") == [(kept.value,)]
    assert in_store(kept, pipeline.store)


@pytest.mark.long
def test_erased_values_are_nowhere(tmp_path: Path) -> None:
    # On a busy machine it takes longer than pytest waits before it prints every thread's frames,
    # and printing those of running threads can end the process. `timeout` still applies.
    faulthandler.cancel_dump_traceback_later()
    tmp_path.chmod(0o711)
    project = Letters(tmp_path)
    erased, kept = project.erased, project.kept
    with project.dev():
        of_all_kinds = {f"gone_{kind}": (erased, kind) for kind in KINDS}
        project.submit("one", **of_all_kinds, kept=(kept, "passed"), kept_too=(kept, "rejected"))
        project.submit("two", gone_alone=(erased, "passed"))
        wait_for(lambda: project.rows() == ["gone-alone", "gone-passed", "kept"], 600)
        quarantine_other_version(project)
        wait_for(project.are_runs_over, 600)
        project.must("rebuild", "reader")
        for command in (["read", "reader"], ["read", "reader", "--outcomes"], ["status"]):
            project.must(*command)
        with psycopg.connect(project.superuser(DATABASE), autocommit=True) as connection:
            connection.execute("analyze")
        before = project.places(erased)
        assert {"object blobs", "table dagster: public.event_logs"} <= before
        assert "table feature_pipeline: pg_catalog.pg_statistic" in before
        assert any("compute_logs" in place for place in before)

        # 1 and 2 of docs/operations.md
        project.must("verify")
        project.must("erase", *ERASED, "--dataset", "letters", "--reason", "asked for", "--yes")
        assert in_store(erased, project.store()) == []
        assert project.uploads() == []

        # 3: twice, so that no generation is kept that had the records
        project.must("rebuild", "reader")
        project.must("rebuild", "reader")
        assert project.rows() == ["kept"]
        assert not {place for place in project.places(erased) if "_outcomes" in place}

        # 4
        for database in (DATABASE, DAGSTER_DATABASE):
            with psycopg.connect(project.superuser(database), autocommit=True) as connection:
                connection.execute("analyze")
        wait_for(project.are_runs_over, 600)
        project.tool("dagster", "run", "wipe", "--force")
        project.must("recover")
        wait_for(project.are_runs_over, 600)
        left = project.places(erased)
        assert all(place.startswith(PRINTED) for place in left), left
        clean_disks(project)
        assert "object blobs" in project.places(kept)
        assert project.rows() == ["kept"]

    # With the servers stopped: what the processes wrote down.
    for folder in (project.data / "dagster" / "storage").iterdir():
        shutil.rmtree(folder)
    for log in project.data.rglob("server.log*"):
        log.unlink()
    left_on_disk = in_files(erased, project.data)
    assert [path for path in left_on_disk if not path.startswith("postgres/data/pg_wal/")] == []
    assert in_files(erased, project.temporary) == []
    assert in_files(kept, project.data)
    with project.dev():
        wait_for(project.are_runs_over, 600)
        assert project.rows() == ["kept"]
        assert project.places(erased) == set()


def quarantine_other_version(project: Letters) -> None:
    """Leave other content under the name of a batch, as a writer does that does not look first."""
    value = f"{project.erased.value} in quarantine"
    record = Record(id="gone-passed", metadata={"value": value})
    batch = RecordBatch.create("letters", "one", Source.HARVEST, (record,))
    store = project.store()
    blobs.put_blob(store, batch.encode())
    submission = inbox.Submission(
        dataset="letters", batch="one", digest=batch.digest, source=Source.HARVEST
    )
    assert store.create(layout.inbox(submission.inbox_id), submission.encode())
    wait_for(lambda: inbox.quarantined(store), 300)


def clean_disks(project: Letters) -> None:
    """What an administrator of the servers does for the bytes of deleted rows and objects."""
    for database in (DATABASE, DAGSTER_DATABASE):
        with psycopg.connect(project.superuser(database), autocommit=True) as connection:
            connection.execute("vacuum full")
            connection.execute("checkpoint")
    ports = json.loads((project.data / "seaweedfs" / "ports.json").read_text())
    address = f"http://127.0.0.1:{ports['master']}/vol/vacuum?garbageThreshold=0.000001"
    assert requests.get(address, timeout=60).ok
