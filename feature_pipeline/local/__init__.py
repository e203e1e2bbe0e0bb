"""Real servers without an installation: SeaweedFS (S3) and PostgreSQL from wheels.

Here: starting, watching and stopping them as child processes, on loopback, in one data folder, and
the variables that point the project at them. Not here: Dagster's processes
(`feature_pipeline.cli`), and anything a deployment on other servers needs: it is given addresses
and never imports this package.

Needs the `local` extra.
"""
