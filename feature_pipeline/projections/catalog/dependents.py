"""The objects that users built on a view, and its grants: read, dropped and restored."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import psycopg
from psycopg import sql

from feature_pipeline.errors import ConflictError
from feature_pipeline.projections.catalog.database import Connection, fetch_value

# Views reach what they read through their rewrite rule. A view is dropped before and made after
# everything that it reads: by its longest way to the root.
_DEPENDENTS: Final = """
with recursive found (oid, depth) as (
    select %(root)s::oid, 0
    union
    select r.ev_class, f.depth + 1
    from found f
    join pg_depend d on d.refclassid = 'pg_class'::regclass and d.refobjid = f.oid
        and d.classid = 'pg_rewrite'::regclass
    join pg_rewrite r on r.oid = d.objid and r.ev_class <> f.oid
)
select c.oid, n.nspname, c.relname, c.relkind::text, pg_get_userbyid(c.relowner),
    pg_get_viewdef(c.oid), coalesce(c.reloptions, '{}'), c.relispopulated,
    pg_has_role(c.relowner, 'member') and has_schema_privilege(n.oid, 'create'),
    (select spcname from pg_tablespace where oid = c.reltablespace),
    (select nullif(amname, current_setting('default_table_access_method'))
        from pg_am where oid = c.relam)
from (select oid, max(depth) as depth from found group by oid) f
join pg_class c on c.oid = f.oid
join pg_namespace n on n.oid = c.relnamespace
order by f.depth, c.oid"""

_GRANTS: Final = """
select case when a.grantee = 0 then null else pg_get_userbyid(a.grantee) end,
    a.privilege_type, a.is_grantable, p.attname,
    case when a.grantor = c.relowner then null else pg_get_userbyid(a.grantor) end
from pg_class c, lateral (
    select c.relacl as acl, null::name as attname
    union all
    select attacl, attname from pg_attribute
    where attrelid = c.oid and attnum > 0 and not attisdropped
) p, aclexplode(p.acl) a
where c.oid = %(view)s and a.grantee <> c.relowner
order by 1 nulls first, 2, 4, 5"""

_COMMENTS: Final = """
select a.attname, d.description from pg_description d
left join pg_attribute a on a.attrelid = d.objoid and a.attnum = d.objsubid and d.objsubid > 0
where d.classoid = 'pg_class'::regclass and d.objoid = %(view)s order by d.objsubid"""

_TRIGGERS: Final = """
select pg_get_triggerdef(oid) from pg_trigger where tgrelid = %(view)s and not tgisinternal
order by tgname"""

_INDEXES: Final = """
select pg_get_indexdef(indexrelid) from pg_index where indrelid = %(view)s order by indexrelid"""

# Statements, in an order in which they can be executed after the indexes and triggers.
_SETTINGS: Final = """
with view as (select %(view)s::oid as oid, %(view)s::oid::regclass::text as name),
columns as (
    select v.name, a.attname, a.attstattarget, a.attstorage, t.typstorage, a.attcompression,
        a.attoptions, a.attnum
    from view v join pg_attribute a on a.attrelid = v.oid
    join pg_type t on t.oid = a.atttypid
    where a.attnum > 0 and not a.attisdropped
),
indexes as (
    select v.name as view, i.indexrelid, i.indexrelid::regclass::text as name, i.indisclustered,
        c.relname, c.reltablespace
    from view v join pg_index i on i.indrelid = v.oid join pg_class c on c.oid = i.indexrelid
),
statistics as (
    select s.oid, format('%%I.%%I', n.nspname, s.stxname) as name, s.stxstattarget, s.stxowner
    from view v join pg_statistic_ext s on s.stxrelid = v.oid
    join pg_namespace n on n.oid = s.stxnamespace
),
statements (place, number, statement) as (
    select 1, attnum, format('alter materialized view %%s alter column %%I set statistics %%s',
        name, attname, attstattarget) from columns where attstattarget >= 0
    union all
    select 1, attnum, format('alter materialized view %%s alter column %%I set storage %%s',
        name, attname, case attstorage when 'p' then 'plain' when 'e' then 'external'
            when 'm' then 'main' else 'extended' end)
    from columns where attstorage <> typstorage
    union all
    select 1, attnum, format('alter materialized view %%s alter column %%I set compression %%s',
        name, attname, case attcompression when 'p' then 'pglz' else 'lz4' end)
    from columns where attcompression <> ''
    union all
    select 1, attnum, format('alter materialized view %%s alter column %%I set (%%s)',
        name, attname, array_to_string(attoptions, ', ')) from columns
    where attoptions is not null
    union all
    select 1, 0, format('alter materialized view %%s set (%%s)', name,
        (select string_agg('toast.' || option, ', ') from unnest(t.reloptions) as option))
    from view v join pg_class c on c.oid = v.oid join pg_class t on t.oid = c.reltoastrelid
    where t.reloptions is not null
    union all
    select 2, indexrelid::int8, format('alter index %%s set tablespace %%I', name, spcname)
    from indexes join pg_tablespace t on t.oid = reltablespace
    union all
    select 2, indexrelid::int8, format('alter index %%s alter column %%s set statistics %%s',
        name, attnum, attstattarget)
    from indexes join pg_attribute a on a.attrelid = indexrelid where attstattarget >= 0
    union all
    select 2, indexrelid::int8, format('alter materialized view %%s cluster on %%I', view, relname)
    from indexes where indisclustered
    union all
    select 2, indexrelid::int8, format('comment on index %%s is %%L', name, description)
    from indexes join pg_description d on d.objoid = indexrelid
        and d.classoid = 'pg_class'::regclass and d.objsubid = 0
    union all
    select 3, t.oid::int8, format('comment on trigger %%I on %%s is %%L', tgname, name, description)
    from view v join pg_trigger t on t.tgrelid = v.oid and not t.tgisinternal
    join pg_description d on d.objoid = t.oid and d.classoid = 'pg_trigger'::regclass
    union all
    select 4, oid::int8, pg_get_statisticsobjdef(oid) from statistics
    union all
    select 5, oid::int8, format('alter statistics %%s set statistics %%s', name, stxstattarget)
    from statistics where stxstattarget >= 0
    union all
    select 5, s.oid::int8, format('comment on statistics %%s is %%L', name, description)
    from statistics s join pg_description d on d.objoid = s.oid
        and d.classoid = 'pg_statistic_ext'::regclass
    union all
    select 6, oid::int8, format('alter statistics %%s owner to %%I', name,
        pg_get_userbyid(stxowner)) from statistics
)
select statement from statements order by place, number, statement"""

# Properties that would have to be restored and are not.
_UNKNOWN: Final = """
select 'rule ' || rulename from pg_rewrite where ev_class = %(view)s and rulename <> '_RETURN'
union all
select 'a default of column ' || attname from pg_attrdef d
join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
where d.adrelid = %(view)s
union all
select 'a security label' from pg_seclabel
where classoid = 'pg_class'::regclass and objoid = %(view)s
union all
select 'statistics of ' || pg_get_userbyid(stxowner) from pg_statistic_ext
where stxrelid = %(view)s and not pg_has_role(stxowner, 'member')
union all
select 'a dependence on extension ' || e.extname from pg_depend d
join pg_extension e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid
where d.deptype = 'x' and d.classid = 'pg_class'::regclass and d.objid in (
    select %(view)s::oid union all select indexrelid from pg_index where indrelid = %(view)s)"""


# What else uses a relation, or its row type: views by what they are, not by their rules.
_USERS: Final = """
select distinct o.type || ' ' || o.identity
from pg_class c
join pg_depend d on d.deptype = 'n' and (d.refclassid, d.refobjid) in (
    ('pg_class'::regclass, c.oid), ('pg_type'::regclass, c.reltype))
left join pg_rewrite r on d.classid = 'pg_rewrite'::regclass and r.oid = d.objid
cross join lateral pg_identify_object(
    case when r.oid is null then d.classid else 'pg_class'::regclass end,
    coalesce(r.ev_class, d.objid), 0) o
where c.oid = any(%s::oid[]) and r.ev_class is distinct from c.oid
order by 1"""


_COLUMNS_USED: Final = """
select distinct o.type || ' ' || o.identity, a.attname
from pg_depend d
join pg_rewrite r on r.oid = d.objid and r.ev_class <> d.refobjid
join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
cross join lateral pg_identify_object('pg_class'::regclass, r.ev_class, 0) o
where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass
    and d.refobjid = %(root)s and d.refobjsubid > 0
order by 1, 2"""


@dataclass(frozen=True, slots=True)
class Grant:
    """One privilege of one role on a view, or on one of its columns; `grantee` None is public."""

    grantee: str | None
    privilege: str
    is_grantable: bool
    column: str | None
    grantor: str | None = None
    """None is the view's owner; another one has the privilege with grant option."""


@dataclass(frozen=True, slots=True)
class View:
    """A view or materialized view with everything that dropping it would remove."""

    oid: int
    schema: str
    name: str
    kind: str
    """`v`, or `m` when materialized."""
    owner: str
    definition: str
    options: tuple[str, ...]
    is_populated: bool
    can_restore: bool
    """Whether this session may create it again in its owner's name."""
    tablespace: str | None
    """None is the database's default."""
    access_method: str | None
    """None is the default one."""
    grants: tuple[Grant, ...]
    comments: tuple[tuple[str | None, str], ...]
    triggers: tuple[str, ...]
    indexes: tuple[str, ...]
    settings: tuple[str, ...]
    """Statements for statistics objects, settings of columns and indexes, and comments on these."""
    unknown: tuple[str, ...]
    """Properties that cannot be restored, such as `rule noted`."""
    foreign_grantors: tuple[str, ...] = field(default=(), compare=False)
    """Grantors in whose name this session may not grant."""

    @property
    def identifier(self) -> sql.Identifier:
        """The view, qualified."""
        return sql.Identifier(self.schema, self.name)

    @property
    def label(self) -> str:
        """Name for messages."""
        return f"{'materialized view' if self.kind == 'm' else 'view'} {self.schema}.{self.name}"

    def to_json(self) -> dict[str, Any]:
        """Return what a person needs to create it again."""
        return {
            "name": [self.schema, self.name],
            "kind": self.kind,
            "owner": self.owner,
            "definition": self.definition,
            "options": self.options,
            "tablespace": self.tablespace,
            "access_method": self.access_method,
            "grants": [
                [g.grantee, g.privilege, g.is_grantable, g.column, g.grantor] for g in self.grants
            ],
            "comments": self.comments,
            "triggers": self.triggers,
            "indexes": self.indexes,
            "settings": self.settings,
        }


def read_views(connection: Connection, root: sql.Identifier) -> tuple[View, ...]:
    """Return the view and every view that reads it, directly or not, each after what it reads."""
    oid = _oid(connection, root.as_string(connection))
    rows = connection.execute(_DEPENDENTS, {"root": oid}).fetchall()
    return tuple(_view(connection, row) for row in rows)


def users_of(connection: Connection, *relations: sql.Identifier) -> tuple[str, ...]:
    """Return what depends on these relations (`view public.mine`), except their own parts."""
    names = [relation.as_string(connection) for relation in relations]
    rows = connection.execute(_USERS.encode(), [[_oid(connection, name) for name in names]])
    return tuple(row[0] for row in rows)


def check_restorable(views: Sequence[View]) -> None:
    """Check that every one of these can be dropped and restored unchanged.

    Raises:
        ConflictError: One cannot; names them with the reasons.
    """
    if reasons := unrestorable(views):
        raise ConflictError(
            "to drop or change columns, the views on the table must be recreated, and these cannot"
            f" be: {'; '.join(reasons)}. Drop them, or make the pipeline's role a member of their"
            " owners' roles"
        )


def unrestorable(views: Sequence[View]) -> list[str]:
    """Return why some of these cannot be restored unchanged; names them."""
    reasons = []
    for view in views:
        if not view.can_restore:
            reasons.append(f"{view.label} belongs to {view.owner!r}")
        reasons += [f"{view.label} has {what}" for what in view.unknown]
    return reasons


def changed_by_restore(views: Sequence[View]) -> list[str]:
    """Return what will differ on these views after they are restored; names them."""
    return [
        f"{view.label}: grants by {grantor!r} become its owner's, because the pipeline's role is no"
        f" member of {grantor!r}"
        for view in views
        for grantor in view.foreign_grantors
    ]


def columns_used(connection: Connection, root: View) -> list[tuple[str, str]]:
    """Return (view, column) for each column of `root` that a view uses directly."""
    return connection.execute(_COLUMNS_USED, {"root": root.oid}).fetchall()


def drop_view(connection: Connection, view: View) -> None:
    """Drop the view; PostgreSQL refuses while anything but a view depends on it."""
    connection.execute(sql.SQL("drop {} {}").format(_kind(view), view.identifier))


def lock_view(connection: Connection, view: View) -> None:
    """Lock the view against reads and changes until the transaction ends.

    `lock table` would also lock what it reads, and does not accept materialized views.

    Raises:
        psycopg.errors.InsufficientPrivilege: This session is not a member of its owner's role.
    """
    # It is the owner's already: nothing changes, but the lock is that of a change.
    connection.execute(_own(view))


def create_view(connection: Connection, view: View, *, has_data: bool) -> None:
    """Create the view again, with its options; this session owns it."""
    tail = "" if view.kind == "v" else (" with data" if has_data else " with no data")
    connection.execute(
        sql.SQL("create {} {}{} {}{} as {}{}").format(
            _kind(view),
            view.identifier,
            _named("using", view.access_method),
            view_options(view),
            _named("tablespace", view.tablespace),
            sql.SQL(view.definition.rstrip().removesuffix(";")),
            sql.SQL(tail),
        )
    )


def move_view(connection: Connection, view: View, schema: str) -> View:
    """Move the view, with its indexes, to another schema."""
    connection.execute(
        sql.SQL("alter {} {} set schema {}").format(
            _kind(view), view.identifier, sql.Identifier(schema)
        )
    )
    return replace(view, schema=schema)


def restore_view(connection: Connection, view: View) -> None:
    """Restore the view with everything that `read_views` found on it."""
    recreate_view(connection, view, has_data=view.is_populated)
    dress_view(connection, view)


def recreate_view(connection: Connection, view: View, *, has_data: bool) -> None:
    """Create the view and its indexes again: everything that takes time."""
    create_view(connection, view, has_data=has_data)
    for statement in view.indexes:
        connection.execute(sql.SQL(statement))


def dress_view(connection: Connection, view: View) -> None:
    """Restore everything else that `read_views` found on the view, including its owner."""
    for statement in (*view.triggers, *view.settings):
        connection.execute(sql.SQL(statement))
    for column, text in view.comments:
        connection.execute(_comment(_kind(view), view, column, text))
    replace_grants(connection, view.identifier, view.grants)
    # Last: after giving a view away its former owner may change nothing about it.
    connection.execute(_own(view))


def replace_grants(connection: Connection, view: sql.Identifier, grants: Iterable[Grant]) -> None:
    """Set exactly these grants on the view, in the transaction that created it.

    A grant by a role other than the owner is made in that role's name if this session may,
    otherwise in the owner's.
    """
    present = _oid(connection, view.as_string(connection))
    # Default privileges gave the new view grants that the old one may not have had.
    for grant in grants_of(connection, present):
        connection.execute(_statement("revoke {} on {} from {}", view, grant))
    for grant in _issuable_order(grants):
        text = "grant {} on {} to {}" + (" with grant option" if grant.is_grantable else "")
        statement = _statement(text, view, grant)
        if grant.grantor is None or not _grant_as(connection, grant.grantor, statement):
            connection.execute(statement)


def _issuable_order(grants: Iterable[Grant]) -> list[Grant]:
    """Return the grants, each after the one that gives its grantor the right to grant."""
    ordered: list[Grant] = []
    waiting = list(grants)
    while waiting:
        able = {(g.grantee, g.privilege, g.column) for g in ordered if g.is_grantable}
        ready = [
            grant
            for grant in waiting
            if grant.grantor is None
            or (grant.grantor, grant.privilege, grant.column) in able
            or (grant.grantor, grant.privilege, None) in able
        ]
        # Empty: a column that the right was for is gone.
        ready = ready or waiting
        ordered += ready
        waiting = [grant for grant in waiting if grant not in ready]
    return ordered


def _grant_as(connection: Connection, grantor: str, statement: sql.Composed) -> bool:
    """Make the grant in the grantor's name, in the caller's transaction; True on success."""
    before = fetch_value(connection, "select current_setting('role')")
    try:
        with connection.transaction():
            connection.execute(sql.SQL("set local role {}").format(sql.Identifier(grantor)))
            connection.execute(statement)
    except psycopg.errors.InsufficientPrivilege:
        return False
    except psycopg.errors.InvalidParameterValue:
        return False  # there is no such role any more
    finally:
        connection.execute("select set_config('role', %s, true)", [before])
    return True


def carry_grants(grants: Iterable[Grant], names: Mapping[str, str]) -> Iterator[Grant]:
    """Return the grants under the columns' new names, without those on dropped columns."""
    for grant in grants:
        if grant.column is None:
            yield grant
        elif grant.column in names:
            yield replace(grant, column=names[grant.column])


def view_options(view: View) -> sql.Composable:
    """Return `with (...)` for the view's options; empty if it has none."""
    if not view.options:
        return sql.SQL("")
    parts = []
    for option in view.options:
        name, _, value = option.partition("=")
        parts.append(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)))
    return sql.SQL("with ({})").format(sql.SQL(", ").join(parts))


def _named(keyword: str, name: str | None) -> sql.Composable:
    if name is None:
        return sql.SQL("")
    return sql.SQL(" {} {}").format(sql.SQL(keyword), sql.Identifier(name))


def _kind(view: View) -> sql.SQL:
    return sql.SQL("materialized view" if view.kind == "m" else "view")


def _own(view: View) -> sql.Composed:
    return sql.SQL("alter {} {} owner to {}").format(
        _kind(view), view.identifier, sql.Identifier(view.owner)
    )


def _statement(text: str, view: sql.Identifier, grant: Grant) -> sql.Composed:
    privilege = sql.SQL(grant.privilege.lower())
    what: sql.Composable = privilege
    if grant.column is not None:
        what = sql.SQL("{} ({})").format(privilege, sql.Identifier(grant.column))
    whom = sql.SQL("public") if grant.grantee is None else sql.Identifier(grant.grantee)
    return sql.SQL(text).format(what, view, whom)


def _comment(kind: sql.SQL, view: View, column: str | None, text: str) -> sql.Composed:
    if column is None:
        return sql.SQL("comment on {} {} is {}").format(kind, view.identifier, sql.Literal(text))
    return sql.SQL("comment on column {}.{} is {}").format(
        view.identifier, sql.Identifier(column), sql.Literal(text)
    )


def _view(connection: Connection, row: tuple[Any, ...]) -> View:
    oid, schema, name, kind, owner, definition, options, is_populated, can_restore = row[:9]
    argument = {"view": oid}

    def texts(query: str) -> Iterator[str]:
        for (text,) in connection.execute(query.encode(), argument):
            yield text

    grants = grants_of(connection, oid)
    return View(
        oid=oid,
        schema=schema,
        name=name,
        kind=kind,
        owner=owner,
        definition=definition,
        options=tuple(options),
        is_populated=is_populated,
        can_restore=can_restore,
        tablespace=row[9],
        access_method=row[10] if kind == "m" else None,
        grants=grants,
        comments=tuple(connection.execute(_COMMENTS, argument).fetchall()),
        triggers=tuple(texts(_TRIGGERS)),
        indexes=tuple(texts(_INDEXES)),
        settings=tuple(texts(_SETTINGS)),
        unknown=tuple(texts(_UNKNOWN)),
        foreign_grantors=_foreign_grantors(connection, grants),
    )


def _foreign_grantors(connection: Connection, grants: Iterable[Grant]) -> tuple[str, ...]:
    grantors = sorted({grant.grantor for grant in grants if grant.grantor is not None})
    if not grantors:
        return ()
    # Before PostgreSQL 16 every member may.
    right = "set" if connection.info.server_version >= 160000 else "member"
    rows = connection.execute(
        "select name from unnest(%s::text[]) as name where not pg_has_role(name, %s)",
        [grantors, right],
    )
    return tuple(row[0] for row in rows)


def _oid(connection: Connection, name: str) -> int | None:
    oid: int | None = fetch_value(connection, "select to_regclass(%s)::oid", [name])
    return oid


def grants_of(connection: Connection, oid: int | None) -> tuple[Grant, ...]:
    """Return the grants on a view, table or sequence to roles other than its owner."""
    return tuple(Grant(*row) for row in connection.execute(_GRANTS, {"view": oid}))
