"""The variables of the project's servers, and the `.env` file that stores them.

`dagster` and `dg` read the file too, so it is written for, and read with, their parser.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dotenv import dotenv_values
from dotenv.parser import Binding, parse_stream

from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.local.process import write_private

if TYPE_CHECKING:
    from feature_pipeline.local.services import LocalServices

HEADER = (
    "# Written by `feature-pipeline dev` for the servers it runs; holds secrets, not for git.\n"
    "# Its own lines are written anew at every start; other lines stay.\n"
)
NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def environment(services: "LocalServices", dagster_home: Path) -> dict[str, str]:
    """Return every variable that the project and its Dagster configuration need for `services`."""
    address = services.s3
    return {
        "FEATURE_PIPELINE_S3_ENDPOINT_URL": address.endpoint_url,
        "FEATURE_PIPELINE_S3_BUCKET": address.bucket,
        "FEATURE_PIPELINE_S3_PREFIX": "",
        "FEATURE_PIPELINE_S3_REGION": address.region,
        # Not by AWS's names: shells have keys of their own under these, for other stores.
        "FEATURE_PIPELINE_S3_ACCESS_KEY_ID": address.access_key_id,
        "FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY": address.secret_access_key,
        "FEATURE_PIPELINE_DATABASE_URL": services.database_url,
        "DAGSTER_DATABASE_URL": services.dagster_database_url,
        # Dagster refuses a relative one.
        "DAGSTER_HOME": str(dagster_home.resolve()),
    }


def usable_cores() -> int:
    """Return the cores that this process may use, which in a container can be fewer."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def write_dotenv(path: Path, env: Mapping[str, str], *, as_defaults: bool = False) -> None:
    """Write `env` to `path`, completely or not at all, readable by its owner only.

    Unrelated lines are kept.

    Args:
        path: The file.
        env: The variables.
        as_defaults: Variables that are set in the shell take precedence, also in Dagster's own
            commands, which otherwise prefer the file. A value with `}` cannot be written so.

    Raises:
        InvalidInputError: The file cannot represent a name or value, or the existing file is
            damaged.
    """
    lines = [f"{name}={_quote(name, value, as_defaults)}\n" for name, value in env.items()]
    former = {
        "AWS_ACCESS_KEY_ID": env.get("FEATURE_PIPELINE_S3_ACCESS_KEY_ID"),
        "AWS_SECRET_ACCESS_KEY": env.get("FEATURE_PIPELINE_S3_SECRET_ACCESS_KEY"),
    }
    foreign = (
        [
            binding.original.string
            for binding in _parse(path)
            if binding.key not in env
            and binding.original.string.strip() not in HEADER.splitlines()
            # Written by an earlier release, for the same servers.
            and not (binding.key in former and binding.value == former[binding.key])
        ]
        if path.exists()
        else []
    )
    kept = "".join(text if text.endswith("\n") else f"{text}\n" for text in foreign).strip("\n")
    write_private(path, HEADER + "".join(lines) + (f"\n{kept}\n" if kept else ""))


def load_dotenv(path: Path) -> dict[str, str]:
    """Return the variables in `path`; the process is not changed.

    `${NAME}` and `${NAME:-value}` are expanded from the environment and the lines above, as Dagster
    does.

    Raises:
        NotFoundError: There is no such file; says how to make it.
        InvalidInputError: A line is not `NAME=value`; names it.
    """
    _parse(path)  # only this names a broken line
    values = dotenv_values(path, encoding="utf-8")
    return {name: value for name, value in values.items() if value is not None}


def _parse(path: Path) -> list[Binding]:
    try:
        with path.open(encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{path} does not exist: 'feature-pipeline dev' starts the servers and writes it"
        ) from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path} is not UTF-8 text: {error}") from error
    for binding in bindings:
        if binding.error:
            raise InvalidInputError(
                f"{path}, line {binding.original.line}: expected NAME=value or NAME='value'"
            )
    return bindings


def _quote(name: str, value: str, as_default: bool) -> str:
    if not NAME_PATTERN.match(name):
        raise InvalidInputError(f"{name!r} is not a name for an environment variable")
    # Dagster's parser expands ${…} even within single quotes.
    if "${" in value or any(character in value for character in "\n\r\0"):
        raise InvalidInputError(
            f"{name}: the value contains a line end, NUL or '${{', which a .env file cannot"
            " represent"
        )
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    if as_default and "}" not in value:
        return f"'${{{name}:-{escaped}}}'"
    return f"'{escaped}'"
