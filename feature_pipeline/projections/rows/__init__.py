"""From an artifact's rows to a table's: evolve, prepare, copy, replace."""
