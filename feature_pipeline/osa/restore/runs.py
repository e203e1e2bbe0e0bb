"""The hook runs and releases that rows of the server's tables refer to, from the archive.

The server's ids are those of the artifacts' runs, and of the notes on their releases.
"""

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from feature_pipeline.archive import read
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import ConflictError, InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.osa.server.notes import (
    NotedRelease,
    read_release_note,
    read_run_status,
)
from feature_pipeline.projections.catalog.database import Connection, fetch_one

_OTHER_RUNS: Final = uuid.uuid5(uuid.NAMESPACE_URL, "feature_pipeline:osa:hook_run")
_OTHER_RELEASES: Final = uuid.uuid5(uuid.NAMESPACE_URL, "feature_pipeline:osa:hook_release")
_BY_DIGEST: Final = re.compile(r"(?P<name>.+)@(?P<digest>sha256:[0-9a-f]{64})")

# Which of these hook runs does the server have?
_KNOWN_RUNS: Final = "select id::text from public.hook_runs where id = any(%s::text[]::uuid[])"

# Which release of the hook has this id, or else this image?
_RELEASE: Final = """
select id::text from public.hook_releases where hook_name = %(hook)s
and (id = %(id)s::uuid or digest = %(digest)s) order by id = %(id)s::uuid desc limit 1"""

# Which image has the hook's release of this version?
_VERSION: Final = "select digest from public.hook_releases where hook_name = %s and version = %s"

_ADD_RELEASE: Final = """
insert into public.hook_releases
(id, hook_name, version, image, digest, config, limits, source_ref, built_by, built_at)
values (%s, %s, %s, %s, %s, %s, %s, %s, null, %s)"""

_ADD_RUN: Final = """
insert into public.hook_runs
(id, release_id, status, started_at, finished_at, duration_s, oom_retries)
values (%s, %s, %s, %s, %s, %s, %s) on conflict do nothing"""


def server_run_id(run_id: str) -> str:
    """Return the id that the server's tables have for a run: a run here may have no UUID."""
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return str(uuid.uuid5(_OTHER_RUNS, run_id))


@dataclass
class LostRuns:
    """The hook runs that rows refer to and that the server does not have."""

    manifests: dict[str, Digest] = field(default_factory=dict)
    """By id, a manifest of the run."""

    @classmethod
    def of(cls, connection: Connection, runs: Mapping[str, Digest]) -> "LostRuns":
        """Return those of these runs that the server does not have."""
        known = {run for (run,) in connection.execute(_KNOWN_RUNS, [list(runs)])}
        return cls({run: manifest for run, manifest in runs.items() if run not in known})

    def restore(self, connection: Connection, store: BlobStore) -> int:
        """Add them, with their releases, in one transaction; return how many releases were added.

        Raises:
            ConflictError: The server has another release of the same version.
            InvalidInputError: A release here cannot be one of the server's.
        """
        if not self.manifests:
            return 0
        added = 0
        releases: dict[tuple[str, str, str], str] = {}
        with connection.transaction():
            for run, digest in self.manifests.items():
                manifest = read.read_manifest(store, digest)
                key = manifest.dataset, manifest.hook, str(manifest.release.digest)
                if key not in releases:
                    releases[key], is_new = _release(connection, store, manifest)
                    added += is_new
                info = manifest.run
                connection.execute(
                    _ADD_RUN,
                    [
                        run,
                        releases[key],
                        read_run_status(manifest.notes),
                        info.started_at,
                        info.finished_at,
                        info.duration_seconds,
                        max(0, info.attempts - 1),
                    ],
                )
        return added


def _release(connection: Connection, store: BlobStore, manifest: Manifest) -> tuple[str, bool]:
    """Return the id of the run's release on the server, and whether it was added now."""
    entry = _registered(log.releases(store, manifest.dataset, manifest.hook), manifest)
    document = entry.release.document
    where = f"release {document.version} of hook {manifest.hook!r}"
    image = _BY_DIGEST.fullmatch(document.image or "")
    if image is None or not document.version.isdecimal():
        raise InvalidInputError(
            f"{where}: the server has no release of hook run {manifest.run.id}, and it cannot be"
            f" added: image {document.image!r} and version {document.version!r} are not those of a"
            " release of the server (an image by digest, a number)"
        )
    noted = read_release_note(manifest.notes) or NotedRelease(
        str(uuid.uuid5(_OTHER_RELEASES, str(entry.release.digest))), "", {}
    )
    wanted = {"hook": manifest.hook, "id": noted.id, "digest": image["digest"]}
    if (row := fetch_one(connection, _RELEASE, wanted)) is not None:
        return str(row[0]), False
    version = int(document.version)
    if (row := fetch_one(connection, _VERSION, [manifest.hook, version])) is not None:
        raise ConflictError(
            f"{where}: the server's has image digest {row[0]}, and that of hook run"
            f" {manifest.run.id} has {image['digest']}: the server was redeployed; delete or"
            " renumber its release first"
        )
    values: list[Any] = [noted.id, manifest.hook, version, image["name"], image["digest"]]
    values += [document_bytes(each).decode() for each in (document.config, dict(noted.limits))]
    connection.execute(_ADD_RELEASE, [*values, noted.source_ref, entry.registered_at])
    return noted.id, True


def _registered(entries: Iterable[log.ReleaseEntry], manifest: Manifest) -> log.ReleaseEntry:
    for entry in entries:
        if entry.release.digest == manifest.release.digest:
            return entry
    raise NotFoundError(
        f"release {manifest.release.digest} of hook {manifest.hook!r} is not registered"
    )
