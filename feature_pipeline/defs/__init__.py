"""The hooks of this deployment: a folder per hook, each with its `defs.yaml`."""
