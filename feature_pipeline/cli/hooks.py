"""The hooks that this project defines, for commands that need their columns or code."""

from typing import TYPE_CHECKING

from feature_pipeline.errors import InvalidInputError, NotFoundError

if TYPE_CHECKING:
    from feature_pipeline.definitions import DefinedHook


def project_hooks() -> "list[DefinedHook]":
    """Every hook of the project's code location. Imports Dagster: seconds."""
    from feature_pipeline.definitions import build_defs, hooks_of

    return hooks_of(build_defs())


def find_hook(name: str, dataset: str | None) -> "DefinedHook":
    """The hook of that name.

    Raises:
        NotFoundError: There is none; names those there are.
        InvalidInputError: Several datasets have one.
    """
    hooks = project_hooks()
    matches = [
        hook
        for hook in hooks
        if hook.definition.name == name and dataset in (None, hook.definition.dataset)
    ]
    if not matches:
        names = ", ".join(f"{h.definition.dataset}/{h.definition.name}" for h in hooks)
        raise NotFoundError(f"no hook {name!r}; defined are {names or 'none'}")
    if len(matches) > 1:
        raise InvalidInputError(
            f"hook {name!r} is in datasets {', '.join(h.definition.dataset for h in matches)}:"
            " say which with --dataset"
        )
    return matches[0]
