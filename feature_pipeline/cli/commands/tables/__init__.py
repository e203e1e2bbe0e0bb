"""Commands about the tables, and Dagster's storage."""
