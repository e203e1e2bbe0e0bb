"""Convert the hooks of an `osa manifest` of the Open Science Archive's SDK into definitions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.text.json_text import BYTE_ORDER_MARK, read_json
from feature_pipeline.model.text.quoting import problems, quoted
from feature_pipeline.model.text.yaml_text import dump_yaml

COMMAND: Final = ("osa-run-hook",)
"""The SDK's entry point; it finds the hook by `OSA_HOOK_NAME`."""

_DOCKER_SIZE: Final = re.compile(r"(\d+)([bkmg]?)", re.IGNORECASE)
_SIZE_UNITS: Final = {"": "", "b": "", "k": "Ki", "m": "Mi", "g": "Gi"}


class _Read(BaseModel):
    # a newer SDK may say more
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Column(_Read):
    name: str
    json_type: str
    format: str | None = None
    required: bool
    description: str | None = None
    unit: str | None = None


class _Feature(_Read):
    cardinality: str
    columns: tuple[_Column, ...] = ()


class _Limits(_Read):
    timeout_seconds: int = 300
    memory: str = "512m"
    cpu: str = "0.5"


class _Release(_Read):
    image: str
    digest: str


class _Hook(_Read):
    name: str
    config: dict[str, Any] | None = None
    limits: _Limits = _Limits()
    feature: _Feature
    release: _Release | None = None


class _Schema(_Read):
    version: str


class _Convention(_Read):
    title: str
    record_schema: _Schema = Field(alias="schema")
    hooks: tuple[_Hook, ...] = ()


class _Manifest(_Read):
    manifest_version: int
    conventions: tuple[_Convention, ...]


@dataclass(frozen=True, slots=True)
class ImportedHook:
    """A hook's definition, with notes for its author."""

    definition: HookDefinition
    notes: tuple[str, ...]


def import_hooks(
    manifest: bytes, *, dataset: str, image: str | None = None, version: str | None = None
) -> list[ImportedHook]:
    """Return the hooks of a manifest, in its order, each once.

    Args:
        manifest: The output of `osa manifest`.
        dataset: Dataset of the hooks.
        image: Image of all of them, by digest; None takes each hook's bound release.
        version: Of the releases; None takes the convention's.

    Raises:
        InvalidInputError: It is not such a manifest; or a hook has no image, or cannot be defined.
    """
    try:
        # Pydantic's reader takes the last of two values with one key.
        read_json(manifest, "not a manifest of osa-py")
        parsed = _Manifest.model_validate_json(manifest.removeprefix(BYTE_ORDER_MARK))
    except ValidationError as error:
        raise InvalidInputError(f"not a manifest of osa-py: {problems(error)}") from error
    if parsed.manifest_version != 1:
        raise InvalidInputError(f"manifest_version {parsed.manifest_version}: only 1 is known")
    imported: dict[str, ImportedHook] = {}
    for convention in parsed.conventions:
        for hook in convention.hooks:
            if hook.name not in imported:
                imported[hook.name] = _import(
                    hook, dataset, image, version or convention.record_schema.version
                )
    return list(imported.values())


def _import(hook: _Hook, dataset: str, image: str | None, version: str) -> ImportedHook:
    if image is None and hook.release is not None:
        image = image_by_digest(hook.release.image, hook.release.digest)
    if image is None:
        raise InvalidInputError(
            f"hook {quoted(hook.name)!r}: the manifest names no image (`osa manifest` does not);"
            f" give the one that `osa deploy` built, by digest"
        )
    document = {
        "name": hook.name,
        "dataset": dataset,
        "release": {
            "version": version,
            "image": image,
            "command": list(COMMAND),
            "config": hook.config or {},
            "limits": {
                "cpu": hook.limits.cpu,
                "memory": memory_size(hook.limits.memory, f"hook {quoted(hook.name)!r}"),
                "timeout": f"{hook.limits.timeout_seconds}s",
            },
        },
        "feature": {
            "cardinality": hook.feature.cardinality,
            "columns": [_column(column) for column in hook.feature.columns],
        },
    }
    try:
        definition = HookDefinition.model_validate(document)
    except ValidationError as error:
        raise InvalidInputError(
            f"hook {quoted(hook.name)!r} cannot be defined here: {problems(error)}"
        ) from error
    return ImportedHook(definition, _notes(hook))


def image_by_digest(image: str, digest: str) -> str:
    """Return the reference of an image by its digest, whatever tag it was named with."""
    name = re.sub(r"@.*$|:[^:/]+$", "", image)
    return f"{name}@{digest}"


def _column(column: _Column) -> dict[str, object]:
    declared: dict[str, object] = {"name": column.name, "type": column.json_type}
    # absent, not null: a definition names what it says
    for key in ("format", "description", "unit"):
        if (value := getattr(column, key)) is not None:
            declared[key] = value
    return declared | {"required": column.required}


def memory_size(text: str, where: str) -> str:
    """Return a size that Docker understands (`512m`) as definitions write it (`512Mi`).

    Raises:
        InvalidInputError: It is not a size; the message begins with `where`.
    """
    match = _DOCKER_SIZE.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"{where}: limits.memory {quoted(text)!r}: expected 512m or 2g")
    return f"{match[1]}{_SIZE_UNITS[match[2].lower()]}"


def _notes(hook: _Hook) -> tuple[str, ...]:
    """Return a note on optional columns: osa-py 0.9 declares `float | None` as text."""
    doubtful = [
        column.name
        for column in hook.feature.columns
        if column.json_type == "string" and column.format is None and not column.required
    ]
    if not doubtful:
        return ()
    return (
        f"{', '.join(doubtful)}: said to be text. osa-py 0.9 says so of every optional column"
        f" (`float | None`): compare with the hook's code, and correct type and format",
    )


def definition_yaml(definition: HookDefinition) -> str:
    """Return a `defs.yaml` of the definition, with the fields that were set."""
    attributes: Mapping[str, Any] = definition.model_dump(mode="json", exclude_unset=True)
    return dump_yaml({"type": "feature_pipeline.FeatureHook", "attributes": attributes})
