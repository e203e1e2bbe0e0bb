"""The command line, for what `dagster` does not offer.

It contains the arguments, the progress display, and the results as text or JSON. Not here: the work
itself.
"""
