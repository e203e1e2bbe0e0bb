"""Take the completed hook outputs of the server into the archive.

An output is complete once the server has committed its row of `hook_runs` and `run.json` names that
row. Files of a complete output can be written again: while a worker has claimed the batch since the
hook run began, nothing is taken, and the claims are read once more after the files. Files that
changed while they were read wait for the next pass.

A pass asks the database for hook runs that the memory does not know, by their ids. It lists no
storage but the output folders of these, and those of a number of outputs that were taken before and
may still change.
"""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final

from feature_pipeline.archive import read
from feature_pipeline.archive.completion import completion_of
from feature_pipeline.archive.format.manifest import LOG as LOG_BLOB
from feature_pipeline.archive.format.manifest import RAW, Manifest, RunInfo
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.publish import (
    Artifact,
    publish_and_enqueue,
    submit_batch,
)
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.assemble_artifact import notes_on
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)
from feature_pipeline.hooks.action_digests import record_action
from feature_pipeline.model.definition import HookDefinition, Scope
from feature_pipeline.model.digest import Digest, digest_stream
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.release import HookRelease
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.osa.definitions import register_up_to, server_release
from feature_pipeline.osa.server.database import (
    PASSED,
    HookRun,
    IngestRun,
    OpenBatch,
    Reader,
    Release,
    Server,
    ServerHook,
    ValidatedDeposition,
)
from feature_pipeline.osa.server.ids import deposition_key, hook_run_id, local_id
from feature_pipeline.osa.server.notes import release_note, run_note
from feature_pipeline.osa.server.output import RUN, STORED, JudgedOutput, judge, stated_ids
from feature_pipeline.osa.server.schema import COMPLETIONS
from feature_pipeline.osa.server.storage import (
    Place,
    Seen,
    ServerStorage,
    output_place,
)
from feature_pipeline.osa.settings import OsaSettings
from feature_pipeline.osa.sync.pending import Pending, PendingBatch
from feature_pipeline.osa.sync.records import deposition_batch, deposition_files, ingest_batch
from feature_pipeline.osa.sync.taken_outputs import (
    DepositionMemory,
    StoredMemory,
    Taken,
    Unreadable,
    content_mark,
    files_mark,
)
from feature_pipeline.projections.catalog.database import Connection

RUNNER: Final = "osa"
"""Name of the runner in artifacts of the server's hook runs."""
SAVED_EVERY: Final = 100
"""How many outputs are taken before the memory is stored."""


@dataclass
class Pass:
    """The result of one pass."""

    submitted: list[str] = field(default_factory=list)
    """Keys of batches."""
    published: list[str] = field(default_factory=list)
    """`<batch key>/<hook>`, as in all of the following."""
    unchanged: list[str] = field(default_factory=list)
    """Outputs whose files were written again with the same content, or that a log has already."""
    waiting: dict[str, str] = field(default_factory=dict)
    """Complete outputs that may be written at the moment, with the reason."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """What could not be taken, with the reason."""
    undefined: list[str] = field(default_factory=list)
    """`<dataset>/<hook>` of followed hooks that this project does not define."""
    notes: list[str] = field(default_factory=list)
    is_finished: bool = True
    """Whether there was time for everything."""

    def summary(self) -> str:
        """Return one line about the pass."""
        return (
            f"{counted(len(self.submitted), 'batch')} submitted,"
            f" {counted(len(self.published), 'output')} published,"
            f" {len(self.waiting)} waiting, {len(self.unreadable)} cannot be taken"
        )


@dataclass(frozen=True, slots=True)
class _Output:
    """A copy of an output."""

    folder: Path
    run: HookRun
    release_id: str
    mark: str


class _NotYet(Exception):
    """The output is being written, or is not complete."""


_CANNOT_BE_TAKEN: Final = (InvalidInputError, NotFoundError, ConflictError, CorruptDataError)
"""Errors that concern one batch or output."""


@dataclass
class Follower:
    """Takes what the server completed, pass by pass.

    Args:
        store: The archive.
        server: The server's database.
        storage: The server's files.
        settings: What is followed.
        definitions: The hooks of this project, by dataset and name.
        now: The monotonic clock that limits a pass.
    """

    store: BlobStore
    server: Server
    storage: ServerStorage
    settings: OsaSettings
    definitions: Mapping[tuple[str, str], HookDefinition]
    now: Callable[[], float] = time.monotonic
    _connection: Connection | None = field(default=None, init=False, repr=False)

    def follow(self, *, seconds: float | None = None, is_patient: bool = False) -> Pass:
        """Take every output that is new or changed. Idempotent.

        Args:
            seconds: Begin nothing after this time; without a limit if None.
            is_patient: Leave out for an hour what could not be taken.

        Raises:
            NotFoundError: The storage is not there.
            InvalidInputError: The database is not a known server's, or may not be read.
            ProjectionError, StoreUnavailableError, OutcomeUnknownError: The database, the storage
                or the archive did not answer. What was taken before is remembered.
        """
        self.storage.check()
        end = None if seconds is None else self.now() + seconds
        stored = StoredMemory.read(self.store, self.settings.name)
        result = Pass(notes=list(stored.notes))
        with self.server.connect() as self._connection:
            self._follow(stored, result, end, is_patient=is_patient)
        return result

    def _follow(
        self, stored: StoredMemory, result: Pass, end: float | None, *, is_patient: bool
    ) -> None:
        try:
            with self._session() as reader:
                pending = Pending.of(reader, self.settings, stored, self.definitions, is_patient)
            result.undefined = pending.undefined
            result.unreadable |= pending.nameless
            for batch in pending.batches:
                if end is not None and self.now() >= end:
                    result.is_finished = False
                    break
                before = len(result.published)
                self._take(batch, pending, stored, result)
                if before // SAVED_EVERY != len(result.published) // SAVED_EVERY:
                    stored.save()
            if result.is_finished:
                pending.close(stored)
        finally:
            stored.save()

    def _session(self) -> AbstractContextManager[Reader]:
        return self.server.session(COMPLETIONS, self._connection)

    def _take(
        self, batch: PendingBatch, pending: Pending, stored: StoredMemory, result: Pass
    ) -> None:
        """Take the outputs of one batch; one that cannot be taken does not delay the others."""

        def fail(hooks: Iterable[str], error: Exception) -> None:
            for hook in hooks:
                name, reason = batch.name(hook), quoted(str(error), MOST_REASON)
                result.unreadable[name] = reason
                stored.memory.unreadable[name] = Unreadable(reason=reason, tried_at=pending.now)

        taken: dict[str, Taken] = {}
        with tempfile.TemporaryDirectory(prefix="osa-output-") as temporary:
            outputs: dict[str, _Output | None] = {}
            failed: dict[str, Exception] = {}
            for hook in batch.taken:
                try:
                    outputs[hook] = self._read(batch, hook, Path(temporary) / hook)
                except _NotYet as waits:
                    result.waiting[batch.name(hook)] = str(waits)
                except (InvalidInputError, NotFoundError) as error:
                    failed[hook] = error
            new = {hook: output for hook, output in outputs.items() if output is not None}
            if (new or failed) and (reason := self._reason_to_wait(batch)) is not None:
                result.waiting |= {batch.name(hook): reason for hook in (*new, *failed)}
                return
            for hook, problem in failed.items():
                fail([hook], problem)
            try:
                records = self._batch(batch, Path(temporary) / "records", result) if new else None
            except _NotYet as waits:
                result.waiting |= {batch.name(hook): str(waits) for hook in new}
                return
            except _CANNOT_BE_TAKEN as error:
                fail(new, error)
                return
            for hook, output in new.items():
                try:
                    taken[hook] = self._publish(batch, hook, output, records, pending, result)
                except _CANNOT_BE_TAKEN as error:
                    fail([hook], error)
        for hook in outputs:
            if batch.name(hook) not in result.unreadable:
                stored.memory.unreadable.pop(batch.name(hook), None)
        looked = [hook for hook in outputs if batch.name(hook) not in result.unreadable]
        _remember(batch, looked, taken, pending, stored)

    def _read(self, batch: PendingBatch, hook: str, folder: Path) -> _Output | None:
        """Copy an output that is complete and new; None if there is nothing to take.

        Raises:
            _NotYet: It is being written, or its hook run is not committed.
            NotFoundError: The storage lacks files of a committed hook run.
            InvalidInputError: `run.json` is not one, or names another hook run.
        """
        place = output_place(batch.place, hook)
        files = self._files(place)
        mark = files_mark(files)
        taken = batch.taken[hook]
        if taken is not None and taken.files == mark:
            return None
        if RUN not in files:
            if isinstance(batch.origin, ValidatedDeposition):
                return None  # the convention got the hook after this deposition
            raise NotFoundError(
                f"{place / RUN} is not in {self.storage.name}, and hook run"
                f" {batch.runs[hook].id} is committed: the storage is incomplete, or"
                " it is another server's"
            )
        try:
            text = self.storage.read(place / RUN)
            run_id, release_id = stated_ids(text, place / RUN)
            run = batch.runs.get(hook)
            if run is None:
                run = self._committed(run_id, place / RUN)
            if run.id != run_id:
                raise InvalidInputError(
                    f"{place / RUN} names hook run {run_id}, but that of"
                    f" {batch.name(hook)} is {run.id}"
                )
            folder.mkdir()
            for name in files:
                if name in STORED:
                    self.storage.fetch(place / name, folder / name)
            is_changed = self._files(place) != files or self.storage.read(place / RUN) != text
        except NotFoundError as error:
            raise _NotYet(f"it was written while it was read: {error}") from error
        if is_changed:
            raise _NotYet(f"{place} was written while it was read")
        return _Output(folder, run, release_id, mark)

    def _files(self, place: Place) -> dict[str, Seen]:
        files = self.storage.files(place)
        return {name: seen for name, seen in files.items() if name in STORED or name == RUN}

    def _committed(self, run_id: str, place: Place) -> HookRun:
        """Return the hook run that a deposition's `run.json` names.

        Raises:
            _NotYet: It is not committed.
        """
        with self._session() as reader:
            row = reader.hook_runs([run_id]).get(run_id)
        if row is None:
            raise _NotYet(f"{place} names hook run {run_id}, which is not in public.hook_runs")
        return row

    def _reason_to_wait(self, batch: PendingBatch) -> str | None:
        """Return why the files may have been read while they were written; None if they were not.

        Asked after they were read: the server commits a claim before it writes.
        """
        with self._session() as reader:
            if isinstance(batch.origin, IngestRun):
                one = batch.origin.id, batch.index
                ids = [hook_run_id(*one, hook) for hook in batch.convention.hooks]
                is_whole = len(reader.hook_runs(ids)) == len(set(ids))
                began = min(run.started_at for run in batch.runs.values())
                return _claimed(reader.open_batches().get(one), began, is_whole=is_whole)
            now = reader.deposition(batch.origin.srn)
        if now is None or not now.is_validated or now.updated_at != batch.origin.updated_at:
            return f"deposition {batch.origin.srn} was changed while its output was read"
        return None

    def _batch(self, batch: PendingBatch, folder: Path, result: Pass) -> RecordBatch | None:
        """Return the batch in the archive, submitted if it is new; None if it has no records.

        Raises:
            _NotYet: The deposition was changed since its output was read.
            ConflictError: Records were erased from it.
            NotFoundError, InvalidInputError, CorruptDataError: Its records cannot be read.
        """
        folder.mkdir()
        if isinstance(batch.origin, IngestRun):
            if entries := self._entries(batch.dataset, batch.key):
                return log.read_batch_blob(self.store, entries[-1].digest)
            made = ingest_batch(self.storage, batch.place, batch.dataset, batch.key, folder)
            if made.batch is None:
                return None
            records, files = made.batch, made.files
        else:
            with self._session() as reader:
                deposition = reader.deposition(batch.origin.srn)
            if deposition is None:
                raise NotFoundError(f"deposition {batch.origin.srn} is no longer in the database")
            if deposition.updated_at != batch.origin.updated_at:
                raise _NotYet(f"deposition {batch.origin.srn} is being changed")
            for number in itertools.count(1):
                # A batch never changes: a deposition that was changed since is another one.
                key = deposition_key(local_id(batch.origin.srn), number)
                records = deposition_batch(deposition, batch.dataset, key)
                entries = self._entries(batch.dataset, key)
                if entries and entries[-1].digest == records.digest:
                    return records
                if not entries:
                    break
            files = deposition_files(self.storage, batch.place, records, folder)
        submit_batch(self.store, records, files)
        result.submitted.append(records.key)
        return records

    def _entries(self, dataset: str, key: str) -> list[log.BatchEntry]:
        """Return the log of a batch.

        Raises:
            ConflictError: Records were erased from it.
        """
        entries = log.batch_entries(self.store, dataset, key)
        if entries and entries[-1].digest != entries[0].digest:
            raise ConflictError(
                f"records were erased from batch {key!r} of dataset {dataset!r}, and the server's"
                " output still names them: it is not taken again"
            )
        return entries

    def _publish(
        self,
        batch: PendingBatch,
        hook: str,
        output: _Output,
        records: RecordBatch | None,
        pending: Pending,
        result: Pass,
    ) -> Taken:
        """Publish an output unless the archive has it; return what to remember."""
        if records is None:
            return Taken(files=output.mark, content="no records")
        release = pending.deployed.release(output.release_id)
        if release is None or release.hook != hook:
            raise InvalidInputError(
                f"{output_place(batch.place, hook) / RUN} names release {output.release_id}, which"
                f" is not a release of hook {hook!r} in public.hook_releases"
            )
        definition = self.definitions[batch.dataset, hook]
        registered = server_release(release, batch.dataset)
        judged = judge(
            output.folder,
            [record.id for record in records.records],
            definition.feature,
            output.run,
            _actions(definition, registered, records),
            is_deposition=isinstance(batch.origin, ValidatedDeposition),
        )
        content = _content(output.run, registered, records, judged)
        entries = log.read_log(self.store, batch.dataset, hook, records.key)
        last = _last_of(entries, output.run.id)
        before = batch.taken[hook]
        known = None if before is None else before.content
        if known is None and last is not None:
            known = _content_of(read.manifest_of(self.store, last))
        if known == content:
            result.unchanged.append(batch.name(hook))
            return Taken(files=output.mark, content=content)
        entry = self._registered(pending.deployed.hooks[hook], release, batch.dataset, entries)
        notes = [release_note(release), *judged.notes, *notes_on(judged.decoded)]
        if output.run.status != PASSED:
            notes.append(run_note(output.run))
        if last is not None:
            notes.append(f"the server's output changed after entry {last.seq}")
        run = output.run
        artifact = Artifact(
            batch=records,
            release=entry,
            columns=tuple(definition.feature.columns),
            cardinality=definition.feature.cardinality.value,
            run=RunInfo(
                id=run.id,
                runner=RUNNER,
                started_at=run.started_at,
                finished_at=run.finished_at,
                attempts=run.oom_retries + 1,
            ),
            outcomes=judged.outcomes,
            raw=judged.raw,
            decoded_from=judged.decoded.read,
            log=judged.log,
            failure=judged.failure,
            notes=tuple(notes),
        )

        base = entries[-1].seq if entries else 0
        publish_and_enqueue(self.store, artifact, partial(completion_of, artifact, base=base))
        result.published.append(batch.name(hook))
        return Taken(files=output.mark, content=content)

    def _registered(
        self, hook: ServerHook, release: Release, dataset: str, entries: list[FeatureEntry]
    ) -> ReleaseEntry:
        """Return the registered release of an output, registered if it is not.

        Releases are registered in the server's order. If the batch has a current artifact of a
        later release, the server went back to this one, which is then registered again.
        """
        wanted = server_release(release, dataset).digest
        current = log.last_current(entries)
        least = 0 if current is None else current.release_seq
        known = register_up_to(self.store, hook, release, dataset)
        if known[wanted].seq < least:
            return log.register_release(self.store, server_release(release, dataset), {})
        return known[wanted]


def _remember(
    batch: PendingBatch,
    looked: list[str],
    taken: Mapping[str, Taken],
    pending: Pending,
    stored: StoredMemory,
) -> None:
    """Remember what was taken of a batch.

    A deposition is remembered as a whole, because it is looked for as a whole.

    Args:
        batch: The batch.
        looked: The hooks whose outputs were taken, or have not changed.
        taken: What was taken, by hook.
        pending: What the pass looks at.
        stored: The memory.
    """
    known = {hook: taken.get(hook, batch.taken[hook]) for hook in looked}
    outputs = {hook: each for hook, each in known.items() if each is not None}
    if isinstance(batch.origin, IngestRun):
        change = {"is_final": batch.origin.id in pending.ended}
        memory = stored.memory.ingest(batch.origin.id).outputs
        for hook, each in outputs.items():
            memory[f"{batch.index}/{hook}"] = each.model_copy(update=change)
    elif set(looked) == set(batch.taken):
        stored.memory.depositions[batch.origin.srn] = DepositionMemory(
            updated_at=batch.origin.updated_at, hooks=tuple(sorted(looked)), outputs=outputs
        )


def _claimed(claim: OpenBatch | None, began: datetime, *, is_whole: bool) -> str | None:
    """Return why the outputs of a batch may be written now; None if they are not.

    Args:
        claim: The batch's open delivery, if there is one.
        began: When the first of the hook runs that wrote the outputs did.
        is_whole: Whether every hook of the convention has a committed hook run over the batch.
    """
    if claim is None:
        return None
    if claim.claimed_at is not None and claim.claimed_at > began:
        return (
            f"a worker claimed the batch at {claim.claimed_at:%Y-%m-%d %H:%M:%S} UTC, after the"
            " hook run began, and may write its output again"
        )
    if not is_whole:
        return "not every hook of the convention has run over the batch, so all of them run again"
    return None


def _actions(
    definition: HookDefinition, release: HookRelease, records: RecordBatch
) -> dict[str, Digest]:
    """Return the records' actions; none if the hook's answers depend on more than the record."""
    if definition.inputs or definition.scope is Scope.BATCH:
        return {}
    return {record.id: record_action(release, record, {}) for record in records.records}


def _content(run: HookRun, release: HookRelease, records: RecordBatch, judged: JudgedOutput) -> str:
    """Return the mark of what is published; equal to that of its manifest."""
    files = {f"{RAW}{name}": path for name, path in judged.raw.items()}
    if judged.log is not None:
        files[LOG_BLOB] = judged.log
    digests = {}
    for name, path in files.items():
        with path.open("rb") as stream:
            digests[name] = str(digest_stream(stream)[0])
    is_failed = judged.failure is not None
    names = [run.id, str(release.digest), str(records.digest)]
    return content_mark([*names, digests, is_failed])


def _content_of(manifest: Manifest) -> str:
    digests = {
        name: str(ref.digest)
        for name, ref in manifest.blobs.items()
        if name.startswith(RAW) or name == LOG_BLOB
    }
    names = [manifest.run.id, str(manifest.release.digest), str(manifest.batch_digest)]
    return content_mark([*names, digests, manifest.is_failed])


def _last_of(entries: list[FeatureEntry], run_id: str) -> FeatureEntry | None:
    return next((each for each in reversed(entries) if each.completion == run_id), None)
