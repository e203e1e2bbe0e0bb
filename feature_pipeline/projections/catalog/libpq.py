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

from psycopg import pq

VARIABLES: Final = frozenset(
    option.envvar.decode() for option in pq.Conninfo.get_defaults() if option.envvar
) | {"PGSERVICEFILE", "PGSYSCONFDIR", "PGREQUIRESSL", "PGREALM", "PGTZ", "PGDATESTYLE", "PGGEQO"}
"""What libpq reads, of whichever version."""

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
        for name in VARIABLES & os.environ.keys():
            _held[name] = os.environ.pop(name)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for name in list(_held):
                    os.environ.setdefault(name, _held.pop(name))
