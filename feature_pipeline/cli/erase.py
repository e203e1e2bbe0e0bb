"""`feature-pipeline erase`: withdrawn records are taken out of the archive."""

import click

from feature_pipeline.archive import tombstones
from feature_pipeline.archive.erase import OUTSIDE_REACH, finish_erasing
from feature_pipeline.archive.erase import erase as erase_records
from feature_pipeline.cli.output import Output, json_option
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import InvalidInputError


@click.command()
@click.argument("record_ids", nargs=-1)
@click.option("--dataset", required=True, help="The records' dataset.")
@click.option("--reason", help="Kept for ever beside the records' ids: no personal data.")
@click.option("--lift", is_flag=True, help="Allow the records to be submitted again instead.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def erase(
    record_ids: tuple[str, ...],
    dataset: str,
    reason: str | None,
    lift: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Withdraw RECORD_IDS and erase what the archive holds of them. It cannot be undone.

    Without ids, an erasure that was interrupted is brought to its end. Exits with 2 if damaged
    artifacts could not be redacted.
    """
    Project.find().load_environment()
    output = Output(as_json)
    if record_ids and not reason:
        raise InvalidInputError("--reason is needed: it is what the archive keeps of the records")
    if lift and not record_ids:
        raise InvalidInputError("--lift: name the records")
    store = open_archive()
    if lift:
        entry = tombstones.lift(store, dataset, record_ids, reason or "")
        output.say(f"{len(entry.record_ids)} records may be submitted again, in new batches")
        output.result({"dataset": dataset, "lifted": list(entry.record_ids)})
        return
    if record_ids and not yes:
        click.confirm(
            f"Erase {len(record_ids)} records of {dataset} from {store.uri('')} for ever?",
            abort=True,
            err=True,
        )
    if record_ids:
        report = erase_records(store, dataset, record_ids, reason or "", output.say)
    else:
        report = finish_erasing(store, dataset, output.say)
    output.say(
        f"{len(report.record_ids)} records erased from {len(report.batches)} batches and"
        f" {report.artifacts} artifacts; {report.deleted} blobs deleted"
    )
    for problem in report.problems:
        output.say(f"not erased: {problem}")
    output.say("Not reached:")
    for place in OUTSIDE_REACH:
        output.say(f"  - {place}")
    output.result(report.to_json())
    if report.problems:
        raise SystemExit(2)
