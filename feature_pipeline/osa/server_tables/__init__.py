"""The server's own tables `features.<hook>`, made out of the archive.

Belongs here: what such a table looks like, its rows, the hook runs and releases that its rows refer
to, and how a new table takes the place of one that the server uses. Not here: the order of these
steps, which is `restore`.
"""
