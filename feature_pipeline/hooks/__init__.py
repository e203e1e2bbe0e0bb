"""Step 1: science code runs over a batch of records and leaves files, which become outcomes.

What belongs here: a hook's definition, the input of one run, runners, the policy on failures, and
the meaning of the files a hook leaves. Not here: S3 (`archive`), tables (`projections`), Dagster
(`orchestration`).
"""
