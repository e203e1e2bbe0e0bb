"""The tables in a database and their bookkeeping.

What belongs here: creating, listing and dropping them. Not here: rows (`load`), which generation is
read (`switch`).
"""
