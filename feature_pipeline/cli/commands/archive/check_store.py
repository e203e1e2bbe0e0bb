"""`feature-pipeline check-store`: test whether the archive's store has the required properties."""

from feature_pipeline import settings
from feature_pipeline.archive.store.s3_check import check_store as check
from feature_pipeline.archive.store.s3_client import client_of
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project


def check_store(as_json: bool) -> None:
    """Carry out `feature-pipeline check-store`."""
    Project.find().load_environment()
    output = Output(as_json)
    where = settings.S3Settings.from_environment()
    client = client_of(where)
    try:
        properties = check(client, where.bucket, where.prefix)
    finally:
        client.close()
    output.table(
        where.uri,
        ["property", "needed for", "is there"],
        [[each.name, each.needed_for, each.failure or "yes"] for each in properties],
    )
    lacking = [each.name for each in properties if each.is_required and not each.is_present]
    if lacking:
        output.say(f"An archive on this store can lose data: it lacks {', '.join(lacking)}.")
    output.result(
        {
            "store": where.uri,
            "is_usable": not lacking,
            "properties": [
                {
                    "name": each.name,
                    "needed_for": each.needed_for,
                    "is_required": each.is_required,
                    "failure": each.failure,
                }
                for each in properties
            ],
        }
    )
    if lacking:
        raise SystemExit(FINDINGS)
