"""Maintenance of the archive: collecting, erasing, repairing, accepting losses.

What belongs here: the one rule for every deletion, and the operations that change the whole
archive. Not here: finding problems (`archive.inspection`), publishing and acceptance.
"""
