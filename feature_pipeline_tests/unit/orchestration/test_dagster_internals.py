"""What we use of Dagster's private names: one module imports them, and they are all there."""

import ast
import importlib
from pathlib import Path

import feature_pipeline
from feature_pipeline.orchestration import dagster_internals

PACKAGE = Path(feature_pipeline.__file__).parent


def _private(file: Path) -> list[tuple[str, str]]:
    """Module and name of every import below a private module of Dagster."""
    return [
        (node.module, alias.name)
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and "dagster" in node.module
        for alias in node.names
        if "._" in node.module
    ]


def test_every_private_name_is_where_this_dagster_has_it() -> None:
    names = _private(Path(dagster_internals.__file__))
    assert names
    lost = [f"{m}.{n}" for m, n in names if not hasattr(importlib.import_module(m), n)]
    assert not lost, "Dagster has moved or removed these: find what replaces them"


def test_no_other_module_imports_private_names() -> None:
    others = [file for file in PACKAGE.rglob("*.py") if file != Path(dagster_internals.__file__)]
    imported = {
        str(file.relative_to(PACKAGE)): names for file in others if (names := _private(file))
    }
    assert not imported, "import these from feature_pipeline.orchestration.dagster_internals"
