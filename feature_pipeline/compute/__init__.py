"""Step 1½: turn a batch under a release into an artifact.

What belongs here: choosing the records to compute and those to carry over (`plan`), laying out the
hook's input folder (`stage`), and making the artifact from the hook's output and the carried
records (`collect`). This package joins `hooks` and `archive`, which do not know each other. Not
here: running a hook process (`hooks.run`), committing objects (`archive.publish`), Dagster.
"""
