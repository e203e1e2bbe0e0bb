"""Whether a table is what the archive says."""
