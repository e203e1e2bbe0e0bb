"""Resources: the archive in S3, the PostgreSQL database, the hook runner.

Belongs here: turning configuration into clients. Not here: anything done with them.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

import dagster as dg
from dagster_aws.s3 import S3Resource
from pydantic import Field, PrivateAttr

from feature_pipeline import settings
from feature_pipeline.archive.stores.s3 import S3Store, make_client, open_store
from feature_pipeline.hooks.runner import HookRunner
from feature_pipeline.hooks.runners.subprocess import SubprocessRunner
from feature_pipeline.projections.database import Database

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class ArchiveS3Resource(S3Resource):
    """dagster-aws's S3 resource with a client set up for archives.

    A custom endpoint is addressed by path (its buckets have no host names), and boto3 computes no
    second checksum beside the SHA-256 that every write carries.
    """

    def get_client(self) -> "S3Client":
        """A boto3 client; what is not configured comes from boto3's usual places."""
        return make_client(
            endpoint_url=self.endpoint_url,
            region=self.region_name,
            access_key_id=self.aws_access_key_id,
            secret_access_key=self.aws_secret_access_key,
            session_token=self.aws_session_token,
        )


class ArchiveResource(dg.ConfigurableResource[S3Store]):
    """The archive: a bucket, or a prefix in one, with conditional writes."""

    s3: dg.ResourceDependency[S3Resource]
    bucket: str = Field(description="Bucket that holds the archive.")
    prefix: str = Field(default="", description="Prefix of every key, without slashes at its ends.")
    _store: S3Store | None = PrivateAttr(default=None)

    def store(self) -> S3Store:
        """The opened store; the first call proves that it honours conditional writes."""
        if self._store is None:
            self._store = open_store(self.s3.get_client(), self.bucket, self.prefix)
        return self._store

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


class DatabaseResource(dg.ConfigurableResource[Database]):
    """The PostgreSQL database that holds the tables."""

    url: str = Field(description="postgresql://user:password@host:port/database, no driver suffix.")

    def database(self) -> Database:
        """The database; nothing is connected yet."""
        return Database(self.url)


class HookRunnerResource(dg.ConfigurableResource[HookRunner]):
    """How hooks are started."""

    kind: Literal["subprocess"] = Field(
        default="subprocess",
        description="subprocess runs the command on this machine, beside Dagster.",
    )
    work_folder: str | None = Field(
        default=None, description="Where runs keep their folders; the system's temporary folder."
    )

    def runner(self) -> HookRunner:
        """The runner."""
        match self.kind:
            case "subprocess":
                return SubprocessRunner(Path(self.work_folder) if self.work_folder else None)
            case _:
                assert_never(self.kind)


def default_resources() -> dict[str, Any]:
    """Resources as the environment configures them; read when a run starts, not at import."""
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
        "hook_runner": HookRunnerResource(),
    }
