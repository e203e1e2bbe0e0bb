"""Find the file and line at which a field of a hook is declared, for messages."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import yaml

from feature_pipeline.model.definition import HookDefinition

_ATTRIBUTES = "attributes"


def declared_at(spec: dg.AssetSpec, hook: HookDefinition, field: str) -> str:
    """Return `file:line` of a field of the hook, or of the nearest known place; empty if unknown.

    Args:
        spec: The hook's feature asset, with the code references that Dagster has added.
        hook: Declared there.
        field: A top-level field of the definition.
    """
    references = spec.metadata.get("dagster/code_references")
    if not isinstance(references, dg.CodeReferencesMetadataValue):
        return ""
    for reference in references.code_references:
        if not isinstance(reference, dg.LocalFileCodeReference):
            continue
        path = Path(reference.file_path)
        if path.suffix in {".yaml", ".yml"} and path.is_file():
            line = _line(path.read_text(), hook, field) or reference.line_number or 1
            return f"{path}:{line}"
    return ""


def line_of(file: Path, path: Sequence[str]) -> int | None:
    """Return the line of the deepest of these nested keys that the YAML file has, from 1."""
    node = next(iter(yaml.compose_all(file.read_text(), Loader=yaml.SafeLoader)), None)
    line = None
    for key in path:
        if (node := child_node(node, key)) is None:
            break
        line = node.start_mark.line + 1
    return line


def _line(text: str, hook: HookDefinition, field: str) -> int | None:
    """Return the line of the field in the document that declares the hook, counted from 1."""
    for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
        attributes = child_node(document, _ATTRIBUTES)
        name, dataset = child_node(attributes, "name"), child_node(attributes, "dataset")
        declared = tuple(getattr(node, "value", None) for node in (dataset, name))
        if declared == (hook.dataset, hook.name):
            field_node = child_node(attributes, field) or name
            return None if field_node is None else field_node.start_mark.line + 1
    return None


def child_node(node: yaml.Node | None, key: str) -> yaml.Node | None:
    """Return the value of `key` in a mapping node; None if it has none, or is not a mapping."""
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)
