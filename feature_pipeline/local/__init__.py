"""Real servers without an installation: SeaweedFS (S3) and PostgreSQL from wheels.

What belongs here: starting, watching and stopping them as child processes, on loopback, in one data
folder; Dagster's own processes beside them; the variables that point the project at them. Not here:
anything that a deployment on other servers needs. A deployment sets the addresses itself and never
imports this package.

Needs the `local` extra.
"""
