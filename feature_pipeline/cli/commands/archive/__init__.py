"""Commands that read, inspect and maintain the archive."""
