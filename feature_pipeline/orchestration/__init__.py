"""Dagster: assets, IO manager, sensors, automation and checks over the steps below.

What belongs here: Dagster's view of batches, artifacts and tables. Not here: hashing, parsing,
S3 or SQL; those modules never import Dagster.
"""

import warnings

import dagster as dg

# The parameter stands as it is in the versions that are allowed, and the warning would greet
# everybody at every start.
warnings.filterwarnings("ignore", ".*`backfill_policy`.* in beta", category=dg.BetaWarning)
