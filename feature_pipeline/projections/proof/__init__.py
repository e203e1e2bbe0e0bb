"""Compare a table with the archive."""
