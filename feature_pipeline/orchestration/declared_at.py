"""Where a hook is declared: the file and the line of a field, for errors about several hooks.

Belongs here: positions in `defs.yaml`. Not here: errors about one field, whose position Dagster
gives itself.
"""

from pathlib import Path

import dagster as dg
import yaml

from feature_pipeline.hooks.definition import HookDefinition

_ATTRIBUTES = "attributes"


def declared_at(spec: dg.AssetSpec, hook: HookDefinition, field: str) -> str:
    """`file:line` of a field of the hook, or of what is nearest to it; empty if not known.

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


def _line(text: str, hook: HookDefinition, field: str) -> int | None:
    """The line of the field in the document that declares the hook, counted from 1."""
    for document in yaml.compose_all(text, Loader=yaml.SafeLoader):
        attributes = _child(document, _ATTRIBUTES)
        name, dataset = _child(attributes, "name"), _child(attributes, "dataset")
        declared = tuple(getattr(node, "value", None) for node in (dataset, name))
        if declared == (hook.dataset, hook.name):
            found = _child(attributes, field) or name
            return None if found is None else found.start_mark.line + 1
    return None


def _child(node: yaml.Node | None, key: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for name, value in node.value if name.value == key), None)
