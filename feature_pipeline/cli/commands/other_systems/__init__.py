"""Commands for what runs beside the pipeline: another server, and monitoring."""
