"""The page of the UI that documents component types, for this package's type alone."""

from typing import Any

from dagster.components.core.load_defs import PLUGIN_COMPONENT_TYPES_JSON_METADATA_KEY
from dagster.components.core.snapshot import get_package_entry_snap
from dagster_shared.serdes.objects import EnvRegistryKey
from dagster_shared.serdes.objects.package_entry import json_for_all_components

from feature_pipeline.orchestration.component import FeatureHook


def component_docs() -> dict[str, Any]:
    """Return the metadata of a code location that describes `feature_pipeline.FeatureHook`.

    Dagster's own loader describes every component type of every installed package. For that it
    imports them all, in each run worker too: seconds of processor time for a page that lists what
    this code location does not use.
    """
    key = EnvRegistryKey(namespace="feature_pipeline", name=FeatureHook.__name__)
    described = json_for_all_components([get_package_entry_snap(key, FeatureHook)])
    return {PLUGIN_COMPONENT_TYPES_JSON_METADATA_KEY: described}
