"""The `FeatureHook` component: one hook, declared in `defs/<hook>/defs.yaml` or in Python."""

import inspect
from pathlib import Path
from typing import Final, Self

import dagster as dg
from pydantic import BaseModel

from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.orchestration.assets.features import feature_asset
from feature_pipeline.orchestration.assets.tables import table_asset
from feature_pipeline.orchestration.defs_folder import check_file
from feature_pipeline.orchestration.scaffold import FeatureHookScaffolder

_NO_FILE: Final = "<string>"
"""Dagster's file name for a definition without a file."""


@dg.scaffold_with(FeatureHookScaffolder)
class FeatureHook(dg.Component, HookDefinition, dg.Resolvable):
    """A hook whose output is archived in S3 and, unless it has no columns, loaded into a table."""

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return the model of `attributes`: the definition itself, so errors name its own fields.

        Dagster would derive a model from annotations, and refuses nested models whose fields are
        constrained.
        """
        return HookDefinition

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Return the hook of a parsed `attributes` section, with each text unevaluated.

        Dagster would evaluate `{{ ... }}` as a program in this process. Descriptions and config may
        come from other people, so nothing in a definition is evaluated.
        """
        tree = context.source_position_tree
        # Definitions that come as a dict or a text, as in tests, have no file.
        if tree is not None and tree.position.filename != _NO_FILE:
            check_file(Path(tree.position.filename))
        return cls.model_validate(model.model_dump(mode="json", exclude_unset=True))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the hook's assets; code files are relative to the component's folder."""
        return self.definitions(context.path)

    def definitions(self, folder: Path | None = None) -> dg.Definitions:
        """Return the hook's assets, for hooks declared in Python.

        Args:
            folder: The folder that code files are relative to; by default that of the calling
                module.
        """
        if folder is None:
            folder = Path(inspect.stack()[1].filename).parent
        assets = [feature_asset(self, folder)]
        if self.has_table:
            assets.append(table_asset(self))
        return dg.Definitions(assets=assets)
