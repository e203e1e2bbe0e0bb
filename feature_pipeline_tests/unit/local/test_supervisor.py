"""Servers that die are started again, and one that dies again and again is given up."""

import pytest

from feature_pipeline.errors import StoreUnavailableError
from feature_pipeline.local.supervisor import MAX_DEATHS, WITHIN_SECONDS, Supervisor


class Fake:
    """A server; `starts` is how many starts succeed before one does not."""

    def __init__(self, starts: int = 1000) -> None:
        self.is_dead = False
        self.starts = starts

    def check(self) -> None:
        if self.is_dead:
            raise StoreUnavailableError("SIGTERM ended Fake (status 143). The last lines of x: y")

    def start(self) -> None:
        if self.starts == 0:
            raise StoreUnavailableError("Fake did not answer within 5 s. The last lines of x: y")
        self.starts -= 1
        self.is_dead = False


class Watched:
    def __init__(self, server: Fake) -> None:
        self.now = 0.0
        self.messages: list[str] = []
        self.server = server
        self.supervisor = Supervisor(
            {"Other": Fake(), "Fake": server}, self.messages.append, lambda: self.now
        )

    def die(self) -> None:
        self.server.is_dead = True
        self.supervisor.look()


def test_a_dead_server_is_restarted_and_reported() -> None:
    watched = Watched(Fake())
    watched.supervisor.look()
    assert watched.messages == []
    watched.die()
    assert watched.messages == [
        "SIGTERM ended Fake (status 143); restarting it ...",
        "Fake runs again.",
    ]
    watched.supervisor.look()
    assert len(watched.messages) == 2


def test_many_deaths_in_a_short_while_end_it() -> None:
    watched = Watched(Fake())
    for _ in range(MAX_DEATHS):
        watched.die()
    with pytest.raises(
        StoreUnavailableError, match=r"started again 5 times within 5 minutes.*x: y"
    ):
        watched.die()


def test_deaths_that_are_far_apart_do_not() -> None:
    watched = Watched(Fake())
    for _ in range(3 * MAX_DEATHS):
        watched.now += WITHIN_SECONDS / 2
        watched.die()
    assert not watched.server.is_dead


def test_a_server_that_does_not_start_is_tried_again_and_given_up() -> None:
    watched = Watched(Fake(starts=0))
    watched.die()
    assert watched.messages[-1] == "Fake did not start: Fake did not answer within 5 s"
    watched.server.starts = 1
    watched.supervisor.look()
    assert watched.messages[-1] == "Fake runs again."
    watched.server.starts = 0
    watched.server.is_dead = True
    for _ in range(MAX_DEATHS - 2):
        watched.supervisor.look()
    with pytest.raises(StoreUnavailableError, match="started again"):
        watched.supervisor.look()
