"""Where modules lie, and what docstrings say of it."""

import ast
import re
from pathlib import Path

import feature_pipeline

PACKAGE = Path(feature_pipeline.__file__).parent
NOT_PACKAGES = {PACKAGE / "defs", PACKAGE / "examples"}
"""Their folders below are files of hooks, not modules."""
MODULES = [
    file
    for file in PACKAGE.rglob("*.py")
    if not any(folder in file.parents[1:] for folder in NOT_PACKAGES)
]
PACKAGES = sorted(folder.parent.name for folder in PACKAGE.glob("*/__init__.py"))
REFERENCE = re.compile(rf"`((?:feature_pipeline\.)?(?:{'|'.join(PACKAGES)})(?:\.\w+)+)`")


def test_every_folder_with_modules_is_a_package() -> None:
    """One without `__init__.py` is passed over by the checks of import directions."""
    assert {file.parent for file in MODULES if not (file.parent / "__init__.py").exists()} == set()


def _names(file: Path) -> set[str]:
    """What a module defines: top-level names, and those that it imports."""
    names: set[str] = set()
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
    return names


def _is_there(reference: str) -> bool:
    """Whether a dotted name is a package, a module, or a name in one."""
    place = PACKAGE
    first, *rest = reference.removeprefix("feature_pipeline.").split(".")
    for part in (first, *rest):
        if (place / part).is_dir():
            place = place / part
        elif (module := place / f"{part}.py").exists():
            place = module
        else:
            # an attribute of a class is not looked at
            return place.suffix == ".py" and part in _names(place)
    return True


def test_what_modules_refer_to_is_there() -> None:
    lost = {}
    for file in MODULES:
        names = REFERENCE.findall(file.read_text("utf-8"))
        if gone := [name for name in names if not name.endswith(".yaml") and not _is_there(name)]:
            lost[str(file.relative_to(PACKAGE))] = gone
    assert lost == {}
