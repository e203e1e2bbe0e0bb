"""Hooks as Kubernetes Jobs."""
