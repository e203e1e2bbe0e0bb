"""Work beside an unmodified Open Science Archive server, by its database and its storage.

Belongs here: everything that knows the names of that server's tables, columns, files and ids. Its
storage is only read, and its database is read in read-only sessions, except by `restore`. No code
of the server is imported. Not here: what is stored, which is the archive's, and decoding of output,
which is the hooks'.
"""
