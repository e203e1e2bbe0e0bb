"""Settings of the archive, the tables, runners and metrics, from the environment.

`feature-pipeline dev` writes them to `.env` for a laptop; in a deployment they are set otherwise.
The README lists the names. Settings are validated when they are read. Those that belong together
come from one source: all from the environment, or all from the file.
"""

import ipaddress
import os
import re
import urllib.request
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args
from urllib.parse import urlsplit

import yaml

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.yaml_text import InvalidYamlError, check_yaml

S3_ENDPOINT_URL: Final = "FEATURE_PIPELINE_S3_ENDPOINT_URL"
S3_BUCKET: Final = "FEATURE_PIPELINE_S3_BUCKET"
S3_PREFIX: Final = "FEATURE_PIPELINE_S3_PREFIX"
S3_REGION: Final = "FEATURE_PIPELINE_S3_REGION"
S3_ACCESS_KEY_ID: Final = "FEATURE_PIPELINE_S3_ACCESS_KEY_ID"
S3_SECRET_ACCESS_KEY: Final = "FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY"  # noqa: S105  (a name)
S3_SESSION_TOKEN: Final = "FEATURE_PIPELINE_S3_SESSION_TOKEN"  # noqa: S105  (a name)
CA_BUNDLE: Final = "AWS_CA_BUNDLE"
DATABASE_URL: Final = "FEATURE_PIPELINE_DATABASE_URL"
DAGSTER_DATABASE_URL: Final = "DAGSTER_DATABASE_URL"
DAGSTER_HOME: Final = "DAGSTER_HOME"
WORK_FOLDER: Final = "FEATURE_PIPELINE_WORK_FOLDER"
RUNNER: Final = "FEATURE_PIPELINE_RUNNER"
RUNNER_SETTINGS: Final = "FEATURE_PIPELINE_RUNNER_SETTINGS"
Runner = Literal["subprocess", "container", "kubernetes"]
RUNNERS: Final[tuple[str, ...]] = get_args(Runner)
WEBHOOK_URL: Final = "FEATURE_PIPELINE_WEBHOOK_URL"
DEFS_FOLDER: Final = "FEATURE_PIPELINE_DEFS"
UI_URL: Final = "FEATURE_PIPELINE_UI_URL"
METRICS_URL: Final = "FEATURE_PIPELINE_METRICS_URL"
OTLP_URL: Final = "FEATURE_PIPELINE_OTLP_URL"
SIGNER_ACCESS_KEY_ID: Final = "FEATURE_PIPELINE_SIGNER_ACCESS_KEY_ID"
SIGNER_SECRET_ACCESS_KEY: Final = "FEATURE_PIPELINE_SIGNER_SECRET_ACCESS_KEY"  # noqa: S105  (a name)

_HINT: Final = (
    "`feature-pipeline dev` starts local servers and writes every setting to .env;"
    " a deployment sets the variables listed in the README"
)


_DEFS_HINT: Final = "name the folder that holds one folder with a defs.yaml for each hook"


S3_SETTINGS: Final = frozenset(
    {S3_ENDPOINT_URL, S3_BUCKET, S3_PREFIX, S3_REGION}
    | {S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, S3_SESSION_TOKEN}
)
"""Address and credentials of the archive, which come from one source."""
AWS_CREDENTIALS: Final = frozenset(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"}
    | {"AWS_PROFILE", "AWS_DEFAULT_PROFILE"}
)
"""Credentials by AWS's own names: they belong to the bucket if they come from the same file."""
DAGSTER_SETTINGS: Final = frozenset({DAGSTER_DATABASE_URL, DAGSTER_HOME})

_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]|arn:[^\s/]+[/:][^\s]+")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Address and keys of the archive; without keys, boto3's usual sources are used.

    Raises:
        InvalidInputError: A setting is invalid; the message names its variable.
    """

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            raise InvalidInputError(
                f"{S3_BUCKET} is {self.bucket!r}: write the bucket's name, without s3:// or a path"
            )
        check_prefix(self.prefix)
        if self.endpoint_url is not None:
            _check_endpoint(self.endpoint_url)
        if self.region is not None and not re.fullmatch(r"[A-Za-z0-9-]+", self.region):
            raise InvalidInputError(
                f"{S3_REGION} is {self.region!r}: write a name such as eu-west-1"
            )
        _check_pair(
            (S3_ACCESS_KEY_ID, self.access_key_id), (S3_SECRET_ACCESS_KEY, self.secret_access_key)
        )
        if self.session_token is not None and self.access_key_id is None:
            raise InvalidInputError(f"{S3_SESSION_TOKEN} is set without {S3_ACCESS_KEY_ID}")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Return the archive's settings.

        Raises:
            InvalidInputError: The bucket is not set, or a setting is invalid.
        """
        environment = os.environ if environment is None else environment
        bucket = _required(environment, S3_BUCKET)
        return cls.at(bucket, environment.get(S3_PREFIX, ""), environment)

    @classmethod
    def at(cls, bucket: str, prefix: str, environment: Mapping[str, str] | None = None) -> Self:
        """Return a given address with the endpoint, region and keys of the environment.

        In an environment that is given, AWS's own names of the keys are read, too: boto3 would read
        the process's.
        """
        is_explicit = environment is not None
        environment = os.environ if environment is None else environment
        names = (S3_ACCESS_KEY_ID, S3_SECRET_ACCESS_KEY, S3_SESSION_TOKEN)
        if is_explicit and not any(environment.get(name) for name in names):
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        key, secret, token = (environment.get(name) or None for name in names)
        return cls(
            bucket=bucket,
            prefix=prefix.strip("/"),
            endpoint_url=environment.get(S3_ENDPOINT_URL) or None,
            region=environment.get(S3_REGION) or None,
            access_key_id=key,
            secret_access_key=secret,
            session_token=token,
        )

    @property
    def uri(self) -> str:
        """`s3://bucket/prefix`."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")


def s3_keys() -> tuple[str | None, str | None, str | None]:
    """Return the archive's key, secret and session token from its own variables.

    Raises:
        InvalidInputError: One of the first two is set without the other.
    """
    key, secret = optional(S3_ACCESS_KEY_ID), optional(S3_SECRET_ACCESS_KEY)
    _check_pair((S3_ACCESS_KEY_ID, key), (S3_SECRET_ACCESS_KEY, secret))
    return key, secret, optional(S3_SESSION_TOKEN)


def signer_keys() -> tuple[str | None, str | None]:
    """Return the key and the secret that sign the addresses of hooks' pods; None where not set.

    Raises:
        InvalidInputError: One is set without the other.
    """
    key, secret = optional(SIGNER_ACCESS_KEY_ID), optional(SIGNER_SECRET_ACCESS_KEY)
    _check_pair((SIGNER_ACCESS_KEY_ID, key), (SIGNER_SECRET_ACCESS_KEY, secret))
    return key, secret


def _check_pair(one: tuple[str, str | None], other: tuple[str, str | None]) -> None:
    for (name, value), (needed, lacking) in ((one, other), (other, one)):
        if value is not None and lacking is None:
            raise InvalidInputError(f"{name} is set and {needed} is not: set both or neither")


def check_prefix(prefix: str) -> str:
    """Return `prefix` if stores and clients all write it in the same way.

    Raises:
        InvalidInputError: A part between `/` is empty, `.` or `..`, or it has a control character.
    """
    parts = prefix.strip("/").split("/") if prefix.strip("/") else []
    wrong = next((part for part in parts if part in {"", ".", ".."}), None)
    if wrong is not None or _CONTROL.search(prefix) or "\\" in prefix:
        problem = (
            "an empty part" if wrong == "" else repr(wrong) if wrong else "a control character"
        )
        raise InvalidInputError(
            f"prefix {prefix!r} ({S3_PREFIX}) has {problem}: stores write such keys in another way,"
            " so that nothing would be found again; write parts between single slashes"
        )
    return prefix


def _check_endpoint(url: str) -> None:
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_right = False
    # urlsplit leaves out line ends and tabs before it looks at anything.
    is_right = is_right and not _CONTROL.search(url) and " " not in url
    if not is_right or parts.query or parts.fragment or parts.username:
        raise InvalidInputError(f"{S3_ENDPOINT_URL} is {url!r}: write http://host:port")


def ca_bundle() -> str | None:
    """Return the file of CA certificates for HTTPS endpoints; None for the default ones.

    Raises:
        InvalidInputError: The variable names no file.
    """
    path = os.environ.get(CA_BUNDLE) or None
    if path is not None and not Path(path).is_file():
        raise InvalidInputError(f"{CA_BUNDLE} is {path!r}, but there is no such file")
    return path


def proxy_for(url: str) -> str | None:
    """Return the environment's proxy for `url`; None if it is to be reached directly.

    A server on this machine is always reached directly. `ALL_PROXY` has no effect.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_local(host) or urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(parts.scheme)


def is_local(host: str) -> bool:
    """Return whether a host is this machine, by its name or its loopback address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def add_settings(environment: MutableMapping[str, str], values: Mapping[str, str]) -> bool:
    """Add the settings of a file to the environment; variables that are set take precedence.

    Settings that belong together come from one source. The archive's address and keys are those of
    the environment if it names the bucket, else those of the file, AWS's own names of credentials
    included: a shell has keys for other stores. Dagster's home and database likewise.

    Returns:
        Whether Dagster's database is the file's.

    Raises:
        InvalidInputError: The environment has settings of an archive whose bucket the file names.
    """
    settings = dict(values)
    has_bucket, names_bucket = bool(environment.get(S3_BUCKET)), bool(settings.get(S3_BUCKET))
    if has_bucket:
        _drop(settings, S3_SETTINGS | AWS_CREDENTIALS)
    elif names_bucket:
        own = sorted(name for name in S3_SETTINGS if environment.get(name))
        if different := [name for name in own if environment[name] != settings.get(name, "")]:
            raise InvalidInputError(
                f"{', '.join(different)} is set in the environment, and {S3_BUCKET} in .env: the"
                " archive's settings come from one source; set all of them in one place"
            )
        if settings.get("AWS_ACCESS_KEY_ID") and not settings.get(S3_ACCESS_KEY_ID):
            _drop(environment, AWS_CREDENTIALS)
    if environment.get(DAGSTER_DATABASE_URL):
        _drop(settings, DAGSTER_SETTINGS)
    elif settings.get(DAGSTER_DATABASE_URL):
        _drop(environment, DAGSTER_SETTINGS)
    for name, value in settings.items():
        environment.setdefault(name, value)
    return bool(settings.get(DAGSTER_DATABASE_URL))


def _drop(mapping: MutableMapping[str, str], names: frozenset[str]) -> None:
    for name in names & mapping.keys():
        del mapping[name]


def database_url(environment: Mapping[str, str] | None = None) -> str:
    """Return the URL of the PostgreSQL database of the tables, without a driver suffix.

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
    """Return the URL of the PostgreSQL database of Dagster's own storage.

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
    """Return the name of the runner that starts hooks; by default `subprocess`.

    Raises:
        InvalidInputError: There is no such runner.
    """
    name = (os.environ if environment is None else environment).get(RUNNER) or RUNNERS[0]
    if name not in RUNNERS:
        raise InvalidInputError(
            f"{RUNNER} is {name!r}: write one of {', '.join(RUNNERS)}; how it runs hooks is"
            f" in {RUNNER_SETTINGS}"
        )
    return name


def runner_settings(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the runner's own settings, a YAML mapping; empty when not set.

    Raises:
        InvalidInputError: It is something else.
    """
    text = (os.environ if environment is None else environment).get(RUNNER_SETTINGS) or "{}"
    try:
        check_yaml(text)
        value = yaml.safe_load(text)
    except InvalidYamlError as error:
        raise InvalidInputError(f"{RUNNER_SETTINGS}: {error}") from error
    except yaml.YAMLError as error:
        raise InvalidInputError(f"{RUNNER_SETTINGS} is not YAML: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInputError(
            f"{RUNNER_SETTINGS} is not a mapping: write {{code_image: name@sha256:..., ...}}"
        )
    return value


def webhook_url(environment: Mapping[str, str] | None = None) -> str | None:
    """Return where failures are posted; None when not set. It may contain a token: never log it.

    Raises:
        InvalidInputError: It is not an http:// or https:// address; the message does not show it.
    """
    url = (os.environ if environment is None else environment).get(WEBHOOK_URL) or None
    if url is not None and (
        urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname
    ):
        raise InvalidInputError(f"{WEBHOOK_URL} is not an address: write https://host/path")
    return url


def metrics_url(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the address to which processes send their counts; None if unset: none is counted.

    Raises:
        InvalidInputError: It is not an http:// or https:// address.
    """
    return _address(os.environ if environment is None else environment, METRICS_URL)


def otlp_url(environment: Mapping[str, str] | None = None) -> str | None:
    """Return the collector to which `feature-pipeline metrics` sends everything; None if unset.

    Raises:
        InvalidInputError: It is not an http:// or https:// address.
    """
    return _address(os.environ if environment is None else environment, OTLP_URL)


def _address(environment: Mapping[str, str], name: str) -> str | None:
    url = environment.get(name) or None
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        is_right = False
    # urlsplit leaves out line ends and tabs before it looks at anything.
    is_right = is_right and not _CONTROL.search(url) and " " not in url
    if not is_right or parts.query or parts.fragment or parts.username:
        # It may hold a password: it is not shown.
        raise InvalidInputError(
            f"{name} is not an address: write http://host:port, without a path of its own, user or"
            " query"
        )
    return url


def optional(name: str) -> str | None:
    """Return an optional variable; None if it is not set, or is empty."""
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
