"""Implementations of `hooks.runner.HookRunner`, one per place that hooks can run in.

One suite holds for all: `feature_pipeline_tests/contract/hook_runner.py`.
"""
