"""Lay out the input folder of a hook run: records, config, input features, files and code."""

import errno
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from feature_pipeline.archive import blobs
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.plan import ComputePlan, InputFeatures
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.runner import Workspace, name_on_disk
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import Scope
from feature_pipeline.model.digest import document_bytes
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.model.records import Record
from feature_pipeline.model.text.json_values import json_cell, json_text
from feature_pipeline.model.text.quoting import quoted

_NAME_ERRORS: Final = frozenset(
    {errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
)
"""Errors of a file system that cannot store a name, or has it already in another spelling."""


def stage_inputs(store: BlobStore, plan: ComputePlan, workspace: Workspace) -> ComputePlan:
    """Write every input of the run to `workspace`, checked against its digest.

    Writes `records.jsonl`, `config.json` (if the release has config), `features/<hook>.jsonl` per
    declared input, each record's files below `files/<record id>/`, and the release's code files.

    Returns:
        The plan without records whose files this machine's file system cannot store: these are
        errored, and may be tried again.

    Raises:
        NotFoundError, CorruptDataError: A blob is missing, or does not match its digest.
        InvalidInputError: It cannot store a record's files, and the hook is of `scope: batch`.
    """
    plan = _with_files(store, plan, workspace)
    _write_records(plan, workspace)
    release = plan.release.release.document
    if release.config:
        (workspace.inputs / "config.json").write_bytes(document_bytes(release.config))
    for source in plan.inputs:
        _write_features(workspace.inputs / "features" / f"{source.hook}.jsonl", plan, source)
    for code in release.code:
        blobs.download_blob(store, code.blob, workspace.code / code.name, size=code.size)
    return plan


def _with_files(store: BlobStore, plan: ComputePlan, workspace: Workspace) -> ComputePlan:
    """Lay out the files of the plan's records; return the plan without those that fail."""
    staged: list[Record] = []
    skipped: dict[str, Outcome] = {}
    for record in plan.compute:
        try:
            _stage_files(store, record, workspace)
        except InvalidInputError as error:
            if plan.definition.scope is Scope.BATCH:
                raise
            skipped[record.id] = Outcome(
                record.id,
                Status.ERRORED,
                reason=f"not asked: {error}",
                kind=OutcomeKind.NOT_STAGED,
                is_retryable=True,
                is_from_output=False,
            )
        else:
            staged.append(record)
    if not skipped:
        return plan
    return replace(plan, compute=tuple(staged), skipped={**plan.skipped, **skipped})


def outline_inputs(plan: ComputePlan, workspace: Workspace) -> None:
    """Write the records and sparse files of their sizes to `workspace`.

    The division into parts depends on nothing else, so this suffices to repeat a run's course
    without its hook. The files take no room.

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
    """Lay out the record's files.

    Raises:
        InvalidInputError: This file system cannot store them; none of the record's files is left
            then.
    """
    folder = _make_folder(record, workspace)
    if folder is None:
        return
    for file in record.files:
        path = folder / name_on_disk(file.name)
        try:
            if os.path.lexists(path):
                raise FileExistsError(
                    errno.EEXIST, "another file has the same name on this file system"
                )
            blobs.download_blob(store, file.blob, path, size=file.size)
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise
            shutil.rmtree(folder)
            raise InvalidInputError(
                f"file name {quoted(file.name)!r} of record {quoted(record.id)!r} is none on this"
                f" file system ({error.strerror})"
            ) from error


def _make_folder(record: Record, workspace: Workspace) -> Path | None:
    """Make the record's folder. One without files needs none if its id is too long for a name."""
    folder = workspace.files_of(record.id)
    if folder is None:
        return None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    except OSError as error:
        # Record ids are any text; a file system may fold letter case or Unicode forms.
        if error.errno not in _NAME_ERRORS:
            raise
        same = " names the same folder as another on this file system"
        other = f" names no folder on this file system ({error.strerror})"
        raise InvalidInputError(
            f"record id {quoted(record.id)!r}{same if error.errno == errno.EEXIST else other}"
        ) from error
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
    """Return an input's outcome as the hook gets it: only fields that are part of the action."""
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
