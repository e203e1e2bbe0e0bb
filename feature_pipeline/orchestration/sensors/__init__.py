"""Sensors, which Dagster's daemon evaluates tick by tick."""
