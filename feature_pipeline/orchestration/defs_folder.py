"""Load a folder of definitions so that a wrong definition affects its own hook only.

Dagster loads a `defs/` folder whole or not at all. This module loads it whole if possible, and
otherwise file by file. An error becomes a value: the file, the line, what would be right.
"""

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

import dagster as dg
import yaml
from pydantic import ValidationError

import feature_pipeline
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.yaml_text import MAX_CHARACTERS, InvalidYamlError, check_yaml
from feature_pipeline.orchestration.source_location import child_node, line_of

PACKAGED: Final = Path(feature_pipeline.__file__).parent / "defs"
"""The folder of the package itself: the example hooks, and those of a checkout."""

_YAML_NAMES: Final = ("defs.yaml", "component.yaml")
_IGNORED: Final = frozenset({"__pycache__", "__init__.py"})
_POSITION: Final = re.compile(r"(?P<field>.*) at (?P<file>.+):(?P<line>\d+)`?")
_DECLARES_HOOK: Final = re.compile(r"(?m)^type: *[\"']?feature_pipeline\.")
_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class WrongDefinition:
    """A definition that cannot be used, and its error.

    `dataset`, `name` and `table` are None if they cannot be read from the file.
    """

    path: Path
    line: int | None
    reason: str
    dataset: str | None = None
    name: str | None = None
    table: str | None = None

    @property
    def sentence(self) -> str:
        """`file:line: reason`, on one line."""
        place = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class LoadedFolder:
    """The content of a folder of definitions."""

    definitions: dg.Definitions
    wrong: tuple[WrongDefinition, ...] = ()


def load_defs_folder(folder: Path) -> LoadedFolder:
    """Load every definition below `folder`; a file that cannot be loaded is returned as wrong.

    Raises:
        NotADirectoryError: `folder` is not a folder.
    """
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder of definitions")
    root = _package(folder)
    leaves = list(_leaves(folder))
    # Dagster expands aliases before anything of a file can be looked at.
    unread = {path: error for path in leaves if (error := _cannot_be_read(path)) is not None}
    if not unread:
        # Any file may raise anything. The loop below finds out which one does.
        with suppress(Exception):
            tree = dg.ComponentTree.from_module(root, folder.parent)
            # Without a path, Dagster would also describe the component types of every package.
            own = dg.Definitions(component_tree=tree)
            return LoadedFolder(dg.Definitions.merge(tree.build_defs(folder), own))
    loaded: list[dg.Definitions] = []
    wrong: list[WrongDefinition] = []
    for path in leaves:
        if path in unread:
            wrong += _describe(path, unread[path])
            continue
        module_name = ".".join((root.__name__, *path.relative_to(folder).with_suffix("").parts))
        try:
            loaded.append(_load_leaf(path, module_name, folder.parent))
        except Exception as error:  # noqa: BLE001  (as above)
            wrong += _describe(path, error)
    return LoadedFolder(dg.Definitions.merge(*loaded), tuple(wrong))


def check_file(file: Path) -> None:
    """Check that Dagster may read a YAML file: it is bounded, and a hook's has one meaning.

    Raises:
        InvalidYamlError: With the line and what would be right.
        yaml.YAMLError: It is not YAML.
    """
    _check_text(_beginning(file).decode())


def _beginning(file: Path) -> bytes:
    """Return the file, or so much of it that `check_yaml` refuses it as too long."""
    with file.open("rb") as stream:
        return stream.read(4 * MAX_CHARACTERS + 4)


@functools.lru_cache(maxsize=1024)
def _check_text(text: str) -> None:
    check_yaml(text, strict=_DECLARES_HOOK.search(text) is not None)


def _cannot_be_read(path: Path) -> Exception | None:
    if (file := _yaml_file(path)) is None:
        return None
    try:
        check_file(file)
    except (InvalidYamlError, yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        return error
    return None


def is_validating() -> bool:
    """Return whether `dg check defs` or `dagster definitions validate` loads this process.

    Both set the variable; they must fail where a running deployment continues.
    """
    return bool(os.environ.get("DAGSTER_IS_DEFS_VALIDATION_CLI"))


def _package(folder: Path) -> ModuleType:
    """Import `folder` as a package, whether or not it lies on the import path."""
    if folder.resolve() == PACKAGED.resolve():
        return importlib.import_module("feature_pipeline.defs")
    name = "feature_pipeline_defs"
    module = sys.modules.get(name)
    if module is None or list(module.__path__) != [str(folder)]:
        for old in [each for each in sys.modules if each.partition(".")[0] == name]:
            del sys.modules[old]
        spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
    return module


def _leaves(folder: Path) -> Iterator[Path]:
    """Yield each folder with a YAML file, and each Python file, in order of names."""
    for path in sorted(folder.iterdir()):
        if path.name in _IGNORED or path.name.startswith("."):
            continue
        if path.is_dir():
            if _yaml_file(path) is not None:
                yield path
            else:
                yield from _leaves(path)
        elif path.suffix == ".py":
            yield path


def _yaml_file(folder: Path) -> Path | None:
    return next((folder / name for name in _YAML_NAMES if (folder / name).is_file()), None)


def _load_leaf(path: Path, module_name: str, project_root: Path) -> dg.Definitions:
    module = importlib.import_module(module_name)
    if path.suffix == ".py":
        return dg.load_definitions_from_module(module)
    # Not the whole tree: it would list every component type again for each file.
    return dg.ComponentTree.from_module(module, project_root).build_defs(path)


def _describe(path: Path, error: Exception) -> list[WrongDefinition]:
    """Return the errors of a file, one per hook that it declares."""
    file = _yaml_file(path) or path
    line, reason = _explain(file, error)
    declared = list(_declared(file)) if file.suffix != ".py" else []
    return [
        WrongDefinition(file, line, reason, **names)
        for names in declared or [{"dataset": None, "name": None, "table": None}]
    ]


def _explain(file: Path, error: Exception) -> tuple[int | None, str]:
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ValidationError) and (fields := _validation(cause)) is not None:
            return fields
    cause = causes[-1]
    if isinstance(cause, InvalidYamlError):
        return cause.line, cause.reason
    if isinstance(cause, yaml.MarkedYAMLError) and cause.problem_mark is not None:
        return cause.problem_mark.line + 1, f"this is not YAML: {cause.problem}"
    text = " ".join(str(cause).split()) or type(cause).__name__
    if isinstance(cause, (ImportError, SyntaxError, NameError, AttributeError, TypeError)):
        text = f"{type(cause).__name__}: {text}"
    return _guess_line(file, cause, text), text


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def _validation(error: ValidationError) -> tuple[int | None, str] | None:
    """Return the first field's line and each error; None if the error has no positions."""
    first: int | None = None
    parts: list[str] = []
    for each in error.errors(include_url=False):
        matched = _POSITION.fullmatch(str(each["loc"][0]).strip("`")) if each["loc"] else None
        if matched is None:
            return None
        line = int(matched["line"])
        field = matched["field"].removeprefix("attributes").strip(".")
        message = each["msg"].removeprefix("Value error, ")
        place = f"{Path(matched['file']).name}:{line}: " if parts else ""
        parts.append(f"{place}{field}: {message}" if field else f"{place}{message}")
        first = line if first is None else first
    return first, first_few(parts, limit=_SHOWN, separator="; ")


def _guess_line(file: Path, cause: BaseException, text: str) -> int | None:
    if isinstance(cause, SyntaxError) and cause.filename == str(file):
        return cause.lineno
    if file.suffix == ".py":
        trace = cause.__traceback__
        line = None
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == str(file):
                line = trace.tb_lineno
            trace = trace.tb_next
        return line
    if "has no attribute" in text or "could not be imported" in text:
        return line_of(file, ("type",))
    field = re.search(r"\b(release\.code|release|table|feature|inputs)\b", text)
    return None if field is None else line_of(file, ("attributes", *field[1].split(".")))


def _declared(file: Path) -> Iterator[Mapping[str, str | None]]:
    """Yield dataset, name and table of each hook in a YAML file, as far as they can be read."""
    try:
        documents = [yaml.compose(text, Loader=yaml.SafeLoader) for text in _documents(file)]
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        yield from map(_scan, _documents(file))
        return
    for document in documents:
        attributes = child_node(document, "attributes")
        table = child_node(attributes, "table")
        yield {
            "dataset": _scalar(child_node(attributes, "dataset")),
            "name": _scalar(child_node(attributes, "name")),
            "table": _scalar(child_node(table, "name")),
        }


def _documents(file: Path) -> list[str]:
    text = _beginning(file).decode(errors="replace")
    return [part for part in re.split(r"(?m)^---\s*$", text) if part.strip()]


def _scalar(node: yaml.Node | None) -> str | None:
    return str(node.value) if isinstance(node, yaml.ScalarNode) else None


def _scan(text: str) -> Mapping[str, str | None]:
    """Read the names from text that is not YAML: the first `name:` and `dataset:` of its lines."""

    def value(field: str) -> str | None:
        matched = re.search(rf"(?m)^ *{field}: *[\"']?([a-z][a-z0-9_]*)[\"']? *(?:#.*)?$", text)
        return None if matched is None else matched[1]

    return {"dataset": value("dataset"), "name": value("name"), "table": None}
