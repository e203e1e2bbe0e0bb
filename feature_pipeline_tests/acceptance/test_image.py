"""The image of deploy/Dockerfile, built by `.ci/image`, with a hook of the user's own in it.

Skipped without `--image-folder`: building takes minutes.
"""

import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from feature_pipeline.local.seaweedfs import S3Address
from feature_pipeline_tests.acceptance.own_project import ROOT, wait_for

HOOK = "file_counts"
BEGIN = """
set -e
cd "$DAGSTER_HOME"
cp "$(python -c 'from feature_pipeline.cli.project import TEMPLATES; print(TEMPLATES)')"/*.yaml .
examples=$(python -c 'from feature_pipeline.examples.records import STRUCTURES; print(STRUCTURES)')
mkdir records
cp "$examples/1ubi.pdb" "$examples/1a8o.cif" records
feature-pipeline submit records --dataset structures --source import --batch first
exec dagster-daemon run
"""
"""As in a deployment: Dagster's configuration is put there, and all settings are variables."""

pytestmark = [
    pytest.mark.dagster,
    pytest.mark.container,
    pytest.mark.s3,
    pytest.mark.postgres,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]


def commands_of_ci(folder: Path) -> list[str]:
    """Podman as `.ci/image` calls it: its images are below `folder`."""
    roots = ["--root", str(folder / "store"), "--runroot", str(folder / "run")]
    return ["podman", *roots, "--cgroup-manager=cgroupfs", "--runtime", "runc"]


@pytest.fixture(scope="module")
def built(request: pytest.FixtureRequest) -> Path:
    """The folder in which the images are. What is built already is not built again."""
    folder = request.config.getoption("--image-folder")
    if not folder:
        pytest.skip("building the image takes minutes: --image-folder FOLDER")
    done = subprocess.run(
        [ROOT / ".ci" / "image", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(folder).resolve()


@contextmanager
def running(folder: Path, image: str, options: list[str]) -> Iterator[None]:
    """A container of the image does what `BEGIN` says."""
    podman = commands_of_ci(folder)
    name = f"image-test-{secrets.token_hex(4)}"
    limits = ["--ulimit", "nproc=1000:1000", "--ulimit", "nofile=1000:1000"]
    begin = ["run", "--rm", "--name", name, "--network", "host", *limits, *options, image]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen([*podman, *begin, "sh", "-c", BEGIN], stdout=log, stderr=log)
        try:
            yield
            assert process.poll() is None, (folder / f"{name}.log").read_text("utf-8")
        finally:
            subprocess.run([*podman, "rm", "--force", "--time", "5", name], check=False)
            process.wait(60)


def rows(url: str) -> list[tuple[str, int]]:
    """The table's rows; none while it does not exist."""
    with psycopg.connect(url) as connection:
        try:
            statement = f"select record_id, file_count from features.{HOOK} order by 1"
            return connection.execute(statement.encode()).fetchall()
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return []


@pytest.mark.parametrize("way", ["an image of their own", "a mounted folder"])
def test_an_own_hook_leads_from_nothing_to_a_table(
    built: Path, s3_address: S3Address, s3_prefix: str, database_url: str, way: str
) -> None:
    settings = {
        "FEATURE_PIPELINE_S3_BUCKET": s3_address.bucket,
        "FEATURE_PIPELINE_S3_PREFIX": s3_prefix,
        "FEATURE_PIPELINE_S3_ENDPOINT_URL": s3_address.endpoint_url,
        "FEATURE_PIPELINE_S3_REGION": s3_address.region,
        "FEATURE_PIPELINE_S3_ACCESS_KEY_ID": s3_address.access_key_id,
        "FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY": s3_address.secret_access_key,
        "FEATURE_PIPELINE_DATABASE_URL": database_url,
        "DAGSTER_DATABASE_URL": database_url.replace("://", "+psycopg2://"),
    }
    image, options = "own-hooks", []
    if way == "a mounted folder":
        image = "feature-pipeline"
        settings["FEATURE_PIPELINE_DEFS"] = "/hooks"
        options = ["-v", f"{built / 'own' / 'defs'}:/hooks:ro"]
    for name, value in settings.items():
        options += ["-e", f"{name}={value}"]
    with running(built, image, options):
        wait_for(lambda: rows(database_url) == [("1a8o", 1), ("1ubi", 1)], 600)
