"""Implementations of the commands, in a folder for each section of the help."""
