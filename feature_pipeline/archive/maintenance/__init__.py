"""Changing what is stored: collecting, erasing, repairing, giving up what is lost.

What belongs here: the one rule for whatever deletes, and what goes over the whole archive to change
it. Not here: finding what is wrong (`archive.inspection`), publishing and accepting.
"""
