"""Values that the steps exchange, and their text. Not here: files, stores, tables, Dagster."""
