"""Dagster: events, assets, checks, sensors and operations over the steps below.

What belongs here: Dagster's view of batches, artifacts and tables. Not here: hashing, parsing,
S3 or SQL; those modules never import Dagster.
"""

import gc
import warnings

import dagster as dg

# What Dagster imported stays as long as the process: each full collection would look through it,
# and importing the rest begins several.
gc.freeze()

# What is named here stands as it is in the versions that are allowed, and the warnings would greet
# every process at every start: dozens of lines before the answer of each command.
for name in (
    "backfill_policy",
    "owners",
    "use_user_code_server",
    "LocalFileCodeReference",
    "CodeReferencesMetadataValue",
    "load_definitions_from_module",
    "load_definitions_from_modules",
):
    for category in (dg.BetaWarning, dg.PreviewWarning):
        warnings.filterwarnings("ignore", f".*`{name}`.* in (beta|preview)", category=category)
