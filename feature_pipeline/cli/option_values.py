"""Values that the options of commands and the commands share; imports nothing."""

from typing import Final

DEFS: Final = "feature_pipeline/defs"
"""Folder of the definitions in a checkout."""

SELECTIONS: Final = ("missing", "failed", "stale", "old-release", "all")
"""States of partitions that `backfill --select` takes."""
