"""Step 1½: a batch under a release becomes an artifact.

What belongs here: which records must be computed and which are carried over (`plan`), the folder
a hook is given (`stage`), and the artifact that its output and the carried records make together
(`collect`). This package joins `hooks` and `archive`, which do not know each other. Not here:
how a hook process runs (`hooks.run`), how objects are committed (`archive.publish`), Dagster.
"""
