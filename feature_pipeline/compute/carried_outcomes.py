"""Find the outcomes in the archive that answer the records of a plan.

Artifacts are searched one after another, each for the records that the ones before it left open:
the batch's current artifact, then those that the memory of answers names for any batch, the one
accepted last first. While the memory is not known to be complete, the earlier artifacts of the
batch's own log follow. An answer is used only if a log names its artifact and every blob of the
manifest that computed it is stored.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from feature_pipeline.archive import blobs, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import OUTCOMES, ROWS, Manifest
from feature_pipeline.archive.logs import answers, log
from feature_pipeline.archive.logs.erasures import Erased, erased
from feature_pipeline.archive.logs.log import FeatureEntry, Verdict
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.redecode import decode_raw
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.failure import granted_limits
from feature_pipeline.model.column_sources import UnclearColumnError
from feature_pipeline.model.definition import HookDefinition, Scope
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome
from feature_pipeline.model.release import HookRelease
from feature_pipeline.parallel import map_threads


@dataclass(frozen=True, slots=True)
class Question:
    """The records for which the archive is searched before a hook runs."""

    definition: HookDefinition
    release: HookRelease
    actions: Mapping[str, Digest]
    """Action of each record; for a hook of `scope: batch`, all are equal."""
    forced: frozenset[str] = frozenset()
    """Records to compute again even if they have an answer."""


@dataclass(frozen=True, slots=True)
class Current:
    """The batch's current artifact."""

    entry: FeatureEntry
    manifest: Manifest | None
    """None if it cannot be read."""
    outcomes: Mapping[str, Outcome]
    """Empty if they cannot be read."""
    damage: str | None = None
    """Why the outcomes of a readable manifest cannot be read."""


@dataclass
class Carried:
    """The answers found, and their sources."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By record id, each with the manifest that computed it."""
    sources: list[Digest] = field(default_factory=list)
    """The manifests of the artifacts that gave them, in the order of the search."""
    retried: dict[str, Outcome] = field(default_factory=dict)
    """Records whose last outcome may differ if they are computed again, and which have no later
    answer; with that outcome.
    """
    decoded_again: set[str] = field(default_factory=set)
    """Records whose raw output was decoded again under changed columns."""
    notes: list[str] = field(default_factory=list)
    memory: frozenset[str] | None = None
    """Keys of the memory of answers that was searched; None if it was not, or if it names an
    artifact that no log names: it may be accepted at this moment.
    """


def carry_over(
    store: BlobStore,
    question: Question,
    current: Current | None,
    entries: Sequence[FeatureEntry],
    sources: Sequence[Digest] | None = None,
) -> Carried:
    """Find every answer that the archive has. Nothing is written.

    Args:
        store: The archive.
        question: The records to search for.
        current: The batch's current artifact, if it has one.
        entries: The batch's log.
        sources: Search these artifacts alone, in this order: to repeat an earlier result.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    search = _Search(store, question)
    if current is not None:
        search.search_current(current)
    if sources is not None:
        search.search(sources, is_ordered=True)
    elif search.open_records:
        is_complete = search.search_memory()
        if search.open_records and not is_complete:
            search.search(
                entry.manifest
                for entry in reversed(entries)
                if entry.release == question.release.digest and entry.verdict is not Verdict.FAILED
            )
    for record_id in search.carried.outcomes:
        search.carried.retried.pop(record_id, None)
    return search.carried


def reads_otherwise(manifest: Manifest, definition: HookDefinition) -> bool:
    """Return whether the current declaration decodes the same raw output differently."""
    feature = definition.feature
    return manifest.columns != feature.columns or manifest.cardinality != feature.cardinality.value


class _Search:
    def __init__(self, store: BlobStore, question: Question) -> None:
        self.store = store
        self.question = question
        self.definition = question.definition
        self.carried = Carried()
        self._granted = granted_limits(question.definition.release.limits)
        self._errored_at: dict[str, datetime] = {}
        """When the batch's current artifact left a record open: older outcomes do not answer it."""
        self._seen: set[Digest] = set()
        self._read: set[Digest] = set()
        """Blobs that were read completely, so that they are known to be stored."""
        self._erased: Erased | None = None
        self._is_unaccepted = False
        """Whether an artifact was in no log when it was looked for."""
        self._manifests: dict[Digest, Manifest] = {}
        self._lost: dict[Digest, str | None] = {}

    @property
    def open_records(self) -> list[str]:
        """Records that have no answer so far, in order."""
        done = self.carried.outcomes.keys() | self.question.forced
        return [record_id for record_id in self.question.actions if record_id not in done]

    @property
    def erased(self) -> Erased:
        # Not a cached property, which in Python 3.11 makes all searches of a process wait for one.
        if self._erased is None:
            self._erased = erased(self.store, self.definition.dataset)
        return self._erased

    def search_current(self, current: Current) -> None:
        if current.manifest is None:
            self.carried.notes.append("the previous artifact's manifest is damaged")
            return
        if current.damage is not None:
            self.carried.notes.append(f"nothing carried over: {current.damage}")
        self._manifests[current.entry.manifest] = current.manifest
        self._add_outcomes(current.entry.manifest, current.outcomes, current.entry.accepted_at)
        self._errored_at = dict.fromkeys(self.carried.retried, current.entry.accepted_at)

    def search_memory(self) -> bool:
        """Search the memory's artifacts; return whether the memory is known to be complete."""
        program = self.question.release.program
        prefix = layout.answers(self.definition.dataset, self.definition.name, program)
        actions = {self.question.actions[record_id] for record_id in self.open_records}
        remembered = answers.find(self.store, prefix, actions)
        self.carried.notes += [f"memory of answers: {why}" for why in remembered.problems]
        self._is_unaccepted = False
        self.search(remembered.artifacts)
        if not self._is_unaccepted:
            self.carried.memory = remembered.keys
        return remembered.is_complete

    def search(self, manifests: Iterable[Digest], *, is_ordered: bool = False) -> None:
        """Take the answers of these artifacts, newest first unless they are ordered."""
        # An erasure replaced some: what the successor does not say any more is not answered.
        names = dict.fromkeys(map(self.erased.manifest_now, manifests))
        located = map_threads(self._locate, [name for name in names if name not in self._seen])
        accepted = [entry for entry in located if entry is not None]
        self._is_unaccepted |= len(accepted) < len(located)
        if not is_ordered:
            accepted.sort(key=lambda e: (e.accepted_at, e.seq, e.manifest), reverse=True)
        for entry in accepted:
            if not self.open_records:
                return
            self._read_and_add(entry)

    def _locate(self, digest: Digest) -> FeatureEntry | None:
        """Return the log entry of an artifact of this hook; None if no log names it."""
        manifest = self._manifest(digest)
        if manifest is None or manifest.is_failed:
            return None
        whose = (manifest.dataset, manifest.hook)
        if whose != (self.definition.dataset, self.definition.name):
            return None
        try:
            entries = log.read_log(self.store, *whose, manifest.batch)
        except (NotFoundError, CorruptDataError, InvalidInputError) as error:
            self.carried.notes.append(f"manifest {digest.short}: {error}")
            return None
        for entry in reversed(entries):
            if entry.manifest == digest and read.disagreement(entry, manifest) is None:
                return entry
        return None

    def _manifest(self, digest: Digest) -> Manifest | None:
        manifest = self._manifests.get(digest)
        if manifest is None:
            try:
                manifest = read.read_manifest(self.store, digest)
            except (NotFoundError, CorruptDataError, InvalidInputError) as error:
                self.carried.notes.append(f"manifest {digest.short}: {error}")
                return None
            self._manifests[digest] = manifest
        return manifest

    def _read_and_add(self, entry: FeatureEntry) -> None:
        try:
            outcomes = read.read_artifact_outcomes(self.store, self._manifests[entry.manifest])
        except (NotFoundError, CorruptDataError) as error:
            self.carried.notes.append(f"manifest {entry.manifest.short}: {error}")
            return
        self._add_outcomes(entry.manifest, {o.record_id: o for o in outcomes}, entry.accepted_at)

    def _add_outcomes(
        self, digest: Digest, outcomes: Mapping[str, Outcome], accepted_at: datetime
    ) -> None:
        """Take the artifact's answers for open records."""
        self._seen.add(digest)
        if outcomes:
            named = self._manifests[digest].blobs
            self._read |= {named[ROWS].digest, named[OUTCOMES].digest}
        usable: dict[str, Outcome] = {}
        for record_id in self.open_records:
            outcome = outcomes.get(record_id)
            if outcome is None or outcome.action != self.question.actions[record_id]:
                continue
            errored_at = self._errored_at.get(record_id)
            if errored_at is not None and accepted_at <= errored_at:
                continue
            if outcome.may_differ_under(self._granted):
                self.carried.retried.setdefault(record_id, outcome)
                continue
            source = self.erased.manifest_now(outcome.carried_from or digest)
            usable[record_id] = replace(outcome, carried_from=source)
        usable = self._whole(self._present(usable))
        if reads_otherwise(self._manifests[digest], self.definition):
            usable = self._whole(self._decoded(usable))
            self.carried.decoded_again |= usable.keys()
        if usable:
            self.carried.outcomes |= usable
            self.carried.sources.append(digest)

    def _whole(self, usable: dict[str, Outcome]) -> dict[str, Outcome]:
        """Return the outcomes; none if there is one action for the batch and some are missing."""
        if self.definition.scope is Scope.BATCH and len(usable) < len(self.question.actions):
            return {}
        return usable

    def _present(self, usable: dict[str, Outcome]) -> dict[str, Outcome]:
        """Return the outcomes whose manifest has all of its blobs in the archive."""
        sources = {o.carried_from for o in usable.values() if o.carried_from is not None}
        for source in sorted(sources - self._lost.keys()):
            self._lost[source] = lost = self._loss(source)
            if lost is not None:
                self.carried.notes.append(
                    f"manifest {source.short}: {lost}; its outcomes are not carried over"
                )
        lost_sources = {source for source in sources if self._lost[source] is not None}
        return {i: o for i, o in usable.items() if o.carried_from not in lost_sources}

    def _loss(self, digest: Digest) -> str | None:
        """Return why a manifest cannot be carried from; None if all its blobs are stored."""
        manifest = self._manifest(digest)
        if manifest is None:
            return "it cannot be read"
        refs = [ref for ref in manifest.blobs.values() if ref.digest not in self._read]
        missing = {ref.digest for ref in blobs.find_missing(self.store, refs)}
        for name, ref in manifest.blobs.items():
            if ref.digest in missing:
                return f"its blob {name} ({ref.digest.short}) is missing or damaged"
        return None

    def _decoded(self, usable: Mapping[str, Outcome]) -> dict[str, Outcome]:
        """Return the outcomes as decoded from the raw output under the current declaration.

        Without those whose raw output cannot be read any more: they are computed again, which is
        noted.
        """
        decoded: dict[str, Outcome] = {}
        feature = self.definition.feature
        for source in sorted({o.carried_from for o in usable.values() if o.carried_from}):
            ours = {i: o for i, o in usable.items() if o.carried_from == source}
            decoded |= {i: o for i, o in ours.items() if not o.is_from_output}
            wanted = [i for i, o in ours.items() if o.is_from_output]
            if not wanted:
                continue
            origin = self._manifests[source]
            try:
                again = decode_raw(self.store, origin, wanted, feature.columns, feature.cardinality)
            except (NotFoundError, CorruptDataError, UnclearColumnError) as error:
                self.carried.notes.append(
                    f"manifest {source.short}: {error}; its outcomes are computed again"
                )
                continue
            for outcome in again:
                action = usable[outcome.record_id].action
                decoded[outcome.record_id] = replace(outcome, carried_from=source, action=action)
        return {i: decoded[i] for i in usable if i in decoded}
