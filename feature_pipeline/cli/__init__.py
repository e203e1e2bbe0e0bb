"""The command line: what `dagster` does not do already.

What belongs here: arguments, progress, and the same result as text or JSON. Not here: the work
itself.
"""
