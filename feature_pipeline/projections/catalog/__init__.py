"""The tables that a database holds, as its bookkeeping knows them.

What belongs here: listing and dropping them. Not here: rows (`load`), which generation is read
(`switch`).
"""
