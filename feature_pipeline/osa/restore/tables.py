"""Restore the server's tables `features.<hook>` from S3, as base tables of the server's own shape.

The steps, for one table after another: compare the server's table with the archive; if it differs,
add the hook runs and releases that the server has lost, fill a table beside it, prove it by reading
it back, add keys and indexes, and rename it to its place. Until the last step nothing that the
server reads is changed; what an interrupted restore leaves is removed by the next one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import count
from typing import Final

import psycopg
from psycopg import sql

from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.digest import ContentSum
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.osa.restore.extra_rows import OnlyThere
from feature_pipeline.osa.restore.replace import (
    building_index,
    check_replaceable,
    last_id,
    replace_table,
    replaced_tables,
    watermark,
    with_lock,
)
from feature_pipeline.osa.restore.result import Restored, State
from feature_pipeline.osa.restore.rows import (
    Content,
    Head,
    Ids,
    Part,
    WantedRows,
    encode_tuples,
    wanted_rows,
)
from feature_pipeline.osa.restore.runs import LostRuns
from feature_pipeline.osa.restore.shape import (
    SCHEMA,
    Existing,
    Shape,
    existing,
    quoted_name,
    relation,
    sequence_of,
    shape_problems,
)
from feature_pipeline.osa.server.database import Definitions, Reader, Server
from feature_pipeline.osa.server.schema import RESTORE, check_schema
from feature_pipeline.osa.settings import OsaSettings
from feature_pipeline.projections.catalog.database import (
    Connection,
    fetch_one,
    fetch_value,
    session_lock,
)
from feature_pipeline.projections.rows.copy_format import COPY_HEADER, COPY_TRAILER

CHUNK_ROWS: Final = 16_384

# Who owns the server's tables, and may this session act as that role?
_OWNER: Final = """
select pg_get_userbyid(c.relowner), pg_has_role(session_user, c.relowner, 'member')
from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
where (n.nspname, c.relname) in (('public', 'records'), (%s, %s)) and c.relkind = 'r'
order by n.nspname = 'public' limit 1"""

# Is there the schema, and may this role create tables in it? If not, may it create the schema?
_MAY_CREATE: Final = """
select to_regnamespace(%(schema)s) is not null,
case when to_regnamespace(%(schema)s) is null
then has_database_privilege(current_database(), 'create')
else has_schema_privilege(to_regnamespace(%(schema)s), 'create') end"""

# Which rows has the server's table of these records: ids, times, hook runs?
_PRESENT: Final = """
select record_srn, id, (extract(epoch from created_at) * 1000000)::bigint, run_id::text from {table}
where record_srn = any(%s) and id <= %s order by id"""

# The same rows as binary COPY has them.
_PRESENT_TUPLES: Final = """
copy (select {columns} from {table} where record_srn = any({srns}) and id <= {mark} order by id)
to stdout (format binary)"""

# How many rows has each hook run in the server's table, and one of their records?
_BY_RUN: Final = """
select run_id::text, count(*), min(record_srn) from {table} where id <= %s group by 1 order by 1"""

# Rows of records of which the new table has none.
_KEEP: Final = """
insert into {new} ({columns}) select {columns} from {table} as there
where id <= {mark} and not exists
(select from {new} as here where here.record_srn = there.record_srn) order by id"""

# Records were deleted while the table was filled: their rows are left out.
_ORPHANS: Final = """
delete from {new} as n where not exists (select from public.records as r where r.srn = n.record_srn)
"""


@dataclass
class _Table:
    """One table while it is restored."""

    store: BlobStore
    connection: Connection
    reader: Reader
    shape: Shape
    content: Content
    domains: list[str]
    result: Restored
    live: Existing | None = None
    mark: int = 0
    """Rows of the server with a higher id were written since the restore began."""
    used_runs: set[str] = field(default_factory=set)
    """The hook runs of the rows that the archive has for it."""
    to_keep: set[str] = field(default_factory=set)
    """Records whose rows on the server are kept rather than those of the archive."""

    def batches(self) -> Iterator[WantedRows]:
        """Yield the rows of every batch, those of earlier hook runs first."""
        ambiguous: set[str] = set()
        for head in self.content.heads:
            wanted = self._rows(head, ambiguous)
            self.used_runs |= wanted.runs()
            yield wanted

    def lost_runs(self) -> LostRuns:
        """Return the hook runs of its rows that the server does not have."""
        return LostRuns.of(
            self.connection, {run: self.content.runs[run] for run in sorted(self.used_runs)}
        )

    def _rows(self, head: Head, ambiguous: set[str]) -> WantedRows:
        return wanted_rows(
            self.store, self.reader, self.shape, self.content, head, self.domains, ambiguous
        )

    def take_ids(self, wanted: WantedRows, present: Ids) -> None:
        """Give rows without id those that the server's rows of their record have."""
        wanted.take_ids(present, lambda number: not self.content.has_id(number))

    def parts(self, **others: sql.Composable) -> dict[str, sql.Composable]:
        """Return the parts of a statement."""
        return {
            "table": relation(self.shape.table),
            "new": relation(self.shape.building),
            "columns": self.shape.selected(),
            "mark": sql.Literal(self.mark),
            **others,
        }

    def present(self, srns: Sequence[str]) -> list[tuple[str, int, int, str]]:
        """Return record, id, time and hook run of the server's rows of these records, by id."""
        if self.live is None or not srns:
            return []
        query = sql.SQL(_PRESENT).format(**self.parts())
        return self.connection.execute(query, [srns, self.mark]).fetchall()


def restore_tables(
    store: BlobStore,
    server: Server,
    settings: OsaSettings,
    definitions: Mapping[tuple[str, str], HookDefinition],
    hooks: Sequence[str] = (),
    *,
    only_there: OnlyThere = OnlyThere.REFUSE,
    is_dry_run: bool = False,
) -> Iterator[Restored]:
    """Restore the server's tables of these hooks, one after another. Idempotent.

    Args:
        store: The archive.
        server: The server's database, by a role that may act as the owner of its tables.
        settings: Which conventions and hooks are followed.
        definitions: The hooks of this project, by dataset and name.
        hooks: The hooks; those of all followed conventions if empty.
        only_there: What becomes of rows that the archive does not have.
        is_dry_run: Compare, and change nothing.

    Raises:
        NotFoundError: The server has no such hook, or this project does not define it.
        InvalidInputError: The role lacks a right, or the server's columns are not the definition's.
        ConflictError: Rows that the archive does not have would be lost, or something is built upon
            a table.
        ProjectionError, StoreUnavailableError: The database or the archive did not answer.
        CorruptDataError: An artifact is damaged, or the new table differs from the archive.
    """
    with server.database.connect("restoring the Open Science Archive server's tables") as used:
        if not is_dry_run:
            _act_as_owner(used, "records")
        check_schema(used, server.address, RESTORE)
        reader = Reader(used, server.address)
        deployed = reader.definitions()
        for name in _chosen(deployed, settings, hooks):
            with session_lock(used, "osa restore", name):
                yield _restore(
                    store, reader, deployed, settings, definitions, name, only_there, is_dry_run
                )


def drop_replaced(server: Server, settings: OsaSettings, hooks: Sequence[str] = ()) -> list[str]:
    """Drop the tables that restored ones replaced; return their names.

    Raises:
        NotFoundError: The server has no such hook.
        InvalidInputError: The role may not act as the tables' owner.
        ProjectionError: The database did not answer, or something is built upon one of them.
    """
    dropped = []
    with server.database.connect("dropping replaced tables") as connection:
        _act_as_owner(connection, "records")
        check_schema(connection, server.address, RESTORE)
        reader = Reader(connection, server.address)
        deployed = reader.definitions()
        for hook in _chosen(deployed, settings, hooks):
            shape = Shape.of(hook, reader.feature_table(hook), deployed.hooks[hook].feature_spec)
            with session_lock(connection, "osa restore", hook):
                _act_as_owner(connection, shape.table)
                for name in replaced_tables(connection, shape):
                    connection.execute(sql.SQL("drop table {}").format(relation(name)))
                    dropped.append(quoted_name(name))
    return dropped


def _chosen(deployed: Definitions, settings: OsaSettings, hooks: Sequence[str]) -> list[str]:
    """Return the hooks to restore.

    Raises:
        NotFoundError: The server has no such hook, or no followed convention names it.
    """
    followed: dict[str, None] = {}
    for convention in deployed.conventions.values():
        if settings.follows(convention.id):
            followed |= dict.fromkeys(convention.hooks)
    for name in hooks:
        if name not in followed:
            raise NotFoundError(
                f"no followed convention of the server names a hook {name!r}; they name"
                f" {first_few(map(repr, followed)) or 'none'}"
            )
    for name in hooks or followed:
        if name not in deployed.hooks:
            raise NotFoundError(
                f"a convention names hook {name!r}, which public.hooks does not have: that row is"
                " not in the archive; restore it from a backup, or deploy the hook"
            )
    return [name for name in hooks or followed if settings.follows_hook(name)]


def _parts(
    deployed: Definitions,
    settings: OsaSettings,
    definitions: Mapping[tuple[str, str], HookDefinition],
    shape: Shape,
) -> list[Part]:
    """Return what each convention that names the hook gives to its table.

    Raises:
        NotFoundError: One of them is not followed, or does not define the hook here.
        InvalidInputError: A definition does not fit the server's columns.
    """
    parts = []
    for convention in deployed.conventions.values():
        if shape.hook not in convention.hooks:
            continue
        dataset = settings.dataset(convention.id)
        definition = definitions.get((dataset, shape.hook))
        if not settings.follows(convention.id) or definition is None:
            why = "is not followed" if definition else f"has no definition of it in {dataset!r}"
            raise NotFoundError(
                f"hook {shape.hook!r} of convention {convention.id!r} {why}, so that rows of its"
                " records would be missing in the table: `feature-pipeline osa scaffold` defines"
                " it, and `feature-pipeline osa sync` takes its outputs"
            )
        parts.append(Part.of(convention.id, definition, shape))
    return parts


def _restore(
    store: BlobStore,
    reader: Reader,
    deployed: Definitions,
    settings: OsaSettings,
    definitions: Mapping[tuple[str, str], HookDefinition],
    hook: str,
    only_there: OnlyThere,
    is_dry_run: bool,
) -> Restored:
    connection = reader.connection
    catalogued = reader.feature_table(hook)
    shape = Shape.of(hook, catalogued, deployed.hooks[hook].feature_spec)
    parts = _parts(deployed, settings, definitions, shape)
    if not is_dry_run:
        _act_as_owner(connection, shape.table)
    content = Content.of(store, parts)
    result = Restored(hook, shape.table)
    table = _Table(store, connection, reader, shape, content, reader.deposition_domains(), result)
    table.live = existing(connection, shape.table)
    if table.live is None:
        result.reasons.append("the server has no such table")
    else:
        result.reasons += shape_problems(connection, shape)
        table.mark = (
            last_id(connection, shape.table) if is_dry_run else watermark(connection, shape.table)
        )
    if catalogued is None:
        result.reasons.append("public.feature_tables does not name it")
    if table.live is not None or is_dry_run:
        _compare(table)
    if result.is_equal:
        return result
    if is_dry_run:
        result.runs_added = len(table.lost_runs().manifests)
        result.state = State.DIFFERS
        return result
    if result.only_there.number and only_there is OnlyThere.REFUSE:
        raise ConflictError(
            f"{quoted_name(shape.table)} has {counted(result.only_there.number, 'row')} that the"
            f" archive does not have: {first_few(result.only_there.examples)}. Nothing was changed."
            " Take them with `feature-pipeline osa sync --once` or `osa import`, or choose"
            " what becomes of them: --only-there keep copies them to the new table,"
            " --only-there drop leaves them in the old one"
        )
    if only_there is not OnlyThere.KEEP:
        table.to_keep.clear()
    check_replaceable(connection, shape, table.live)
    highest = _fill(table)
    lost = table.lost_runs()
    result.runs_added = len(lost.manifests)
    result.releases_added = lost.restore(connection, store)
    _complete(table, keeps=only_there is OnlyThere.KEEP)
    replaced = replace_table(connection, shape, table.live, table.mark, highest)
    result.replaced, result.carried = replaced.old, replaced.carried
    result.state = State.RESTORED
    return result


def _act_as_owner(connection: Connection, table: str) -> None:
    """Become the role that owns the server's tables, and check that it may create one.

    The server's role then owns everything that is created. If there is no such table, that is the
    owner of public.records.

    Raises:
        InvalidInputError: This session may not, or that role may not create tables there.
    """
    row = fetch_one(connection, _OWNER, [SCHEMA, table])
    if row is None:
        raise InvalidInputError("public.records is not an ordinary table")
    owner, is_member = row
    user = connection.info.user
    if not is_member:
        raise InvalidInputError(
            f"role {user!r} may not act as {owner!r}, which owns the server's tables and must own"
            f' the restored ones: `grant "{owner}" to "{user}"`, or give'
            " FEATURE_PIPELINE_OSA_RESTORE_DATABASE_URL the URL of a role that may"
        )
    connection.execute("reset role")
    connection.execute(sql.SQL("set role {}").format(sql.Identifier(owner)))
    has_schema, may_create = fetch_one(connection, _MAY_CREATE, {"schema": SCHEMA}) or (
        False,
        False,
    )
    if not may_create and has_schema:
        raise InvalidInputError(
            f"role {owner!r}, which owns the server's tables, may not create a table in schema"
            f' {SCHEMA}: `grant create, usage on schema {SCHEMA} to "{owner}"`'
        )
    if not may_create:
        raise InvalidInputError(
            f"the database has no schema {SCHEMA}, and role {owner!r}, which owns the server's"
            f' tables, may not create one: `create schema {SCHEMA} authorization "{owner}"`'
        )


def _compare(table: _Table) -> None:
    """Compare the server's rows with those of the archive, in one snapshot; count what differs."""
    result = table.result
    seen: dict[str, int] = {}
    with table.connection.transaction():
        table.connection.execute("set transaction isolation level repeatable read, read only")
        for wanted in table.batches():
            result.count(wanted)
            _compare_batch(table, wanted, seen)
        if table.live is None:
            return
        query = sql.SQL(_BY_RUN).format(**table.parts())
        for run, number, srn in table.connection.execute(query, [table.mark]):
            if number > seen.get(run, 0):
                rest = number - seen.get(run, 0)
                example = f"{counted(rest, 'row')} of hook run {run}"
                if run not in seen:
                    example += f", such as those of {srn}"
                result.only_there.add(example, rest)


def _compare_batch(table: _Table, wanted: WantedRows, seen: dict[str, int]) -> None:
    """Compare one batch.

    Args:
        table: The table.
        wanted: The batch's rows; they get the server's ids.
        seen: The number of compared rows is added to it, by hook run.
    """
    result, there = table.result, table.present(wanted.srns)
    by_record: dict[str, list[tuple[int, int]]] = {}
    unknown: dict[str, str] = {}
    for srn, number, created_at, run in there:
        seen[run] = seen.get(run, 0) + 1
        by_record.setdefault(srn, []).append((number, created_at))
        if run not in table.content.known_runs:
            unknown[srn] = run
    table.take_ids(wanted, by_record)
    result.new_ids += wanted.without_id
    if table.live is None:
        return
    records = {srn: (start, end) for srn, start, end in wanted.records()}
    for srn, present in by_record.items():
        if srn in unknown or srn not in records:
            why = f"hook run {unknown[srn]}" if srn in unknown else "no rows here"
            example = f"{wanted.where}: {counted(len(present), 'row')} of {srn} ({why})"
            result.only_there.add(example, len(present))
            table.to_keep.add(srn)
    if result.reasons and any("column" in reason for reason in result.reasons):
        return  # its rows cannot be compared
    tuples = _tuples(table, wanted.srns)
    if tuples == encode_tuples(table.shape, wanted.rows):
        return
    theirs: dict[str, list[bytes]] = {}
    for (srn, *_), data in zip(there, tuples, strict=True):
        theirs.setdefault(srn, []).append(data)
    ours = encode_tuples(table.shape, wanted.rows)
    for srn, (start, end) in records.items():
        if srn not in unknown and ours[start:end] != theirs.get(srn, []):
            result.differing.add(f"{wanted.where}: {srn}")


def _tuples(table: _Table, srns: Sequence[str]) -> list[bytes]:
    if not srns:
        return []
    parts = table.parts(srns=sql.Literal(list(srns)))
    return list(_copied(table.connection, sql.SQL(_PRESENT_TUPLES).format(**parts)))


def _copied(connection: Connection, statement: sql.Composed) -> Iterator[bytes]:
    """Yield the tuple of each row of a binary COPY.

    Source: PostgreSQL documentation, "COPY Operations": the server sends a message for each row.
    """
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        for number, data in enumerate(copy):
            row = bytes(data)
            if number == 0:
                row = row.removeprefix(COPY_HEADER)
            if row and row != COPY_TRAILER:
                yield row


def _fill(table: _Table) -> int:
    """Fill a new table with the archive's rows, and prove it; return the highest id known.

    Raises:
        InvalidInputError: The server's table cannot have a row of the archive.
        CorruptDataError: The table as read back is not what was written.
    """
    connection, shape = table.connection, table.shape
    if fetch_value(connection, "select to_regnamespace(%s) is null", [SCHEMA]):
        connection.execute(sql.SQL("create schema {}").format(sql.Identifier(SCHEMA)))
    _drop_leftover(connection, shape)
    connection.execute(shape.create(shape.building))
    known = table.content.ids
    highest = max([table.mark, *(int(known[-1]) for _ in [0] if len(known))])
    for name in replaced_tables(connection, shape):
        highest = max(highest, last_id(connection, name))
    fresh = _FreshIds(table, highest)
    total, rows = ContentSum(), 0
    for wanted in table.batches():
        present: dict[str, list[tuple[int, int]]] = {}
        for srn, number, created_at, _ in table.present(wanted.srns):
            present.setdefault(srn, []).append((number, created_at))
        if table.live is None:
            table.result.count(wanted)
            table.result.new_ids += wanted.without_id
        wanted.without(table.to_keep)
        table.take_ids(wanted, present)
        fresh.reserve(wanted.without_id)
        wanted.give_ids(iter(fresh))
        digests = _write(table, wanted)
        total, rows = total + ContentSum.of(digests), rows + len(digests)
    _prove(table, total, rows)
    return max(highest, fresh.last)


def _drop_leftover(connection: Connection, shape: Shape) -> None:
    """Drop what an interrupted restore left."""
    connection.execute(sql.SQL("drop table if exists {}").format(relation(shape.building)))


class _FreshIds:
    """Ids that no row had: of the server's own sequence, or after the highest known one."""

    def __init__(self, table: _Table, highest: int) -> None:
        self._connection = table.connection
        present = None if table.live is None else sequence_of(table.connection, table.shape.table)
        self._sequence = None if present is None else present[0].as_string(table.connection)
        self._next = count(highest + 1)
        self._ids: list[int] = []
        self.last = 0
        if self._sequence is not None and present is not None and (present[1] or 0) < highest:
            self._connection.execute("select setval(%s::regclass, %s)", [self._sequence, highest])

    def reserve(self, number: int) -> None:
        """Take this many ids."""
        if self._sequence is None:
            self._ids = [next(self._next) for _ in range(number)]
        else:
            rows = self._connection.execute(
                "select nextval(%s::regclass) from generate_series(1, %s)",
                [self._sequence, number],
            )
            self._ids = sorted(each for (each,) in rows)
        self.last = max([self.last, *self._ids])

    def __iter__(self) -> Iterator[int]:
        return iter(self._ids)


def _write(table: _Table, wanted: WantedRows) -> list[bytes]:
    """Copy the rows of a batch into the new table; return a digest of each."""
    statement = sql.SQL("copy {new} ({columns}) from stdin (format binary)")
    digests: list[bytes] = []
    try:
        for start in range(0, len(wanted.rows), CHUNK_ROWS):
            tuples = encode_tuples(table.shape, wanted.rows.slice(start, CHUNK_ROWS))
            digests += [sha256(each).digest() for each in tuples]
            copied = statement.format(**table.parts())
            with table.connection.cursor() as cursor, cursor.copy(copied) as copy:
                copy.write(b"".join([COPY_HEADER, *tuples, COPY_TRAILER]))
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        raise InvalidInputError(
            f"{wanted.where}: {quoted_name(table.shape.table)} cannot have one of its rows:"
            f" {error.diag.message_primary}"
        ) from error
    return digests


def _prove(table: _Table, total: ContentSum, rows: int) -> None:
    """Read the new table back, and compare it with what was written, value by value."""
    statement = sql.SQL("copy (select {columns} from {new}) to stdout (format binary)")
    number = 0

    def digests() -> Iterator[bytes]:
        nonlocal number
        for data in _copied(table.connection, statement.format(**table.parts())):
            number += 1
            yield sha256(data).digest()

    actual = ContentSum.of(digests())
    if (actual, number) != (total, rows):
        raise CorruptDataError(
            f"{quoted_name(table.shape.building)} as read back ({counted(number, 'row')})"
            f" differs from what was written ({counted(rows, 'row')}): nothing was replaced"
        )


def _complete(table: _Table, *, keeps: bool) -> None:
    """Add indexes, rows to keep, and keys to the new table."""
    connection, shape = table.connection, table.shape
    index = sql.SQL("create index {} on {new} ({})")
    for column in ("record_srn", "run_id"):
        name = sql.Identifier(building_index(shape, column))
        connection.execute(index.format(name, sql.Identifier(column), **table.parts()))
    if keeps and table.live is not None:
        connection.execute(sql.SQL(_KEEP).format(**table.parts()))
    key = sql.SQL("alter table {new} add constraint {} primary key (id)")
    name = sql.Identifier(building_index(shape, "key"))
    try:
        connection.execute(key.format(name, **table.parts()))
    except psycopg.errors.UniqueViolation as error:
        raise ConflictError(
            f"two rows of {quoted_name(shape.table)} have the same id"
            f" ({error.diag.message_detail}): nothing was replaced"
        ) from error
    for name_of_key, statement in shape.foreign_keys(shape.building):
        # it locks public.records or public.hook_runs against writes for a moment
        with_lock(connection, shape.table, partial(connection.execute, statement))
        if "record_srn" in name_of_key:
            connection.execute(sql.SQL(_ORPHANS).format(**table.parts()))
        validate = sql.SQL("alter table {new} validate constraint {}")
        connection.execute(validate.format(sql.Identifier(name_of_key), **table.parts()))
    connection.execute(sql.SQL("analyze {new}").format(**table.parts()))
