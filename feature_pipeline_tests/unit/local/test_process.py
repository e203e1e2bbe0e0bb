"""What processes of local servers are started with."""

from collections.abc import Iterator

from feature_pipeline.local.process import read_environment


class Shrinking(dict[str, str]):
    """An environment from which another thread removes a variable once its names were listed."""

    def __iter__(self) -> Iterator[str]:
        names = list(super().__iter__())
        self.pop("PGSERVICE", None)
        return iter(names)


def test_an_environment_is_read_while_another_thread_removes_a_variable() -> None:
    environment = Shrinking(HOME="/home/a", PGSERVICE="elsewhere")
    assert read_environment(environment) == {"HOME": "/home/a"}
