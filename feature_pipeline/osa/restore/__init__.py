"""Make the server's own tables `features.<hook>` out of the archive.

Belongs here: what such a table looks like, its rows, the hook runs and releases that its rows refer
to, and how a new table takes the place of one that the server uses.
"""
