"""The folder that a hook run is given: records, config, input features, files and code."""

from collections.abc import Sequence
from pathlib import Path

from feature_pipeline.archive import blobs
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.columns import Column
from feature_pipeline.compute.plan import ComputePlan, InputFeatures
from feature_pipeline.digest import document_bytes
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.runner import LONGEST_NAME_BYTES, Workspace, name_on_disk
from feature_pipeline.json_values import json_cell, json_text
from feature_pipeline.outcomes import Outcome
from feature_pipeline.records import Record


def stage_inputs(store: BlobStore, plan: ComputePlan, workspace: Workspace) -> None:
    """Every input of the run is in `workspace`, checked against its digest.

    Writes `records.jsonl`, `config.json` (if the release has config), `features/<hook>.jsonl` per
    declared input, each record's files below `files/<record id>/`, and the release's code files.

    Raises:
        NotFoundError, CorruptDataError: A blob is missing, or not what its digest says.
        InvalidInputError: Two record ids name the same folder here.
    """
    _write_records(plan, workspace)
    release = plan.release.release.document
    if release.config:
        (workspace.inputs / "config.json").write_bytes(document_bytes(release.config))
    for source in plan.inputs:
        _write_features(workspace.inputs / "features" / f"{source.hook}.jsonl", plan, source)
    for record in plan.compute:
        _stage_files(store, record, workspace)
    for code in release.code:
        blobs.download_blob(store, code.blob, workspace.code / code.name, size=code.size)


def outline_inputs(plan: ComputePlan, workspace: Workspace) -> None:
    """What a run in parts is cut by is in `workspace`: the records, and files of their sizes.

    The files are holes and take no room: for whoever repeats a run's course without its hook.

    Raises:
        InvalidInputError: Two record ids name the same folder here.
    """
    _write_records(plan, workspace)
    for record in plan.compute:
        folder = _make_folder(record, workspace)
        if folder is not None:
            for file in record.files:
                with (folder / name_on_disk(file.name)).open("wb") as hole:
                    hole.truncate(file.size)


def _write_records(plan: ComputePlan, workspace: Workspace) -> None:
    _write_jsonl(
        workspace.inputs / "records.jsonl",
        [{"id": record.id, "metadata": record.metadata} for record in plan.compute],
    )


def _write_jsonl(path: Path, lines: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for line in lines:
            file.write(document_bytes(line) + b"\n")


def _stage_files(store: BlobStore, record: Record, workspace: Workspace) -> None:
    folder = _make_folder(record, workspace)
    if folder is not None:
        for file in record.files:
            blobs.download_blob(store, file.blob, folder / name_on_disk(file.name), size=file.size)


def _make_folder(record: Record, workspace: Workspace) -> Path | None:
    """The record's folder. One without files needs none if its id is too long for a name."""
    folder = workspace.files_of(record.id)
    if folder is None:
        if record.files:
            raise InvalidInputError(
                f"record id {record.id[:40]!r}... has {len(record.id.encode())} bytes: its"
                f" {len(record.files)} files lie in a folder of that name for the hook, whose parts"
                f" can have {LONGEST_NAME_BYTES}; submit the record again under a shorter id"
            )
        return None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except FileExistsError:
        # Record ids are any text; this file system folds letter case or Unicode forms.
        raise InvalidInputError(
            f"record id {record.id!r} names the same folder as another on this file system"
        ) from None
    return folder


def _write_features(path: Path, plan: ComputePlan, source: InputFeatures) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = source.manifest.columns
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in plan.compute:
            line = _input_line(record.id, source.outcomes.get(record.id), columns)
            file.write(json_text(line) + "\n")


def _input_line(
    record_id: str, outcome: Outcome | None, columns: Sequence[Column]
) -> dict[str, object]:
    """What a hook is given of an input's outcome: nothing that is not part of the action."""
    if outcome is None:
        return {"id": record_id, "status": None, "features": []}
    line: dict[str, object] = {"id": record_id, "status": outcome.status.value}
    if outcome.reason is not None:
        line["reason"] = outcome.reason
    line["features"] = [
        {c.name: json_cell(v, is_json=c.kind == "json") for c, v in zip(columns, row, strict=True)}
        for row in outcome.rows
    ]
    return line
