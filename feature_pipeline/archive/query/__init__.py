"""Reading the archive without Dagster."""
