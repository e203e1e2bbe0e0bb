"""The append-only logs: entries, their places in the chain, and damage to them.

What belongs here: the logs of batches, features and releases (`log`), tombstones, erasures and
accepted losses; the inbox that fills them; the memory of answers that is derived from them. Not
here: comparing them with a census (`archive.inspection`), changing them (`archive.maintenance`).
"""
