"""Restart servers that have died, and give up on one that keeps dying."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, Protocol

from feature_pipeline.errors import StoreUnavailableError

MAX_DEATHS: Final = 5
WITHIN_SECONDS: Final = 300.0


class Server(Protocol):
    """A server that can be checked and restarted."""

    def check(self) -> None:
        """Raise StoreUnavailableError, with the log's last lines, if it has died."""

    def start(self) -> None:
        """Start it at its previous address, and return when it answers."""


class Supervisor:
    """Watches servers by name.

    Args:
        servers: In the order in which they depend on one another.
        say: Prints one line for the user.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        servers: Mapping[str, Server],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers = servers
        self._say = say
        self._clock = clock
        self._deaths: dict[str, deque[float]] = {name: deque() for name in servers}

    def look(self) -> None:
        """Restart each server that has died.

        Raises:
            StoreUnavailableError: One died, or did not start, `MAX_DEATHS` times within
                `WITHIN_SECONDS`; with its log's last lines.
        """
        for name, server in self._servers.items():
            try:
                server.check()
            except StoreUnavailableError as error:
                self._restart(name, server, error)

    def _restart(self, name: str, server: Server, error: StoreUnavailableError) -> None:
        self._count(name, error)
        self._say(f"{str(error).partition('. ')[0]}; restarting it ...")
        try:
            server.start()
        except StoreUnavailableError as failure:
            # The next look counts it, and tries again.
            self._say(f"{name} did not start: {str(failure).partition('. ')[0]}")
        else:
            self._say(f"{name} runs again.")

    def _count(self, name: str, error: StoreUnavailableError) -> None:
        deaths, now = self._deaths[name], self._clock()
        deaths.append(now)
        while now - deaths[0] > WITHIN_SECONDS:
            deaths.popleft()
        if len(deaths) > MAX_DEATHS:
            raise StoreUnavailableError(
                f"{name} was started again {MAX_DEATHS} times within"
                f" {WITHIN_SECONDS / 60:g} minutes. {error}"
            ) from error
