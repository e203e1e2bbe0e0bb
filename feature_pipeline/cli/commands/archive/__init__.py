"""Commands that read the archive, examine it and take care of it."""
