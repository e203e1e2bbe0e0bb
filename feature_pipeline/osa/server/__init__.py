"""What the server has: tables, files, ids, and the rules by which it reads its own output.

Not here: what any of it becomes in the archive.
"""
