"""Placeholder assets for a hook whose definition cannot be used.

They keep the hook's keys and partitions, so that its history, its place in the graph and the hooks
that take its features as input stay. A run of one fails with the error of the definition.
"""

from collections.abc import Collection, Iterable
from typing import Final

import dagster as dg

from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.records import check_dataset
from feature_pipeline.orchestration.defs_folder import WrongDefinition
from feature_pipeline.orchestration.keys import (
    batches_partitions,
    features_key,
    is_table_key,
    records_key,
    table_key,
    tables_group,
)

SENTENCE_METADATA: Final = "feature_pipeline/wrong_definition"
"""Key of the definition's error in the metadata of its assets."""
WRONG_DEFINITION_FAILURE: Final = "wrong_definition"
"""The failure's kind, in the metadata of the failed step."""
NAMELESS: Final = "wrong_definitions"


def wrong_definition_assets(
    wrong: Iterable[WrongDefinition], declared: Collection[dg.AssetKey] = ()
) -> list[dg.AssetsDefinition]:
    """Return the assets of each hook, or one asset for a definition without names of its own.

    Args:
        wrong: The definitions that cannot be used.
        declared: Keys of usable assets: a copy of a hook may still have its names.
    """
    assets: dict[dg.AssetKey, dg.AssetsDefinition] = {}
    for each in wrong:
        if not _add_hook(assets, each, declared):
            key = dg.AssetKey([NAMELESS, each.path.parent.name, each.path.stem])
            assets.setdefault(key, _asset(key, each, None, []))
    return list(assets.values())


def _add_hook(
    assets: dict[dg.AssetKey, dg.AssetsDefinition],
    wrong: WrongDefinition,
    declared: Collection[dg.AssetKey],
) -> bool:
    """Add the hook's assets; False if it has no name, or that of a usable hook."""
    dataset, name, table = map(_checked, (wrong.dataset, wrong.name, wrong.table))
    if dataset is None or name is None or (key := features_key(dataset, name)) in declared:
        return False
    assets.setdefault(key, _asset(key, wrong, dataset, [records_key(dataset)]))
    below = table_key(dataset, table or name)
    if below not in declared:
        assets.setdefault(below, _asset(below, wrong, dataset, [key]))
    return True


def _checked(text: str | None) -> str | None:
    try:
        return None if text is None else check_dataset(text)
    except InvalidInputError:
        return None


def wrong_definitions(definitions: dg.Definitions) -> dict[str, str]:
    """Return the error of each definition that cannot be used, by its first asset's key."""
    assets = [each for each in definitions.assets or () if isinstance(each, dg.AssetsDefinition)]
    sentences: dict[str, str] = {}
    for spec in (spec for asset in assets for spec in asset.specs):
        sentence = spec.metadata.get(SENTENCE_METADATA)
        if sentence is not None and not any(
            parent.asset_key.to_user_string() in sentences for parent in spec.deps
        ):
            sentences[spec.key.to_user_string()] = str(sentence)
    return sentences


def _group(key: dg.AssetKey, dataset: str | None) -> str:
    if dataset is None:
        return NAMELESS
    return tables_group(dataset) if is_table_key(key) else dataset


def _asset(
    key: dg.AssetKey, wrong: WrongDefinition, dataset: str | None, deps: list[dg.AssetKey]
) -> dg.AssetsDefinition:
    @dg.asset(
        key=key,
        deps=deps,
        partitions_def=None if dataset is None else batches_partitions(dataset),
        group_name=_group(key, dataset),
        kinds={"wrong_definition"},
        backfill_policy=dg.BackfillPolicy.single_run(),
        description=f"This definition cannot be used.\n\n{wrong.sentence}",
        metadata={SENTENCE_METADATA: wrong.sentence},
    )
    def cannot_be_used() -> None:
        raise dg.Failure(
            description=wrong.sentence,
            metadata={"failure_kind": WRONG_DEFINITION_FAILURE},
            allow_retries=False,
        )

    return cannot_be_used
