"""`feature-pipeline history`: list the log entries of a hook's batches."""

from feature_pipeline.archive.query.history import HistoryLine, readable_history
from feature_pipeline.cli.commands.archive.verify import find_dataset
from feature_pipeline.cli.errors import FINDINGS
from feature_pipeline.cli.output import Output
from feature_pipeline.cli.project import Project, open_archive
from feature_pipeline.errors import NotFoundError
from feature_pipeline.model.text.quoting import quoted


def history(hook: str, batch: str | None, dataset: str | None, as_json: bool) -> None:
    """Carry out `feature-pipeline history`."""
    Project.find().load_environment()
    output = Output(as_json)
    store = open_archive(is_changed=False)
    where = find_dataset(store, hook, dataset)
    if where is None:
        raise NotFoundError(f"no dataset of the archive has hook {hook!r}")
    history_of = readable_history(store, where, hook, batch)
    lines, damage = history_of.lines, dict(history_of.damage)
    output.table(
        f"{where}/{hook}" + (f", batch {batch}" if batch else ""),
        [
            "batch",
            "entry",
            "verdict",
            "accepted at",
            "version",
            "records",
            "rows",
            "manifest",
            "remark",
        ],
        [_cells(line) for line in lines],
    )
    output.result(
        {
            "dataset": where,
            "hook": hook,
            "batch": batch,
            "entries": [line.to_json() for line in lines],
            "damaged": damage,
        }
    )
    damage |= {
        f"{line.entry.batch}, entry {line.entry.seq}": line.problem
        for line in lines
        if line.problem is not None
    }
    if damage:
        output.problems(f"damaged in {where}/{hook}", damage)
        output.warn("`feature-pipeline repair` shows what can be restored")
        raise SystemExit(FINDINGS)


def _cells(line: HistoryLine) -> list[object]:
    entry, manifest = line.entry, line.manifest
    remark: str = ""
    if line.is_erased:
        remark = "erased: see its successor"
    elif line.problem is not None:
        remark = "cannot be read"
    elif manifest is not None and manifest.failure is not None:
        remark = f"{manifest.failure.kind}: {quoted(manifest.failure.reason)}"
    return [
        entry.batch,
        f"{entry.seq}{'*' if line.is_head else ''}",
        entry.verdict.value,
        f"{entry.accepted_at:%Y-%m-%d %H:%M:%S}",
        "?" if line.release is None else line.release.release.document.version,
        "" if manifest is None else manifest.counts.records,
        "" if manifest is None else manifest.counts.rows,
        entry.manifest.short,
        remark,
    ]
