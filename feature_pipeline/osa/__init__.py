"""Work beside an unmodified Open Science Archive server: read its database.

Belongs here: everything that knows the names of that server's tables and columns. Its database is
read in read-only sessions. No code of the server is imported. Not here: what is stored, which is
the archive's, and decoding of output, which is the hooks'.
"""
