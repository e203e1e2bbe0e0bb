"""Sensors: what Dagster's daemon does by itself, one tick at a time."""
