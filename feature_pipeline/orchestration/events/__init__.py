"""Translation between the archive and Dagster's events, in both directions."""
