"""Hooks as containers of Docker or Podman."""
