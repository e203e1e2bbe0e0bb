"""Dagster: assets, IO manager, sensors, automation and checks over the steps below.

What belongs here: Dagster's view of batches, artifacts and tables. Not here: hashing, parsing,
S3 or SQL; those modules never import Dagster.
"""
