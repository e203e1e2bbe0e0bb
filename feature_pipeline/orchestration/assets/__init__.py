"""The assets of a code location, and the IO manager that persists them."""
