"""What a hook run must compute, and what the archive already answers.

The question asked of a record is its *action*: the release's program and config, the record, its
files and its input features. Equal actions have equal answers, so a record whose action was
answered in any batch is carried over (`carry`). A record of which an input hook gave no answer is
not asked about, unless the definition says so: it gets the input's verdict. Nor is one whose files
cannot be laid out: it costs no other record.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.carry import Carried, Current, Question, carry_over, reads_otherwise
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.batch import batch_action, record_action
from feature_pipeline.hooks.runner import LONGEST_NAME_BYTES, too_long_for_a_name
from feature_pipeline.model.columns import row_encoder
from feature_pipeline.model.definition import HookDefinition, Scope, UnansweredInputs
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.first_few import first_few
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.model.quoting import quoted
from feature_pipeline.model.records import Record, RecordBatch

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
    """What an earlier plan was made upon: planning upon it again asks the same question."""

    base: int
    """The batch's log is read up to here."""
    inputs: Mapping[str, Digest]
    """Per input hook, the digest of the manifest that was read."""
    sources: tuple[Digest, ...] | None = None
    """The artifacts that answers were carried over from; None to look for them again."""


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """Everything that decides what one hook run is given and what its artifact will hold."""

    definition: HookDefinition
    release: ReleaseEntry
    batch: RecordBatch
    base: int
    """Highest seq of the batch's log when planned; `NO_BASE` if it had none."""
    previous: Manifest | None
    previous_digest: Digest | None
    actions: Mapping[str, Digest]
    """Per record that the hook may be asked about."""
    compute: tuple[Record, ...]
    """The records to give to the hook, in the batch's order."""
    carried: Mapping[str, Outcome]
    """Outcomes that stand, by record id; decoded again where the columns changed."""
    not_asked: Mapping[str, Outcome] = field(default_factory=dict)
    """Outcomes of records that the hook is not asked about, by record id: an input hook has no
    answer, or their files cannot be laid out."""
    inputs: tuple[InputFeatures, ...] = ()
    sources: tuple[Digest, ...] = ()
    """The artifacts that answers are carried over from, of this batch or others."""
    retried: int = 0
    """Records computed again because their last outcome was a retryable error."""
    decoded_again: int = 0
    """Records whose raw output was read again under changed columns."""
    failed_before: Mapping[str, Outcome] = field(default_factory=dict)
    """Records computed again because the hook failed over them under lower limits."""
    notes: tuple[str, ...] = ()
    repeats_previous: bool = False
    """Whether every outcome known so far is the current artifact's."""

    @property
    def is_unchanged(self) -> bool:
        """Whether the current artifact already says all that this run could say."""
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
        """The id of this run: equal for equal questions at the same base and the same request."""
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
        force: Compute every record, whatever the archive holds.
        force_records: Ids of records to compute again.
        basis: Plan as of then; as of now when absent.

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
    not_asked = _not_asked(definition, batch, inputs)
    asked = tuple(record for record in batch.records if record.id not in not_asked)
    actions = _actions(definition, release, asked, inputs)
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
        compute=tuple(record for record in asked if record.id not in carried.outcomes),
        carried=carried.outcomes,
        not_asked=not_asked,
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
        repeats_previous=current is not None and _repeats(current, carried, not_asked),
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


def _repeats(current: Current, carried: Carried, not_asked: Mapping[str, Outcome]) -> bool:
    """Return whether the current artifact has all of these outcomes."""
    before = current.outcomes
    return set(carried.sources) <= {current.entry.manifest} and all(
        record_id in before and _verdict(before[record_id]) == _verdict(outcome)
        for record_id, outcome in not_asked.items()
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
    """Per record id, per input hook, the digest of what that hook says of the record."""
    digests: dict[str, dict[str, str]] = {}
    for source in inputs:
        encoder = row_encoder(source.manifest.columns)
        for outcome in source.outcomes.values():
            said = encoder.outcome_digest(
                outcome.record_id, outcome.status, outcome.reason, encoder.rows(outcome.rows)
            )
            digests.setdefault(outcome.record_id, {})[source.hook] = f"sha256:{said.hex()}"
    return digests


def _not_asked(
    definition: HookDefinition, batch: RecordBatch, inputs: tuple[InputFeatures, ...]
) -> dict[str, Outcome]:
    """By record id, the outcomes of records that the hook is not asked about.

    No file system can hold their files, or an input hook has no answer.
    """
    found = _not_stageable(batch)
    if definition.unanswered_inputs is UnansweredInputs.GIVE:
        return found
    for record in batch.records:
        if record.id in found:
            continue
        verdicts = [_inherited(record.id, source) for source in inputs]
        if lacking := [verdict for verdict in verdicts if verdict is not None]:
            found[record.id] = min(lacking, key=_finality)
    return found


def _not_stageable(batch: RecordBatch) -> dict[str, Outcome]:
    """By record id, the outcomes of records whose files no file system can hold."""
    found = {}
    for record in batch.records:
        if record.files and (part := too_long_for_a_name(record.id)) is not None:
            reason = (
                f"not asked: its {len(record.files)} files lie in folders that its id names, and"
                f" the part {quoted(part, 40)!r} has {len(part.encode())} bytes where"
                f" {LONGEST_NAME_BYTES} can be; submit the record again under a shorter id"
            )
            found[record.id] = Outcome(
                record.id,
                Status.ERRORED,
                reason=reason,
                kind=OutcomeKind.NOT_STAGED,
                is_from_output=False,
            )
    return found


def _inherited(record_id: str, source: InputFeatures) -> Outcome | None:
    """The outcome of a record of which the input has no answer; None if it has one.

    It names the input's manifest as what it comes from, and no action: the hook was asked nothing.
    """
    verdict = source.outcomes.get(record_id)
    if verdict is None:
        status, reason, is_retryable = Status.ERRORED, "does not know the record", True
    elif verdict.status is Status.PASSED:
        return None
    else:
        status, is_retryable = verdict.status, verdict.is_retryable
        what = "rejected it" if status is Status.REJECTED else "has no answer"
        reason = f"{what}: {verdict.reason}"
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
    """Sorts verdicts of several inputs: a rejection first, what may be answered later last."""
    return outcome.status is not Status.REJECTED, outcome.is_retryable


def _actions(
    definition: HookDefinition,
    release: ReleaseEntry,
    asked: tuple[Record, ...],
    inputs: tuple[InputFeatures, ...],
) -> dict[str, Digest]:
    if definition.scope is Scope.BATCH:
        whole = {source.hook: str(source.manifest.content_digest) for source in inputs}
        action = batch_action(release.release, asked, whole)
        return dict.fromkeys((record.id for record in asked), action)
    said = input_digests(inputs)
    return {
        record.id: record_action(release.release, record, said.get(record.id, {}))
        for record in asked
    }
