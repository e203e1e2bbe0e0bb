"""What people built on a view and granted on it: found, put away, and put back.

What belongs here: views, materialized views and privileges that a switch must keep. Not here: the
switch itself (`switch`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from psycopg import sql

from feature_pipeline.errors import ConflictError
from feature_pipeline.projections.database import Connection, fetch_value

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
    pg_has_role(c.relowner, 'member') and has_schema_privilege(n.oid, 'create')
from (select oid, max(depth) as depth from found group by oid) f
join pg_class c on c.oid = f.oid
join pg_namespace n on n.oid = c.relnamespace
order by f.depth, c.oid"""

_GRANTS: Final = """
select case when a.grantee = 0 then null else pg_get_userbyid(a.grantee) end,
    a.privilege_type, a.is_grantable, p.attname
from (
    select relacl as acl, null::name as attname from pg_class where oid = %(view)s
    union all
    select attacl, attname from pg_attribute
    where attrelid = %(view)s and attnum > 0 and not attisdropped
) p, aclexplode(p.acl) a
where a.grantee <> (select relowner from pg_class where oid = %(view)s)
order by 1 nulls first, 2, 4"""

_COMMENTS: Final = """
select a.attname, d.description from pg_description d
left join pg_attribute a on a.attrelid = d.objoid and a.attnum = d.objsubid and d.objsubid > 0
where d.classoid = 'pg_class'::regclass and d.objoid = %(view)s order by d.objsubid"""

_TRIGGERS: Final = """
select pg_get_triggerdef(oid) from pg_trigger where tgrelid = %(view)s and not tgisinternal
order by tgname"""

_INDEXES: Final = """
select pg_get_indexdef(indexrelid) from pg_index where indrelid = %(view)s order by indexrelid"""

# What would have to be put back and is not: rules, defaults of columns, replica identities.
_UNKNOWN: Final = """
select 'rule ' || rulename from pg_rewrite where ev_class = %(view)s and rulename <> '_RETURN'
union all
select 'a default of column ' || attname from pg_attrdef d
join pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
where d.adrelid = %(view)s"""


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


@dataclass(frozen=True, slots=True)
class View:
    """A view or materialized view with everything that dropping it would take away."""

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
    """Whether this session may make it again as its owner's."""
    grants: tuple[Grant, ...]
    comments: tuple[tuple[str | None, str], ...]
    triggers: tuple[str, ...]
    indexes: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def identifier(self) -> sql.Identifier:
        """The view, qualified."""
        return sql.Identifier(self.schema, self.name)

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"{'materialized view' if self.kind == 'm' else 'view'} {self.schema}.{self.name}"

    def to_json(self) -> dict[str, Any]:
        """What a person needs to make it again."""
        return {
            "name": [self.schema, self.name],
            "kind": self.kind,
            "owner": self.owner,
            "definition": self.definition,
            "options": self.options,
            "grants": [[g.grantee, g.privilege, g.is_grantable, g.column] for g in self.grants],
            "comments": self.comments,
            "triggers": self.triggers,
            "indexes": self.indexes,
        }


def read_views(connection: Connection, root: sql.Identifier) -> tuple[View, ...]:
    """The view itself and every view that reads it, however far, each after what it reads."""
    oid = _oid(connection, root.as_string(connection))
    found = connection.execute(_DEPENDENTS, {"root": oid}).fetchall()
    return tuple(_view(connection, row) for row in found)


def users_of(connection: Connection, *relations: sql.Identifier) -> tuple[str, ...]:
    """What depends on these relations, but for their own parts: `view public.mine`, a function."""
    names = [relation.as_string(connection) for relation in relations]
    rows = connection.execute(_USERS.encode(), [[_oid(connection, name) for name in names]])
    return tuple(row[0] for row in rows)


def check_restorable(views: Sequence[View]) -> None:
    """Return if every one of these can be dropped and made again as it was.

    Raises:
        ConflictError: Not so; names them and why.
    """
    if reasons := unrestorable(views):
        raise ConflictError(
            "dropped or changed columns mean that views on the table are made again, and these"
            f" cannot be: {'; '.join(reasons)}. Drop them, or let the pipeline's role be a member"
            " of their owners' roles"
        )


def unrestorable(views: Sequence[View]) -> list[str]:
    """Why some of these could not be dropped and made again as they were; names them."""
    reasons = []
    for view in views:
        if not view.can_restore:
            reasons.append(f"{view.label} belongs to {view.owner!r}")
        reasons += [f"{view.label} has {what}" for what in view.unknown]
    return reasons


def columns_used(connection: Connection, root: View) -> list[tuple[str, str]]:
    """Per view that reads `root` itself and column of `root` that it uses: both names."""
    return connection.execute(_COLUMNS_USED, {"root": root.oid}).fetchall()


def drop_view(connection: Connection, view: View) -> None:
    """The view is gone; PostgreSQL refuses while anything but a view depends on it."""
    connection.execute(sql.SQL("drop {} {}").format(_kind(view), view.identifier))


def lock_view(connection: Connection, view: View) -> None:
    """Nobody reads or changes the view until the transaction ends.

    `lock table` would lock what it reads as well, and takes no materialized view.

    Raises:
        psycopg.errors.InsufficientPrivilege: This session is no member of its owner's role.
    """
    # It is the owner's already: nothing changes, but the lock is that of a change.
    connection.execute(_own(view))


def create_view(connection: Connection, view: View, *, has_data: bool) -> None:
    """The view is there again, with its options; this session owns it."""
    tail = "" if view.kind == "v" else (" with data" if has_data else " with no data")
    connection.execute(
        sql.SQL("create {} {} {} as {}{}").format(
            _kind(view),
            view.identifier,
            view_options(view),
            sql.SQL(view.definition.rstrip().removesuffix(";")),
            sql.SQL(tail),
        )
    )


def restore_view(connection: Connection, view: View) -> None:
    """The view is there again: definition, options, owner, grants, comments, triggers, indexes."""
    create_view(connection, view, has_data=view.is_populated)
    for statement in (*view.indexes, *view.triggers):
        connection.execute(sql.SQL(statement))
    for column, text in view.comments:
        connection.execute(_comment(_kind(view), view, column, text))
    replace_grants(connection, view.identifier, view.grants)
    # Last: whoever gives a view away may change nothing about it any more.
    connection.execute(_own(view))


def replace_grants(connection: Connection, view: sql.Identifier, grants: Iterable[Grant]) -> None:
    """Exactly these grants stand on the view, in the transaction that made it."""
    present = _oid(connection, view.as_string(connection))
    # Default privileges gave the new view grants that the old one may not have had.
    for grant in _grants(connection, present):
        connection.execute(_statement("revoke {} on {} from {}", view, grant))
    for grant in grants:
        text = "grant {} on {} to {}" + (" with grant option" if grant.is_grantable else "")
        connection.execute(_statement(text, view, grant))


def carry_grants(grants: Iterable[Grant], names: Mapping[str, str]) -> Iterator[Grant]:
    """The grants under the columns' new names; those on columns that are no more are left out."""
    for grant in grants:
        if grant.column is None:
            yield grant
        elif grant.column in names:
            yield replace(grant, column=names[grant.column])


def view_options(view: View) -> sql.Composable:
    """`with (...)` for the view's options; empty if it has none."""
    if not view.options:
        return sql.SQL("")
    parts = []
    for option in view.options:
        name, _, value = option.partition("=")
        parts.append(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value)))
    return sql.SQL("with ({})").format(sql.SQL(", ").join(parts))


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
    oid, schema, name, kind, owner, definition, options, is_populated, can_restore = row
    argument = {"view": oid}

    def texts(query: str) -> Iterator[str]:
        for (text,) in connection.execute(query.encode(), argument):
            yield text

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
        grants=_grants(connection, oid),
        comments=tuple(connection.execute(_COMMENTS, argument).fetchall()),
        triggers=tuple(texts(_TRIGGERS)),
        indexes=tuple(texts(_INDEXES)),
        unknown=tuple(texts(_UNKNOWN)),
    )


def _oid(connection: Connection, name: str) -> int | None:
    oid: int | None = fetch_value(connection, "select to_regclass(%s)::oid", [name])
    return oid


def _grants(connection: Connection, oid: int | None) -> tuple[Grant, ...]:
    return tuple(Grant(*row) for row in connection.execute(_GRANTS, {"view": oid}))
