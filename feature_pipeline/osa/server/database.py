"""Read the server's database: definitions, releases, ingests, depositions, hook runs.

Every session is read-only, and each method reads in one snapshot. Rows become values at this edge;
JSON keeps the spelling of its numbers.
"""

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from psycopg import sql

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.text.json_text import read_json
from feature_pipeline.model.text.quoting import quoted
from feature_pipeline.osa.server.ids import (
    history_of,
    ingest_key,
    is_deposition_key,
    is_of_ingest,
    is_run_key,
)
from feature_pipeline.osa.server.schema import DEFINITIONS, Tables, check_schema, feature_columns
from feature_pipeline.projections.catalog.database import Connection, Database

ENDED: Final = frozenset({"completed", "failed"})
"""Status of an ingest run that asks for no further batch."""
VALIDATED: Final = frozenset({"validated", "published"})
"""Stages of a deposition whose hooks have all ended, with their rows committed."""

PASSED: Final = "passed"
ERROR: Final = "error"
"""Status of a hook run over a record or more that it passed, and of one that broke off."""

_BATCH_WORKER: Final = "ProcessBatch"


@dataclass(frozen=True, slots=True)
class Release:
    """A row of `hook_releases`."""

    id: str
    hook: str
    version: int
    image: str
    digest: str
    config: Mapping[str, Any]
    limits: Mapping[str, Any]
    source_ref: str
    built_by: str | None
    built_at: datetime


@dataclass(frozen=True, slots=True)
class ServerHook:
    """A row of `hooks`, with its releases in order of version."""

    name: str
    feature_spec: Mapping[str, Any]
    live_release_id: str | None
    releases: tuple[Release, ...]

    def live_release(self) -> Release:
        """Return the release for the next run.

        Raises:
            InvalidInputError: The hook has none.
        """
        for release in self.releases:
            if release.id == self.live_release_id:
                return release
        raise InvalidInputError(
            f"hook {self.name!r}: it has no live release (hooks.live_release_id is"
            f" {self.live_release_id or 'NULL'}, and hook_releases has {len(self.releases)} of it):"
            " deploy the hook on the server first, or leave it out"
        )


@dataclass(frozen=True, slots=True)
class Convention:
    """A row of `conventions`."""

    id: str
    title: str
    schema_id: str
    schema_version: str
    hooks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IngestRun:
    """A row of `ingest_runs`. Batches 0 to `batches_ingested` - 1 have their list of records."""

    id: str
    convention: str
    status: str
    batches_ingested: int
    started_at: datetime
    completed_at: datetime | None

    @property
    def has_ended(self) -> bool:
        """Whether no further batch comes."""
        return self.status in ENDED


@dataclass(frozen=True, slots=True)
class Deposition:
    """A row of `depositions`."""

    srn: str
    convention: str
    stage: str
    metadata: Any
    files: Any
    updated_at: datetime

    @property
    def is_validated(self) -> bool:
        """Whether the outputs of its hooks are those of its last, accepted try."""
        return self.stage in VALIDATED


@dataclass(frozen=True, slots=True)
class ValidatedDeposition:
    """Which deposition is validated or published, and when it was last changed."""

    srn: str
    convention: str
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class HookRun:
    """A row of `hook_runs`: one ended run of a hook."""

    id: str
    release_id: str
    status: str
    """`passed`, `failed` (the record of a deposition was rejected), or `error`."""
    started_at: datetime
    finished_at: datetime
    oom_retries: int


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch of an ingest that a worker processes, or is to process (again)."""

    claimed_at: datetime | None
    """When a worker last claimed it, if one has it now."""


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """A row of `records`: its SRN, and what it was published from."""

    srn: str
    origin: str
    """For messages."""
    ingest_run: str | None
    """None for a deposition."""
    batch_index: int | None
    """None as well in old records."""

    def is_of(self, batch: str) -> bool:
        """Return whether the record belongs to this batch, as far as the server states it."""
        batch = history_of(batch) or batch
        if is_run_key(batch):
            return True
        if self.ingest_run is None:
            return is_deposition_key(batch)
        if self.batch_index is None:
            return is_of_ingest(batch, self.ingest_run)
        return batch == ingest_key(self.ingest_run, self.batch_index)


@dataclass(frozen=True, slots=True)
class Definitions:
    """The server's conventions and hooks, by id and by name."""

    conventions: Mapping[str, Convention]
    hooks: Mapping[str, ServerHook]

    def release(self, release_id: str) -> Release | None:
        """Return the release with this id; None if no hook has it."""
        for hook in self.hooks.values():
            for release in hook.releases:
                if release.id == release_id:
                    return release
        return None


@dataclass(frozen=True, slots=True)
class Server:
    """The database of one server."""

    database: Database
    _checked: set[tuple[str, str]] = field(default_factory=set, repr=False, compare=False)

    @property
    def address(self) -> str:
        """`host:port/database`, for messages."""
        return self.database.address

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Connect for several sessions, none of which can write.

        Raises:
            ProjectionError: The database cannot be reached.
        """
        purpose = "reading the Open Science Archive server's database"
        with self.database.connect(purpose) as connection:
            connection.execute("set default_transaction_read_only = on")
            yield connection

    @contextmanager
    def session(
        self,
        tables: Tables = DEFINITIONS,
        connection: Connection | None = None,
        snapshot: str | None = None,
    ) -> Iterator["Reader"]:
        """Open a read-only session that reads everything in one snapshot.

        Args:
            tables: What is read: `DEFINITIONS`, or more.
            connection: One that `connect` opened; another one if None.
            snapshot: The snapshot of a session that is still open (`Reader.export_snapshot`); a new
                one if None.

        Raises:
            ProjectionError: The database cannot be reached.
            InvalidInputError: A table or column is missing, or the role may not read it.
        """
        opened = self.connect() if connection is None else contextlib.nullcontext(connection)
        with opened as used, used.transaction():
            used.execute("set transaction isolation level repeatable read, read only")
            if snapshot is not None:
                used.execute(sql.SQL("set transaction snapshot {}").format(sql.Literal(snapshot)))
            columns = {(table, each) for table, names in tables.items() for each in names}
            if not columns <= self._checked:
                check_schema(used, self.address, tables)
                self._checked.update(columns)
            yield Reader(used, self.address)


@dataclass(frozen=True, slots=True)
class Reader:
    """The reads of one snapshot."""

    connection: Connection
    address: str
    """The database, for messages."""

    def export_snapshot(self) -> str:
        """Return the id by which other sessions read the same while this one is open."""
        ((snapshot,),) = self._rows("select pg_catalog.pg_export_snapshot()")
        return str(snapshot)

    def definitions(self) -> Definitions:
        """Return every convention, hook and release."""
        releases: dict[str, list[Release]] = {}
        for release_id, hook, version, image, digest, config, limits, ref, by, at in self._rows(
            "select id::text, hook_name, version, image, digest, config::text, limits::text,"
            " source_ref, built_by, built_at from public.hook_releases order by hook_name, version"
        ):
            where = f"hook_releases {release_id}"
            release = Release(
                id=release_id,
                hook=hook,
                version=version,
                image=image,
                digest=digest,
                config=_object(config, f"{where}: config"),
                limits=_object(limits, f"{where}: limits"),
                source_ref=ref,
                built_by=by,
                built_at=at,
            )
            releases.setdefault(release.hook, []).append(release)
        hooks = {
            name: ServerHook(
                name,
                _object(spec, f"hook {name!r}: feature_spec"),
                live,
                tuple(releases.get(name, ())),
            )
            for name, spec, live in self._rows(
                "select name, feature_spec::text, live_release_id::text from public.hooks"
                " order by name"
            )
        }
        conventions = {
            name: Convention(name, title, schema, version, _names(named, f"convention {name!r}"))
            for name, title, schema, version, named in self._rows(
                "select id, title, schema_id, schema_version, hooks::text from public.conventions"
                " order by id"
            )
        }
        return Definitions(conventions, hooks)

    def ingest_runs(self, conventions: Collection[str]) -> list[IngestRun]:
        """Return the ingest runs of these conventions, oldest first."""
        rows = self._rows(
            "select id, convention_id, status, batches_ingested, started_at, completed_at"
            " from public.ingest_runs where convention_id = any(%s) order by started_at, id",
            [list(conventions)],
        )
        return [IngestRun(*row) for row in rows]

    def validated_depositions(self, conventions: Collection[str]) -> list[ValidatedDeposition]:
        """Return the validated depositions of these conventions, the longest unchanged first."""
        rows = self._rows(
            "select srn, convention_id, updated_at from public.depositions"
            " where convention_id = any(%s) and stage = any(%s) order by updated_at, srn",
            [list(conventions), sorted(VALIDATED)],
        )
        return [ValidatedDeposition(*row) for row in rows]

    def deposition(self, srn: str) -> Deposition | None:
        """Return one deposition, of whatever stage; None if there is none."""
        for name, convention, stage, metadata, files, updated_at in self._rows(
            "select srn, convention_id, stage, metadata::text, files::text, updated_at"
            " from public.depositions where srn = %s",
            [srn],
        ):
            return Deposition(
                srn=name,
                convention=convention,
                stage=stage,
                metadata=read_json(metadata.encode(), f"deposition {srn}: metadata"),
                files=read_json(files.encode(), f"deposition {srn}: files"),
                updated_at=updated_at,
            )
        return None

    def hook_runs(self, ids: Collection[str]) -> dict[str, HookRun]:
        """Return the committed hook runs with these ids, by id: one primary-key lookup each."""
        rows = self._rows(
            "select id::text, release_id::text, status, started_at, finished_at, oom_retries"
            " from public.hook_runs where id = any(%s::uuid[])",
            [list(ids)],
        )
        return {row[0]: HookRun(*row) for row in rows}

    def batches_ingested(self, ingest_runs: Collection[str]) -> dict[str, int]:
        """Return the number of batches of these ingest runs, by run."""
        rows = self._rows(
            "select id, batches_ingested from public.ingest_runs where id = any(%s)",
            [list(ingest_runs)],
        )
        return dict(rows)

    def open_batches(self) -> dict[tuple[str, int], OpenBatch]:
        """Return the batches that a worker processes, or is to process, by run and index."""
        claims: dict[tuple[str, int], OpenBatch] = {}
        for run, index, claimed_at in self._rows(
            "select e.payload ->> 'ingest_run_id', (e.payload ->> 'batch_index')::bigint,"
            " case when d.status = 'claimed' then d.claimed_at end from public.deliveries as d"
            " join public.events as e on e.id = d.event_id"
            " where d.consumer_group = %s and d.status in ('claimed', 'pending')"
            " and e.payload ->> 'ingest_run_id' is not null"
            " and e.payload ->> 'batch_index' is not null",
            [_BATCH_WORKER],
        ):
            before = claims.get((run, index), OpenBatch(None)).claimed_at
            claims[run, index] = OpenBatch(max(filter(None, (before, claimed_at)), default=None))
        return claims

    def records(
        self, convention: str, ids: Sequence[str], domains: Sequence[str] | None
    ) -> dict[str, ServerRecord]:
        """Return the records of these upstream ids, or local ids of depositions, by id.

        They are found by the index that keeps origins unique.

        Args:
            convention: The convention.
            ids: The ids.
            domains: Those of depositions (`deposition_domains`); None for records of ingests.
        """
        if domains is None:
            wanted = {f"{convention}:{each}": each for each in ids}
        else:
            wanted = {f"urn:osa:{name}:dep:{each}": each for name in domains for each in ids}
        rows = self._rows(
            "select srn, source ->> 'id', source ->> 'ingest_run_id',"
            " (source ->> 'batch_index')::bigint from public.records"
            " where source ->> 'type' = %s and source ->> 'id' = any(%s) and convention_id = %s",
            ["ingest" if domains is None else "deposition", list(wanted), convention],
        )
        by_id = {}
        for srn, source_id, run, index in rows:
            origin = source_id if run is None else f"batch {index} of ingest run {run}"
            by_id[wanted[source_id]] = ServerRecord(srn, origin, run, index)
        return by_id

    def records_of(
        self, convention: str, ids: Sequence[str], batch: str, domains: Sequence[str]
    ) -> dict[str, ServerRecord]:
        """Return the records of a batch as `records` does, by their ids here."""
        name = history_of(batch) or batch
        if is_run_key(name):
            records = self.records(convention, ids, None)
            return records or self.records(convention, ids, domains)
        return self.records(convention, ids, domains if is_deposition_key(name) else None)

    def present_records(self, srns: Sequence[str]) -> set[str]:
        """Return which of these records the server has, by SRN."""
        rows = self._rows("select srn from public.records where srn = any(%s)", [list(srns)])
        return {srn for (srn,) in rows}

    def deposition_domains(self) -> list[str]:
        """Return the domains in the SRNs of depositions with a record: one, as a rule."""
        rows = self._rows(
            "select distinct split_part(source ->> 'id', ':', 3) from public.records"
            " where source ->> 'type' = 'deposition'"
        )
        return [domain for (domain,) in rows]

    def feature_table(self, hook: str) -> str | None:
        """Return the name of the hook's table in the schema `features`; None if it has none."""
        rows = self._rows("select pg_table from public.feature_tables where hook_name = %s", [hook])
        return rows[0][0] if rows else None

    def feature_columns(self, table: str) -> frozenset[str]:
        """Return the columns of a hook's table; errors as for `schema.feature_columns`."""
        return feature_columns(self.connection, table, self.address)

    def feature_rows(
        self, table: str, columns: Sequence[Column], srns: Sequence[str]
    ) -> dict[str, list[Sequence[Any]]]:
        """Return the rows of these records, in the order of the hook, by SRN.

        Dates, times, UUIDs, arrays and objects are given as text.
        """
        self.connection.execute("set local datestyle to iso, ymd")
        self.connection.execute("set local timezone to 'UTC'")
        statement = sql.SQL("select {} from {} where record_srn = any(%s) order by id").format(
            sql.SQL(", ").join([sql.Identifier("record_srn"), *map(selected, columns)]),
            sql.Identifier("features", table),
        )
        rows: dict[str, list[Sequence[Any]]] = {}
        for srn, *values in self._rows(statement, [list(srns)]):
            rows.setdefault(srn, []).append(values)
        return rows

    def row_ids(self, table: str, srns: Sequence[str]) -> dict[str, list[tuple[int, datetime]]]:
        """Return `id` and `created_at` of the rows of these records, by SRN, in order of id."""
        statement = sql.SQL(
            "select record_srn, id, created_at from {} where record_srn = any(%s) order by id"
        ).format(sql.Identifier("features", table))
        ids_by_srn: dict[str, list[tuple[int, datetime]]] = {}
        for srn, row_id, created_at in self._rows(statement, [list(srns)]):
            ids_by_srn.setdefault(srn, []).append((row_id, created_at))
        return ids_by_srn

    def rows_by_run(self, table: str, convention: str) -> list[tuple[str, int, str]]:
        """Return, by hook run, the number of rows of the convention's records, and one record."""
        statement = sql.SQL(
            "select f.run_id::text, count(*), min(f.record_srn) from {} as f"
            " join public.records as r on r.srn = f.record_srn where r.convention_id = %s"
            " group by f.run_id order by 1"
        ).format(sql.Identifier("features", table))
        return [(run, number, srn) for run, number, srn in self._rows(statement, [convention])]

    def now(self) -> datetime:
        """Return the time by the clock of the server's database."""
        (row,) = self._rows("select clock_timestamp()")
        return row[0]  # type: ignore[no-any-return]

    def _rows(self, query: Any, parameters: Sequence[object] | None = None) -> list[Any]:
        return self.connection.execute(query, parameters).fetchall()


def selected(column: Column) -> sql.Composable:
    """Return the selection of a column: dates, times, UUIDs, arrays and objects as text."""
    name = sql.Identifier(column.name)
    if column.kind in {"string", "number", "integer", "boolean"}:
        return name
    text = sql.SQL("{}::text").format(name)
    # `+00`, as PostgreSQL writes it, has no minutes.
    return sql.SQL("{} || ':00'").format(text) if column.kind == "date-time" else text


def _object(text: str, where: str) -> Mapping[str, Any]:
    value = read_json(text.encode(), where)
    if not isinstance(value, dict):
        raise InvalidInputError(f"{where}: expected an object, found {quoted(text)!r}")
    return value


def _names(text: str, where: str) -> tuple[str, ...]:
    value = read_json(text.encode(), where)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise InvalidInputError(f"{where}: hooks: expected a list of names, found {quoted(text)!r}")
    return tuple(value)
