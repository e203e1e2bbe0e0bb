"""Dagster metadata of artifacts and tables."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from feature_pipeline.archive.format.manifest import FailureInfo, Manifest, shown_notes
from feature_pipeline.hooks.run import HookRun, Start
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome
from feature_pipeline.model.text.printable import printable
from feature_pipeline.model.text.quantities import format_size
from feature_pipeline.orchestration.markdown import bullets, fenced, plain

if TYPE_CHECKING:
    from feature_pipeline.projections.catalog.shown_table import ShownColumn

PREVIEW_ROWS = 5
_STARTS_SHOWN = 25
_CELL_LENGTH = 60

Metadata = dict[str, dg.MetadataValue]


def column_schema(columns: Sequence[Column]) -> dg.TableSchema:
    """Return Dagster's column schema of declared columns, with units as constraints."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name=column.name,
                type=column.format.value if column.format else column.type.value,
                description=_text(column.description),
                constraints=dg.TableColumnConstraints(
                    nullable=not column.required,
                    other=[f"unit: {column.unit}"] if column.unit else [],
                ),
            )
            for column in columns
        ]
    )


def table_schema(columns: Sequence[Column]) -> dg.TableSchema:
    """Return the column schema of a table: record_id, ordinal, the declared columns, batch."""
    declared = column_schema(columns).columns
    required = dg.TableColumnConstraints(nullable=False)
    return dg.TableSchema(
        columns=[
            dg.TableColumn("record_id", "string", "The record.", required),
            dg.TableColumn("ordinal", "integer", "Position among the record's rows.", required),
            *declared,
            dg.TableColumn("batch", "string", "The batch that the row came with.", required),
        ]
    )


def shown_schema(shown: "Sequence[ShownColumn]", declared: Sequence[Column]) -> dg.TableSchema:
    """Return the column schema of a table as PostgreSQL shows it; units are as declared."""
    known = {column.name: column for column in declared}
    columns = []
    for column in shown:
        declared_column = known.get(column.name)
        columns.append(
            dg.TableColumn(
                name=column.name,
                type=column.type,
                description=_text(column.description),
                constraints=dg.TableColumnConstraints(
                    nullable=declared_column is not None and not declared_column.required,
                    other=[f"unit: {declared_column.unit}"]
                    if declared_column is not None and declared_column.unit
                    else [],
                ),
            )
        )
    return dg.TableSchema(columns=columns)


def _text(description: str | None) -> str | None:
    """Return a column's description so that Dagster, which takes it for Markdown, shows it as is.

    Any writer of a manifest can choose it.
    """
    return None if description is None else plain(description)


def column_lineage(features: dg.AssetKey, columns: Sequence[Column]) -> dg.TableColumnLineage:
    """Return the feature columns that each table column comes from."""
    return dg.TableColumnLineage(
        {
            name: [dg.TableColumnDep(asset_key=features, column_name=name)]
            for name in ["record_id", "ordinal", *(column.name for column in columns)]
        }
    )


def column_sources(features: dg.AssetKey, columns: Sequence[Column]) -> dg.MetadataValue:
    """Return the lineage as a Markdown table, since Dagster's open-source UI does not draw it."""
    asset = f"`{features.to_user_string()}`"
    there = {name: f"`{name}`" for name in ("record_id", "ordinal", *(c.name for c in columns))}
    for column in columns:
        if column.former_names:
            former = ", ".join(f"`{name}`" for name in column.former_names)
            there[column.name] += f", {former} in older releases"
    lines = [
        "| column | comes from | column there |",
        "| --- | --- | --- |",
        *(f"| `{name}` | {asset} | {source} |" for name, source in there.items()),
        "| `batch` | the partition | |",
    ]
    return dg.MetadataValue.md("\n".join(lines))


def freshness_policy(definition: HookDefinition) -> dg.FreshnessPolicy | None:
    """Return Dagster's freshness policy for the hook's `freshness`."""
    declared = definition.freshness
    if declared is None:
        return None
    warn = declared.warn_seconds
    return dg.FreshnessPolicy.time_window(
        fail_window=timedelta(seconds=declared.fail_seconds),
        warn_window=None if warn is None else timedelta(seconds=warn),
    )


def code_references(files: Iterable[Path]) -> Metadata:
    """Return references to the hook's own files; Dagster adds the `defs.yaml` itself."""
    references = [
        dg.LocalFileCodeReference(file_path=str(path.resolve()), line_number=1, label=path.name)
        for path in files
    ]
    if not references:
        return {}
    value = dg.CodeReferencesMetadataValue(code_references=list(references))
    return {"dagster/code_references": value}


def artifact_metadata(
    archive_uri: str, manifest_digest: Digest, manifest: Manifest, uri: str
) -> Metadata:
    """Return counts, run facts and addresses of an artifact."""
    counts = manifest.counts
    run = manifest.run
    metadata: dict[str, dg.MetadataValue] = {
        # Not `dagster/row_count`, which is an asset's: this is one batch's.
        "rows": dg.MetadataValue.int(counts.rows),
        "dagster/uri": dg.MetadataValue.text(uri),
        "records": dg.MetadataValue.int(counts.records),
        "passed": dg.MetadataValue.int(counts.passed),
        "rejected": dg.MetadataValue.int(counts.rejected),
        "errored": dg.MetadataValue.int(counts.errored),
        "empty": dg.MetadataValue.int(counts.empty),
        "carried": dg.MetadataValue.int(counts.carried),
        "computed": dg.MetadataValue.int(counts.records - counts.carried),
        "duration_seconds": dg.MetadataValue.float(
            (run.finished_at - run.started_at).total_seconds()
        ),
        "attempts": dg.MetadataValue.int(run.attempts),
        "runner": dg.MetadataValue.text(run.runner),
        "manifest": dg.MetadataValue.text(str(manifest_digest)),
        "archive": dg.MetadataValue.text(archive_uri),
        "release": dg.MetadataValue.text(
            f"{manifest.release.version} (#{manifest.release.seq}, {manifest.release.digest.short})"
        ),
        "bytes": dg.MetadataValue.int(sum(blob.size for blob in manifest.blobs.values())),
    }
    if run.memory_bytes is not None:
        metadata["peak_memory_bytes"] = dg.MetadataValue.int(run.memory_bytes)
    if manifest.columns:
        metadata["dagster/column_schema"] = dg.MetadataValue.table_schema(
            column_schema(manifest.columns)
        )
    if manifest.notes:
        metadata["notes"] = dg.MetadataValue.md(bullets(shown_notes(manifest)))
    return metadata


def failure_metadata(hook_run: HookRun | None, failure: FailureInfo, log_tail: str) -> Metadata:
    """Return why a hook run failed, the decision with its reason, and the end of its log.

    Args:
        hook_run: Its attempts; None if no hook process was started.
        failure: That of the last attempt.
        log_tail: The last lines of its log.
    """
    metadata: Metadata = {
        "failure_kind": dg.MetadataValue.text(failure.kind),
        "decision": dg.MetadataValue.text(printable(failure.reason)),
        "exit_code": dg.MetadataValue.text(str(failure.exit_code)),
        "log_tail": dg.MetadataValue.md(fenced(log_tail)),
    }
    if hook_run is not None:
        metadata["memory_limit"] = dg.MetadataValue.text(format_size(hook_run.memory_bytes))
        metadata["attempts"] = dg.MetadataValue.int(len(hook_run.starts))
        metadata |= attempts_table(hook_run)
    return metadata


def attempts_table(hook_run: HookRun) -> Metadata:
    """Return a Markdown table of the starts; empty if the first one sufficed.

    Of many starts the first and the last are shown.
    """
    starts = hook_run.starts
    if all(start.result.failure is None for start in starts):
        return {}
    lines = [
        "| part | records | attempt | ended | why | memory limit | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += map(_start_line, starts[:_STARTS_SHOWN])
    if (more := len(starts) - 2 * _STARTS_SHOWN) > 0:
        lines.append(f"| | | | | {more} more, which the manifest names | | |")
    lines += map(_start_line, starts[max(_STARTS_SHOWN, len(starts) - _STARTS_SHOWN) :])
    return {"attempts_made": dg.MetadataValue.md("\n".join(lines))}


def _start_line(start: Start) -> str:
    facts = start.result.failure
    cells = [
        start.part or "all",
        str(start.records),
        str(start.attempt),
        "well" if facts is None else facts.kind.value,
        "" if facts is None else plain(facts.reason),
        format_size(start.memory_limit_bytes),
        f"{start.result.seconds:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def preview(
    columns: Sequence[Column], outcomes: Sequence[Outcome]
) -> Mapping[str, dg.MetadataValue]:
    """Return the first rows, at most `PREVIEW_ROWS`, as a Markdown table; empty if none."""
    names = ["record_id", "ordinal", *(plain(column.name) for column in columns)]
    lines: list[str] = []
    for outcome in outcomes:
        for ordinal, row in enumerate(outcome.rows):
            if len(lines) == PREVIEW_ROWS:
                break
            cells = [plain(outcome.record_id), str(ordinal), *(_cell(value) for value in row)]
            lines.append("| " + " | ".join(cells) + " |")
    if not lines or not columns:
        return {}
    header = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return {"preview": dg.MetadataValue.md("\n".join(header + lines))}


def _cell(value: object) -> str:
    if value is None:
        return "NULL"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return plain(text if len(text) <= _CELL_LENGTH else f"{text[: _CELL_LENGTH - 3]}...")
