"""Define the server's hooks here, as hooks computed elsewhere, and find drift between the two.

A hook that several conventions name is one hook of each convention's dataset here: upstream ids are
unique within a convention only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import ReleaseEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import ConflictError, InvalidInputError, NotFoundError
from feature_pipeline.hooks.osa_manifest import (
    COMMAND,
    definition_yaml,
    image_by_digest,
    memory_size,
)
from feature_pipeline.model.columns import Column, ColumnFormat, ColumnType
from feature_pipeline.model.definition import Compute, HookDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.quoting import problems
from feature_pipeline.osa.server.database import Convention, Definitions, Release, ServerHook
from feature_pipeline.osa.settings import OsaSettings, component_text

DEFINITION_FILE: Final = "defs.yaml"
_HEADER: Final = """\
# Written by `feature-pipeline osa scaffold` from hook {hook} of convention {convention}, release
# {version} ({source_ref}). The server runs the hook; this project archives its output. If you want
# to run later releases here, change `compute` to `automatically`.
"""


@dataclass(frozen=True, slots=True)
class FollowedHook:
    """One hook of one convention, and the definition that it has here."""

    convention: Convention
    hook: ServerHook
    definition: HookDefinition
    folder: str
    """Name of its folder below the folder of definitions."""

    @property
    def text(self) -> str:
        """The content of its `defs.yaml`."""
        release = self.hook.live_release()
        header = _HEADER.format(
            hook=self.hook.name,
            convention=self.convention.id,
            version=release.version,
            source_ref=" ".join(release.source_ref.split()) or "no source reference",
        )
        return header + definition_yaml(self.definition)


def followed_hooks(deployed: Definitions, settings: OsaSettings) -> list[FollowedHook]:
    """Return the hooks of every followed convention, in order of convention and its list.

    Raises:
        NotFoundError: The settings, or a convention, name what the server does not have.
        InvalidInputError: A hook has no live release, or cannot be defined here.
    """
    if unknown := sorted(settings.conventions.keys() - deployed.conventions.keys()):
        raise NotFoundError(
            f"the server has no convention {unknown[0]!r}; it has"
            f" {first_few(map(repr, deployed.conventions)) or 'none'}"
        )
    if lacking := [name for name in settings.hooks if name not in deployed.hooks]:
        raise NotFoundError(
            f"the server has no hook {lacking[0]!r}; it has"
            f" {first_few(map(repr, deployed.hooks)) or 'none'}"
        )
    pairs = list(_pairs(deployed, settings))
    names = [hook.name for _, hook in pairs]
    followed = []
    for convention, hook in pairs:
        is_shared = names.count(hook.name) > 1
        dataset = settings.dataset(convention.id)
        folder = f"{dataset}_{hook.name}" if is_shared else hook.name
        definition = define(hook, dataset, table=folder if is_shared else None)
        followed.append(FollowedHook(convention, hook, definition, folder))
    return followed


def _pairs(deployed: Definitions, settings: OsaSettings) -> Iterator[tuple[Convention, ServerHook]]:
    for convention in deployed.conventions.values():
        if not settings.follows(convention.id):
            continue
        for name in dict.fromkeys(convention.hooks):
            if not settings.follows_hook(name):
                continue
            if name not in deployed.hooks:
                raise NotFoundError(
                    f"convention {convention.id!r} names hook {name!r}, which public.hooks does not"
                    " have"
                )
            yield convention, deployed.hooks[name]


def define(hook: ServerHook, dataset: str, table: str | None = None) -> HookDefinition:
    """Return the definition of a hook of the server under its live release.

    Args:
        hook: The server's hook.
        dataset: The dataset that the hook's batches have in this archive.
        table: Name of the hook's table; if None, the hook's name.

    Raises:
        InvalidInputError: The hook has no live release, or a definition cannot express it: a
            column's type is unknown, or its name is not a valid name of a hook.
    """
    release = hook.live_release()
    where = f"hook {hook.name!r}"
    feature = hook.feature_spec
    if feature.get("kind", "table") != "table":
        raise InvalidInputError(
            f"{where}: its features are of kind {feature.get('kind')!r}; only 'table' is known"
        )
    columns = feature.get("columns")
    if not isinstance(columns, list):
        raise InvalidInputError(f"{where}: feature_spec.columns is not a list")
    document: dict[str, object] = {
        "name": hook.name,
        "dataset": dataset,
        "release": {
            "version": str(release.version),
            "image": image_by_digest(release.image, release.digest),
            "command": list(COMMAND),
            "config": dict(release.config),
            "limits": _limits(release, where),
        },
        "feature": {
            "cardinality": feature.get("cardinality", "many"),
            "columns": [_column(column, where) for column in columns],
        },
        "compute": Compute.ELSEWHERE.value,
    }
    if table is not None and columns:
        document["table"] = {"name": table}
    try:
        return HookDefinition.model_validate(document)
    except ValidationError as error:
        raise InvalidInputError(f"{where} cannot be defined here: {problems(error)}") from error


def server_release(release: Release, dataset: str) -> HookRelease:
    """Return a release of the server as the archive registers it.

    Raises:
        InvalidInputError: It cannot be one here.
    """
    document = {
        "dataset": dataset,
        "hook": release.hook,
        "version": str(release.version),
        "image": image_by_digest(release.image, release.digest),
        "command": COMMAND,
        "config": dict(release.config),
    }
    try:
        return HookRelease.of(ReleaseDocument.model_validate(document))
    except ValidationError as error:
        raise InvalidInputError(
            f"release {release.version} of hook {release.hook!r} cannot be registered:"
            f" {problems(error)}"
        ) from error


def register_up_to(
    store: BlobStore, hook: ServerHook, release: Release, dataset: str
) -> dict[Digest, ReleaseEntry]:
    """Register the releases of a hook up to this one, in the server's order; none of them twice.

    Returns:
        The last registration of each of the hook's releases.
    """
    known = {e.release.digest: e for e in log.releases(store, dataset, hook.name)}
    for each in hook.releases:
        if each.version <= release.version:
            made = server_release(each, dataset)
            if made.digest not in known:
                known[made.digest] = log.register_release(store, made, {})
    return known


def declared_columns(feature_spec: Mapping[str, Any], where: str) -> tuple[Column, ...]:
    """Return the columns of `feature_spec` of public.hooks.

    Args:
        feature_spec: The hook's.
        where: The hook, for messages.

    Raises:
        InvalidInputError: A column cannot be one here.
    """
    columns = feature_spec.get("columns")
    if not isinstance(columns, list):
        raise InvalidInputError(f"{where}: feature_spec.columns is not a list")
    try:
        return tuple(Column.model_validate(_column(column, where)) for column in columns)
    except ValidationError as error:
        raise InvalidInputError(f"{where}: {problems(error)}") from error


def _limits(release: Release, where: str) -> dict[str, str]:
    limits: dict[str, str] = {}
    if (cpu := release.limits.get("cpu")) is not None:
        limits["cpu"] = str(cpu)
    if (memory := release.limits.get("memory")) is not None:
        limits["memory"] = memory_size(str(memory), where)
    if (timeout := release.limits.get("timeout_seconds")) is not None:
        limits["timeout"] = f"{timeout}s"
    return limits


def _column(column: object, where: str) -> dict[str, object]:
    if not isinstance(column, dict) or not isinstance(column.get("name"), str):
        raise InvalidInputError(f"{where}: feature_spec.columns: {column!r} is not a column")
    name, kind, text_format = column["name"], column.get("json_type"), column.get("format")
    if kind not in set(ColumnType):
        raise InvalidInputError(
            f"{where}: column {name!r} has the type {kind!r}, which is not known here; known are"
            f" {', '.join(ColumnType)}"
        )
    description = column.get("description")
    declared: dict[str, object] = {"name": name, "type": kind}
    if text_format in set(ColumnFormat):
        declared["format"] = text_format
    elif text_format is not None:
        # The server stores text of any other format as it is.
        description = f"{description or ''} (format {text_format})".strip()
    declared["required"] = bool(column.get("required", False))
    texts = {"unit": column.get("unit"), "description": description}
    return declared | {key: text for key, text in texts.items() if text is not None}


def write_definitions(
    followed: Sequence[FollowedHook], folder: Path, server: OsaSettings | None = None
) -> list[Path]:
    """Write a `defs.yaml` for each hook; either all files are written or none.

    Args:
        followed: The hooks.
        folder: The folder of definitions.
        server: Also write the component that follows the server, with this name, conventions and
            hooks.

    Raises:
        ConflictError: A file exists: definitions belong to their authors. Names all of them.
    """
    files = {folder / each.folder / DEFINITION_FILE: each.text for each in followed}
    if server is not None:
        text = component_text(server.name, server.conventions, server.hooks)
        files[folder / server.name / DEFINITION_FILE] = text
    if existing := [str(path) for path in files if path.exists()]:
        raise ConflictError(
            f"{first_few(existing)} exists: nothing was written. `feature-pipeline osa plan` shows"
            " how definitions differ from the server; move a file away to have it written again"
        )
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(files)


@dataclass(frozen=True, slots=True)
class Drift:
    """A difference between the server and the definitions of this project."""

    dataset: str
    hook: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.dataset}/{self.hook}: {self.sentence}"


def find_drift(followed: Sequence[FollowedHook], defined: Sequence[HookDefinition]) -> list[Drift]:
    """Return every difference, by dataset and hook.

    Args:
        followed: The hooks that the server has.
        defined: The hooks that the project defines, of any system.
    """
    theirs = {(each.definition.dataset, each.definition.name): each for each in followed}
    ours = {(each.dataset, each.name): each for each in defined}
    drift: list[Drift] = []
    for key, each in sorted(theirs.items()):
        own = ours.get(key)
        sentences = ["the server has it, and this project does not define it"]
        if own is not None:
            sentences = list(_differences(each.definition, own))
        drift += [Drift(*key, sentence) for sentence in sentences]
    datasets = {dataset for dataset, _ in theirs}
    drift += [
        Drift(*key, "it is computed elsewhere, and no followed convention of the server names it")
        for key, own in sorted(ours.items())
        if key not in theirs and key[0] in datasets and own.compute is Compute.ELSEWHERE
    ]
    return drift


def _differences(theirs: HookDefinition, ours: HookDefinition) -> Iterator[str]:
    if ours.release.version != theirs.release.version:
        yield (
            f"the server's live release is {theirs.release.version}, and the definition's is"
            f" {ours.release.version}: set release.version to '{theirs.release.version}' and"
            f" release.image to {theirs.release.image}"
        )
    elif ours.release.image != theirs.release.image:
        yield f"release.image is {ours.release.image}, on the server {theirs.release.image}"
    if dict(ours.release.config) != dict(theirs.release.config):
        yield f"release.config is {ours.release.config}, on the server {theirs.release.config}"
    if ours.feature.cardinality is not theirs.feature.cardinality:
        yield (
            f"feature.cardinality is {ours.feature.cardinality.value}, on the server"
            f" {theirs.feature.cardinality.value}"
        )
    yield from _column_differences(_kinds(theirs), _kinds(ours))


def _kinds(definition: HookDefinition) -> dict[str, str]:
    return {
        column.name: f"{'required' if column.required else 'optional'} {column.kind}"
        for column in definition.feature.columns
    }


def _column_differences(theirs: Mapping[str, str], ours: Mapping[str, str]) -> Iterator[str]:
    for name, kind in theirs.items():
        if name not in ours:
            yield f"the server has a column {name!r} ({kind}), the definition does not"
        elif ours[name] != kind:
            yield f"column {name!r} differs: {ours[name]} here, {kind} on the server"
    for name in ours:
        if name not in theirs:
            yield f"the definition has a column {name!r}, the server does not"
