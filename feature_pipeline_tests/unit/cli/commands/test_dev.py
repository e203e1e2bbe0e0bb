"""`feature-pipeline dev`: it ends what it started."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from feature_pipeline.cli.commands import dev as dev_module


class Dagster:
    """Processes that only note whether they run; once they do, standard output is closed."""

    url = "http://127.0.0.1:3000"

    def __init__(self) -> None:
        self.is_running = self.was_started = False

    def start(self) -> None:
        self.is_running = self.was_started = True

    def stop(self) -> None:
        self.is_running = False

    def say(self, text: str) -> None:
        if self.is_running:
            raise BrokenPipeError


def test_dagster_is_stopped_when_the_reader_of_its_output_is_gone(monkeypatch, tmp_path):
    @contextmanager
    def no_servers(*arguments: object):
        yield SimpleNamespace()

    dagster = Dagster()
    project = SimpleNamespace(root=tmp_path, workspace_file=tmp_path, dotenv=tmp_path / ".env")
    monkeypatch.setattr(dev_module.Project, "find", lambda: project)
    monkeypatch.setattr(dev_module, "local_servers", no_servers)
    monkeypatch.setattr(dev_module, "DagsterProcesses", lambda *_: dagster)
    monkeypatch.setattr(dev_module, "Output", lambda: dagster)
    monkeypatch.setattr(dev_module.signal, "signal", lambda *arguments: None)
    with pytest.raises(BrokenPipeError):
        dev_module.dev(tmp_path)
    assert dagster.was_started
    assert not dagster.is_running
