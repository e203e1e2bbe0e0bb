"""Import rows of the server's tables whose hook output is gone, as reconstructed artifacts.

Every row of a table falls into one class: its hook run's output is in the archive; the storage
still has it, and `sync` takes it; its record was withdrawn here; it cannot be placed, with a
reason; its convention is not followed; or it is imported. The classes are counted and their sum is
compared with the table.

All processes read one snapshot. Several processes import, each a few hook runs of one batch at a
time. A pass that ended anywhere is completed by the next, which makes the same artifacts: they
contain no time of the pass.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.erasures import erased
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.logs.tombstones import withdrawn
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.osa.definitions import (
    FollowedHook,
    followed_hooks,
    register_up_to,
    server_release,
)
from feature_pipeline.osa.history.placement import (
    Placement,
    existing_keys,
    is_in_storage,
    place_run,
)
from feature_pipeline.osa.history.reconstructed import reconstructed_run
from feature_pipeline.osa.history.result import HookImport, ImportResult
from feature_pipeline.osa.history.run_import import (
    CANNOT_BE_IMPORTED,
    Group,
    Imported,
    ImportedHook,
    RunImporter,
    RunResult,
    Wanted,
)
from feature_pipeline.osa.history.table_rows import (
    HookTable,
    PublishedRecord,
    RunRows,
    TableColumns,
    published_batches,
)
from feature_pipeline.osa.history.workers import InProcess, Workers
from feature_pipeline.osa.server.database import Definitions, HookRun, Reader, Release, Server
from feature_pipeline.osa.server.schema import HISTORY
from feature_pipeline.osa.server.storage import ServerStorage
from feature_pipeline.osa.settings import OsaSettings

MOST_WORKERS: Final = 4
"""Processes by default: each reads from a server's database that others use, too."""
_ROWS_A_PROCESS: Final = 50_000
"""With fewer rows, starting another process takes longer than it saves."""


@dataclass
class _Hook:
    """A hook while it is imported."""

    followed: FollowedHook
    source: ImportedHook
    table: HookTable
    result: HookImport
    outputs: frozenset[str]
    """Hook runs whose output the archive has."""
    imported: dict[str, FeatureEntry]
    """By hook run, the last entry of its reconstructed artifact."""
    releases: dict[str, ReleaseEntry] = field(default_factory=dict)
    """Releases that are registered here, by the server's id."""

    @property
    def dataset(self) -> str:
        return self.source.definition.dataset

    @property
    def name(self) -> str:
        return self.source.definition.name


@dataclass
class Importer:
    """Imports what the server's tables alone still have.

    Args:
        store: The archive.
        server: The server's database.
        storage: The server's files; None if they are gone.
        settings: What is followed.
        definitions: The hooks of this project, by dataset and name.
    """

    store: BlobStore
    server: Server
    storage: ServerStorage | None
    settings: OsaSettings
    definitions: Mapping[tuple[str, str], HookDefinition]
    keeps_ids: bool = False
    """Whether rows of outputs in the archive are kept, too, as superseded artifacts: for a restored
    table their ids and times are known then.
    """
    workers: int = 1
    """Maximum number of processes that import at the same time."""
    open_store: Callable[[], BlobStore] | None = None
    """Opens the archive in another process; without it, this one does everything."""

    def run(self, *, is_dry: bool = False) -> ImportResult:
        """Import the rows, and prove that they equal the server's. Idempotent.

        Args:
            is_dry: Only count what would be imported.

        Raises:
            NotFoundError: The storage is not there, or a hook has no table.
            InvalidInputError: The database is not a known server's, may not be read, or has a
                column of another type.
            ProjectionError, StoreUnavailableError, OutcomeUnknownError: The database, the storage
                or the archive did not answer, or a process ended unexpectedly. What was imported
                before stays.
        """
        if self.storage is not None:
            self.storage.check()
        result = ImportResult()
        with (
            self.server.connect() as connection,
            self.server.session(HISTORY, connection) as reader,
        ):
            deployed = reader.definitions()
            hooks = list(self._hooks(reader, deployed, result))
            wanted = list(self._wanted(reader, deployed, hooks))
            if is_dry:
                for each in wanted:
                    hook = hooks[each.hook]
                    is_new = each.run.run_id not in hook.imported
                    _count(hook, each, is_new=is_new)
            else:
                with ExitStack() as stack:
                    workers = self._workers(reader, hooks, stack)
                    self._import(reader, hooks, wanted, workers)
                    self._prove(hooks, workers)
            result.hooks += [hook.result for hook in hooks]
        return result

    def _workers(
        self, reader: Reader, hooks: Sequence[_Hook], stack: ExitStack
    ) -> InProcess | Workers:
        """Return what does the work on hook runs: other processes if there is much of it."""
        sources = [hook.source for hook in hooks]
        rows = sum(hook.result.table_rows for hook in hooks)
        count = min(self.workers, rows // _ROWS_A_PROCESS)
        if self.open_store is None or count < 2:
            return InProcess(RunImporter(self.store, reader, sources))
        return stack.enter_context(Workers(count, self.open_store, self.server, reader, sources))

    def _hooks(
        self, reader: Reader, deployed: Definitions, result: ImportResult
    ) -> Iterator[_Hook]:
        """Yield the followed hooks that this project defines, each with its checked table."""
        followed = followed_hooks(deployed, self.settings)
        conventions: dict[str, set[str]] = {}
        for each in followed:
            conventions.setdefault(each.hook.name, set()).add(each.convention.id)
        for each in followed:
            dataset, name = each.definition.dataset, each.hook.name
            definition = self.definitions.get((dataset, name))
            if definition is None:
                result.undefined.append(f"{dataset}/{name}")
                continue
            columns, ours = each.definition.feature.columns, definition.feature.columns
            layout_there = TableColumns.of(reader, name, columns, ours)
            table = HookTable(reader, layout_there)
            by_convention = table.rows_by_convention()
            others = {
                str(other): rows
                for other, rows in by_convention.items()
                if other not in conventions[name]
            }
            entries = [
                entry
                for entries in log.feature_logs(self.store, dataset, name).values()
                for entry in entries
            ]
            imported = {reconstructed_run(entry.completion): entry for entry in entries}
            yield _Hook(
                followed=each,
                source=ImportedHook(
                    definition=definition,
                    convention=each.convention.id,
                    table=layout_there,
                    withdrawn=frozenset(withdrawn(self.store, dataset)),
                    erased=erased(self.store, dataset),
                ),
                table=table,
                result=HookImport(
                    dataset,
                    name,
                    table_rows=by_convention.get(each.convention.id, 0),
                    other_rows=others,
                    undeclared=layout_there.undeclared,
                ),
                outputs=frozenset(entry.completion for entry in entries),
                imported={run: entry for run, entry in imported.items() if run is not None},
            )

    def _wanted(
        self, reader: Reader, deployed: Definitions, hooks: Sequence[_Hook]
    ) -> Iterator[Wanted]:
        """Yield the hook runs to import; count the rows of the others."""
        for number, hook in enumerate(hooks):
            runs = hook.table.runs(hook.source.convention)
            ingests = {o.ingest_run for run in runs for o in run.by_origin if o.ingest_run}
            batches = reader.batches_ingested(ingests)
            rows = reader.hook_runs([run.run_id for run in runs])
            for run in runs:
                has_output = run.run_id in hook.outputs
                if has_output:
                    hook.result.archived_rows += run.rows
                    if not self.keeps_ids:
                        continue
                try:
                    placement = place_run(run, hook.name, batches)
                    if not has_output and self._is_stored(placement, hook, run):
                        hook.result.stored_rows += run.rows
                        continue
                    row, release = _released(run.run_id, rows, deployed, hook.name)
                except CANNOT_BE_IMPORTED as error:
                    _refuse(hook, run, str(error))
                    continue
                entry = hook.imported.get(run.run_id)
                yield Wanted(number, run, placement, row, release, entry, has_output)

    def _is_stored(self, placement: Placement, hook: _Hook, run: RunRows) -> bool:
        storage = self.storage
        return storage is not None and is_in_storage(storage, placement, hook.name, run.run_id)

    def _import(
        self,
        reader: Reader,
        hooks: Sequence[_Hook],
        wanted: Iterable[Wanted],
        workers: InProcess | Workers,
    ) -> None:
        """Import the rows of hook runs, those over one batch in order.

        Batches that the archive lacks are made of one pass over the records, batch by batch.
        """
        datasets = {hook.dataset for hook in hooks}
        keys = {d: frozenset(self.store.list_folders(layout.batch_logs(d))) for d in datasets}
        at_once: dict[tuple[str, str], list[Wanted]] = {}
        later: dict[str, dict[tuple[str, str], list[Wanted]]] = {}

        def put_off(each: Wanted) -> None:
            if each.placement.group is not None:
                of_convention = later.setdefault(hooks[each.hook].source.convention, {})
                of_convention.setdefault(each.placement.group, []).append(each)

        for each in wanted:
            hook, placement = hooks[each.hook], each.placement
            may_exist = each.entry or existing_keys(placement, each.run.run_id, keys[hook.dataset])
            if may_exist or placement.group is None:
                at_once.setdefault((hook.dataset, placement.name), []).append(each)
            else:
                put_off(each)
        groups = (self._group(hooks, some, keys, None) for some in at_once.values())
        for each, done in _results(workers, groups):
            if done.lacks_batch:
                put_off(each)
            else:
                _record(hooks[each.hook], each, done)
        for convention, by_group in later.items():
            of_records = published_batches(reader, convention, {run for run, _ in by_group})
            groups = (
                self._group(hooks, by_group[run, index], keys, records)
                for (run, index), records in of_records
                if index is not None and (run, index) in by_group
            )
            for each, done in _results(workers, groups):
                _record(hooks[each.hook], each, done)

    def _group(
        self,
        hooks: Sequence[_Hook],
        wanted: Sequence[Wanted],
        keys: Mapping[str, frozenset[str]],
        records: Sequence[PublishedRecord] | InvalidInputError | None,
    ) -> Group:
        """Return the hook runs over one batch, whose releases are registered now."""
        members: list[tuple[Wanted, ReleaseEntry]] = []
        of_group: set[str] = set()
        for each in wanted:
            hook = hooks[each.hook]
            try:
                members.append((each, self._registered(hook, each.release)))
            except CANNOT_BE_IMPORTED as error:
                _refuse(hook, each.run, str(error))
            of_group.update(existing_keys(each.placement, each.run.run_id, keys[hook.dataset]))
        return Group(tuple(members), frozenset(of_group), records)

    def _registered(self, hook: _Hook, release: Release) -> ReleaseEntry:
        """Return the release in the archive, after those that the server had before it.

        Only this process registers any: two of them would append one release twice.
        """
        if release.id not in hook.releases:
            known = register_up_to(self.store, hook.followed.hook, release, hook.dataset)
            hook.releases[release.id] = known[server_release(release, hook.dataset).digest]
        return hook.releases[release.id]

    def _prove(self, hooks: Sequence[_Hook], workers: InProcess | Workers) -> None:
        """Compare every imported row with the server's, as they are stored here."""
        every = [
            Imported(number, run_id, entry)
            for number, hook in enumerate(hooks)
            for run_id, entry in sorted(hook.imported.items())
            if run_id not in hook.result.unplaced and (self.keeps_ids or run_id not in hook.outputs)
        ]
        for each, compared in zip(every, workers.map(RunImporter.prove, every), strict=True):
            hook = hooks[each.hook]
            for difference in compared:
                hook.result.count(difference, each.run_id, is_kept=each.run_id in hook.outputs)


def _results(
    workers: InProcess | Workers, groups: Iterable[Group]
) -> Iterator[tuple[Wanted, RunResult]]:
    """Import groups; yield the result for each hook run, in order."""
    given: deque[list[Wanted]] = deque()

    def taken() -> Iterator[Group]:
        for group in groups:
            # without the records, of which only a few groups are in memory
            given.append([wanted for wanted, _ in group.wanted])
            yield group

    for results in workers.map(RunImporter.import_group, taken()):
        yield from zip(given.popleft(), results, strict=True)


def _released(
    run_id: str, rows: Mapping[str, HookRun], deployed: Definitions, hook: str
) -> tuple[HookRun, Release]:
    """Return the row of a hook run, and its release.

    Raises:
        NotFoundError: `public.hook_runs` or `public.hook_releases` has no such row.
    """
    row = rows.get(run_id)
    if row is None:
        raise NotFoundError("public.hook_runs has no row of it: its release is not known")
    release = deployed.release(row.release_id)
    if release is None or release.hook != hook:
        raise NotFoundError(
            f"public.hook_runs names release {row.release_id}, which is not a release of hook"
            f" {hook!r} in public.hook_releases"
        )
    return row, release


def _refuse(hook: _Hook, run: RunRows, problem: str) -> None:
    hook.result.unplaced[run.run_id] = quoted(problem, MOST_REASON)
    hook.result.unplaced_rows += 0 if run.run_id in hook.outputs else run.rows


def _record(hook: _Hook, wanted: Wanted, done: RunResult) -> None:
    """Record the result for a hook run."""
    run = wanted.run
    if done.problem is not None:
        _refuse(hook, run, done.problem)
    elif done.withdrawn_rows == run.rows:
        hook.result.withdrawn_rows += 0 if wanted.has_output else run.rows
    else:
        if done.entry is not None:
            hook.imported[run.run_id] = done.entry
        _count(hook, wanted, is_new=done.entry is not None, withdrawn_rows=done.withdrawn_rows)


def _count(hook: _Hook, wanted: Wanted, *, is_new: bool, withdrawn_rows: int = 0) -> None:
    result, rows = hook.result, wanted.run.rows - withdrawn_rows
    if wanted.has_output:
        result.kept_rows += rows
        return
    result.withdrawn_rows += withdrawn_rows
    if is_new:
        result.new_runs.append(wanted.run.run_id)
        result.new_rows += rows
    else:
        result.unchanged_runs += 1
        result.unchanged_rows += rows
