"""The hooks of this project, for commands that need their columns or code."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.projections.retire import KnownTable

if TYPE_CHECKING:
    from feature_pipeline.definitions import DefinedHook


@dataclass(frozen=True, slots=True)
class ProjectHooks:
    """The hooks that the project's code location defines."""

    usable: "list[DefinedHook]"
    wrong: Mapping[str, str]
    """For each definition that cannot be used, by its placeholder asset: file, line and error."""

    def wrong_lines(self) -> list[str]:
        """Return a line for each definition that cannot be used."""
        return [f"{asset} cannot be used: {sentence}" for asset, sentence in self.wrong.items()]

    def find(self, name: str, dataset: str | None) -> "DefinedHook":
        """Return the hook of that name.

        Raises:
            NotFoundError: There is none; names the defined hooks.
            InvalidInputError: Several datasets have one, or its definition cannot be used.
        """
        matches = [
            hook
            for hook in self.usable
            if hook.definition.name == name and dataset in (None, hook.definition.dataset)
        ]
        if not matches:
            prefix = f"{dataset}/" if dataset else ""
            for asset, sentence in self.wrong.items():
                if f"/{asset}".endswith(f"/{prefix}features/{name}"):
                    raise InvalidInputError(f"hook {name!r} cannot be used: {sentence}")
            names = ", ".join(f"{h.definition.dataset}/{h.definition.name}" for h in self.usable)
            raise NotFoundError(f"no hook {name!r}; defined are {names or 'none'}")
        if len(matches) > 1:
            raise InvalidInputError(
                f"hook {name!r} is in datasets"
                f" {', '.join(h.definition.dataset for h in matches)}: choose one with --dataset"
            )
        return matches[0]

    def needed_by(self, table: KnownTable) -> str | None:
        """Return which definition needs the table, or may need it; None if none does.

        The content of an invalid definition is not known for certain: it keeps every table of its
        hook and, if the hook's name cannot be read, every table except those of the past.
        """
        for hook in self.usable:
            definition = hook.definition
            declared = (definition.dataset, definition.name, definition.table_name)
            if definition.has_table and declared == (table.dataset, table.hook, table.name):
                return f"{table.asset} declares it"
        if table.as_of is not None:
            return None
        for asset, sentence in self.wrong.items():
            if asset == table.asset:
                return f"{asset} may declare it, whose definition cannot be used: {sentence}"
            if _is_nameless(asset):
                return f"a definition that cannot be used may declare it: {sentence}"
        return None

    def undeclared(self, tables: Iterable[KnownTable]) -> list[KnownTable]:
        """Return the tables that no definition declares, except tables of the past."""
        return [t for t in tables if t.as_of is None and self.needed_by(t) is None]


def _is_nameless(asset: str) -> bool:
    from feature_pipeline.orchestration.assets.wrong_definitions import NAMELESS

    return asset.split("/")[0] == NAMELESS


def undeclared_lines(tables: Iterable[KnownTable]) -> list[str]:
    """Return a line for each table that no definition declares."""
    return [
        f"table {table.name} still shows {table.asset}, and no definition declares it:"
        f" `feature-pipeline retire {table.name}`"
        for table in tables
    ]


def project_hooks() -> ProjectHooks:
    """Load every hook of the project's code location. Imports Dagster, which takes seconds."""
    from feature_pipeline.definitions import build_defs, hooks_of
    from feature_pipeline.orchestration.assets.wrong_definitions import wrong_definitions

    definitions = build_defs()
    return ProjectHooks(hooks_of(definitions), wrong_definitions(definitions))


def find_hook(name: str, dataset: str | None) -> "DefinedHook":
    """Load the project's hooks and return the one of that name (`ProjectHooks.find`)."""
    return project_hooks().find(name, dataset)
