"""The hooks that this project defines, for commands that need their columns or code."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from feature_pipeline.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from feature_pipeline.definitions import DefinedHook


@dataclass(frozen=True, slots=True)
class ProjectHooks:
    """What the project's code location defines."""

    usable: "list[DefinedHook]"
    wrong: Mapping[str, str]
    """Per definition that cannot be used, by the asset that stands for it: file, line and why."""

    def wrong_lines(self) -> list[str]:
        """Return a line for each definition that cannot be used."""
        return [f"{asset} cannot be used: {sentence}" for asset, sentence in self.wrong.items()]


def project_hooks() -> ProjectHooks:
    """Load every hook of the project's code location. Imports Dagster: seconds."""
    from feature_pipeline.definitions import build_defs, hooks_of
    from feature_pipeline.orchestration.assets.wrong_definitions import wrong_definitions

    definitions = build_defs()
    return ProjectHooks(hooks_of(definitions), wrong_definitions(definitions))


def find_hook(name: str, dataset: str | None) -> "DefinedHook":
    """Return the hook of that name.

    Raises:
        NotFoundError: There is none; names those there are.
        InvalidInputError: Several datasets have one, or its definition cannot be used.
    """
    hooks = project_hooks()
    matches = [
        hook
        for hook in hooks.usable
        if hook.definition.name == name and dataset in (None, hook.definition.dataset)
    ]
    if not matches:
        prefix = f"{dataset}/" if dataset else ""
        for asset, sentence in hooks.wrong.items():
            if f"/{asset}".endswith(f"/{prefix}features/{name}"):
                raise InvalidInputError(f"hook {name!r} cannot be used: {sentence}")
        names = ", ".join(f"{h.definition.dataset}/{h.definition.name}" for h in hooks.usable)
        raise NotFoundError(f"no hook {name!r}; defined are {names or 'none'}")
    if len(matches) > 1:
        raise InvalidInputError(
            f"hook {name!r} is in datasets {', '.join(h.definition.dataset for h in matches)}:"
            " say which with --dataset"
        )
    return matches[0]
