"""Switch a table back to the previous generation, and forward again."""

from dataclasses import dataclass

from feature_pipeline.archive.logs import erasures, tombstones
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import ConflictError, NotFoundError, ProjectionError
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.projections.catalog.bookkeeping import all_progress, has_bookkeeping
from feature_pipeline.projections.catalog.database import Connection, Database
from feature_pipeline.projections.catalog.generation import (
    Generation,
    TableState,
    ensure_table,
    list_generations,
    lock_table,
    read_table,
    require_table,
)
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.proof.missing_batches import compare_progress, current_entries
from feature_pipeline.projections.proof.proof import prove_once
from feature_pipeline.projections.rows.write import forget_records
from feature_pipeline.projections.switch.finalize import (
    TableReport,
    previous_generation,
    read_report,
    settle_table,
)
from feature_pipeline.projections.switch.switch import switch, wait_for_older_snapshots


@dataclass(frozen=True, slots=True)
class RollbackReport:
    """The generations before and after a rollback, and the batches that are behind or missing.

    Until those are loaded the table is behind the archive; every run of the table asset loads both
    generations.
    """

    table: str
    live: str
    left: str
    behind: tuple[str, ...]

    def summary(self) -> str:
        """Return a one-line summary."""
        if self.behind:
            batches = counted(len(self.behind), "batch")
            gap = f"{batches} behind the archive until they are loaded again"
        else:
            gap = "up to date with the archive"
        return f"{self.table}: reads generation {self.live} in place of {self.left}; {gap}"


def rollback(store: BlobStore, database: Database, spec: TableSpec) -> RollbackReport:
    """Switch the view to the generation that was live before, and pin it there.

    The generation left is still loaded, so `unpin` can return to it at once. Records that were
    withdrawn or erased since are removed from the earlier generation before it is shown, and it is
    proved again, because it may have been written to.

    Raises:
        NotFoundError: The table does not exist, or no earlier generation of it is kept.
        ConflictError: A view on the table could not be created again on the earlier columns.
        ProjectionError: The earlier generation's rows differ from the archive's.
    """
    with database.connect(f"table {spec.name!r}") as connection:
        if read_table(connection, spec) is None and _is_known(connection, spec):
            ensure_table(connection, spec)  # its live generation was dropped by hand
        left = require_table(connection, spec)
        to = previous_generation(connection, spec, left)
        if left.is_pinned and left.building is not None and left.live is not None:
            raise ConflictError(
                f"table {spec.name!r} is pinned to generation {left.live.relation} already: unpin"
                " it first"
            )
        if to is None:
            raise NotFoundError(
                f"table {spec.name!r} has no earlier generation to go back to: only the last one"
                " that was read is kept"
            )
        _forget_erased(store, connection, spec, to)
        _check_content(store, connection, spec, to)
        wait_for_older_snapshots(connection, spec)

        def forgets(under_lock: Connection, now: TableState) -> bool:
            if _id(now.live) != _id(left.live):
                return False
            # Of what was withdrawn or erased in the meantime.
            _forget_erased(store, under_lock, spec, to)
            return True

        if not switch(connection, spec, to, forgets, is_pinned=True):
            raise ConflictError(f"table {spec.name!r} was switched by another process meanwhile")
        progress = all_progress(connection, to.id)
    compared = compare_progress(current_entries(store, spec, None), progress)
    return RollbackReport(
        spec.name,
        to.relation,
        (left.live or left.wanted).relation,
        tuple(compared.batches_to_load()),
    )


def _is_known(connection: Connection, spec: TableSpec) -> bool:
    return has_bookkeeping(connection) and bool(list_generations(connection, spec))


def _id(generation: Generation | None) -> int | None:
    return None if generation is None else generation.id


def _forget_erased(
    store: BlobStore, connection: Connection, spec: TableSpec, generation: Generation
) -> None:
    """Remove records withdrawn or erased since from a generation that was not loaded meanwhile.

    Erased records are removed even if they may be submitted again.
    """
    withdrawn = tombstones.withdrawn(store, spec.dataset)
    erased = erasures.erased(store, spec.dataset)
    with connection.transaction():
        forget_records(connection, generation, withdrawn)
        for batch, progress in all_progress(connection, generation.id).items():
            if progress.manifest in erased.manifests:
                forget_records(connection, generation, erased.records, batch)


def _check_content(
    store: BlobStore, connection: Connection, spec: TableSpec, generation: Generation
) -> None:
    proof = prove_once(store, connection, spec, generation)
    # Artifacts that were erased cannot be compared with any more.
    if differing := [batch for batch in proof.unequal_batches if batch not in proof.unreadable]:
        raise ProjectionError(
            f"table {spec.name!r}: the earlier generation {generation.relation} was not"
            f" switched to: it differs from the archive in batches {first_few(differing)}; build"
            " the table again with `feature-pipeline rebuild`"
        )


def unpin(store: BlobStore, database: Database, spec: TableSpec) -> TableReport:
    """Let the table follow its definition again; switch to the wanted generation if it is complete.

    Raises:
        NotFoundError: The table does not exist.
        ConflictError: The view could not be switched.
    """
    with database.connect(f"table {spec.name!r}") as connection:
        require_table(connection, spec)
        with connection.transaction():
            lock_table(connection, spec.name)
            connection.execute(
                "update feature_pipeline.tables set is_pinned = false where name = %s",
                [spec.name],
            )
    settle_table(store, database, spec)
    with database.connect(f"table {spec.name!r}") as connection:
        return read_report(store, connection, spec)
