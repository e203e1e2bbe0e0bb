"""Example hooks over real structures, used by the demo and the tests.

What belongs here: hook programs (`hooks/`), which import nothing of `feature_pipeline`; structure
files (`structures/`); and the batches made of them (`records`). Not here: how hooks are declared
(`feature_pipeline/defs`) or run.
"""
