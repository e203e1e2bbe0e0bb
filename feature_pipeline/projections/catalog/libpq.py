"""Connect with libpq: without its environment variables, to a server that may fall silent.

libpq reads from the environment every setting that a connection does not set: another host address,
a service, a protocol. Setting everything does not help: some settings have no value that means the
default, and a named service that does not exist is an error. So the variables are removed from the
process's environment while a connection is opened.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PREFIX: Final = "PG"
"""Prefix of all of libpq's variables: psycopg and psycopg2 include versions of their own, and a
newer one reads more.
"""

PATIENCE: Final = {
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "6",
    "tcp_user_timeout": "90000",
}
"""How long a server may be silent: 10 seconds while it accepts a connection, 90 seconds afterwards.

A network may drop packets without a reset, and a machine may lose its power. Operating systems wait
for two hours. What an address sets outranks this.
"""

_lock: Final = threading.Lock()
_removed: dict[str, str] = {}
_users = 0


@contextmanager
def nothing_ambient() -> Iterator[None]:
    """Remove libpq's variables from the environment during the block, then restore them.

    Any number of threads may be inside. Open connections are not affected.
    """
    global _users
    with _lock:
        _users += 1
        for name in [name for name in os.environ if name.startswith(PREFIX)]:
            _removed[name] = os.environ.pop(name)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                for name in list(_removed):
                    os.environ.setdefault(name, _removed.pop(name))
