"""What a newcomer does and sees: the README's commands in its order, everything real."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import yaml

from feature_pipeline.archive import read
from feature_pipeline.archive.logs import log
from feature_pipeline.examples.records import STRUCTURES
from feature_pipeline.local.services import LocalServices
from feature_pipeline_tests.acceptance.own_project import OwnProject, wait_for
from feature_pipeline_tests.acceptance.readme import README, one_block
from feature_pipeline_tests.fixtures.shell import HOSTILE
from feature_pipeline_tests.fixtures.stores import connect

HOOK = "file_sizes"
FEATURES = ["structures", "features", HOOK]
TABLE = ["structures", "tables", HOOK]
KEYS = [["structures", "records"], FEATURES, TABLE]
BATCHES = ["first", "second"]

pytestmark = [pytest.mark.dagster, pytest.mark.slow, pytest.mark.timeout(1200)]


class ReadersProject(OwnProject):
    """A checkout as a reader has it, with the README's hook in place of the examples."""

    def __init__(self, root: Path) -> None:
        # the shell has keys, proxies and services of other places
        super().__init__(root, hooks=[], shell=HOSTILE)
        (root / ".venv").symlink_to(sys.prefix)
        self._write_hook()

    def _write_hook(self) -> None:
        """Save the ten-line hook and its definition where the README says."""
        code, definition = one_block("python", "import Reject"), one_block("yaml", "FeatureHook")
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
        for path, text in (("file_sizes.py", code), ("defs.yaml", definition)):
            saved = f"feature_pipeline/defs/{HOOK}/{path}"
            assert f"`{saved}`" in README
            (self.root / saved).parent.mkdir(exist_ok=True)
            (self.root / saved).write_text(text, "utf-8")
        assert yaml.safe_load(definition)["attributes"]["release"]["code"][0] == "file_sizes.py"

    def shell(self, commands: str) -> str:
        """What the commands print, each of which must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def loaded(self, condition: str = "true") -> list[str]:
        """The records in the table; none while it does not exist."""
        statement = f"select record_id from features.{HOOK} where {condition} order by 1"
        with self.connect() as connection:
            try:
                return [record for (record,) in connection.execute(statement.encode())]
            except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
                return []

    def drop_tables(self) -> None:
        with self.connect() as connection:
            connection.execute("drop schema features cascade")
            connection.execute("drop schema feature_pipeline cascade")

    def submit_second(self) -> None:
        """A batch of one record, with a harvest for its source."""
        folder = self.root / "more"
        folder.mkdir()
        shutil.copy(STRUCTURES / "1a8o.cif", folder)
        arguments = ["--dataset", "structures", "--source", "harvest", "--batch", "second"]
        done = self.run("submit", str(folder), *arguments)
        assert done.returncode == 0, done.stderr

    def publish_other_output(self) -> None:
        """Publish, with only the servers running, what another run might have said of `second`."""
        with LocalServices(self.data) as services, connect(services.s3) as store:
            head = log.head(store, "structures", HOOK, "second")
            assert head is not None
            raw = read.read_raw(store, read.read_manifest(store, head.manifest), "features.jsonl")
            output = self.root / "elsewhere"
            output.mkdir()
            with (output / "features.jsonl").open("w") as file:
                for line in raw.decode().splitlines():
                    document = json.loads(line)
                    document["features"][0]["bytes"] = 77777
                    file.write(json.dumps(document) + "\n")
            done = self.run("publish", str(output), "--hook", HOOK, "--batch", "second")
            assert done.returncode == 0, done.stderr


def look_at_results(project: ReadersProject) -> None:
    """As the README's chapter does."""
    shown = project.shell(one_block("sh", "feature-pipeline sql"))
    assert shown.count("1ubi.pdb") == 2  # by `sql` and by `read`
    assert re.search(r'"5pti","passed"', shown)

    (project.root / "results.py").write_text(one_block("python", "Archive.open"), "utf-8")
    printed = project.shell(".venv/bin/python results.py")
    assert re.search(r"^first +\d+$", printed, re.MULTILINE)
    assert re.search(r"^passed +2$", printed, re.MULTILINE)
    assert '{"id": "1ubi", "features": [{"name": "1ubi.pdb", "bytes": 77355}]}' in printed


def test_from_first_submission_to_rebuilt_table(tmp_path: Path) -> None:
    project = ReadersProject(tmp_path)
    assert one_block("sh", "feature-pipeline dev") == ".venv/bin/feature-pipeline dev\n"
    with project.dev():
        # nothing is clicked: the sensor accepts, automation computes and loads
        project.shell(one_block("sh", "feature-pipeline submit"))
        project.tool("dg", "check", "defs")
        assert "/".join(FEATURES) in project.tool("dg", "list", "defs", "--json")
        wait_for(lambda: project.loaded() == ["1ubi", "5pti"], 600)
        look_at_results(project)
        project.submit_second()
        wait_for(lambda: project.loaded() == ["1a8o", "1ubi", "5pti"], 600)
        project.shell(one_block("sh", "dg launch"))

        # Dagster still shows them as loaded; what the tables lack is known all the same
        project.drop_tables()
        missing = project.json("backfill", HOOK, "--select", "missing", "--dry-run")
        assert missing["assets"] == {"/".join(TABLE): BATCHES}

        # a backfill of features and tables over every partition, as the UI launches it
        readers = project.graphql(one_block("graphql", "launchPartitionBackfill"))
        launched = project.launch_backfill([FEATURES, TABLE], BATCHES)
        done = project.run("dev")
        assert done.returncode == 1
        assert "is in use by process" in done.stderr
        project.shell(one_block("sh", "feature-pipeline verify"))
        project.shell(one_block("sh", "read file_sizes --plot"))
        assert (project.root / "file_sizes.png").read_bytes().startswith(b"\x89PNG")
        for backfill in (readers["launchPartitionBackfill"]["backfillId"], launched):
            project.wait_for_backfill(backfill)
        assert project.loaded() == ["1a8o", "1ubi", "5pti"]
        assert project.staleness(KEYS) == {"/".join(key): {"FRESH"} for key in KEYS}
        hooks = {row["hook"]: row for row in project.json("status")["hooks"]}
        assert hooks[HOOK]["to_load"] == 0

    project.publish_other_output()

    with project.dev() as lines:
        project.break_code_location(lines)
        wait_for(lambda: project.loaded("bytes = 77777") == ["1a8o"], 600)
        assert project.json("status")["quarantined"] == []
