"""Dagster: events, assets, checks, sensors and operations over the steps below.

What belongs here: Dagster's view of batches, artifacts and tables. Not here: hashing, parsing,
S3 or SQL; those modules never import Dagster.
"""

import warnings

import dagster as dg

# The parameters stand as they are in the versions that are allowed, and the warnings would greet
# every process at every start.
for parameter in ("backfill_policy", "use_user_code_server"):
    warnings.filterwarnings("ignore", f".*`{parameter}`.* in beta", category=dg.BetaWarning)
