"""A canonical archive of hook outputs in S3, with PostgreSQL tables rebuilt from it."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from feature_pipeline.archive.query.api import Archive
    from feature_pipeline.archive.query.summary import summarize
    from feature_pipeline.orchestration.component import FeatureHook
    from feature_pipeline.osa.component import OsaServer

# Imported on first use: reading an archive must not import Dagster.
_EXPORTS = {
    "Archive": "feature_pipeline.archive.query.api",
    "FeatureHook": "feature_pipeline.orchestration.component",
    "OsaServer": "feature_pipeline.osa.component",
    "summarize": "feature_pipeline.archive.query.summary",
}

__all__ = ["Archive", "FeatureHook", "OsaServer", "summarize"]


def __getattr__(name: str) -> object:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
