"""Work beside an unmodified Open Science Archive server: read its database and its storage.

Belongs here: everything that knows the names of that server's tables, columns, files and ids. Its
database is read in read-only sessions, and nothing is ever written to its storage. No code of the
server is imported. Not here: what is stored, which is the archive's, and decoding of output, which
is the hooks'.
"""
