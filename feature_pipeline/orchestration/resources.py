"""Resources: the archive in S3, the PostgreSQL database, the hook runner.

Belongs here: turning configuration into clients. What makes clients is imported when one is made:
every process that loads the code location imports this module, and few need boto3 or a runner.
"""

import inspect
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import dagster as dg
from pydantic import Field, PrivateAttr

from feature_pipeline import settings
from feature_pipeline.hooks.runner import HookRunner
from feature_pipeline.hooks.work_folders import WorkFolders
from feature_pipeline.orchestration.dagster_internals import post_process_config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from feature_pipeline.archive.store.s3 import S3Store
    from feature_pipeline.archive.store.s3_sign import S3Signer
    from feature_pipeline.projections.catalog.database import Database


class S3Clients(Protocol):
    """What makes clients of an S3 server: `ArchiveS3Resource`, or dagster-aws's `S3Resource`."""

    @property
    def endpoint_url(self) -> str | None:
        """Address of the server; None for AWS."""

    @property
    def region_name(self) -> str | None:
        """Region of the bucket."""

    def get_client(self) -> Any:
        """Make a boto3 client."""

    def model_dump_json(self) -> str:
        """Return the configuration, which tells one server and its credentials from another."""


class ArchiveS3Resource(dg.ConfigurableResource["S3Client"]):
    """The S3 server of an archive, under the field names of dagster-aws's `S3Resource`.

    A custom endpoint is addressed by path (its buckets have no host names), and boto3 computes no
    second checksum beside the SHA-256 that every write carries. It is not a subclass of
    `S3Resource`: importing that imports every AWS component of dagster-aws, in each process that
    loads the code location.
    """

    region_name: str | None = Field(default=None, description="Region of the bucket.")
    endpoint_url: str | None = Field(
        default=None, description="Address of the server; by default AWS's endpoint of the region."
    )
    aws_access_key_id: str | None = Field(
        default=None, description="Access key; the environment's if not set."
    )
    aws_secret_access_key: str | None = Field(default=None, description="Its secret.")
    aws_session_token: str | None = Field(
        default=None, description="Session token of temporary credentials."
    )

    def get_client(self) -> "S3Client":
        """Make a boto3 client.

        Keys that are not configured come from the environment: the archive's if there are any, else
        from boto3's usual sources. They are not part of the configuration, because the UI shows
        that.
        """
        from feature_pipeline.archive.store.s3 import make_client

        key, secret, token = settings.s3_keys()
        if self.aws_access_key_id is not None:
            key, secret = self.aws_access_key_id, self.aws_secret_access_key
            token = self.aws_session_token
        return make_client(
            endpoint_url=self.endpoint_url,
            region=self.region_name,
            access_key_id=key,
            secret_access_key=secret,
            session_token=token,
        )


_stores: "dict[tuple[str, ...], S3Store]" = {}
_stores_lock = threading.Lock()


class ArchiveResource(dg.ConfigurableResource["S3Store"]):
    """The archive: a bucket, or a prefix in one, with conditional writes."""

    s3: dg.ResourceDependency[S3Clients]
    bucket: str = Field(description="Bucket of the archive.")
    prefix: str = Field(default="", description="Prefix of every key, without slashes at its ends.")
    _store: "S3Store | None" = PrivateAttr(default=None)

    def store(self) -> "S3Store":
        """Return the opened store; the first call in a process tests the conditional writes.

        Sensors get new resources at every tick. Making a client takes a fifth of a second, and the
        cache of log entries belongs to the store, so stores are cached by their address.
        """
        from feature_pipeline.archive.store.s3 import open_store

        if self._store is None:
            key = (type(self.s3).__name__, self.s3.model_dump_json(), self.bucket, self.prefix)
            with _stores_lock:
                if key not in _stores:
                    _stores[key] = open_store(self.s3.get_client(), self.bucket, self.prefix)
                self._store = _stores[key]
        return self._store

    def signer(self) -> "S3Signer":
        """Return the signer of pods' addresses, with its own credentials if there are any."""
        from feature_pipeline.archive.store.s3 import make_client
        from feature_pipeline.archive.store.s3_sign import S3Signer

        access_key_id, secret_access_key = settings.signer_keys()
        if access_key_id is None:
            return S3Signer(self.s3.get_client(), self.bucket, self.prefix)
        client = make_client(
            endpoint_url=self.s3.endpoint_url,
            region=self.s3.region_name,
            access_key_id=access_key_id,
            secret_access_key=secret_access_key,
        )
        return S3Signer(client, self.bucket, self.prefix)

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


class DatabaseResource(dg.ConfigurableResource["Database"]):
    """The PostgreSQL database of the tables."""

    url: str = Field(description="postgresql://user:password@host:port/database, no driver suffix.")

    def database(self) -> "Database":
        """Return the database; nothing is connected yet."""
        from feature_pipeline.projections.catalog.database import Database

        return Database(self.url)


class HookRunnerResource(dg.ConfigurableResource[HookRunner]):
    """The hook runner's settings."""

    kind: settings.Runner = Field(
        default="subprocess",
        description="subprocess: beside Dagster, as its user; container: Docker or Podman on this"
        " machine; kubernetes: Jobs.",
    )
    work_folder: str | None = Field(
        default=None, description="Where runs keep their folders; the system's temporary folder."
    )
    settings: dict[str, Any] = Field(
        default={},
        description="This kind's own settings: see feature_pipeline.compute.runner_settings.",
    )

    def runner(self, archive: ArchiveResource) -> HookRunner:
        """Return the runner.

        Raises:
            InvalidInputError: The settings are not those of the kind.
        """
        from feature_pipeline.compute.runner_settings import open_runner, parse_settings

        config = {"kind": self.kind, **self.settings}
        signer = archive.signer() if self.kind == "kubernetes" else None
        work = self.work_folders(archive)
        return open_runner(parse_settings(config), archive.store(), signer, work)

    def local_runner(self, archive: ArchiveResource) -> HookRunner | None:
        """Return the runner if it starts hooks on this machine; None if they run in a cluster."""
        return None if self.kind == "kubernetes" else self.runner(archive)

    def work_folders(self, archive: ArchiveResource) -> WorkFolders:
        """Return where runs of hooks over the archive keep their folders on this machine."""
        root = None if self.work_folder is None else Path(self.work_folder)
        return WorkFolders(root, archive.store().identity)


def without_run_config(resource: dg.ConfigurableResource[Any] | dg.ConfigurableIOManager) -> Any:
    """Return a definition of the resource that no run can configure otherwise.

    A configurable resource is part of each run's config: the launchpad would offer another bucket
    for one run.
    """

    def initialise(context: dg.InitResourceContext) -> Any:  # a generator: ended after the run
        # As `process_config_and_initialize_cm()` does, but in the caller's context: that one makes
        # a Dagster instance with a database in memory, which costs more than most ticks.
        own = context.replace_config(_resolved_config(resource))
        nested = resource.nested_resources
        with resource.from_resource_context_cm(own, nested_resources=nested) as initialised:
            yield initialised

    description = inspect.getdoc(type(resource))
    if isinstance(resource, dg.ConfigurableIOManager):
        return dg.IOManagerDefinition(initialise, config_schema={}, description=description)
    return dg.ResourceDefinition(initialise, config_schema={}, description=description)


def _resolved_config(resource: dg.ConfigurableResource[Any] | dg.ConfigurableIOManager) -> Any:
    """Return the resource's configuration, with the environment's values in place of `EnvVar`.

    Raises:
        DagsterInvalidConfigError: A variable is not set, or a value is not of its field's type.
    """
    given = resource._convert_to_config_dictionary()
    resolved = post_process_config(resource._config_schema.config_type, given)
    if not resolved.success:
        message = "Errors while initializing resource"
        errors = resolved.errors or ()
        raise dg.DagsterInvalidConfigError(message, errors, given)  # type: ignore[no-untyped-call]
    return resolved.value


def default_resources() -> dict[str, Any]:
    """Return the resources of the environment, which is read when a run starts, not at import."""
    s3 = ArchiveS3Resource(
        endpoint_url=settings.optional(settings.S3_ENDPOINT_URL),
        region_name=settings.optional(settings.S3_REGION),
    )
    archive = ArchiveResource(
        s3=s3,
        bucket=dg.EnvVar(settings.S3_BUCKET),
        prefix=settings.optional(settings.S3_PREFIX) or "",
    )
    return {
        "s3": s3,
        "archive": archive,
        "database": DatabaseResource(url=dg.EnvVar(settings.DATABASE_URL)),
        "hook_runner": HookRunnerResource.model_validate(
            {
                "kind": settings.runner_name(),
                "work_folder": settings.optional(settings.WORK_FOLDER),
                "settings": settings.runner_settings(),
            }
        ),
    }
