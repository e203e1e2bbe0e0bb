"""Commands that bring records and output in, and run hooks."""
