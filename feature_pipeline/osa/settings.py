"""The settings of one followed server: database, storage, conventions, datasets, hooks."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Final, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from feature_pipeline import settings
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.definition import Compute
from feature_pipeline.model.records import check_dataset
from feature_pipeline.model.text.quoting import problems
from feature_pipeline.model.text.yaml_text import InvalidYamlError, check_yaml
from feature_pipeline.osa.server.database import Server
from feature_pipeline.osa.server.storage import BucketStorage, FolderStorage, ServerStorage
from feature_pipeline.projections.catalog.database import Database

DATABASE_URL: Final = "FEATURE_PIPELINE_OSA_DATABASE_URL"
RESTORE_DATABASE_URL: Final = "FEATURE_PIPELINE_OSA_RESTORE_DATABASE_URL"
STORAGE: Final = "FEATURE_PIPELINE_OSA_STORAGE"

COMPONENT: Final = "feature_pipeline.OsaServer"
"""Type of the component that has these settings as its attributes."""

HOOK_COMPONENT: Final = "feature_pipeline.FeatureHook"

_COMPONENT_YAML: Final = Template(
    """\
type: feature_pipeline.OsaServer

attributes:
  # Name of the server here.
  name: $name
  # Environment variable with the URL of the server's database; its role needs to read only.
  database_url_variable: FEATURE_PIPELINE_OSA_DATABASE_URL
  # The server's storage: the folder $$OSA_DATA_DIR/data, or s3://bucket/prefix; when absent, that
  # of FEATURE_PIPELINE_OSA_STORAGE.
  # storage: /srv/osa/data
  # S3 endpoint of that bucket, if it is not the archive's.
  # storage_endpoint: https://s3.example.org
  # Conventions to follow, and the dataset of each; by default all.
  # conventions: {protein-designs: designs}
  # Hooks to follow; by default all hooks of the conventions.
  # hooks: [qc]
  # Whether each hook defined beside this file has an asset that restores the server's own table.
  # restore_tables: true
"""
)

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class OsaSettings(BaseModel):
    """The address of an Open Science Archive server, and what of it is followed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("osa", description="Name of the server here: a-z, 0-9 and _.")
    database_url_variable: str = Field(
        DATABASE_URL,
        description="Environment variable with the URL of the server's database, for a role that"
        " may read it. Do not write a password into this file.",
    )
    storage: str | None = Field(
        None,
        description="The server's storage: the folder $OSA_DATA_DIR/data, or s3://bucket/prefix;"
        f" by default {STORAGE}.",
    )
    storage_endpoint: str | None = Field(
        None, description="S3 endpoint of that bucket, if it is not the archive's."
    )
    conventions: Mapping[str, str] = Field(
        default_factory=dict,
        description="Conventions to follow, each with the name of its dataset here. By default all"
        " of them, each under its own name with '_' for '-'.",
    )
    hooks: tuple[str, ...] = Field(
        (), description="Hooks to follow; by default all hooks of the conventions."
    )
    restore_tables: bool = Field(
        False,
        description="Whether each hook defined beside this file has an asset"
        " `<name>/features/<hook>`, a run of which restores the server's own table.",
    )

    @field_validator("name")
    @classmethod
    def _name_is_one(cls, value: str) -> str:
        return check_dataset(value)

    @field_validator("database_url_variable")
    @classmethod
    def _names_a_variable(cls, value: str) -> str:
        if not _VARIABLE.fullmatch(value):
            raise ValueError("write the name of an environment variable, not the URL itself")
        return value

    @field_validator("conventions")
    @classmethod
    def _datasets_are_names(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for dataset in value.values():
            check_dataset(dataset)
        return value

    @model_validator(mode="after")
    def _one_convention_a_dataset(self) -> Self:
        datasets = list(self.conventions.values())
        if twice := sorted({each for each in datasets if datasets.count(each) > 1}):
            raise ValueError(
                f"conventions: dataset {twice[0]!r} is given to two of them; upstream ids are"
                " unique within a convention only, so each has a dataset of its own"
            )
        return self

    def dataset(self, convention: str) -> str:
        """Return the dataset of a convention.

        Raises:
            InvalidInputError: The convention's id cannot name one, and no name is given.
        """
        if convention in self.conventions:
            return self.conventions[convention]
        name = convention.replace("-", "_")
        try:
            return check_dataset(name)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"convention {convention!r}: {error}; give its dataset a name under `conventions`"
            ) from error

    def follows(self, convention: str) -> bool:
        """Return whether the convention is followed."""
        return not self.conventions or convention in self.conventions

    def follows_hook(self, hook: str) -> bool:
        """Return whether the hook is followed."""
        return not self.hooks or hook in self.hooks

    def server(self) -> Server:
        """Return the server's database; nothing is connected yet.

        Raises:
            InvalidInputError: The variable is not set, or has no URL of PostgreSQL.
        """
        return _server(self.database_url_variable)

    def restore_server(self) -> Server:
        """Return the database for restoring tables, by a role that may write; `server` if not set.

        Raises:
            InvalidInputError: No variable is set, or it has no URL of PostgreSQL.
        """
        if os.environ.get(RESTORE_DATABASE_URL):
            return _server(RESTORE_DATABASE_URL)
        return self.server()

    def names_storage(self) -> bool:
        """Return whether the server's storage is named, here or in the environment."""
        return bool(self.storage or os.environ.get(STORAGE))

    def open_storage(self) -> ServerStorage:
        """Return the server's storage.

        Raises:
            InvalidInputError: It is not named.
        """
        named = self.storage or os.environ.get(STORAGE)
        if not named:
            raise InvalidInputError(
                f"the server's storage is not named: set {STORAGE}, or `storage`, to the folder"
                " $OSA_DATA_DIR/data or to s3://bucket/prefix"
            )
        if not named.startswith("s3://"):
            return FolderStorage(Path(named).expanduser())
        from feature_pipeline.archive.store.s3 import make_client

        parts = urlsplit(named)
        key, secret, token = settings.s3_keys()
        client = make_client(
            endpoint_url=self.storage_endpoint or settings.optional(settings.S3_ENDPOINT_URL),
            region=settings.optional(settings.S3_REGION),
            access_key_id=key,
            secret_access_key=secret,
            session_token=token,
        )
        return BucketStorage(client, parts.netloc, parts.path.strip("/"))


def _server(variable: str) -> Server:
    url = os.environ.get(variable)
    if not url:
        raise InvalidInputError(
            f"{variable} is not set: give it the URL of the server's database,"
            " postgresql://user:password@host:port/database"
        )
    if urlsplit(url).scheme not in {"postgresql", "postgres"}:
        raise InvalidInputError(
            f"{variable} begins with {urlsplit(url).scheme!r}: write"
            " postgresql://user:password@host:port/database"
        )
    return Server(Database(url))


def component_text(
    name: str, conventions: Mapping[str, str] | None = None, hooks: Sequence[str] = ()
) -> str:
    """Return a commented `defs.yaml` of the component; it loads unchanged.

    Args:
        name: The server's name here.
        conventions: The conventions to follow and their datasets, if not all of them.
        hooks: The hooks to follow, if not all of them.

    Raises:
        InvalidInputError: The server cannot have this name.
    """
    lines = _COMPONENT_YAML.substitute(name=check_dataset(name)).splitlines()
    for chosen, field in ((dict(conventions or {}), "conventions"), (list(hooks), "hooks")):
        if chosen:
            (at,) = [n for n, line in enumerate(lines) if line.startswith(f"  # {field}: ")]
            lines[at] = f"  {field}: {json.dumps(chosen)}"
    return "\n".join([*lines, ""])


def followed_datasets(folder: Path, server: OsaSettings) -> dict[str, list[str]]:
    """Return the datasets of each hook computed elsewhere that a folder's YAML files define.

    A file that cannot be read defines none: loading it reports its error.
    """
    datasets_by_hook: dict[str, set[str]] = {}
    for file in sorted(folder.rglob("defs.yaml")):
        try:
            text = file.read_text(encoding="utf-8")
            check_yaml(text)
            documents = list(yaml.safe_load_all(text))
        except (InvalidYamlError, yaml.YAMLError, UnicodeDecodeError):
            continue
        for document in documents:
            attributes = document.get("attributes") if isinstance(document, dict) else None
            if not isinstance(attributes, dict) or document.get("type") != HOOK_COMPONENT:
                continue
            name, dataset = attributes.get("name"), attributes.get("dataset")
            if (
                attributes.get("compute") == Compute.ELSEWHERE.value
                and isinstance(name, str)
                and isinstance(dataset, str)
                and server.follows_hook(name)
                and (not server.conventions or dataset in server.conventions.values())
            ):
                datasets_by_hook.setdefault(name, set()).add(dataset)
    return {name: sorted(datasets) for name, datasets in sorted(datasets_by_hook.items())}


def find_settings(folder: Path) -> OsaSettings | None:
    """Return the settings of the followed server that a folder of definitions names; None if none.

    Raises:
        InvalidInputError: A file names one and cannot be read, or two files do.
    """
    components: dict[Path, OsaSettings] = {}
    for file in sorted(folder.rglob("defs.yaml")):
        text = file.read_text(encoding="utf-8")
        if COMPONENT not in text:
            continue
        try:
            check_yaml(text)
            document = yaml.safe_load(text)
            if isinstance(document, dict) and document.get("type") == COMPONENT:
                components[file] = OsaSettings.model_validate(document.get("attributes") or {})
        except InvalidYamlError as error:
            raise InvalidInputError(f"{file}:{error.line}: {error}") from error
        except ValidationError as error:
            raise InvalidInputError(f"{file}: {problems(error)}") from error
        except yaml.YAMLError as error:
            raise InvalidInputError(f"{file}: {' '.join(str(error).split())}") from error
    if len(components) > 1:
        first, second = list(components)[:2]
        raise InvalidInputError(
            f"{first} and {second} both name a server: one project follows one server"
        )
    return next(iter(components.values()), None)
