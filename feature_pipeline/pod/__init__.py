"""The programs that run in a hook's pod: stage before it, publish after it, a wrapper around it.

What belongs here: what needs nothing but the standard library and URLs that the worker signed.
Not here: credentials, the archive's layout, what the output means.
`docs/adr/006-pod-permissions.md` says what each of them may do.
"""
