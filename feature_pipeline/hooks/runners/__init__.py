"""Implementations of `hooks.runner.HookRunner`: subprocess, container, Kubernetes.

One test suite holds for all: `feature_pipeline_tests/contract/hook_runner.py`.
"""
