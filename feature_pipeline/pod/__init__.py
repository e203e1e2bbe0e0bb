"""The programs of a hook's pod: stage before the hook, publish after it, a wrapper around it.

What belongs here: what needs only the standard library and URLs signed by the worker. Not here:
credentials, the archive's layout, what the output means. `docs/adr/006-pod-permissions.md` lists
what each of them may do.
"""
