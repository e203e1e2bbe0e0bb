"""Looking after stored bytes: what is wrong with them, what may go, what can be restored.

What belongs here: rules and commands that go over the whole archive. Not here: publishing,
accepting and reading (`feature_pipeline.archive`).
"""
