"""What a hook run must compute, and what the archive already answers.

The question asked of a record is its *action*: the release's program and config, the record, its
files and its input features. Equal actions have equal answers, so a record whose action is that
of its last outcome is carried over, unless that outcome was an error worth retrying; or of its last
outcome under this release, where another release is current.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from feature_pipeline.archive import blobs, log, read
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.log import FeatureEntry, ReleaseEntry, Verdict
from feature_pipeline.archive.manifest import Manifest
from feature_pipeline.column_sources import UnclearColumnError
from feature_pipeline.columns import row_encoder
from feature_pipeline.compute.decode_again import decode_raw
from feature_pipeline.digest import Digest, document_bytes
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.batch import batch_action, record_action
from feature_pipeline.hooks.definition import HookDefinition, Scope
from feature_pipeline.hooks.failure import granted_limits
from feature_pipeline.outcomes import Outcome
from feature_pipeline.records import Record, RecordBatch

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
    compute: tuple[Record, ...]
    """The records to give to the hook, in the batch's order."""
    carried: Mapping[str, Outcome]
    """Outcomes that stand, by record id; decoded again where the columns changed."""
    inputs: tuple[InputFeatures, ...] = ()
    retried: int = 0
    """Records computed again because their last outcome was a retryable error."""
    decoded_again: int = 0
    """Records whose raw output was read again under changed columns."""
    failed_before: Mapping[str, Outcome] = field(default_factory=dict)
    """Records computed again because the hook failed over them under lower limits."""
    notes: tuple[str, ...] = ()

    @property
    def is_unchanged(self) -> bool:
        """Whether the current artifact already says all that this run could say."""
        return (
            self.previous is not None
            and not self.compute
            and not self.decoded_again
            and self.previous.release.digest == self.release.release.digest
            and not _reads_otherwise(self.previous, self.definition)
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
    """
    if unknown := set(force_records) - {record.id for record in batch.records}:
        raise InvalidInputError(
            f"force_records names {sorted(unknown)[:5]}, not in batch {batch.key!r}"
            f" of dataset {batch.dataset!r}"
        )
    then = {} if basis is None else basis.inputs
    inputs = tuple(_read_input(store, batch, hook, then.get(hook)) for hook in definition.inputs)
    actions = _actions(definition, release, batch, inputs)
    entries = log.read_log(store, batch.dataset, definition.name, batch.key)
    if basis is not None:
        entries = [entry for entry in entries if entry.seq <= basis.base]
    head = log.last_current(entries)
    plan = ComputePlan(
        definition=definition,
        release=release,
        batch=batch,
        base=entries[-1].seq if entries else NO_BASE,
        previous=None,
        previous_digest=None,
        actions=actions,
        compute=batch.records,
        carried={},
        inputs=inputs,
    )
    if head is None:
        return plan
    plan = replace(plan, previous_digest=head.manifest, previous=_read_manifest(store, head))
    if force:
        return plan
    earlier = _last_of_release(store, entries, head, release)
    return _carry_over(store, plan, frozenset(force_records), earlier)


def _read_manifest(store: BlobStore, entry: FeatureEntry) -> Manifest | None:
    try:
        return read.manifest_of(store, entry)
    except (NotFoundError, CorruptDataError):
        # It is damaged: `verify` says so; here it only means that nothing can be carried over from
        # it, so everything is computed again and the archive heals.
        return None


def _last_of_release(
    store: BlobStore, entries: Sequence[FeatureEntry], head: FeatureEntry, release: ReleaseEntry
) -> tuple[Digest, Manifest] | None:
    """What the release last said, where another one is current: somebody goes back to it."""
    digest = release.release.digest
    if head.release == digest:
        return None
    for entry in reversed(entries):
        if entry.release == digest and entry.verdict is not Verdict.FAILED:
            manifest = _read_manifest(store, entry)
            return None if manifest is None else (entry.manifest, manifest)
    return None


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


def _actions(
    definition: HookDefinition,
    release: ReleaseEntry,
    batch: RecordBatch,
    inputs: tuple[InputFeatures, ...],
) -> dict[str, Digest]:
    said = input_digests(inputs)
    if definition.scope is Scope.BATCH:
        whole = {source.hook: str(source.manifest.content_digest) for source in inputs}
        action = batch_action(release.release, batch.records, whole)
        return dict.fromkeys((record.id for record in batch.records), action)
    return {
        record.id: record_action(release.release, record, said.get(record.id, {}))
        for record in batch.records
    }


def _carry_over(
    store: BlobStore,
    plan: ComputePlan,
    forced: frozenset[str],
    earlier: tuple[Digest, Manifest] | None,
) -> ComputePlan:
    """The plan with every outcome carried that may stand: of the head, else of `earlier`."""
    notes = list(plan.notes)
    sources = [] if earlier is None else [earlier]
    if plan.previous is None or plan.previous_digest is None:
        notes.append("the previous artifact's manifest is damaged")
    else:
        sources.insert(0, (plan.previous_digest, plan.previous))
    standing: dict[str, Outcome] = {}
    retried: dict[str, Outcome] = {}
    decoded: set[str] = set()
    for digest, manifest in sources:
        found = _standing(store, plan, forced | standing.keys(), digest, manifest, retried, notes)
        if _reads_otherwise(manifest, plan.definition):
            found = _whole(plan, _decode_again(store, plan, found, notes))
            decoded |= found.keys()
        standing |= found
    return replace(
        plan,
        carried=standing,
        compute=tuple(r for r in plan.batch.records if r.id not in standing),
        retried=len(retried.keys() - standing.keys()),
        failed_before={
            record_id: outcome
            for record_id, outcome in retried.items()
            if record_id not in standing and outcome.limits and not outcome.is_retryable
        },
        decoded_again=len(decoded),
        notes=tuple(notes),
    )


def _standing(
    store: BlobStore,
    plan: ComputePlan,
    settled: Collection[str],
    digest: Digest,
    manifest: Manifest,
    retried: dict[str, Outcome],
    notes: list[str],
) -> dict[str, Outcome]:
    """The artifact's outcomes that answer what is asked, but for records that are settled.

    Those that may be answered otherwise now, if asked again, are added to `retried`.
    """
    try:
        outcomes = {o.record_id: o for o in read.read_artifact_outcomes(store, manifest)}
    except (NotFoundError, CorruptDataError) as error:
        notes.append(f"nothing carried over: {error}")
        return {}
    standing: dict[str, Outcome] = {}
    granted = granted_limits(plan.definition.release.limits)
    for record in plan.batch.records:
        outcome = outcomes.get(record.id)
        if outcome is None or record.id in settled or outcome.action != plan.actions[record.id]:
            continue
        if outcome.may_differ_under(granted):
            retried[record.id] = outcome
            continue
        standing[record.id] = replace(outcome, carried_from=outcome.carried_from or digest)
    sources = {o.carried_from for o in standing.values() if o.carried_from is not None}
    for source in sorted(sources):
        if lost := _lost_blobs(store, source):
            notes.append(f"manifest {source.short}: {lost}; what it computed is computed again")
            standing = {i: o for i, o in standing.items() if o.carried_from != source}
    return _whole(plan, standing)


def _whole(plan: ComputePlan, outcomes: dict[str, Outcome]) -> dict[str, Outcome]:
    """The outcomes; none if there is one action for the batch and some are not among them."""
    if plan.definition.scope is Scope.BATCH and len(outcomes) < len(plan.batch.records):
        return {}
    return outcomes


def _lost_blobs(store: BlobStore, manifest_digest: Digest) -> str | None:
    """Why a manifest cannot be carried from, or None: every blob it names is present."""
    try:
        manifest = read.read_manifest(store, manifest_digest)
    except (NotFoundError, CorruptDataError) as error:
        return str(error)
    for name, ref in manifest.blobs.items():
        if not blobs.is_present(store, ref):
            return f"its blob {name} ({ref.digest.short}) is missing or damaged"
    return None


def _reads_otherwise(previous: Manifest, definition: HookDefinition) -> bool:
    """Whether the same raw output says something else under what is declared now."""
    feature = definition.feature
    return previous.columns != feature.columns or previous.cardinality != feature.cardinality.value


def _decode_again(
    store: BlobStore, plan: ComputePlan, standing: Mapping[str, Outcome], notes: list[str]
) -> dict[str, Outcome]:
    """The standing outcomes as the raw output says them under what is declared now.

    Without those whose raw output cannot be read any more: they are computed again, and noted.
    """
    decoded: dict[str, Outcome] = {}
    feature = plan.definition.feature
    for source in sorted({o.carried_from for o in standing.values() if o.carried_from}):
        ours = {i: o for i, o in standing.items() if o.carried_from == source}
        decoded |= {i: o for i, o in ours.items() if not o.is_from_output}
        if not (wanted := [i for i, o in ours.items() if o.is_from_output]):
            continue
        try:
            origin = read.read_manifest(store, source)
            again = decode_raw(store, origin, wanted, feature.columns, feature.cardinality)
        except (NotFoundError, CorruptDataError, UnclearColumnError) as error:
            notes.append(f"manifest {source.short}: {error}; what it computed is computed again")
            continue
        for outcome in again:
            action = standing[outcome.record_id].action
            decoded[outcome.record_id] = replace(outcome, carried_from=source, action=action)
    return {i: decoded[i] for i in standing if i in decoded}
