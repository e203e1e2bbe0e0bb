"""Plan and carry out the repair of damaged and lost objects.

Bytes whose digest is known are restored only unchanged: from a second archive, compared with the
digest. A log entry is proved by the entry after it, which names its bytes; by the entry before it,
which it names; or, in version 1, by its place and by the objects that it names. If no copy is left,
an artifact that a database knows is appended to its log again, as a new entry whose completion
shows this.

Every step can be repeated. An interrupted repair is planned again from the current state.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from feature_pipeline.archive import accept, blobs, completion_verdict, read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.inspection.findings import Finding, ObjectKind, State
from feature_pipeline.archive.logs import inbox, log
from feature_pipeline.archive.logs.entries import LogEntry, StoredEntry, decode_entry, link_problem
from feature_pipeline.archive.logs.erasures import ErasureEntry, erased, erasures
from feature_pipeline.archive.logs.inbox import Completion, CompletionStatus, Submission
from feature_pipeline.archive.logs.known_lengths import KnownLogs, known_logs
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry, StoredRelease, Verdict
from feature_pipeline.archive.logs.losses import Loss, LossEntry, losses
from feature_pipeline.archive.logs.tombstones import (
    TombstoneEntry,
    stored_tombstones,
    withdraw,
    withdrawn_by,
)
from feature_pipeline.archive.maintenance.compare_databases import KnownBatch, KnownEntry
from feature_pipeline.archive.publish import enqueue_completion
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.release import HookRelease

logger = logging.getLogger(__name__)

_MODELS: Final[dict[ObjectKind, type[LogEntry]]] = {
    ObjectKind.FEATURE_ENTRY: FeatureEntry,
    ObjectKind.BATCH_ENTRY: BatchEntry,
    ObjectKind.RELEASE_ENTRY: StoredRelease,
    ObjectKind.TOMBSTONE_ENTRY: TombstoneEntry,
    ObjectKind.ERASURE_ENTRY: ErasureEntry,
    ObjectKind.LOSS_ENTRY: LossEntry,
}
_RESTORED: Final = "restored-"
"""Prefix of the ids of completions by which artifacts are accepted again."""
_UNREADABLE: Final = (NotFoundError, CorruptDataError, InvalidInputError)


class Action(StrEnum):
    """The kind of a step."""

    COPY = "copy from the second archive"
    DERIVE = "derive again from raw output"
    STORE_CODE = "store the project's code file"
    APPEND = "append the artifact to its log again"
    SUBMIT = "enter the batch in its log again"
    REGISTER = "register the release again"
    WITHDRAW = "withdraw the erased records again"


@dataclass(frozen=True, slots=True)
class Step:
    """One object that can be restored."""

    finding: Finding
    action: Action
    proof: str
    """Why the restored object is right, for display."""
    run: Callable[[], None] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Remainder:
    """One object that cannot be restored from the available sources."""

    finding: Finding
    remedy: str
    """What an operator can do, with the command."""


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """The objects that can be restored, and those that cannot."""

    steps: tuple[Step, ...]
    remainders: tuple[Remainder, ...]

    def to_json(self) -> dict[str, object]:
        """Return the plan for programs."""
        return {
            "steps": [
                {**_finding(step.finding), "action": step.action.value, "proof": step.proof}
                for step in self.steps
            ],
            "remainders": [{**_finding(r.finding), "remedy": r.remedy} for r in self.remainders],
        }


def _finding(finding: Finding) -> dict[str, object]:
    return {"state": finding.state.value, "kind": finding.kind.value, "key": finding.key}


@dataclass(frozen=True, slots=True)
class ProjectRelease:
    """A release that the project declares, with its code files by name."""

    release: HookRelease
    code: Mapping[str, Path]


@dataclass(frozen=True)
class Sources:
    """The sources for restoring objects, besides the archive itself."""

    second: BlobStore | None = None
    """Another archive with the same keys: a copy, a backup. It is only read."""
    entries: Sequence[KnownEntry] = ()
    """Entries of hooks' logs that databases know."""
    batches: Sequence[KnownBatch] = ()
    """Submitted batches that databases know."""
    submitted_at: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    """Time of submission by (dataset, batch), as far as tables know it."""
    releases: Sequence[ProjectRelease] = ()
    derive: Callable[[BlobStore, FeatureEntry], object] | None = None
    """Derives a current artifact's rows and outcomes from its raw output again."""


def plan_repair(store: BlobStore, findings: Iterable[Finding], sources: Sources) -> RepairPlan:
    """Decide how each finding can be repaired, and list those that cannot. Writes nothing.

    Args:
        store: The archive.
        findings: From `verify` and `known.find_lost`.
        sources: Where objects may be restored from.

    Raises:
        StoreUnavailableError: A store did not answer.
    """
    planner = _Planner(store, sources)
    steps: list[Step] = []
    remainders: list[Remainder] = []
    for finding in findings:
        step = planner.step(finding)
        if step is None:
            remainders.append(Remainder(finding, planner.remedy(finding)))
        else:
            steps.append(step)
    # Bytes before what names them: logs are put right by entries whose artifacts are there.
    order = list(Action)
    steps.sort(key=lambda s: (not s.finding.key.startswith(layout.BLOBS), order.index(s.action)))
    return RepairPlan(tuple(steps), tuple(remainders))


def carry_out(plan: RepairPlan, progress: Callable[[Step], None]) -> list[Remainder]:
    """Carry out every step; return those that failed, with the reason.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: A store did not answer. Plan again, and carry
            that out.
    """
    failed: list[Remainder] = []
    for step in plan.steps:
        try:
            step.run()
        except (*_UNREADABLE, ConflictError) as error:
            failed.append(Remainder(step.finding, f"the attempt to {step.action} failed: {error}"))
        progress(step)
    return failed


@dataclass(frozen=True, slots=True)
class Appendable:
    """An artifact without an entry in its log, and what is known of the entry that it had."""

    manifest: Manifest
    base: int | None
    """What was in the log when its run was planned, or an upper bound of it; None if unknown."""
    published_at: datetime
    is_history: bool = False
    """Whether it was history for another reason than an artifact that is known to be newer."""

    @classmethod
    def at(cls, manifest: Manifest, seq: int | None) -> "Appendable":
        """Return an artifact of whose log entry at most the number is known."""
        return cls(manifest, None if seq is None else seq - 1, manifest.run.finished_at)

    @property
    def order(self) -> tuple[int, float, datetime]:
        """What decides which of several is current: see `FeatureEntry.order`."""
        base = float("inf") if self.base is None else self.base
        return self.manifest.release.seq, base, self.published_at


def find_appendable(
    store: BlobStore, accepted: Iterable[Loss], known: Sequence[KnownEntry]
) -> list[Appendable]:
    """Return the still stored artifacts whose log entries were given up, in order.

    Each comes with the number of its entry, if known. The artifacts are known from the text of
    removed entries, or from databases. Logs that cannot be read are left out. Writes nothing.
    """
    appendable: list[Appendable] = []
    ends = known_logs(store)
    for loss in accepted:
        if not loss.log.startswith(layout.FEATURE_LOGS):
            continue
        dataset, hook, batch = _feature_log_names(loss.log)
        there = _undamaged_log(store, loss.log, ends)
        if there is None:
            continue
        erased_now = erased(store, dataset)
        done = {entry.manifest for entry in there}
        removed = _removed_entries(loss)
        replaced = [entry for entry in there if entry.manifest in erased_now.manifests]
        artifacts: list[tuple[Digest, int | None]] = [
            (entry.manifest, entry.seq) for entry in (*removed, *replaced)
        ]
        artifacts += [
            (one.manifest, one.seq)
            for one in sorted(known, key=lambda one: one.seq or loss.known_entries)
            if layout.feature_log(one.dataset, one.hook, one.batch) == loss.log
        ]
        texts = {entry.manifest: entry for entry in (*replaced, *removed)}
        for named, seq in artifacts:
            digest = erased_now.manifest_now(named)
            if digest in done:
                continue
            done.add(digest)
            manifest = _read_manifest(store, digest)
            if manifest is None or (manifest.dataset, manifest.hook, manifest.batch) != (
                dataset,
                hook,
                batch,
            ):
                continue
            if (entry := texts.get(named)) is None:
                appendable.append(Appendable.at(manifest, seq))
                continue
            published_at = entry.published_at or manifest.run.finished_at
            is_history = _is_history(entry, [*there[: loss.entries], *removed])
            appendable.append(Appendable(manifest, entry.base, published_at, is_history))
    return appendable


def _feature_log_names(prefix: str) -> tuple[str, str, str]:
    """Return the dataset, hook and batch of a hook's log."""
    dataset, hook, batch = prefix.removeprefix(layout.FEATURE_LOGS).rstrip("/").split("/")
    return dataset, hook, batch


def _undamaged_log(store: BlobStore, prefix: str, ends: KnownLogs) -> list[FeatureEntry] | None:
    """Return the entries of a hook's log; None if it is damaged, or not as it is known to be.

    An entry appended behind damage would name it, and so make it a part of the log.
    """
    dataset, hook, batch = _feature_log_names(prefix)
    readable = log.readable_feature_logs(store, dataset, hook, [batch], ends)
    return None if readable.damage else readable.intact.get(batch, [])


def _removed_entries(loss: Loss) -> list[FeatureEntry]:
    """Return the entries behind the new end of a hook's log whose text can be read."""
    entries: list[FeatureEntry] = []
    for removed in loss.removed:
        try:
            entries.append(FeatureEntry.decode(removed.text.encode(), loss.log))
        except InvalidInputError:
            continue
    return entries


def _is_history(entry: FeatureEntry, entries: Sequence[FeatureEntry]) -> bool:
    """Return whether an entry is history although no readable entry before it is newer.

    Either its run was cancelled, or an unreadable entry was the newer one. Log entries do not
    distinguish the two. Its answers are carried over in both cases.
    """
    if entry.verdict is not Verdict.SUPERSEDED:
        return False
    current = log.last_current([one for one in entries if one.seq < entry.seq])
    return current is None or not completion_verdict.is_before(entry, current)


def find_unfinished(store: BlobStore, dataset: str) -> list[Loss]:
    """Return the accepted losses after which only given-up artifacts were accepted.

    A process that died may have left some of these unappended. In a log that has grown since, no
    older artifact is appended: it would become current. Damaged logs are left out.
    """
    ends = known_logs(store)
    last = {loss.log: loss for entry in losses(store, dataset) for loss in entry.losses}
    unfinished: list[Loss] = []
    for prefix, loss in last.items():
        if not prefix.startswith(layout.FEATURE_LOGS):
            continue
        there = _undamaged_log(store, prefix, ends)
        if there is None:
            continue
        if all(e.completion.startswith(_RESTORED) for e in there[loss.entries :]):
            unfinished.append(loss)
    return unfinished


def append_again(
    store: BlobStore, accepted: Iterable[Loss], known: Sequence[KnownEntry]
) -> list[FeatureEntry]:
    """Append what `find_appendable` returns; return the new entries. Idempotent."""
    return _append(store, find_appendable(store, accepted, known))


class _Planner:
    def __init__(self, store: BlobStore, sources: Sources) -> None:
        self._store, self._sources = store, sources
        self._tables: dict[Digest, FeatureEntry] | None = None

    def step(self, finding: Finding) -> Step | None:
        """Return the step that restores the object of a finding; None if nothing can."""
        if finding.state in {State.NEWER, State.NOT_ERASED, State.UNREADABLE}:
            return None
        if finding.key.startswith(layout.BLOBS):
            return self._blob(finding)
        if finding.kind is ObjectKind.CENSUS:
            return self._census(finding)
        if finding.kind not in _MODELS:
            return None
        return self._copied_entry(finding) or self._entry(finding)

    # Blobs

    def _blob(self, finding: Finding) -> Step | None:
        digest = layout.parse_blob(finding.key)
        second = self._sources.second
        if second is not None and _has(second, digest):
            return Step(
                finding,
                Action.COPY,
                "its bytes have the digest that is its name",
                lambda: _copy_blob(second, self._store, digest),
            )
        if finding.kind is ObjectKind.CODE:
            return self._code(finding, digest)
        if finding.kind not in {ObjectKind.ROWS, ObjectKind.OUTCOMES}:
            return None
        entry, derive = self._tables_by_digest().get(digest), self._sources.derive
        if entry is None or derive is None:
            return None
        return Step(
            finding,
            Action.DERIVE,
            "raw output is the authority; if today's decoder gives other bytes, a successor with"
            " the same raw output becomes current",
            lambda: _run(derive, self._store, entry),
        )

    def _code(self, finding: Finding, digest: Digest) -> Step | None:
        for declared in self._sources.releases:
            for file in declared.release.document.code:
                path = declared.code.get(file.name)
                if file.blob == digest and path is not None and path.is_file():
                    return Step(
                        finding,
                        Action.STORE_CODE,
                        f"{path} has the digest that is its name",
                        lambda path=path: _put(self._store, digest, path.read_bytes()),  # type: ignore[misc]
                    )
        return None

    def _tables_by_digest(self) -> dict[Digest, FeatureEntry]:
        """Return the current entry by the digests of its artifact's rows and outcomes."""
        if self._tables is None:
            self._tables = {}
            for dataset in log.datasets(self._store):
                for hook in log.hooks(self._store, dataset):
                    heads = log.readable_heads(self._store, dataset, hook).intact
                    for head in heads.values():
                        manifest = _manifest(self._store, head)
                        for name in ("rows", "outcomes"):
                            if manifest is not None and name in manifest.blobs:
                                self._tables.setdefault(manifest.blobs[name].digest, head)
        return self._tables

    def _census(self, finding: Finding) -> Step | None:
        second = self._sources.second
        if second is None:
            return None
        try:
            _, digest = layout.parse_census(finding.key)
            data = second.get(finding.key).data
        except _UNREADABLE:
            return None
        if Digest.of(data) != digest:
            return None
        return Step(
            finding,
            Action.COPY,
            "its bytes have the digest that is in its name",
            lambda: _replace(self._store, finding.key, data),
        )

    # Log entries from a second archive

    def _copied_entry(self, finding: Finding) -> Step | None:
        second = self._sources.second
        if second is None:
            return None
        model = _MODELS[finding.kind]
        prefix = f"{finding.key.rpartition('/')[0]}/"
        ours = _entries(self._store, prefix, model)
        theirs = _entries(second, prefix, model)
        last = self._number(finding, theirs)
        if last is None:
            return None
        if finding.state is State.LOST and last in ours:
            if last not in theirs or not _is_damaged_copy(ours[last].entry, theirs[last].entry):
                return None  # the log has gone on without it: which is right is undecided
        elif last in ours and _is_before(theirs.get(last - 1), ours[last], ours.get(last - 1)):
            last -= 1  # the entry itself is right, and names the one that was before it
        copied = _to_copy(ours, theirs, last)
        if copied is None:
            return None
        ours |= {seq: theirs[seq] for seq in copied}
        return Step(
            finding,
            Action.COPY,
            _proof(ours, copied, self._sources.entries),
            lambda: _copy_entries(second, self._store, [ours[seq] for seq in copied]),
        )

    def _number(self, finding: Finding, theirs: Mapping[int, StoredEntry[LogEntry]]) -> int | None:
        """Return the entry's number, or the second archive's if only its manifest is known."""
        if not finding.key.endswith("/"):
            try:
                return layout.parse_entry(finding.key).seq
            except InvalidInputError:
                return None
        known = {
            one.manifest
            for one in self._sources.entries
            if layout.feature_log(one.dataset, one.hook, one.batch) == finding.key
        }
        numbers = [
            seq
            for seq, stored in theirs.items()
            if isinstance(stored.entry, FeatureEntry) and stored.entry.manifest in known
        ]
        return max(numbers, default=None)

    # Log entries without a copy

    def _entry(self, finding: Finding) -> Step | None:
        match finding.kind:
            case ObjectKind.FEATURE_ENTRY:
                return self._artifact(finding)
            case ObjectKind.BATCH_ENTRY:
                return self._batch(finding)
            case ObjectKind.RELEASE_ENTRY:
                return self._release(finding)
            case ObjectKind.TOMBSTONE_ENTRY:
                return self._tombstone(finding)
            case _:
                return None

    def _artifact(self, finding: Finding) -> Step | None:
        """Restore a lost artifact that a database knows and whose manifest is still stored."""
        prefix = finding.key.rpartition("/")[0] + "/"
        known = [
            one
            for one in self._sources.entries
            if layout.feature_log(one.dataset, one.hook, one.batch) == prefix
        ]
        if not known or finding.state is not State.LOST:
            return None
        newest = max(known, key=lambda one: (one.seq or 0, one.known_at))
        readable = log.readable_feature_logs(
            self._store, newest.dataset, newest.hook, [newest.batch]
        )
        if readable.damage:
            return None
        entries = readable.intact.get(newest.batch, [])
        lost = sorted(
            {one.manifest: one for one in known if not any(map(one.is_entry, entries))}.values(),
            key=lambda one: (one.seq or 0, one.known_at),
        )
        artifacts = [(one, _read_manifest(self._store, one.manifest)) for one in lost]
        matches = [(one, manifest) for one, manifest in artifacts if _is_of(manifest, one)]
        appendable = [Appendable.at(m, one.seq) for one, m in matches if m is not None]
        if not appendable:
            return None
        return Step(
            finding,
            Action.APPEND,
            f"{', '.join(dict.fromkeys(one.known_by for one, _ in matches))} knows its manifest,"
            " whose bytes have the digest; it is a new entry, named restored-..., because the old"
            " one's bytes are gone",
            lambda: _run(_append, self._store, appendable),
        )

    def _batch(self, finding: Finding) -> Step | None:
        """Restore a batch that artifacts or a database name and whose document is still stored."""
        dataset, batch = _names(finding.key)
        if batch is None or log.readable_batches(self._store, dataset, [batch]).damage:
            return None
        if log.batch_entries(self._store, dataset, batch):
            return None  # a later entry is there: the first one's bytes are named by it
        digests: dict[Digest, str] = {
            one.digest: one.known_by
            for one in self._sources.batches
            if (one.dataset, one.batch) == (dataset, batch)
        }
        instants = [
            one.submitted_at
            for one in self._sources.batches
            if (one.dataset, one.batch) == (dataset, batch) and one.submitted_at is not None
        ]
        if (at := self._sources.submitted_at.get((dataset, batch))) is not None:
            instants.append(at)
        replacements = list(self._manifests_over(dataset, batch))
        for manifest in replacements:
            digests.setdefault(manifest.batch_digest, f"the artifact of hook {manifest.hook}")
        readable = {d: by for d, by in digests.items() if _read_batch(self._store, d) is not None}
        if len(readable) != 1:
            return None
        [(digest, known_by)] = readable.items()
        instants = instants or [manifest.run.started_at for manifest in replacements]
        if not instants:
            return None
        exact = bool(self._sources.submitted_at.get((dataset, batch))) or any(
            one.submitted_at for one in self._sources.batches if one.batch == batch
        )
        when = "as a database knows" if exact else "no later than its first hook run"
        return Step(
            finding,
            Action.SUBMIT,
            f"{known_by} names the batch document, whose bytes have the digest; submitted {when}",
            lambda: _submit(self._store, digest, min(instants)),
        )

    def _manifests_over(self, dataset: str, batch: str) -> Iterator[Manifest]:
        for hook in log.hooks(self._store, dataset):
            logs = log.readable_feature_logs(self._store, dataset, hook, [batch])
            for entry in logs.intact.get(batch, []):
                if (manifest := _manifest(self._store, entry)) is not None:
                    yield manifest

    def _release(self, finding: Finding) -> Step | None:
        """Return the step that registers the missing release again; None if it is not known.

        It must follow the last one in the log, and the project must declare it.
        """
        key = layout.parse_entry(finding.key)
        dataset, hook = _names(finding.key)
        if hook is None:
            return None
        try:
            there = log.releases(self._store, dataset, hook)
        except (CorruptDataError, NewerVersionError):
            return None
        if key.seq != len(there) + 1:
            return None
        named = {
            entry.release
            for entries in log.readable_feature_logs(self._store, dataset, hook).intact.values()
            for entry in entries
            if entry.release_seq == key.seq
        }
        for declared in self._sources.releases:
            if declared.release.digest in named:
                return Step(
                    finding,
                    Action.REGISTER,
                    "artifacts name this release by its digest, and the project declares it",
                    lambda declared=declared: _register(self._store, declared),  # type: ignore[misc]
                )
        return None

    def _tombstone(self, finding: Finding) -> Step | None:
        dataset, _ = _names(finding.key)
        if finding.state is not State.MISSING:
            return None
        try:
            ids = {i for entry in erasures(self._store, dataset) for i in entry.record_ids}
            missing = sorted(ids - withdrawn_by(stored_tombstones(self._store, dataset)))
        except (CorruptDataError, NewerVersionError):
            return None
        if not missing:
            return None
        return Step(
            finding,
            Action.WITHDRAW,
            "the log of erasures names the records",
            lambda: _run(
                withdraw, self._store, dataset, missing, "restored: the log of erasures names them"
            ),
        )

    # What cannot be brought back

    def _is_contested(self, finding: Finding) -> bool:
        """Return whether both archives have an entry in its place, and which is right is open."""
        second, model = self._sources.second, _MODELS.get(finding.kind)
        if second is None or model is None or finding.state is not State.LOST:
            return False
        prefix, key = f"{finding.key.rpartition('/')[0]}/", finding.key
        entries = (_entries(store, prefix, model) for store in (self._store, second))
        return all(key in {layout.entry(prefix, seq) for seq in one} for one in entries)

    def remedy(self, finding: Finding) -> str:
        """Return what an operator can do about a finding that cannot be repaired."""
        if finding.state is State.NEWER:
            return "upgrade feature-pipeline; the object is valid"
        if finding.state is State.UNREADABLE:
            return "the store did not return it: try again, then check the store"
        if finding.state is State.NOT_ERASED:
            return finding.detail
        if self._is_contested(finding):
            return (
                "this archive and the second one have different entries in this place, and both are"
                f" valid: if this one's is wrong, delete the object {finding.key} and run this"
                " command again, which restores the second one's"
            )
        match finding.kind:
            case ObjectKind.CENSUS:
                return (
                    f"{_COPY}, or run `feature-pipeline verify`, which takes a new census; losses"
                    " since the one before this are not noticed then"
                )
            case ObjectKind.MANIFEST | ObjectKind.RAW | ObjectKind.HOOK_LOG:
                return f"{_COPY}, or compute again: {_compute(finding)}"
            case ObjectKind.ROWS | ObjectKind.OUTCOMES:
                return f"{_COPY}, or, if it is current, compute again: {_compute(finding)}"
            case ObjectKind.BATCH | ObjectKind.RECORD_FILE | ObjectKind.BATCH_ENTRY:
                return f"{_COPY}, or submit the same records again under the same batch key"
            case ObjectKind.CODE | ObjectKind.RELEASE_ENTRY:
                return f"{_COPY}, or declare the release as it was and run this command again"
            case ObjectKind.FEATURE_ENTRY:
                return f"{_COPY}; compute again what cannot be restored: {_compute(finding)}"
            case ObjectKind.INBOX_ENTRY | ObjectKind.QUARANTINE_ENTRY:
                return (
                    "publish or submit it again; `feature-pipeline quarantine --discard` removes it"
                )
            case _:
                return _COPY


_COPY: Final = "copy it from a replica or backup of the bucket with --from s3://BUCKET/PREFIX"


def _compute(finding: Finding) -> str:
    """Return the command that computes the object of a finding again."""
    where = finding.named_by
    if finding.key.startswith(layout.FEATURE_LOGS):
        parts = finding.key.removeprefix(layout.FEATURE_LOGS).split("/")
        return f"`feature-pipeline backfill {parts[1]} --select all --batch {parts[2]}`"
    return f"`feature-pipeline backfill HOOK --select all --batch BATCH` (needed by {where})"


def _names(key: str) -> tuple[str, str | None]:
    """Return the dataset of a log entry's key, and the batch or hook if its log has one."""
    parts = key.split("/")
    return parts[2], parts[3] if len(parts) > 4 else None


def _run(function: Callable[..., object], *arguments: object) -> None:
    function(*arguments)


def _has(store: BlobStore, digest: Digest) -> bool:
    try:
        blobs.verify_blob(store, digest)
    except (NotFoundError, CorruptDataError):
        return False
    return True


def _copy_blob(source: BlobStore, target: BlobStore, digest: Digest) -> None:
    _put(target, digest, blobs.read_blob(source, digest))


def _put(store: BlobStore, digest: Digest, data: bytes) -> None:
    """Store the bytes under their digest, replacing any existing object.

    Raises:
        CorruptDataError: They do not have the digest.
    """
    if (actual := Digest.of(data)) != digest:
        raise CorruptDataError(f"the bytes for blob {digest} have the digest {actual}")
    _replace(store, layout.blob(digest), data)


def _replace(store: BlobStore, key: str, data: bytes) -> None:
    info = store.stat(key)
    done = store.create(key, data) if info is None else store.replace(key, data, info.etag)
    if not done and store.get(key).data != data:
        raise ConflictError(f"{store.identity}: {key} was written by another process meanwhile")


def _ensure(source: BlobStore, target: BlobStore, digest: Digest) -> None:
    """Copy the blob from the source to the target if the target lacks it."""
    if not _has(target, digest):
        _copy_blob(source, target, digest)


def _entries(
    store: BlobStore, prefix: str, model: type[LogEntry]
) -> dict[int, StoredEntry[LogEntry]]:
    """Return the readable entries of a log, each decoded separately, by number."""
    entries: dict[int, StoredEntry[LogEntry]] = {}
    for info in store.list_objects(prefix):
        try:
            data = store.get(info.key).data
            entry = decode_entry(model, info.key, data, store.identity)
        except _UNREADABLE:
            continue
        entries[entry.entry.seq] = entry
    return entries


def _is_damaged_copy(ours: LogEntry, theirs: LogEntry) -> bool:
    """Return whether two entries are the same one, of which a part has changed.

    Two entries that were both accepted differ in `write_id`, and in content or time.
    """
    one, other = ours.model_dump(), theirs.model_dump()
    return len([name for name in one if one[name] != other.get(name)]) == 1


def _is_before(
    candidate: StoredEntry[LogEntry] | None,
    entry: StoredEntry[LogEntry],
    now: StoredEntry[LogEntry] | None,
) -> bool:
    """Return whether the entry follows the candidate, and something else is in its place now."""
    if candidate is None or (now is not None and now.digest == candidate.digest):
        return False
    return bool(entry.entry.previous == candidate.digest)


def _to_copy(
    ours: Mapping[int, StoredEntry[LogEntry]],
    theirs: Mapping[int, StoredEntry[LogEntry]],
    last: int,
) -> list[int] | None:
    """Return the numbers of the entries to copy for entry `last`, ascending.

    These are `last`, those before it that are absent, and neighbours that were altered as well: an
    altered entry may look right alone. It contradicts the copy beside it, and differs from its own
    copy in one field. None if a copy is absent, or contradicts a neighbour that was not altered.
    """
    copied = {last, *(seq for seq in range(layout.FIRST_SEQ, last) if seq not in ours)}
    due = list(copied)
    while due:
        seq = due.pop()
        if seq not in theirs:
            return None
        for neighbour in (seq - 1, seq + 1):
            adjacent = (theirs if neighbour in copied else ours).get(neighbour)
            if adjacent is None or _fits(adjacent, theirs[seq]):
                continue
            copy = theirs.get(neighbour)
            if (
                neighbour in copied
                or copy is None
                or not _is_damaged_copy(adjacent.entry, copy.entry)
            ):
                return None
            copied.add(neighbour)
            due.append(neighbour)
    return sorted(copied)


def _fits(one: StoredEntry[LogEntry], other: StoredEntry[LogEntry]) -> bool:
    """Return whether the later of two neighbours follows the earlier one."""
    before, after = sorted((one, other), key=lambda stored: stored.entry.seq)
    return link_problem(before, after) is None


def _proof(
    entries: Mapping[int, StoredEntry[LogEntry]],
    copied: Sequence[int],
    known: Sequence[KnownEntry],
) -> str:
    last = entries[copied[-1]]
    after = entries.get(copied[-1] + 1)
    if after is not None and after.entry.previous == last.digest:
        return f"entry {after.entry.seq} names its bytes by their digest"
    if isinstance(last.entry, FeatureEntry):
        for one in known:
            same = (one.dataset, one.hook, one.batch)
            ours = (last.entry.dataset, last.entry.hook, last.entry.batch)
            if same == ours and one.is_entry(last.entry):
                return f"{one.known_by} knows its number and manifest"
    if last.entry.previous is not None:
        return f"it names entry {last.entry.seq - 1} by the digest of its bytes"
    return "it is in its place, and what it names agrees with it; no digest of its bytes is known"


def _copy_entries(
    source: BlobStore, target: BlobStore, entries: Sequence[StoredEntry[LogEntry]]
) -> None:
    """Copy the objects that the entries name, then the entries, in order."""
    for stored in entries:
        entry = stored.entry
        match entry:
            case FeatureEntry():
                erased = {old for e in erasures(source, entry.dataset) for old in e.manifests}
                if str(entry.manifest) not in erased:
                    manifest = read.manifest_of(source, entry)
                    for ref in manifest.blobs.values():
                        _ensure(source, target, ref.digest)
                    _ensure(source, target, entry.manifest)
            case BatchEntry():
                replaced = {old for e in erasures(source, entry.dataset) for old in e.batches}
                if str(entry.digest) not in replaced:
                    batch = RecordBatch.decode(blobs.read_blob(source, entry.digest))
                    for record in batch.records:
                        for file in record.files:
                            _ensure(source, target, file.blob)
                    _ensure(source, target, entry.digest)
            case StoredRelease():
                for code in entry.release.code:
                    _ensure(source, target, code.blob)
        _replace(target, layout.entry(entry.log_prefix, entry.seq), entry.encode())


def _manifest(store: BlobStore, entry: FeatureEntry) -> Manifest | None:
    try:
        return read.manifest_of(store, entry)
    except _UNREADABLE:
        return None


def _read_manifest(store: BlobStore, digest: Digest) -> Manifest | None:
    try:
        return read.read_manifest(store, digest)
    except _UNREADABLE:
        return None


def _read_batch(store: BlobStore, digest: Digest) -> RecordBatch | None:
    try:
        return RecordBatch.decode(blobs.read_blob(store, digest))
    except _UNREADABLE:
        return None


def _is_of(manifest: Manifest | None, known: KnownEntry) -> bool:
    return manifest is not None and (manifest.dataset, manifest.hook, manifest.batch) == (
        known.dataset,
        known.hook,
        known.batch,
    )


def _append(store: BlobStore, artifacts: Iterable[Appendable]) -> list[FeatureEntry]:
    """Accept the artifacts again, in order, like any other artifact.

    Those that their logs have by now are left out. An artifact's base is below its old entry's
    number: an artifact that was accepted since in the lost entry's place, and was published later,
    stays current.
    """
    appended: list[FeatureEntry] = []
    for one in sorted(artifacts, key=lambda one: one.order):
        manifest = one.manifest
        entries = log.read_log(store, manifest.dataset, manifest.hook, manifest.batch)
        digest = Digest.of(manifest.encode())
        if any(entry.manifest == digest for entry in entries):
            continue
        status = CompletionStatus.SUCCEEDED
        if manifest.is_failed:
            status = CompletionStatus.FAILED
        elif one.is_history:
            status = CompletionStatus.CANCELLED
        completion = enqueue_completion(
            store,
            Completion(
                id=f"{_RESTORED}{digest.hex[:24]}",
                dataset=manifest.dataset,
                hook=manifest.hook,
                batch=manifest.batch,
                release_seq=manifest.release.seq,
                release_digest=manifest.release.digest,
                base=len(entries) if one.base is None else min(len(entries), one.base),
                manifest=digest,
                status=status,
                dagster_run_id=manifest.run.dagster_run_id,
                published_at=one.published_at,
            ),
        )
        try:
            entry = accept.accept(store, completion)
        except InvalidInputError as error:
            logger.warning("%s; it waits in the inbox", error)
            continue
        appended.append(entry)
        inbox.remove(store, completion.inbox_id)
    return appended


def _submit(store: BlobStore, digest: Digest, submitted_at: datetime) -> None:
    batch = RecordBatch.decode(blobs.read_blob(store, digest))
    submission = inbox.enqueue(
        store,
        Submission(
            dataset=batch.dataset,
            batch=batch.key,
            digest=digest,
            source=batch.document.source,
            submitted_at=submitted_at,
        ),
    )
    accept.accept_batch(store, submission)
    inbox.remove(store, submission.inbox_id)


def _register(store: BlobStore, declared: ProjectRelease) -> None:
    log.register_release(store, declared.release, declared.code, is_restored=True)
