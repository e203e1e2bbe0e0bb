"""`feature-pipeline erase`: remove withdrawn records from the archive."""

import click

from feature_pipeline.archive.maintenance.erase import OUTSIDE_REACH, finish_erasing
from feature_pipeline.archive.maintenance.erase import erase as erase_records
from feature_pipeline.archive.maintenance.erase import lift as lift_withdrawal
from feature_pipeline.cli.commands.archive.gc import say_obstacles
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.text.counted import counted


def erase(
    record_ids: tuple[str, ...],
    dataset: str,
    reason: str | None,
    lift: bool,
    lost: tuple[str, ...],
    yes: bool,
    as_json: bool,
) -> None:
    """Carry out `feature-pipeline erase`."""
    Project.find().load_environment()
    output = Output(as_json)
    if record_ids and not reason:
        raise InvalidInputError("--reason is required: the archive stores it with the records' ids")
    if lift and not record_ids:
        raise InvalidInputError("--lift needs the ids of the records")
    store = open_archive()
    given_up = frozenset(map(Digest.parse, lost))
    if record_ids and not lift and not yes:
        click.confirm(
            f"Erase {counted(len(record_ids), 'record')} of {dataset} from {store.uri('')}"
            " permanently?",
            abort=True,
            err=True,
        )
    if lift:
        report = lift_withdrawal(store, dataset, record_ids, reason or "", output.say, given_up)
    elif record_ids:
        report = erase_records(store, dataset, record_ids, reason or "", output.say, given_up)
    else:
        report = finish_erasing(store, dataset, output.say, given_up)
    output.say(
        f"{counted(len(report.record_ids), 'record')} erased from"
        f" {counted(len(report.batches), 'batch')} and {counted(report.artifacts, 'artifact')};"
        f" {counted(report.deleted, 'blob')} deleted"
    )
    for problem in report.problems:
        output.say(f"not erased: {problem}")
    if report.kept_back:
        output.say(f"{counted(report.kept_back, 'blob')} could not be deleted yet")
    say_obstacles(output, report.obstacles)
    if report.lifted:
        output.say(
            f"{counted(len(report.lifted), 'record')} may be submitted again, in new batches"
        )
    elif lift:
        output.say("Nothing was lifted: the erasure must be completed first")
    if not lift:
        output.say("Not reached:")
        for place in OUTSIDE_REACH:
            output.say(f"  - {place}")
    output.result(report.to_json())
    if not report.is_finished:
        raise SystemExit(FINDINGS)
