"""`feature-pipeline answers`: compare the memory of answers with the archive's logs."""

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.answers import list_programs
from feature_pipeline.archive.maintenance.rebuild_answers import complete
from feature_pipeline.cli.commands.archive.verify import progress_of
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import NotFoundError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quantities import format_size


def answers(hooks: tuple[str, ...], dataset: str | None, rebuild: bool, as_json: bool) -> None:
    """Carry out `feature-pipeline answers`."""
    Project.find().load_environment()
    output = Output(as_json)
    store = open_archive()
    pairs = [
        (name, hook)
        for name in ([dataset] if dataset else log.datasets(store))
        for hook in log.hooks(store, name)
        if not hooks or hook in hooks
    ]
    if unknown := sorted(set(hooks) - {hook for _, hook in pairs}):
        raise NotFoundError(f"the archive has no release of a hook {unknown[0]!r}")
    reports = []
    for name, hook in pairs:
        with progress_of(output, f"{name}/{hook}") as progress:
            report = complete(store, name, hook, anew=rebuild, progress=progress)
        reports.append(report)
        output.say(report.summary())
        for problem in report.problems:
            output.say(f"  {problem}")
        listings = list_programs(store, name, hook).values()
        segments = [segment for listing in listings for segment in listing.segments]
        stored = sum(segment.size for segment in segments)
        objects = sum(len(segment.parts) for segment in segments)
        output.say(f"  {counted(objects, 'object')}, {format_size(stored)}")
    output.result({"hooks": [report.to_json() for report in reports]})
