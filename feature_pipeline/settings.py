"""Settings from the environment: the only module that reads it.

`feature-pipeline dev` writes them to `.env` for a laptop; a deployment sets them itself. The
names are listed in the README.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit

import yaml

from feature_pipeline.errors import InvalidInputError

S3_ENDPOINT_URL: Final = "FEATURE_PIPELINE_S3_ENDPOINT_URL"
S3_BUCKET: Final = "FEATURE_PIPELINE_S3_BUCKET"
S3_PREFIX: Final = "FEATURE_PIPELINE_S3_PREFIX"
S3_REGION: Final = "FEATURE_PIPELINE_S3_REGION"
DATABASE_URL: Final = "FEATURE_PIPELINE_DATABASE_URL"
DAGSTER_DATABASE_URL: Final = "DAGSTER_DATABASE_URL"
WORK_FOLDER: Final = "FEATURE_PIPELINE_WORK_FOLDER"
RUNNER: Final = "FEATURE_PIPELINE_RUNNER"
RUNNER_SETTINGS: Final = "FEATURE_PIPELINE_RUNNER_SETTINGS"
WEBHOOK_URL: Final = "FEATURE_PIPELINE_WEBHOOK_URL"
DEFS_FOLDER: Final = "FEATURE_PIPELINE_DEFS"
UI_URL: Final = "FEATURE_PIPELINE_UI_URL"
SIGNER_ACCESS_KEY_ID: Final = "FEATURE_PIPELINE_SIGNER_ACCESS_KEY_ID"
SIGNER_SECRET_ACCESS_KEY: Final = "FEATURE_PIPELINE_SIGNER_SECRET_ACCESS_KEY"  # noqa: S105  (a name)

_HINT: Final = (
    "`feature-pipeline dev` starts local servers and writes every setting to .env;"
    " a deployment sets the variables listed in the README"
)


_DEFS_HINT: Final = "name the folder that holds one folder with a defs.yaml for each hook"


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the archive is. Credentials come from the standard AWS variables or a role."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """The archive's address.

        Raises:
            InvalidInputError: The bucket is not set.
        """
        environment = os.environ if environment is None else environment
        bucket = _required(environment, S3_BUCKET)
        return cls.at(bucket, environment.get(S3_PREFIX, ""), environment)

    @classmethod
    def at(cls, bucket: str, prefix: str, environment: Mapping[str, str] | None = None) -> Self:
        """A given place, at the endpoint and in the region that the environment names."""
        environment = os.environ if environment is None else environment
        return cls(
            bucket=bucket,
            prefix=prefix,
            endpoint_url=environment.get(S3_ENDPOINT_URL) or None,
            region=environment.get(S3_REGION) or None,
        )

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def database_url(environment: Mapping[str, str] | None = None) -> str:
    """The URL of the PostgreSQL database that holds the tables, without a driver suffix.

    Raises:
        InvalidInputError: It is not set, or is not a postgresql:// URL.
    """
    url = _required(os.environ if environment is None else environment, DATABASE_URL)
    if urlsplit(url).scheme not in {"postgresql", "postgres"}:
        raise InvalidInputError(
            f"{DATABASE_URL} begins with {urlsplit(url).scheme!r}: write postgresql://user:password@host/db"
        )
    return url


def dagster_database_url(environment: Mapping[str, str] | None = None) -> str:
    """The URL of the PostgreSQL database that holds Dagster's own storage.

    Raises:
        InvalidInputError: It is not set, or names another driver than psycopg2.
    """
    url = _required(os.environ if environment is None else environment, DAGSTER_DATABASE_URL)
    if urlsplit(url).scheme != "postgresql+psycopg2":
        # SQLAlchemy 2.1 takes plain postgresql:// to mean psycopg 3, whose server-side parameters
        # break dagster-postgres' NOTIFY.
        raise InvalidInputError(
            f"{DAGSTER_DATABASE_URL} begins with {urlsplit(url).scheme!r}: write"
            " postgresql+psycopg2://user:password@host/db"
        )
    return url


def runner_name(environment: Mapping[str, str] | None = None) -> str:
    """Which runner starts hooks: subprocess unless set otherwise."""
    return (os.environ if environment is None else environment).get(RUNNER) or "subprocess"


def runner_settings(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the runner needs besides its name: a YAML mapping, empty when not set.

    Raises:
        InvalidInputError: It is something else.
    """
    text = (os.environ if environment is None else environment).get(RUNNER_SETTINGS) or "{}"
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{RUNNER_SETTINGS} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"{RUNNER_SETTINGS} is not a mapping: write {{code_image: name@sha256:..., ...}}"
        )
    return value


def webhook_url(environment: Mapping[str, str] | None = None) -> str | None:
    """Where failures are posted; None when not set. It may hold a token: never log it.

    Raises:
        InvalidInputError: It is not an http:// or https:// address; the message does not show it.
    """
    url = (os.environ if environment is None else environment).get(WEBHOOK_URL) or None
    if url is not None and (
        urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname
    ):
        raise InvalidInputError(f"{WEBHOOK_URL} is not an address: write https://host/path")
    return url


def optional(name: str) -> str | None:
    """A variable that need not be set; None when it is not, or is empty."""
    return os.environ.get(name) or None


def _required(environment: Mapping[str, str], name: str) -> str:
    value = environment.get(name)
    if not value:
        raise InvalidInputError(f"{name} is not set: {_HINT}")
    return value


def defs_folder(default: Path, environment: Mapping[str, str] | None = None) -> Path:
    """Return the folder of the hooks' definitions, absolute.

    Args:
        default: The folder when the environment names none.
        environment: Read in place of the process's own.

    Raises:
        InvalidInputError: The folder that is named does not exist.
    """
    environment = os.environ if environment is None else environment
    named = environment.get(DEFS_FOLDER)
    if not named:
        return default
    folder = Path(named).expanduser().absolute()
    if not folder.is_dir():
        raise InvalidInputError(f"{DEFS_FOLDER}={named}: there is no such folder; {_DEFS_HINT}")
    return folder
