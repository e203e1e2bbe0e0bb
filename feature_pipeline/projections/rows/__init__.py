"""Convert an artifact's rows into a table's: evolve, prepare, copy, replace."""
