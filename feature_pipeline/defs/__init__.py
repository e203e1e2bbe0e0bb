"""What this deployment computes: a folder per hook, each with its `defs.yaml`."""
