"""What the append-only logs are made of: entries, their places, and what may be wrong with them.

What belongs here: one entry's form, identity and place in its chain; knowledge of whole logs (the
census, accepted losses). Not here: what entries mean for a batch (`archive.log`), what they name
(`archive.reachable`).
"""
