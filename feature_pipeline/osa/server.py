"""Read the definitions of the server's database: its conventions, hooks and releases.

Every session is read-only, and each method reads in one snapshot. Rows become values at this edge;
JSON keeps the spelling of its numbers.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.json_text import read_json
from feature_pipeline.model.quoting import quoted
from feature_pipeline.osa.schema import check_schema
from feature_pipeline.projections.catalog.database import Connection, Database


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
            f" {self.live_release_id}, and hook_releases has {len(self.releases)} of it): deploy"
            " the hook on the server first, or leave it out"
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
class Definitions:
    """The server's conventions and hooks, by id and by name."""

    conventions: Mapping[str, Convention]
    hooks: Mapping[str, ServerHook]


@dataclass(frozen=True, slots=True)
class Server:
    """The database of one server."""

    database: Database
    _checked: set[str] = field(default_factory=set, repr=False, compare=False)

    @property
    def address(self) -> str:
        """`host:port/database`, for messages."""
        return self.database.address

    @contextmanager
    def session(self) -> Iterator["Reader"]:
        """Open a read-only session, all of whose reads are of one snapshot.

        Raises:
            ProjectionError: The database cannot be reached.
            InvalidInputError: A table or column is missing, or the role may not read it.
        """
        purpose = "reading the Open Science Archive server's database"
        with self.database.connect(purpose) as connection:
            connection.execute("set default_transaction_read_only = on")
            with connection.transaction():
                connection.execute("set transaction isolation level repeatable read, read only")
                if self.address not in self._checked:
                    check_schema(connection, self.address)
                    self._checked.add(self.address)
                yield Reader(connection)


@dataclass(frozen=True, slots=True)
class Reader:
    """The reads of one snapshot."""

    connection: Connection

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

    def _rows(self, query: Any) -> list[Any]:
        return self.connection.execute(query).fetchall()


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
