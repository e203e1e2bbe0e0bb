"""libpq without its surroundings: what its variables say has no effect on our connections.

libpq takes from the environment whatever a connection does not give: another host address, a
service, a protocol. Giving everything does not help: some settings have no value that means the
default, and a service that is named but not found is an error. So the variables are taken out of
the process's environment while a connection is made.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PREFIX: Final = "PG"
"""How the names of all variables begin that a libpq reads: psycopg and psycopg2 bring versions of
their own, and a newer one reads more."""

_lock: Final = threading.Lock()
_held: dict[str, str] = {}
_users = 0


@contextmanager
def nothing_ambient() -> Iterator[None]:
    """Connections made inside take nothing from libpq's variables; those are back afterwards.

    Any number of threads may be inside. A connection that is open already is not touched.
    """
    global _users
    with _lock:
        _users += 1
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            _held[name] = os.environ.pop(name)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for name in list(_held):
                    os.environ.setdefault(name, _held.pop(name))
