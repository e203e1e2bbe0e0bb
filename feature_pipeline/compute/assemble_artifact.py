"""Make one artifact from a hook's output, carried outcomes, and records that it did not get."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from feature_pipeline.archive.format.manifest import FailureInfo, RunInfo
from feature_pipeline.archive.publish import Artifact
from feature_pipeline.compute.plan import ComputePlan
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.hooks.output import PROGRESS, decode_output, raw_files
from feature_pipeline.hooks.output_folder import storable_files
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import DecodedOutput, Outcome
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quoting import quoted_list


def collect_output(
    plan: ComputePlan,
    output: Path,
    run: RunInfo,
    log: Path | None,
    *,
    decoded: DecodedOutput | None = None,
    failed: Sequence[Outcome] = (),
) -> Artifact:
    """Make the artifact of a hook run that gave a verdict: one outcome per record of the batch.

    Args:
        plan: The plan that was carried out.
        output: The hook's output folder.
        run: Provenance of the hook run.
        log: The hook's log.
        decoded: The result of `read_output` for `output`; read here if absent.
        failed: Outcomes of the records without output.

    Raises:
        InvalidInputError: A file of the output is truncated or does not parse; the hook run has
            failed, and `failed_artifact` stores what it left.
    """
    if decoded is None:
        decoded = read_output(plan, output, [record.id for record in plan.compute])
    decoded = replace(decoded, outcomes=(*decoded.outcomes, *failed))
    # A file that appeared since was not decoded; publishing compares those that were.
    raw = {name: output / name for name in decoded.read}
    if PROGRESS in (files := raw_files(output)):
        raw[PROGRESS] = files[PROGRESS]
    artifact = _artifact(plan, decoded, raw, run, log)
    return dataclasses.replace(artifact, decoded_from=decoded.read)


def read_output(plan: ComputePlan, output: Path, record_ids: Sequence[str]) -> DecodedOutput:
    """Read the hook's output about these records of the plan.

    Raises:
        InvalidInputError: A file is truncated or does not parse.
    """
    return decode_output(
        output,
        record_ids,
        plan.definition.feature.columns,
        plan.definition.feature.cardinality,
        {record_id: plan.actions[record_id] for record_id in record_ids},
    )


def carried_artifact(plan: ComputePlan, run: RunInfo) -> Artifact:
    """Return the artifact of a run without a hook process: every outcome is known.

    Raises:
        InvalidInputError: The plan has records to compute.
    """
    if plan.compute:
        records = counted(len(plan.compute), "record")
        raise InvalidInputError(f"batch {plan.batch.key!r}: the hook has not run over {records}")
    return _artifact(plan, DecodedOutput(()), {}, run, None)


def failed_artifact(
    plan: ComputePlan, output: Path, run: RunInfo, log: Path | None, failure: FailureInfo
) -> Artifact:
    """Return the artifact of a failed hook run: output and log byte for byte, no outcomes.

    Files that cannot be read, or exceed the run's limit, are named in notes instead of stored.
    """
    raw, left_out = storable_files(output, plan.definition.release.limits.scratch_bytes)
    notes = tuple(f"not stored from the output: {one}" for one in left_out)
    return dataclasses.replace(_empty(plan, run, raw, log), failure=failure, notes=notes)


def _artifact(
    plan: ComputePlan,
    decoded: DecodedOutput,
    raw: Mapping[str, Path],
    run: RunInfo,
    log: Path | None,
) -> Artifact:
    computed = {outcome.record_id: outcome for outcome in decoded.outcomes}
    known = {**plan.skipped, **plan.carried, **computed}
    outcomes = tuple(known[record.id] for record in plan.batch.records)
    return dataclasses.replace(
        _empty(plan, run, raw, log), outcomes=outcomes, notes=(*plan.notes, *notes_on(decoded))
    )


def _empty(plan: ComputePlan, run: RunInfo, raw: Mapping[str, Path], log: Path | None) -> Artifact:
    """Return the artifact of a run over the plan's batch, without outcomes."""
    return Artifact(
        batch=plan.batch,
        release=plan.release,
        columns=tuple(plan.definition.feature.columns),
        cardinality=plan.definition.feature.cardinality.value,
        run=run,
        outcomes=(),
        raw=raw,
        log=log,
        inputs=_input_digests(plan),
    )


def notes_on(decoded: DecodedOutput) -> list[str]:
    """Return what an artifact notes on its output for users."""
    notes = list(decoded.notes)
    if decoded.unknown_ids:
        notes.append(
            f"the hook wrote about ids that it did not get: {quoted_list(decoded.unknown_ids)}"
        )
    if decoded.undeclared_keys:
        notes.append(
            f"feature keys that no column declares: {quoted_list(decoded.undeclared_keys)}"
        )
    return notes


def _input_digests(plan: ComputePlan) -> dict[str, Digest]:
    """Return, by input hook, the content digest that the run read."""
    return {
        source.hook: source.manifest.content_digest
        for source in plan.inputs
        if source.manifest.content_digest is not None
    }
