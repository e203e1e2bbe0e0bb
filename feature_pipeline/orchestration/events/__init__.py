"""What Dagster's events say of the archive, and the archive of Dagster's events."""
