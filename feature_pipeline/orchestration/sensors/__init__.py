"""What Dagster's daemon does by itself, a look at a time."""
