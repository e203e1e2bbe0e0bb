"""Plan a hook run: decide which records to compute and which the archive already answers.

A record is identified by its *action*: the release's program and config, the record, its files and
its input features. Equal actions have equal answers, so a record whose action was answered in any
batch is carried over (`carry`). A record for which an input hook has no answer is not given to the
hook, unless the definition says otherwise: its outcome is derived from the input's. Neither is a
record whose files cannot be laid out; other records are not affected.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.carried_outcomes import (
    Carried,
    Current,
    Question,
    carry_over,
    reads_otherwise,
)
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.action_digests import batch_action, record_action
from feature_pipeline.hooks.runner import LONGEST_NAME_BYTES, too_long_for_a_name
from feature_pipeline.model.columns import row_encoder
from feature_pipeline.model.definition import HookDefinition, Scope, UnansweredInputs
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.model.records import Record, RecordBatch
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.quoting import quoted

NO_BASE: Final = 0
"""The base of a run planned before its batch had any log entry."""


@dataclass(frozen=True, slots=True)
class InputFeatures:
    """The current artifact of a hook whose features another hook takes as input."""

    hook: str
    manifest_digest: Digest
    manifest: Manifest
    outcomes: Mapping[str, Outcome]


@dataclass(frozen=True, slots=True)
class PlanBasis:
    """The state on which an earlier plan was based: planning on it again gives the same plan."""

    base: int
    """The batch's log is read up to this entry."""
    inputs: Mapping[str, Digest]
    """By input hook, the digest of the manifest that was read."""
    sources: tuple[Digest, ...] | None = None
    """The artifacts that answers were carried over from; None to search for them again."""


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """The complete input of one hook run and of its artifact."""

    definition: HookDefinition
    release: ReleaseEntry
    batch: RecordBatch
    base: int
    """Highest seq of the batch's log when planned; `NO_BASE` if it had none."""
    previous: Manifest | None
    previous_digest: Digest | None
    actions: Mapping[str, Digest]
    """By record that may be given to the hook."""
    compute: tuple[Record, ...]
    """The records to give to the hook, in the batch's order."""
    carried: Mapping[str, Outcome]
    """Outcomes from the archive, by record id; decoded again where the columns changed."""
    skipped: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcomes of records that the hook does not get, by record id: an input hook has no answer, or
    their files cannot be laid out.
    """
    inputs: tuple[InputFeatures, ...] = ()
    sources: tuple[Digest, ...] = ()
    """The artifacts that answers are carried over from, of this batch or others."""
    retried: int = 0
    """Records computed again because their last outcome was a retryable error."""
    decoded_again: int = 0
    """Records whose raw output was decoded again under changed columns."""
    failed_before: Mapping[str, Outcome] = field(default_factory=dict)
    """Records computed again because the hook failed on them under lower limits."""
    notes: tuple[str, ...] = ()
    memory: frozenset[str] | None = None
    """See `Carried.memory`."""
    repeats_previous: bool = False
    """Whether every outcome known so far equals the current artifact's."""

    @property
    def is_unchanged(self) -> bool:
        """Whether the current artifact already has everything that this run could produce."""
        return (
            self.previous is not None
            and not self.compute
            and self.repeats_previous
            and not self.decoded_again
            and self.previous.release.digest == self.release.release.digest
            and not reads_otherwise(self.previous, self.definition)
            and self.previous.inputs == {i.hook: i.manifest.content_digest for i in self.inputs}
        )

    def hook_run_id(self, request_id: str) -> str:
        """Id of this run: equal for equal plans at the same base and with the same request."""
        question = {
            "release": str(self.release.release.digest),
            "release_seq": self.release.seq,
            "batch": str(self.batch.digest),
            "base": self.base,
            "actions": {record.id: str(self.actions[record.id]) for record in self.compute},
            "columns": [c.model_dump(mode="json") for c in self.definition.feature.columns],
            "cardinality": self.definition.feature.cardinality.value,
            "request": request_id,
        }
        name = self.definition.name.replace("_", "-")
        return f"{name}-{Digest.of(document_bytes(question)).hex[:24]}"


def plan_run(
    store: BlobStore,
    definition: HookDefinition,
    release: ReleaseEntry,
    batch: RecordBatch,
    *,
    force: bool = False,
    force_records: Collection[str] = (),
    basis: PlanBasis | None = None,
) -> ComputePlan:
    """Decide, record by record, between computing and carrying over. Nothing is written.

    Args:
        force: Compute every record, whatever the archive has.
        force_records: Ids of records to compute again.
        basis: Plan on this earlier state; on the current one by default.

    Raises:
        InvalidInputError: A forced record is not in the batch.
        NotFoundError: An input hook has no current artifact for the batch.
        StoreUnavailableError: The archive could not be read.
    """
    if unknown := set(force_records) - {record.id for record in batch.records}:
        raise InvalidInputError(
            f"force_records names {first_few(map(repr, sorted(unknown)))}, which batch"
            f" {batch.key!r} of dataset {batch.dataset!r} does not contain"
        )
    then = {} if basis is None else basis.inputs
    inputs = tuple(_read_input(store, batch, hook, then.get(hook)) for hook in definition.inputs)
    skipped = _skipped(definition, batch, inputs)
    remaining = tuple(record for record in batch.records if record.id not in skipped)
    actions = _actions(definition, release, remaining, inputs)
    entries = log.read_log(store, batch.dataset, definition.name, batch.key)
    if basis is not None:
        entries = [entry for entry in entries if entry.seq <= basis.base]
    head = log.last_current(entries)
    current = None if head is None else _read_current(store, head)
    carried = Carried()
    if not force:
        question = Question(definition, release.release, actions, frozenset(force_records))
        sources = None if basis is None else basis.sources
        carried = carry_over(store, question, current, entries, sources)
    return ComputePlan(
        definition=definition,
        release=release,
        batch=batch,
        base=entries[-1].seq if entries else NO_BASE,
        previous=None if current is None else current.manifest,
        previous_digest=None if head is None else head.manifest,
        actions=actions,
        compute=tuple(record for record in remaining if record.id not in carried.outcomes),
        carried=carried.outcomes,
        skipped=skipped,
        inputs=inputs,
        sources=tuple(carried.sources),
        retried=len(carried.retried),
        decoded_again=len(carried.decoded_again),
        failed_before={
            record_id: outcome
            for record_id, outcome in carried.retried.items()
            if outcome.limits is not None and not outcome.is_retryable
        },
        notes=tuple(carried.notes),
        memory=carried.memory,
        repeats_previous=current is not None and _repeats(current, carried, skipped),
    )


def _read_current(store: BlobStore, head: FeatureEntry) -> Current:
    try:
        manifest = read.manifest_of(store, head)
    except (NotFoundError, CorruptDataError):
        # It is damaged: `verify` says so; here it only means that nothing can be carried over from
        # it, so that the archive is whole again once its records are computed.
        return Current(head, None, {})
    try:
        outcomes = read.read_artifact_outcomes(store, manifest)
    except (NotFoundError, CorruptDataError) as error:
        return Current(head, manifest, {}, str(error))
    return Current(head, manifest, {o.record_id: o for o in outcomes})


def _repeats(current: Current, carried: Carried, skipped: Mapping[str, Outcome]) -> bool:
    """Return whether the current artifact has all of these outcomes."""
    before = current.outcomes
    return set(carried.sources) <= {current.entry.manifest} and all(
        record_id in before and _verdict(before[record_id]) == _verdict(outcome)
        for record_id, outcome in skipped.items()
    )


def _verdict(outcome: Outcome) -> object:
    return outcome.status, outcome.reason, outcome.kind, outcome.is_retryable, outcome.action


def _read_input(
    store: BlobStore, batch: RecordBatch, hook: str, pinned: Digest | None
) -> InputFeatures:
    if pinned is None:
        head = log.head(store, batch.dataset, hook, batch.key)
        if head is None:
            raise NotFoundError(
                f"hook {hook!r} has no current artifact for batch {batch.key!r} of dataset"
                f" {batch.dataset!r}; materialize {batch.dataset}/features/{hook} first"
            )
        digest, manifest = head.manifest, read.manifest_of(store, head)
    else:
        digest, manifest = pinned, read.read_manifest(store, pinned)
    outcomes = read.read_artifact_outcomes(store, manifest)
    return InputFeatures(hook, digest, manifest, {o.record_id: o for o in outcomes})


def input_digests(inputs: Iterable[InputFeatures]) -> dict[str, dict[str, str]]:
    """Return, by record id and input hook, the digest of the input hook's outcome."""
    digests: dict[str, dict[str, str]] = {}
    for source in inputs:
        encoder = row_encoder(source.manifest.columns)
        for outcome in source.outcomes.values():
            digest = encoder.outcome_digest(
                outcome.record_id, outcome.status, outcome.reason, encoder.rows(outcome.rows)
            )
            digests.setdefault(outcome.record_id, {})[source.hook] = f"sha256:{digest.hex()}"
    return digests


def _skipped(
    definition: HookDefinition, batch: RecordBatch, inputs: tuple[InputFeatures, ...]
) -> dict[str, Outcome]:
    """Return, by record id, the outcomes of records that the hook does not get.

    No file system can store their files, or an input hook has no answer.
    """
    outcomes = _not_stageable(batch)
    if definition.unanswered_inputs is UnansweredInputs.GIVE:
        return outcomes
    for record in batch.records:
        if record.id in outcomes:
            continue
        verdicts = [_inherited(record.id, source) for source in inputs]
        if lacking := [verdict for verdict in verdicts if verdict is not None]:
            outcomes[record.id] = min(lacking, key=_finality)
    return outcomes


def _not_stageable(batch: RecordBatch) -> dict[str, Outcome]:
    """Return, by record id, the outcomes of records whose files no file system can store."""
    outcomes = {}
    for record in batch.records:
        if record.files and (part := too_long_for_a_name(record.id)) is not None:
            reason = (
                f"not asked: its files lie in folders that its id names, and"
                f" the part {quoted(part, 40)!r} has {len(part.encode())} bytes where"
                f" {LONGEST_NAME_BYTES} can be; submit the record again under a shorter id"
            )
            outcomes[record.id] = Outcome(
                record.id,
                Status.ERRORED,
                reason=reason,
                kind=OutcomeKind.NOT_STAGED,
                is_from_output=False,
            )
    return outcomes


def _inherited(record_id: str, source: InputFeatures) -> Outcome | None:
    """Return the outcome of a record without an answer of the input; None if it has one.

    It names the input's manifest as its source, and no action, because the hook did not get the
    record.
    """
    verdict = source.outcomes.get(record_id)
    if verdict is None:
        status, reason, is_retryable = Status.ERRORED, "does not know the record", True
    elif verdict.status is Status.PASSED:
        return None
    else:
        status, is_retryable = verdict.status, verdict.is_retryable
        verdict_text = "rejected it" if status is Status.REJECTED else "has no answer"
        reason = f"{verdict_text}: {verdict.reason}"
    return Outcome(
        record_id,
        status,
        reason=f"not asked: input {source.hook!r} {reason}",
        kind=OutcomeKind.INPUT if status is Status.ERRORED else None,
        is_retryable=is_retryable,
        carried_from=source.manifest_digest,
        is_from_output=False,
    )


def _finality(outcome: Outcome) -> tuple[bool, bool]:
    """Return a sort key for the verdicts of several inputs: rejections first, retryable last."""
    return outcome.status is not Status.REJECTED, outcome.is_retryable


def _actions(
    definition: HookDefinition,
    release: ReleaseEntry,
    remaining: tuple[Record, ...],
    inputs: tuple[InputFeatures, ...],
) -> dict[str, Digest]:
    if definition.scope is Scope.BATCH:
        whole = {source.hook: str(source.manifest.content_digest) for source in inputs}
        action = batch_action(release.release, remaining, whole)
        return dict.fromkeys((record.id for record in remaining), action)
    digests = input_digests(inputs)
    return {
        record.id: record_action(release.release, record, digests.get(record.id, {}))
        for record in remaining
    }
