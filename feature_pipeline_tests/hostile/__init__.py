"""Bad input at every door, kept as regression cases: what is reported, and that nothing else is.

A case is a row of a table: its name, its bytes, and words of the error that it leads to. The words
name the thing and the place. What the cases of a door share is asserted in `doors`.
"""
